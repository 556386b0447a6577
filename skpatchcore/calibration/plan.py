"""Scores of good images that had no part in the bank they are compared with: what thresholds are taken from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, KFold

from skpatchcore._utils.progress import progress_bar
from skpatchcore.bank.collect import Bank, collect_bank
from skpatchcore.bank.scoring import score_grids
from skpatchcore.maps import map_of, score_stream
from skpatchcore.patches.stream import PatchStream


@dataclass(frozen=True)
class Judge:
    """How images are scored.

    Attributes
    ----------
    n_neighbors : int
        *b* of Eq. 7.
    smoothing : float
        Of maps, in pixels of the network's input.
    verbose : int
        1 shows progress bars.
    """

    n_neighbors: int
    smoothing: float
    verbose: int = 0


@dataclass
class NominalScores:
    """Scores of good images, bigger = more anomalous.

    Attributes
    ----------
    images : array of shape (n,), int
        Which images of the stream these are.
    scores : array of shape (n,), float64
        Their scores. NaN where nothing is left to compare an image with.
    peaks : array of shape (n,), float64
        Maxima of their anomaly maps.
    """

    images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    peaks: np.ndarray = field(default_factory=lambda: np.zeros(0))


class NoCalibration:
    """The bank has all images; none is scored."""

    learnt: np.ndarray | None = None  # images for the bank; None stands for all
    extra_copies = 0  # of the patch features, while it works

    def score(self, stream: PatchStream, bank: Bank, sampler: Any, index: Any, judge: Judge) -> NominalScores:
        """Score images; see the subclasses."""
        return NominalScores()


class LeaveOneOut(NoCalibration):
    """The bank has all images; each is scored without the rows that came from its group.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image: its index where each is on its own.
    """

    def __init__(self, groups: np.ndarray):
        self.groups = groups

    def score(self, stream: PatchStream, bank: Bank, sampler: Any, index: Any, judge: Judge) -> NominalScores:
        """Search the bank once for all images. NaN where the whole bank came from an image's group, with a warning."""
        scores, peaks = np.full((2, len(self.groups)), np.nan)
        start, bank_groups = 0, self.groups[bank.images]
        with progress_bar(len(self.groups), "calibrating", "image", judge.verbose) as bar:
            for grids, views in bank.patches:
                for images, rows in leave_group_out(self.groups[start : start + len(grids)], bank_groups):
                    if len(rows) < len(bank.rows):
                        found, patch_scores = score_grids(index, bank.rows, grids.take(images), judge.n_neighbors, rows)
                        scores[start + images] = found
                        peaks[start + images] = [
                            map_of(s, views[i], judge.smoothing).max()
                            for i, s in zip(images, patch_scores, strict=True)
                        ]
                    bar.update(len(images))
                start += len(grids)
        if n_missing := int(np.isnan(scores).sum()):
            warnings.warn(
                f"{n_missing} of {len(scores)} training images could not be scored without their own rows, because "
                "the whole memory bank came from them: they don't count for the threshold. Fit on more images, "
                "or with a larger ratio.",
                UserWarning,
                stacklevel=3,
            )
        return NominalScores(np.arange(len(scores)), scores, peaks)


class HeldOut(NoCalibration):
    """A share of the images is kept out of the bank, and scored.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image; groups are kept out whole.
    share : float in (0, 1)
        Of the groups.
    rng : RandomState
        Draws them.
    """

    def __init__(self, groups: np.ndarray, share: float, rng: np.random.RandomState):
        self.learnt, self.held = hold_out(groups, share, rng)

    def score(self, stream: PatchStream, bank: Bank, sampler: Any, index: Any, judge: Judge) -> NominalScores:
        """Extract the features of the images kept out, and score these as new ones."""
        score = partial(score_grids, index, bank.rows, n_neighbors=judge.n_neighbors)
        scores, peaks = score_stream(stream.subset(self.held), score, judge.smoothing, of_map=np.max)
        return NominalScores(self.held, scores, np.array(peaks, np.float64))


class CrossFitted(NoCalibration):
    """The bank has all images; each is scored against a bank of its own fold, which was selected without it.

    Parameters
    ----------
    n_images : int
        How many there are.
    groups : array of shape (n_images,) or None
        Group of each image, of those that are scored together; None takes each as its own.
    cv : int or splitter
        Number of folds, or what makes them.
    rng : RandomState
        Draws them.
    max_memory : int, "auto" or None
        For each fold's bank, where features are not held.
    """

    extra_copies = 1  # a fold's features are picked out of all

    def __init__(
        self,
        n_images: int,
        groups: np.ndarray | None,
        cv: Any,
        rng: np.random.RandomState,
        max_memory: int | str | None,
    ):
        self.folds, self.max_memory = make_folds(n_images, groups, cv, rng), max_memory

    def score(self, stream: PatchStream, bank: Bank, sampler: Any, index: Any, judge: Judge) -> NominalScores:
        """Select and search a bank for each fold, from the features that are held; else they are extracted again."""
        parts = []
        with progress_bar(sum(len(scored) for _, scored in self.folds), "calibrating", "image", judge.verbose) as bar:
            for learnt, scored in self.folds:
                own_sampler, own_index = clone(sampler), clone(index)
                own = collect_bank(bank.patches.subset(learnt), own_sampler, self.max_memory)
                own_index.fit(own.rows)
                score = partial(score_grids, own_index, own.rows, n_neighbors=judge.n_neighbors)
                scores, peaks = score_stream(bank.patches.subset(scored), score, judge.smoothing, of_map=np.max)
                parts.append(NominalScores(scored, scores, np.array(peaks, np.float64)))
                bar.update(len(scored))
        images = np.concatenate([part.images for part in parts])
        order = images.argsort()
        return NominalScores(
            images[order],
            np.concatenate([part.scores for part in parts])[order],
            np.concatenate([part.peaks for part in parts])[order],
        )


