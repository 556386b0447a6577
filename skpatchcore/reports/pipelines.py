"""as_image_detector: a pipeline that ends in a detector, as a detector of image files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from skpatchcore._utils.loaded import is_instance_of
from skpatchcore.detectors import ImageResult
from skpatchcore.images.errors import ImageError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from skpatchcore.detectors import ImageDetector

# Images that the first steps get at once.
_CHUNK = 8


def as_image_detector(estimator: Any) -> Any:
    """Return a detector unchanged; return a pipeline that ends in a detector as a detector of image files."""
    return PreprocessingDetector(estimator) if _is_pipeline(estimator) else estimator


def detector_of(estimator: Any) -> Any:
    """Return the last step of a pipeline; return any other estimator unchanged."""
    if isinstance(estimator, PreprocessingDetector):
        estimator = estimator.pipeline
    return estimator[-1] if _is_pipeline(estimator) else estimator


def image_detector_of(estimator: Any) -> Any:
    """Return the detector if it reads image files itself; None for a pipeline whose first steps change images."""
    if isinstance(estimator, PreprocessingDetector):
        estimator = estimator.pipeline
    if _is_pipeline(estimator):
        return estimator[-1] if len(estimator) == 1 else None
    return estimator


def _is_pipeline(estimator: Any) -> bool:
    return is_instance_of(estimator, "sklearn.pipeline", "Pipeline")


class PreprocessingDetector:
    """A fitted pipeline whose last step is a detector, with the attributes that reports need.

    Parameters
    ----------
    pipeline : Pipeline
        Its first steps get lists of paths.
    """

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    @property
    def _last(self) -> ImageDetector:
        last: ImageDetector = self.pipeline[-1]
        return last

    @property
    def offset_(self) -> float:
        """Image threshold, bigger = more normal."""
        return float(self._last.offset_)

    @property
    def pixel_offset_(self) -> float:
        """Pixel threshold, bigger = more anomalous."""
        return float(self._last.pixel_offset_)

    @property
    def calibration_scores_(self) -> np.ndarray:
        """Scores of good images, bigger = more normal."""
        return self._last.calibration_scores_

    def iter_results(self, X: Sequence[str], *, on_error: str = "flag") -> Iterator[ImageResult]:
        """Yield the detector's result of each image. Its `image` is the output of the first steps.

        Parameters
        ----------
        X : sequence of str
            Paths of images.
        on_error : {"raise", "flag"}, default="flag"
            If "raise", an image that cannot be scored, or on which the first steps fail, raises an ImageError. If
            "flag", its result has the error.

        Yields
        ------
        ImageResult
            In the order of `X`.
        """
        for start in range(0, len(X), _CHUNK):
            chunk = list(X[start : start + _CHUNK])
            try:
                parts = [(start, chunk, self._prepared(chunk))]
            except Exception:  # of one image; the images are tried one by one below
                parts = [(start + i, [path], None) for i, path in enumerate(chunk)]
            for first, paths, images in parts:
                yield from self._scored(first, paths, images, on_error)

    def _scored(self, first: int, paths: list[str], images: Any, on_error: str) -> Iterator[ImageResult]:
        try:
            images = self._prepared(paths) if images is None else images
        except Exception as error:
            flag = ImageError(f"the steps before the detector failed: {error}", first, paths[0])
            if on_error == "raise":
                raise flag from error
            yield ImageResult(first, paths[0], math.nan, math.nan, -1, math.nan, None, flag)
            return
        for result in self._last.iter_results(images, on_error=on_error):
            yield replace(result, index=first + result.index)

    def _prepared(self, paths: list[str]) -> Any:
        images = self.pipeline[:-1].transform(paths) if len(self.pipeline) > 1 else paths
        if len(images) != len(paths):
            raise ValueError(f"the steps returned {len(images)} images for {len(paths)} images.")
        return images
