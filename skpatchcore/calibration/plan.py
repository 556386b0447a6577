"""The calibration plan: which good images are scored against a model that has not learnt from them.

A training image's own patches are in the memory bank, so its score against the whole bank is far too low: a threshold
from such scores flags most good images. A plan leaves each image out of what it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, KFold

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import progress_bar
from skpatchcore._utils.warning import warn_user
from skpatchcore.images.views import View
from skpatchcore.patches.model import PatchModel, score_batches
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource, PatchStream

# Models without a group that leave-one-out keeps for later batches.
_N_MODELS = 16
# Learns a model from a subset of the patches.
Learn = Callable[[PatchSource], PatchModel]
# Returns the largest value of an anomaly map, from patch scores and a view.
PeakOf = Callable[[np.ndarray, View | None], float]


@dataclass
class CalibrationScores:
    """Scores of good images, **bigger = more anomalous**.

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
    """The model learns from all images; none is scored. Base class of the plans."""

    learnt: np.ndarray | None = None  # images that the model learns from; None: all
    extra_copies = 0  # of the patch features, made during calibration

    def images(self) -> np.ndarray:
        """Return the images that are scored, in ascending order."""
        return np.zeros(0, np.int64)

    def calibrate(
        self, stream: PatchStream, patches: PatchSource, model: PatchModel, learn: Learn, peak_of: PeakOf
    ) -> CalibrationScores:
        """Score the plan's images.

        Parameters
        ----------
        stream : PatchStream
            Of all images.
        patches : Patches or PatchStream
            Of the images that the model has learnt from.
        model : PatchModel
            Learnt from `patches`.
        learn : callable
            Learns a model from other patches.
        peak_of : callable
            Returns the maximum of an anomaly map.
        """
        return CalibrationScores()


class LeaveOneOut(NoCalibration):
    """The model learns from all images; each is scored without what was learnt from its group.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image.
    verbose : int
        1 shows a progress bar.
    """

    def __init__(self, groups: np.ndarray, verbose: int = 0):
        self.groups, self.verbose = groups, verbose

    def images(self) -> np.ndarray:
        """Return all images."""
        return np.arange(len(self.groups))

    def calibrate(
        self, stream: PatchStream, patches: PatchSource, model: PatchModel, learn: Learn, peak_of: PeakOf
    ) -> CalibrationScores:
        """Go through the patches once. NaN, with a warning, where nothing was learnt from other groups."""
        scores, peaks = np.full((2, len(self.groups)), np.nan)
        with progress_bar(len(self.groups), "calibrating", "image", self.verbose) as bar:
            for images, some, own in self._left_out(patches, model):
                if own is not None:
                    with default_modes():
                        scores[images], grids = own.score(some)
                        peaks[images] = [peak_of(grid, view) for grid, view in zip(grids, some.views, strict=True)]
                bar.update(len(images))
        if n_missing := int(np.isnan(scores).sum()):
            warn_user(
                f"{n_missing} of {len(scores)} training images could not be scored without their own patches, because "
                "everything that was learnt came from them: they do not count for the threshold. Fit on more images, "
                "or with a larger ratio.",
            )
        return CalibrationScores(self.images(), scores, peaks)

    def _left_out(
        self, patches: PatchSource, model: PatchModel
    ) -> Iterator[tuple[np.ndarray, Patches, PatchModel | None]]:
        """Yield images of one batch and one group, their patches, and the model without their group."""
        start = 0
        models: dict[int, PatchModel | None] = {}  # of the last groups: a group may go on in later batches
        for batch in patches:
            groups = self.groups[start : start + len(batch)]
            for group in np.unique(groups):
                if group not in models:
                    if len(models) >= _N_MODELS:
                        del models[next(iter(models))]
                    models[group] = model.without(np.flatnonzero(self.groups == group))
                here = np.flatnonzero(groups == group)
                yield start + here, batch.subset(here), models[group]
            start += len(batch)


class HeldOut(NoCalibration):
    """The model learns from a share of the images; the others are scored.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image; groups are held out whole.
    share : float in (0, 1)
        Fraction of the groups that is held out.
    rng : RandomState
        Draws the groups.
    """

    def __init__(self, groups: np.ndarray, share: float, rng: np.random.RandomState):
        self.learnt, self.held = hold_out(groups, share, rng)

    def images(self) -> np.ndarray:
        """Return the images held out."""
        return self.held

    def calibrate(
        self, stream: PatchStream, patches: PatchSource, model: PatchModel, learn: Learn, peak_of: PeakOf
    ) -> CalibrationScores:
        """Extract the patches of the images held out, and score these as new ones."""
        return CalibrationScores(self.held, *_scores_of(stream.subset(self.held), model, peak_of))


