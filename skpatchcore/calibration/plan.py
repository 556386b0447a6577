"""Calibration plans: which good images are scored, and against which model; see :func:`plan_calibration`.

Patches of a training image can be in the memory bank. The anomaly score of the image against the whole bank is then far
too low, and a threshold from such scores flags most new good images. A calibration plan therefore scores each image
against a model without the patches of the image.
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

# Maximum number of leave-one-out models that are kept for later batches.
_N_MODELS = 16
# Callable that fits a model on a subset of the patches.
Learn = Callable[[PatchSource], PatchModel]
# Callable that returns the maximum of an anomaly map from patch scores and a view.
PeakOf = Callable[[np.ndarray, View | None], float]


@dataclass
class CalibrationScores:
    """Calibration scores of good images, **bigger = more anomalous**.

    Attributes
    ----------
    images : array of shape (n,), int
        Indices of the calibration images in the stream.
    scores : array of shape (n,), float64
        Image scores. NaN for an image that cannot be scored, because all rows of the model come from its group.
    peaks : array of shape (n,), float64
        Maximum of each image's anomaly map. NaN where `scores` is NaN.
    """

    images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    peaks: np.ndarray = field(default_factory=lambda: np.zeros(0))


class NoCalibration:
    """Plan without calibration: the model is fitted on all images, and no image is scored. Base class of the plans.

    Attributes
    ----------
    learnt : array of int or None
        Indices of the images on which the model is fitted. None fits on all images.
    extra_copies : int
        Number of copies of the patch features that are made during calibration.
    """

    learnt: np.ndarray | None = None
    extra_copies = 0

    def images(self) -> np.ndarray:
        """Return the indices of the calibration images, in ascending order."""
        return np.zeros(0, np.int64)

    def calibrate(
        self, stream: PatchStream, patches: PatchSource, model: PatchModel, learn: Learn, peak_of: PeakOf
    ) -> CalibrationScores:
        """Score the calibration images.

        Parameters
        ----------
        stream : PatchStream
            Patches of all images.
        patches : Patches or PatchStream
            Patches of the images on which the model is fitted.
        model : PatchModel
            Model that is fitted on `patches`.
        learn : callable
            ``learn(patches)`` fits a model on other patches.
        peak_of : callable
            ``peak_of(patch_scores, view)`` returns the maximum of an anomaly map.

        Returns
        -------
        CalibrationScores
            Scores and peaks, bigger = more anomalous.
        """
        return CalibrationScores()


class LeaveOneOut(NoCalibration):
    """Leave-one-out plan: the model is fitted on all images, and each image is scored without its own group.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image.
    verbose : int
        1 shows a progress bar, 0 does not.
    """

    def __init__(self, groups: np.ndarray, verbose: int = 0):
        self.groups, self.verbose = groups, verbose

    def images(self) -> np.ndarray:
        """Return the indices of all images."""
        return np.arange(len(self.groups))

    def calibrate(
        self, stream: PatchStream, patches: PatchSource, model: PatchModel, learn: Learn, peak_of: PeakOf
    ) -> CalibrationScores:
        """Score all images in one pass over the patches.

        An image cannot be scored if the model consists only of patches of the image's own group. Such an image gets the
        score NaN, with a warning.
        """
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
                "the model consists of their patches only. These images are not used for the threshold. Fit on more "
                "images, or with a larger ratio.",
            )
        return CalibrationScores(self.images(), scores, peaks)

    def _left_out(
        self, patches: PatchSource, model: PatchModel
    ) -> Iterator[tuple[np.ndarray, Patches, PatchModel | None]]:
        """Yield the images of one batch and one group, their patches, and the model without the group.

        The images of a group may be spread over several batches. The models of the last groups are therefore kept.
        """
        start = 0
        models: dict[int, PatchModel | None] = {}
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
    """Hold-out plan: the model is fitted on a fraction of the images, and the other images are scored.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image. All images of a group are held out together.
    share : float in (0, 1)
        Fraction of the groups that are held out.
    rng : RandomState
        Random number generator that selects the groups.
    """

    def __init__(self, groups: np.ndarray, share: float, rng: np.random.RandomState):
        self.learnt, self.held = hold_out(groups, share, rng)

    def images(self) -> np.ndarray:
        """Return the indices of the held-out images, in ascending order."""
        return self.held

    def calibrate(
        self, stream: PatchStream, patches: PatchSource, model: PatchModel, learn: Learn, peak_of: PeakOf
    ) -> CalibrationScores:
        """Extract the patches of the held-out images and score them with the model."""
        return CalibrationScores(self.held, *_scores_of(stream.subset(self.held), model, peak_of))


class CrossFitted(NoCalibration):
    """Cross-fitting plan: the images are divided into folds, and each fold is scored by a model of the other folds.

    The model that the detector uses for new images is fitted on all images.

    Parameters
    ----------
    n_images : int
        Number of images.
    groups : array of shape (n_images,) or None
        Group of each image. All images of a group are scored in the same fold. None makes each image its own group.
    cv : int or splitter
        Number of folds, or a splitter with the method ``split(X, y, groups)``.
    rng : RandomState
        Random number generator that shuffles the folds if `cv` is a number.
    verbose : int
        1 shows a progress bar, 0 does not.
    """

    extra_copies = 1  # the patches of a fold are a copy

    def __init__(self, n_images: int, groups: np.ndarray | None, cv: Any, rng: np.random.RandomState, verbose: int = 0):
        self.folds, self.verbose = make_folds(n_images, groups, cv, rng), verbose

    def images(self) -> np.ndarray:
        """Return the indices of the images in the test folds, in ascending order."""
        return np.sort(np.concatenate([scored for _, scored in self.folds]))

    def calibrate(
        self, stream: PatchStream, patches: PatchSource, model: PatchModel, learn: Learn, peak_of: PeakOf
    ) -> CalibrationScores:
        """Fit one model per fold and score the fold's test images.

        If `patches` are held in memory, no image is read again. Otherwise, each fold extracts patches again.
        """
        parts = []
        with progress_bar(len(self.images()), "calibrating", "image", self.verbose) as bar:
            for learnt, scored in self.folds:
                own = learn(patches.subset(learnt))
                parts.append(_scores_of(patches.subset(scored), own, peak_of))
                bar.update(len(scored))
                del own  # free the model before the patches of the next fold are copied
        order = np.concatenate([scored for _, scored in self.folds]).argsort()
        scores, peaks = (np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True))
        return CalibrationScores(self.images(), scores, peaks)


def _scores_of(patches: PatchSource, model: PatchModel, peak_of: PeakOf) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and peaks of images on which the model was not fitted."""
    parts = list(score_batches(patches, model, peak_of))
    return np.concatenate([scores for scores, _ in parts]), np.array([p for _, peaks in parts for p in peaks], float)