def kind_of(calibration: Any) -> type[NoCalibration]:
    """Return what the detector's parameter `calibration` stands for."""
    if calibration is None:
        return NoCalibration
    if isinstance(calibration, str):
        return LeaveOneOut
    return CrossFitted if hasattr(calibration, "split") or isinstance(calibration, Integral) else HeldOut


def plan_calibration(
    calibration: Any, groups: np.ndarray | None, n_images: int, rng: np.random.RandomState, max_memory: Any
) -> NoCalibration:
    """Return who is scored without whom.

    Parameters
    ----------
    calibration : "leave-one-out", float, int, splitter or None
        The detector's parameter.
    groups : array of shape (n_images,) or None
        Group of each image; None takes each as its own.
    n_images : int
        How many there are.
    rng : RandomState
        For what is drawn.
    max_memory : int, "auto" or None
        As for `collect_bank`.

    Returns
    -------
    NoCalibration
        Or one of its subclasses.

    Raises
    ------
    ValueError
        If all images share one group, if there are too few for the folds or for a share held out, or if a splitter
        scores an image twice.
    """
    kind = kind_of(calibration)
    if kind is NoCalibration:
        return NoCalibration()
    if groups is not None and len(np.unique(groups)) == 1:
        raise ValueError(
            "groups: all images to learn from share one group, so none can be scored without its own group's. Give "
            "images of several groups, or calibration=None."
        )
    if kind is CrossFitted:
        return CrossFitted(n_images, groups, calibration, rng, max_memory)
    if groups is None:
        groups = np.arange(n_images)
    return LeaveOneOut(groups) if kind is LeaveOneOut else HeldOut(groups, calibration, rng)


def leave_group_out(groups: np.ndarray, bank_groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each group, the images that belong to it and the rows of the bank that came from it.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image: its index where each is on its own.
    bank_groups : array of shape (n_bank,)
        Group of the image that each row of the bank came from.

    Yields
    ------
    images, rows : arrays of int
        Indices into the two.
    """
    for group in np.unique(groups):
        yield np.flatnonzero(groups == group), np.flatnonzero(bank_groups == group)


def hold_out(groups: np.ndarray, share: float, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Draw the groups that are kept out of the bank.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image: its index where each is on its own.
    share : float in (0, 1)
        Of the groups; rounded up.
    rng : RandomState
        Draws them.

    Returns
    -------
    learnt, held : arrays of int
        Images for the bank and images held out, each in ascending order.

    Raises
    ------
    ValueError
        If no group would be left for the bank.
    """
    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=rng)
    learnt, held = next(splitter.split(groups, groups=groups))
    return np.sort(learnt), np.sort(held)


def make_folds(
    n_images: int, groups: np.ndarray | None, cv: Any, rng: np.random.RandomState
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the images of each fold's bank, and those that are scored against it.

    Parameters
    ----------
    n_images : int
        How many there are.
    groups : array of shape (n_images,) or None
        Group of each image; None takes each as its own.
    cv : int or splitter
        Number of folds, which are drawn by group; or what has scikit-learn's ``split(X, y, groups)``.
    rng : RandomState
        Draws the folds of a number.

    Returns
    -------
    list of (array of int, array of int)

    Raises
    ------
    ValueError
        If a splitter would score an image twice, learn from an image or a group that it scores, or score none.
    """
    if not hasattr(cv, "split"):
        fold = KFold if groups is None else GroupKFold
        cv = fold(cv, shuffle=True, random_state=rng)
    nominal = np.ones(n_images, int)
    folds = [(np.sort(learnt), np.sort(scored)) for learnt, scored in cv.split(nominal[:, None], nominal, groups)]
    tested = [image for _, fold in folds for image in fold]
    if len(set(tested)) < max(len(tested), 1):
        raise ValueError(f"calibration={cv}: its test sets must not overlap, and must not all be empty.")
    for learnt, scored in folds:
        if len(np.intersect1d(learnt, scored)):
            raise ValueError(f"calibration={cv}: a fold learns from images that it scores.")
        if groups is not None and len(np.intersect1d(groups[learnt], groups[scored])):
            raise ValueError(
                f"calibration={cv}: a fold learns from groups that it scores; GroupKFold keeps them whole."
            )
    return folds