class CrossFitted(NoCalibration):
    """The model learns from all images; each is scored by a model of its own fold, which has not learnt from it.

    Parameters
    ----------
    n_images : int
        Number of images.
    groups : array of shape (n_images,) or None
        Group of each image; a group is scored in one fold. None: each image is its own group.
    cv : int or splitter
        Number of folds, or the splitter that makes them.
    rng : RandomState
        Draws the folds.
    verbose : int
        1 shows a progress bar.
    """

    extra_copies = 1  # a fold's patches are copied from all

    def __init__(self, n_images: int, groups: np.ndarray | None, cv: Any, rng: np.random.RandomState, verbose: int = 0):
        self.folds, self.verbose = make_folds(n_images, groups, cv, rng), verbose

    def images(self) -> np.ndarray:
        """Return the images of all test folds."""
        return np.sort(np.concatenate([scored for _, scored in self.folds]))

    def calibrate(
        self, stream: PatchStream, patches: PatchSource, model: PatchModel, learn: Learn, peak_of: PeakOf
    ) -> CalibrationScores:
        """Learn once per fold: from the patches that are held, or from a new pass over the stream."""
        parts = []
        with progress_bar(len(self.images()), "calibrating", "image", self.verbose) as bar:
            for learnt, scored in self.folds:
                own = learn(patches.subset(learnt))
                parts.append(_scores_of(patches.subset(scored), own, peak_of))
                bar.update(len(scored))
                del own  # before the next fold is copied
        order = np.concatenate([scored for _, scored in self.folds]).argsort()
        scores, peaks = (np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True))
        return CalibrationScores(self.images(), scores, peaks)


def _scores_of(patches: PatchSource, model: PatchModel, peak_of: PeakOf) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and peaks of images that the model has not learnt from."""
    parts = list(score_batches(patches, model, peak_of))
    return np.concatenate([scores for scores, _ in parts]), np.array([p for _, peaks in parts for p in peaks], float)


def kind_of(calibration: Any) -> type[NoCalibration]:
    """Return the kind of plan that a detector's parameter `calibration` stands for."""
    if calibration is None:
        return NoCalibration
    if isinstance(calibration, str):
        return LeaveOneOut
    return CrossFitted if _is_splitter(calibration) or isinstance(calibration, Integral) else HeldOut


def _is_splitter(calibration: Any) -> bool:
    return hasattr(calibration, "split")


def plan_calibration(
    calibration: Any,
    groups: np.ndarray | None,
    n_images: int,
    rng: np.random.RandomState,
    contamination: float | str = "auto",
    verbose: int = 0,
) -> NoCalibration:
    """Build the calibration plan: which images are scored against which model.

    Parameters
    ----------
    calibration : "leave-one-out", float, int, splitter or None
        The detector's parameter.
    groups : array of shape (n_images,) or None
        Group of each image; None: each image is its own group.
    n_images : int
        Number of images.
    rng : RandomState
        Draws held-out images and folds.
    contamination : float or "auto", default="auto"
        The detector's parameter.
    verbose : int, default=0
        1 shows progress bars.

    Returns
    -------
    NoCalibration
        Or one of its subclasses.

    Raises
    ------
    ValueError
        If all images share one group, if there are too few for the folds or for a share held out, or if a splitter
        scores an image twice.

    Warns
    -----
    UserWarning
        If the calibration images come from too few groups to promise `contamination` for images of new groups.
    """
    kind = kind_of(calibration)
    if kind is NoCalibration:
        return NoCalibration()
    if groups is not None and len(np.unique(groups)) == 1:
        raise ValueError(
            "groups: all images to learn from share one group, so none can be scored without its own group's. Give "
            "images of several groups, or calibration=None."
        )
    own = np.arange(n_images) if groups is None else groups
    plan: NoCalibration
    if kind is CrossFitted:
        plan = CrossFitted(n_images, groups, calibration, rng, verbose)
    elif kind is LeaveOneOut:
        plan = LeaveOneOut(own, verbose)
    else:
        plan = HeldOut(own, calibration, rng)
    if groups is not None:
        _warn_of_few_groups(len(np.unique(groups[plan.images()])), contamination)
    return plan


def _warn_of_few_groups(n_groups: int, contamination: float | str) -> None:
    if not isinstance(contamination, str) and n_groups + 1 < 1 / contamination:
        warn_user(
            f"contamination={contamination:g} was asked for, but the calibration images come from {n_groups} groups "
            f"only: of images of new groups, about 1/{n_groups + 1} = {1 / (n_groups + 1):.3g} may be flagged.",
        )


def hold_out(groups: np.ndarray, share: float, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Draw the groups that the model does not learn from.

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
        Images to learn from and images held out, each in ascending order.

    Raises
    ------
    ValueError
        If no group would be left to learn from.
    """
    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=rng)
    learnt, held = next(splitter.split(groups, groups=groups))
    return np.sort(learnt), np.sort(held)


def make_folds(
    n_images: int, groups: np.ndarray | None, cv: Any, rng: np.random.RandomState
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the images that each fold learns from, and those that it scores.

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
    if not _is_splitter(cv):
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
