"""Detectors that learn from all patch features at once: one way to fit, calibrate and score for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from numbers import Integral
from typing import Any, Protocol

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.progress import progress_bar, stage
from skpatchcore._utils.sklearn import fit_context
from skpatchcore.calibration.plan import hold_out, make_folds
from skpatchcore.detectors._image_detector import restored_on_failure
from skpatchcore.detectors._patch_detector import PatchOutlierMixin
from skpatchcore.detectors._stages import make_stage
from skpatchcore.images.views import View
from skpatchcore.maps import score_stream
from skpatchcore.patches.patches import HeldPatches, PatchGrids
from skpatchcore.patches.stream import PatchStream

Batch = tuple[PatchGrids, list[View | None]]
Folds = list[tuple[np.ndarray, np.ndarray]]


class PatchModel(Protocol):
    """What is learnt of good images' patch features."""

    def score(self, grids: PatchGrids, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return scores of images, and of each one's patches as a grid; bigger = more anomalous."""


class BaselineDetector(PatchOutlierMixin, BaseEstimator):
    """Fit and calibrate a model of patch features that are all held in memory.

    A subclass says how a model is learnt (`_learner`), and may refuse features on their way (`_accepted`).
    """

    smoothing: float
    random_state: Any
    model_: Any

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, *, groups: Any = None) -> Any:
        """Learn what good parts look like, and where the threshold lies.

        Parameters
        ----------
        X : sequence of images, or array of shape (n_images, height, width, n_channels)
            Images of good parts: paths, arrays or PIL images. Patch features with ``extractor="precomputed"``.
        y : array of shape (n_images,) or None, default=None
            +1 good, -1 anomalous: images with -1 are left out. Other labels are ignored, with a warning.
        groups : array of shape (n_images,) or None, default=None
            Images that share a group show the same part: calibration leaves out the whole group.

        Returns
        -------
        detector
            Itself.

        Raises
        ------
        ImageError
            If an image can't be read or isn't one; the error names its index and path.
        ValueError
            If a parameter is out of its range, lengths differ, no image is left, all share one group, or features hold
            NaN.
        WeightsError
            If the network's weights can't be had.

        Warns
        -----
        UserWarning
            If `y` holds other labels than +1 and -1, or if there are too few images or groups to calibrate.
        """
        with restored_on_failure(self):
            return self._fit(X, y, groups)

    def _fit(self, X: Any, y: Any, groups: Any) -> Any:
        rng = check_random_state(self.random_state)
        rng_or_none = None if self.random_state is None else rng
        extractor = make_stage("extractor", self.extractor, rng_or_none, self.verbose)
        X, kept, groups = self._nominal_images(X, y, groups, extractor)
        learnt, folds = self._plan(groups, len(kept), rng)
        seed = int(rng.randint(2**31 - 1))
        if extractor is not None:
            extractor.fit(X)
        stream = PatchStream(extractor, X, kept, verbose=self.verbose)
        batches = self._accepted(stream, kept)
        first = next(batches)
        held = HeldPatches.gather(chain([first], batches), stream.expected_patches(first[0]))
        with stage("learning"):
            learn = self._learner(held.grids, seed)
            model = learn(learnt)
        with stage("calibration"):
            images, scores, peaks = self._calibrated(held, model, learn, learnt, folds)
        self.extractor_, self.model_ = extractor, model
        self._set_thresholds(scores, peaks, kept[images], self.contamination)
        if groups is not None and len(images):
            self._warn_of_few_groups(len(np.unique(groups[images])))
        return self

    def _learner(self, grids: PatchGrids, seed: int) -> Callable[[np.ndarray], PatchModel]:
        """Return a function that learns from some of the images: of all but a few it is asked again and again."""
        raise NotImplementedError

    def _accepted(self, stream: Iterable[Batch], numbers: np.ndarray, model: Any = None) -> Iterator[Batch]:
        """Yield the batches of a stream; raise where they can't be learnt from, or compared with what was learnt."""
        yield from stream

    def _plan(self, groups: np.ndarray | None, n_images: int, rng: np.random.RandomState) -> tuple[np.ndarray, Folds]:
        """Return the images to learn from, and the folds in which others are learnt from and scored."""
        everyone = np.arange(n_images)
        if self.calibration is None:
            return everyone, []
        own = everyone if groups is None else groups
        if len(np.unique(own)) == 1:
            if groups is not None:
                raise ValueError(
                    "groups: all images to learn from share one group, so none can be scored without its own group's. "
                    "Give images of several groups, or calibration=None."
                )
            warnings.warn("there is one image only: nothing is left to score it by, so there is no threshold.",
                          UserWarning, stacklevel=4)  # fmt: skip
            return everyone, []
        if isinstance(self.calibration, str):
            return everyone, make_folds(n_images, own, LeaveOneGroupOut(), rng)
        if hasattr(self.calibration, "split") or isinstance(self.calibration, Integral):
            return everyone, make_folds(n_images, groups, self.calibration, rng)
        learnt, scored = hold_out(own, self.calibration, rng)
        return learnt, [(learnt, scored)]

    def _calibrated(
        self,
        held: HeldPatches,
        model: PatchModel,
        learn: Callable[[np.ndarray], PatchModel],
        learnt: np.ndarray,
        folds: Folds,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the images that calibrate, in order, their scores (bigger = more normal) and maxima of their maps."""
        images = np.concatenate([np.zeros(0, np.int64), *(scored for _, scored in folds)])
        scores, peaks = np.empty((2, len(images)))
        done = 0
        with progress_bar(len(images), "calibrating", "image", self.verbose) as bar:
            for others, scored in folds:
                own = model if np.array_equal(others, learnt) else learn(others)
                here = slice(done, done + len(scored))
                scores[here], maxima = score_stream(held.subset(scored), own.score, self.smoothing, of_map=np.max)
                peaks[here] = maxima
                done += len(scored)
                bar.update(len(scored))
        order = images.argsort()
        return images[order], -scores[order], peaks[order]

    def _score(self, X: Any, of_map: Callable[[np.ndarray], Any] | None) -> tuple[np.ndarray, list[Any]]:
        check_is_fitted(self, "model_")
        stream = self._stream(X, with_views=of_map is not None)
        batches = self._accepted(stream, stream.numbers, self.model_)
        scores, kept = score_stream(batches, self.model_.score, self.smoothing, of_map)
        return -scores, kept


def check_channels(grids: PatchGrids, n_channels: int) -> None:
    """Raise a ValueError if patch features have other channels than those that were learnt from."""
    if grids.rows.shape[1] != n_channels:
        raise ValueError(
            f"patch features have {grids.rows.shape[1]} channels, but those learnt from have {n_channels}."
        )


def as_patch_scores(distances: np.ndarray, grids: PatchGrids) -> list[np.ndarray]:
    """Return distances, one a row of `grids`, as one grid an image."""
    parts = np.split(distances, grids.starts[1:-1])
    return [part.reshape(size) for part, size in zip(parts, grids.sizes, strict=True)]
