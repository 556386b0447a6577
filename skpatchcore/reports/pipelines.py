"""Pipelines that end in a detector, where a detector of image files is expected."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from skpatchcore.detectors import ImageDetector, ImageResult
from skpatchcore.images.errors import ImageError

# Images that the first steps are given at once.
_CHUNK = 8


def as_image_detector(estimator: Any) -> Any:
    """Return a detector as it is, and a pipeline that ends in one as a detector of image files."""
    return PreprocessingDetector(estimator) if isinstance(estimator, Pipeline) else estimator


def detector_of(estimator: Any) -> Any:
    """Return the detector itself: the last step of a pipeline, else the estimator."""
    if isinstance(estimator, PreprocessingDetector):
        estimator = estimator.pipeline
    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


class PreprocessingDetector:
    """A fitted pipeline whose last step is a detector, with the attributes that reports need.

    Parameters
    ----------
    pipeline : Pipeline
        Its first steps are given lists of paths.
    """

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    @property
    def _last(self) -> ImageDetector:
        last: ImageDetector = self.pipeline[-1]
        return last

    @property
    def offset_(self) -> float:
        """Threshold of the scores."""
        return float(self._last.offset_)

    @property
    def pixel_offset_(self) -> float:
        """Threshold of the anomaly maps."""
        return float(self._last.pixel_offset_)

    @property
    def calibration_scores_(self) -> np.ndarray:
        """Scores of good images, bigger = more normal."""
        return self._last.calibration_scores_

    def iter_results(self, X: Sequence[str], *, on_error: str = "flag") -> Iterator[ImageResult]:
        """Yield what the detector says of each image; `image` is what the steps before it returned.

        Parameters
        ----------
        X : sequence of str
            Paths of images.
        on_error : {"raise", "flag"}, default="flag"
            Whether an image that can't be scored, or that the first steps fail on, raises an ImageError.

        Yields
        ------
        ImageResult
            In the order of `X`.
        """
        for start in range(0, len(X), _CHUNK):
            chunk = list(X[start : start + _CHUNK])
            try:
                parts = [(start, chunk, self._prepared(chunk))]
            except Exception:  # one of them: which one is found below
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
            raise ValueError(f"{len(images)} images were made of {len(paths)}.")
        return images
