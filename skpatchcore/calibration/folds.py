"""Calibration plans with folds: each image is scored by a model that was fitted without the image's fold.

:class:`CrossFitted` is the plan of a given number of folds. :class:`Automatic` chooses the number of folds, and
:class:`Extrapolated` corrects the scores for the images that the folds leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold

from skpatchcore.calibration.plans import (
    CalibrationScores,
    LeaveOneOut,
    NoCalibration,
    ScoredPart,
    SketchOf,
    joined_parts,
    scores_of,
)
from skpatchcore.patches.model import PatchModel
from skpatchcore.patches.patches import N_IMAGES, Patches
from skpatchcore.patches.stream import PatchSource

# Number of coarse folds, whose scores show how scores depend on the number of training images.
_N_COARSE = 3


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

    def __init__(self, n_images: int, groups: np.ndarray | None, cv: Any, rng: np.random.RandomState, verbose: int = 0):
        self.folds, self.verbose = make_folds(n_images, groups, cv, rng), verbose
        everything = np.arange(n_images)
        self.left_out = [np.setdiff1d(everything, learnt) for learnt, _ in self.folds]
        self.description = f"{len(self.folds)} folds"

    def images(self) -> np.ndarray:
        """Return the indices of the images in the test folds, in ascending order."""
        return np.sort(np.concatenate([scored for _, scored in self.folds]))

    def scored(
        self,
        patches: PatchSource,
        model: PatchModel,
        fold_models: Iterable[Sequence[PatchModel]],
        sketch_of: SketchOf,
        first: int = 0,
    ) -> Iterator[ScoredPart]:
        """Score each fold's test images with the fold's model."""
        return scored_by_folds([scored for _, scored in self.folds], patches, fold_models, sketch_of, first)

    def joined(self, parts: Iterable[ScoredPart]) -> CalibrationScores:
        """Return the scores of the test images."""
        images = self.images()
        scores, sketches = joined_parts(parts, images[-1] + 1)
        return CalibrationScores(images, scores[images], sketches[images])


def scored_by_folds(
    tests: Sequence[np.ndarray],
    patches: PatchSource,
    fold_models: Iterable[Sequence[PatchModel]],
    sketch_of: SketchOf,
    first: int = 0,
) -> Iterator[ScoredPart]:
    """Score the test images of each fold with the model of the fold.

    Parameters
    ----------
    tests : sequence of arrays of int
        Test images of each fold.
    patches, fold_models, sketch_of, first
        As for :meth:`NoCalibration.scored`. Test images without patches are left out.

    Yields
    ------
    ScoredPart
        Scores of some test images of one fold.
    """
    n_done = 0
    for models in fold_models:
        for images, fold, some in _parts(patches, tests[n_done : n_done + len(models)], first):
            yield ScoredPart(images, n_done + fold, *scores_of([some], models[fold], sketch_of))
        n_done += len(models)
        del models  # free the models before the next ones are fitted


def _parts(patches: PatchSource, tests: Sequence[np.ndarray], start: int) -> Iterator[tuple[np.ndarray, int, Patches]]:
    """Yield test images of one fold, the position of the fold in `tests`, and the patches of these images.

    `tests` are the test images of each fold. `start` is the index of the first image in `patches`.
    """
    # A stream is read in its own batches: in other batches, the network's results may differ in the last bit.
    batches = [patches] if isinstance(patches, Patches) else patches
    for batch in batches:
        for fold, test in enumerate(tests):
            here = test[(test >= start) & (test < start + len(batch))]
            for i in range(0, len(here), N_IMAGES):
                images = here[i : i + N_IMAGES]
                yield images, fold, batch.subset(images - start)
        start += len(batch)


class Extrapolated(NoCalibration):
    """Cross-fitting plan that corrects the scores for the images which the folds leave out.

    The model of a fold is fitted on fewer images than the final model, so its anomaly scores of good images are a
    little higher (more anomalous). A few coarse folds leave out more images. The change of the scores from the coarse
    folds to the fine folds is extrapolated to the final model, which leaves out no image.

    Parameters
    ----------
    fine, coarse : CrossFitted
        Plans with many and with few folds of the same images.
    """

    def __init__(self, fine: CrossFitted, coarse: CrossFitted):
        self.fine, self.coarse = fine, coarse
        self.folds = [*fine.folds, *coarse.folds]
        self.left_out = [*fine.left_out, *coarse.left_out]
        self.description, self.verbose = fine.description, fine.verbose

    def images(self) -> np.ndarray:
        """Return the indices of all images."""
        return self.fine.images()

    def n_scores(self) -> int:
        """Return the number of scores: each image is scored by a fine and by a coarse fold."""
        return self.fine.n_scores() + self.coarse.n_scores()

    def scored(
        self,
        patches: PatchSource,
        model: PatchModel,
        fold_models: Iterable[Sequence[PatchModel]],
        sketch_of: SketchOf,
        first: int = 0,
    ) -> Iterator[ScoredPart]:
        """Score each image with the models of its fine and of its coarse fold."""
        return scored_by_folds([scored for _, scored in self.folds], patches, fold_models, sketch_of, first)

    def joined(self, parts: Iterable[ScoredPart]) -> CalibrationScores:
        """Extrapolate the scores of the fine folds to a model of all images."""
        n_images, n_fine = len(self.images()), len(self.fine.folds)
        kinds: tuple[list[ScoredPart], list[ScoredPart]] = ([], [])
        for part in parts:
            kinds[part.fold >= n_fine].append(part)
        (fine, sketches), (coarse, coarse_sketches) = (joined_parts(some, n_images) for some in kinds)
        shares = [self._mean_share(plan.left_out) for plan in (self.fine, self.coarse)]
        factor = extrapolation_factor(fine, coarse, *shares)
        peaks, coarse_peaks = (some[:, 0, 0].astype(np.float64) for some in (sketches, coarse_sketches))
        slopes = growth_slope(fine, coarse, *shares), growth_slope(peaks, coarse_peaks, *shares)
        sketches[:, 0] *= np.float32(extrapolation_factor(peaks, coarse_peaks, *shares))
        return CalibrationScores(self.images(), fine * factor, sketches, slopes)

    def _mean_share(self, left_out: Sequence[np.ndarray]) -> float:
        """Return the fraction of the images that the model of an image leaves out, averaged over the images."""
        n_left_out = np.array([len(images) for images in left_out])
        return float(np.average(n_left_out, weights=n_left_out)) / len(self.images())


def extrapolation_factor(fine: np.ndarray, coarse: np.ndarray, fine_share: float, coarse_share: float) -> float:
    """Return the factor that extrapolates scores of models of fewer images to a model of all images.

    Parameters
    ----------
    fine, coarse : arrays of shape (n_images,)
        Anomaly scores of the same good images by models that leave out few and many images, bigger = more anomalous.
        Only images with two positive scores count.
    fine_share, coarse_share : float
        Fraction of the images that each kind of model leaves out.

    Returns
    -------
    float
        Factor for the scores in `fine`. 1 if no image has two positive scores, if the coarse models do not leave out
        more images, or if the factor would be less than ``1 - fine_share``.

    Notes
    -----
    The mean logarithm of the scores is assumed to be a linear function of the fraction that is left out. This is the
    idea of the jackknife's correction of bias and of Richardson's extrapolation. The factor is the same for all images,
    so it does not change their order. It is an average over all images, so its own error is small.

    The distance to the nearest of n random points in d dimensions falls as ``n ** (-1 / d)``, at most as 1 / n.
    Therefore, a factor below ``1 - fine_share`` is not plausible. The coarse models are then too small to cover what
    all images have in common, e.g. one row per position of the grid. Their scores show nothing about larger models, and
    the scores are not corrected.

    References
    ----------
    Quenouille, "Notes on bias in estimation", Biometrika 43, 1956.
    """
    change = _mean_change(fine, coarse)
    factor = float(np.exp(-change * fine_share / (coarse_share - fine_share))) if coarse_share > fine_share else 1.0
    return factor if factor >= 1 - fine_share else 1.0


def growth_slope(fine: np.ndarray, coarse: np.ndarray, fine_share: float, coarse_share: float) -> float:
    """Return how fast the scores of good images fall as a model is fitted on more images.

    Parameters
    ----------
    fine, coarse, fine_share, coarse_share
        As for :func:`extrapolation_factor`.

    Returns
    -------
    float
        The mean logarithm of the scores is assumed to be a linear function of the logarithm of the number of images,
        with the slope ``-a``. The result is a, at least 0: scores do not grow with more images. 0 if a is unknown or
        larger than 1, which is not plausible: see the notes of :func:`extrapolation_factor`.
    """
    if not fine_share < coarse_share < 1:
        return 0.0
    slope = _mean_change(fine, coarse) / float(np.log1p(-fine_share) - np.log1p(-coarse_share))
    return slope if 0 <= slope <= 1 else 0.0


def _mean_change(fine: np.ndarray, coarse: np.ndarray) -> float:
    """Return the mean change of the logarithm of the scores; 0 if no image has two positive scores."""
    counts = (fine > 0) & (coarse > 0) & np.isfinite(fine) & np.isfinite(coarse)
    return float(np.mean(np.log(coarse[counts]) - np.log(fine[counts]))) if counts.any() else 0.0


class Automatic(NoCalibration):
    """Plan of ``calibration="auto"``: folds if the model needs them and they are affordable, otherwise leave-one-out.

    Parameters
    ----------
    n_images : int
        Number of images.
    groups : array of shape (n_images,) or None
        Group of each image. None makes each image its own group.
    rng : RandomState
        Random number generator that shuffles the folds.
    verbose : int
        1 shows a progress bar, 0 does not.
    """

    def __init__(self, n_images: int, groups: np.ndarray | None, rng: np.random.RandomState, verbose: int = 0):
        self.n_images, self.groups, self.verbose = n_images, groups, verbose
        self.seed = int(rng.randint(2**31 - 1))

    def images(self) -> np.ndarray:
        """Return the indices of all images."""
        return np.arange(self.n_images)

    def resolved(self, n_folds: Callable[[], int], is_corrected: bool = True) -> NoCalibration:
        """Return the plan with at most as many folds as groups; leave-one-out if `n_folds` returns 0."""
        own = np.arange(self.n_images) if self.groups is None else self.groups
        n_groups = len(np.unique(own))
        if n_groups < 2 or not (n_wanted := n_folds()):
            return LeaveOneOut(own, self.verbose)
        rng = np.random.RandomState(self.seed)
        fine = CrossFitted(self.n_images, self.groups, min(n_wanted, n_groups), rng, self.verbose)
        if len(fine.folds) <= _N_COARSE or not is_corrected:
            return fine
        return Extrapolated(fine, CrossFitted(self.n_images, self.groups, _N_COARSE, rng, self.verbose))


def is_splitter(calibration: Any) -> bool:
    """Return True if an object has the method ``split`` of scikit-learn's splitters."""
    return hasattr(calibration, "split")


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
    if not is_splitter(cv):
        n_groups = n_images if groups is None else len(np.unique(groups))
        if cv > n_groups:
            raise ValueError(
                f"calibration={cv}: there are only {n_groups} images or groups for {cv} folds. Use fewer folds, or set "
                "calibration=None, which sets no thresholds."
            )
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