def kind_of(calibration: Any) -> type[NoCalibration]:
    """Return the class of plan for the value of a detector's parameter `calibration`."""
    if calibration is None:
        return NoCalibration
    if isinstance(calibration, str):
        return LeaveOneOut
    return CrossFitted if _is_splitter(calibration) or isinstance(calibration, Integral) else HeldOut


def _is_splitter(calibration: Any) -> bool:
    """Return True if an object has the method ``split`` of scikit-learn's splitters."""
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
        The detector's parameter `calibration`. A float is the fraction of the groups that are held out. An int is the
        number of folds. None turns calibration off.
    groups : array of shape (n_images,) or None
        Group of each image. None makes each image its own group.
    n_images : int
        Number of images.
    rng : RandomState
        Random number generator that selects held-out images and folds.
    contamination : float or "auto", default="auto"
        The detector's parameter `contamination`.
    verbose : int, default=0
        1 shows progress bars, 0 does not.

    Returns
    -------
    NoCalibration
        An instance of :class:`NoCalibration` or of one of its subclasses.

    Raises
    ------
    ValueError
        If all images have the same group, or if there are too few images for the number of folds or for the held-out
        fraction. A splitter raises the error if an image is in two test sets, if all test sets are empty, or if the
        training and the test set of a fold share an image or a group.

    Warns
    -----
    UserWarning
        If the calibration images come from so few groups that more than the fraction `contamination` of good images of
        new groups may be flagged.
    """
    kind = kind_of(calibration)
    if kind is NoCalibration:
        return NoCalibration()
    if groups is not None and len(np.unique(groups)) == 1:
        raise ValueError(
            "groups: all training images share one group, so no image can be scored by a model without its own group. "
            "Pass images of several groups, or set calibration=None."
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
    """Warn if the number of groups is too small to promise `contamination` for images of new groups."""
    if not isinstance(contamination, str) and n_groups + 1 < 1 / contamination:
        warn_user(
            f"contamination={contamination:g} cannot be promised for images of new groups, because the calibration "
            f"images come from {n_groups} groups only: about 1/{n_groups + 1} = {1 / (n_groups + 1):.3g} may be "
            "flagged. Fit on images of more groups, or increase contamination.",
        )


def hold_out(groups: np.ndarray, share: float, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Select the groups of images that are held out for calibration.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image. Without groups, the index of each image.
    share : float in (0, 1)
        Fraction of the groups that are held out. The number of groups is rounded up.
    rng : RandomState
        Random number generator that selects the groups.

    Returns
    -------
    learnt, held : arrays of int
        Indices of the images on which the model is fitted, and indices of the held-out images, each in ascending order.

    Raises
    ------
    ValueError
        If all groups would be held out, so that the model could not be fitted.
    """
    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=rng)
    learnt, held = next(splitter.split(groups, groups=groups))
    return np.sort(learnt), np.sort(held)


