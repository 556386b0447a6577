"""Calibration plans: which good images are scored, and against which model.

Patches of a training image can be in the memory bank. The anomaly score of the image against the whole bank is then far
too low, and a threshold from such scores flags most new good images. A calibration plan therefore scores each image
against a model without the patches of the image. :class:`LeaveOneOut` and :class:`HeldOut` are two plans; the plans
with folds are in :mod:`skpatchcore.calibration.folds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import GroupShuffleSplit

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import progress_bar
from skpatchcore._utils.warning import warn_user
from skpatchcore.calibration.sketches import no_sketches
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View
from skpatchcore.patches.model import PatchModel, score_batches
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource, PatchStream

# Maximum number of leave-one-out models that are kept for later batches.
_N_MODELS = 16
# Callable that returns the sketch of an anomaly map (see `sketch_of_map`) from patch scores, a view and a mask.
SketchOf = Callable[[np.ndarray, View | None, PixelMask | None], np.ndarray]


@dataclass
class CalibrationScores:
    """Calibration scores of good images, **bigger = more anomalous**.

    Attributes
    ----------
    images : array of shape (n,), int
        Indices of the calibration images in the stream.
    scores : array of shape (n,), float64
        Image scores. NaN for an image that cannot be scored, because all rows of the model come from its group.
    sketches : array of shape (n, 2, n_levels), float32
        Sketch of each image's anomaly map; see :func:`~skpatchcore.calibration.sketches.sketch_of_map`. NaN where
        `scores` is NaN.
    slopes : (float, float)
        How fast the scores and the values of the sketches fall with the number of training images n: both are assumed
        to be proportional to ``n ** -slope``. 0 if this is unknown.
    """

    images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sketches: np.ndarray = field(default_factory=lambda: no_sketches(0))
    slopes: tuple[float, float] = (0.0, 0.0)


class ScoredPart(NamedTuple):
    """Scores of some calibration images by one model, **bigger = more anomalous**.

    Attributes
    ----------
    images : array of shape (n,), int
        Indices of the images in the stream.
    fold : int
        Number of the fold whose model scored the images; 0 for a plan without folds.
    scores, sketches : arrays of shape (n,) and (n, 2, n_levels)
        Scores and sketches, as in :class:`CalibrationScores`.
    """

    images: np.ndarray
    fold: int
    scores: np.ndarray
    sketches: np.ndarray


class NoCalibration:
    """Plan without calibration: the model is fitted on all images, and no image is scored. Base class of the plans.

    Attributes
    ----------
    learnt : array of int or None
        Indices of the images on which the model is fitted. None fits on all images.
    left_out : list of arrays of int
        Images that each fold leaves out. A model without these images is fitted for each fold.
    description : str
        How the calibration images are scored, in words.
    verbose : int
        1 shows a progress bar, 0 does not.
    """

    verbose: int = 0
    learnt: np.ndarray | None = None
    left_out: Sequence[np.ndarray] = ()
    description = "no calibration"

    def images(self) -> np.ndarray:
        """Return the indices of the calibration images, in ascending order."""
        return np.zeros(0, np.int64)

    def resolved(self, n_folds: Callable[[], int], is_corrected: bool = True) -> NoCalibration:
        """Return the plan itself, or the plan that is chosen when the patches are known.

        Parameters
        ----------
        n_folds : callable
            ``n_folds()`` returns the number of folds that are affordable. 0 means that no folds are needed.
        is_corrected : bool, default=True
            Whether scores of folds are corrected for the images that the folds leave out.
        """
        return self

    def calibrate(
        self,
        stream: PatchStream,
        patches: PatchSource,
        model: PatchModel,
        fold_models: Iterable[Sequence[PatchModel]],
        sketch_of: SketchOf,
    ) -> CalibrationScores:
        """Score the calibration images.

        If `patches` are held in memory, no image is read again. Otherwise, all patches are extracted again, with folds
        for each list of models.

        Parameters
        ----------
        stream : PatchStream
            Patches of all images.
        patches : Patches or PatchStream
            Patches of the images on which the model is fitted.
        model : PatchModel
            Model that is fitted on `patches`.
        fold_models : iterable of lists of PatchModel
            Per item of `left_out`, the model that is fitted without these images. The models of one list are in memory
            at the same time.
        sketch_of : callable
            ``sketch_of(patch_scores, view, mask)`` returns the sketch of an anomaly map.

        Returns
        -------
        CalibrationScores
            Scores and sketches, bigger = more anomalous.
        """

        def reported() -> Iterator[ScoredPart]:
            for part in self.scored(patches, model, fold_models, sketch_of):
                yield part
                bar.update(len(part.images))

        with progress_bar(self.n_scores(), "calibrating", "image", self.verbose) as bar:
            return self.joined(reported())

    def n_scores(self) -> int:
        """Return the number of scores that are computed. An image may be scored by several models."""
        return len(self.images())

    def scored(
        self,
        patches: PatchSource,
        model: PatchModel,
        fold_models: Iterable[Sequence[PatchModel]],
        sketch_of: SketchOf,
        first: int = 0,
    ) -> Iterator[ScoredPart]:
        """Yield the scores of those calibration images whose patches are given.

        Parameters
        ----------
        patches : Patches or PatchStream
            Patches of consecutive images: of all images, or of a part of them.
        model, fold_models, sketch_of
            As for `calibrate`.
        first : int, default=0
            Index of the first image in `patches` among all images.
        """
        yield from ()

    def joined(self, parts: Iterable[ScoredPart]) -> CalibrationScores:
        """Return the calibration scores from the scores of all parts, in any order."""
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

    description = "leave-one-out"

    def __init__(self, groups: np.ndarray, verbose: int = 0):
        self.groups, self.verbose = groups, verbose

    def images(self) -> np.ndarray:
        """Return the indices of all images."""
        return np.arange(len(self.groups))

    def scored(
        self,
        patches: PatchSource,
        model: PatchModel,
        fold_models: Iterable[Sequence[PatchModel]],
        sketch_of: SketchOf,
        first: int = 0,
    ) -> Iterator[ScoredPart]:
        """Score the images in one pass over the patches.

        An image cannot be scored if the model consists only of patches of the image's own group. Such an image gets the
        score NaN.
        """
        for images, some, own in self._left_out(patches, model, first):
            scores, sketches = np.full(len(images), np.nan), no_sketches(len(images))
            if own is not None:
                with default_modes():
                    scores, grids = own.score(some)
                    of_images = zip(grids, some.views, some.masks, strict=True)
                    sketches = np.array([sketch_of(*image) for image in of_images])
            yield ScoredPart(images, 0, scores, sketches)

    def joined(self, parts: Iterable[ScoredPart]) -> CalibrationScores:
        """Return the scores of all images. Warn if some images could not be scored."""
        scores, sketches = joined_parts(parts, len(self.groups))
        if n_missing := int(np.isnan(scores).sum()):
            warn_user(
                f"{n_missing} of {len(scores)} training images could not be scored without their own patches, because "
                "the model consists of their patches only. These images are not used for the threshold. Fit on more "
                "images, or with a larger ratio.",
            )
        return CalibrationScores(self.images(), scores, sketches)

    def _left_out(
        self, patches: PatchSource, model: PatchModel, start: int
    ) -> Iterator[tuple[np.ndarray, Patches, PatchModel | None]]:
        """Yield the images of one batch and one group, their patches, and the model without the group.

        The images of a group may be spread over several batches. The models of the last groups are therefore kept.
        """
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
        self.description = f"{len(self.held)} held-out images"

    def images(self) -> np.ndarray:
        """Return the indices of the held-out images, in ascending order."""
        return self.held

    def calibrate(
        self,
        stream: PatchStream,
        patches: PatchSource,
        model: PatchModel,
        fold_models: Iterable[Sequence[PatchModel]],
        sketch_of: SketchOf,
    ) -> CalibrationScores:
        """Extract the patches of the held-out images and score them with the model."""
        return self.joined(self.scored(stream.subset(self.held), model, (), sketch_of))

    def scored(
        self,
        patches: PatchSource,
        model: PatchModel,
        fold_models: Iterable[Sequence[PatchModel]],
        sketch_of: SketchOf,
        first: int = 0,
    ) -> Iterator[ScoredPart]:
        """Score held-out images with the model. The patches are those of held-out images; `first` counts only these."""
        for scores, sketches in score_batches(patches, model, sketch_of):
            yield ScoredPart(self.held[first : first + len(scores)], 0, scores, np.array(sketches))
            first += len(scores)

    def joined(self, parts: Iterable[ScoredPart]) -> CalibrationScores:
        """Return the scores of the held-out images."""
        scores, sketches = joined_parts(parts, self.held.max(initial=-1) + 1)
        return CalibrationScores(self.held, scores[self.held], sketches[self.held])


def joined_parts(parts: Iterable[ScoredPart], n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and sketches of all images from those of parts; NaN for images without a score."""
    scores, sketches = np.full(n_images, np.nan), no_sketches(n_images)
    for part in parts:
        scores[part.images], sketches[part.images] = part.scores, part.sketches
    return scores, sketches


def scores_of(batches: Iterable[Patches], model: PatchModel, sketch_of: SketchOf) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and sketches of images on which the model was not fitted."""
    parts = list(score_batches(batches, model, sketch_of))
    return np.concatenate([scores for scores, _ in parts]), np.array([sketch for _, some in parts for sketch in some])


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
    n_groups = len(np.unique(groups))
    if math.ceil(share * n_groups) >= n_groups:
        raise ValueError(
            f"calibration={share:g} would hold out all of {n_groups} images or groups, so that none would be left to "
            "fit on. Fit on more, hold out a smaller fraction, or set calibration=None, which sets no thresholds."
        )
    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=rng)
    learnt, held = next(splitter.split(groups, groups=groups))
    return np.sort(learnt), np.sort(held)