def make_folds(
    n_images: int, groups: np.ndarray | None, cv: Any, rng: np.random.RandomState
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the training images and the scored images of each fold.

    Parameters
    ----------
    n_images : int
        Number of images.
    groups : array of shape (n_images,) or None
        Group of each image. None makes each image its own group.
    cv : int or splitter
        Number of folds, or a splitter with scikit-learn's method ``split(X, y, groups)``. If `cv` is a number, all
        images of a group are in the same fold.
    rng : RandomState
        Random number generator that shuffles the folds if `cv` is a number.

    Returns
    -------
    list of (array of int, array of int)
        For each fold, the indices of the training images and of the scored images, each in ascending order.

    Raises
    ------
    ValueError
        If an image is in two test sets of a splitter, if all its test sets are empty, or if the training and the test
        set of a fold share an image or a group.
    """
    if not _is_splitter(cv):
        fold = KFold if groups is None else GroupKFold
        cv = fold(cv, shuffle=True, random_state=rng)
    nominal = np.ones(n_images, int)
    folds = [(np.sort(learnt), np.sort(scored)) for learnt, scored in cv.split(nominal[:, None], nominal, groups)]
    tested = [image for _, fold in folds for image in fold]
    if len(set(tested)) < max(len(tested), 1):
        raise ValueError(f"calibration={cv}: the test sets of a splitter must not overlap and must not all be empty.")
    for learnt, scored in folds:
        if len(np.intersect1d(learnt, scored)):
            raise ValueError(
                f"calibration={cv}: the training and test sets of a fold share images. Pass a splitter with disjoint "
                "training and test sets."
            )
        if groups is not None and len(np.intersect1d(groups[learnt], groups[scored])):
            raise ValueError(
                f"calibration={cv}: the training and test sets of a fold share groups. Use a splitter such as "
                "GroupKFold, which keeps the images of a group together."
            )
    return folds
