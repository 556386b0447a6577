"""ImageResult: everything that a detector says about one image; and how images that can't be scored are flagged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore.calibration.conformal import upper_tail_p_values
from skpatchcore.images.errors import ImageError
from skpatchcore.patches.stream import n_images_of

# From images to batches of anomaly scores, and what is kept of the maps.
IterScores = Callable[[Any], Iterator[tuple[np.ndarray, list[Any]]]]


def turned(scores: Any) -> Any:
    """Return anomaly scores (bigger = more anomalous) as scikit-learn's scores (bigger = more normal), or back.

    The only place where the sign turns: everything below this module has anomaly scores.
    """
    return -scores


@dataclass(frozen=True)
class ImageResult:
    """What a detector says about one image.

    Attributes
    ----------
    index : int
        Its position in `X`.
    image : path, array or PIL image
        The image as it was given.
    score : float
        As of ``score_samples``, **bigger = more normal**; NaN if the image could not be scored.
    decision : float
        As of ``decision_function``, negative = anomalous; NaN without a threshold, or if the image could not be scored.
    label : int or None
        +1 normal, -1 anomalous; None without a threshold. An image that could not be scored is anomalous.
    p_value : float
        As of ``p_values``, small = anomalous; NaN without a threshold, or if the image could not be scored.
    anomaly_map : array of shape (height, width), float32, or None
        **Bigger = more anomalous**; None if no maps were asked for, or the image could not be scored.
    error : ImageError or None
        Why the image could not be scored.
    """

    index: int
    image: Any
    score: float
    decision: float
    label: int | None
    p_value: float
    anomaly_map: np.ndarray | None
    error: ImageError | None


class Scored(NamedTuple):
    """Anomaly scores of the next images, or the error of the next one.

    Attributes
    ----------
    scores : array of shape (n,), float64
        Bigger = more anomalous; NaN for an image that could not be scored.
    kept : list
        What was kept of the maps; None for an image that could not be scored.
    error : ImageError or None
        Its error; `scores` has one item then.
    """

    scores: np.ndarray
    kept: list[Any]
    error: ImageError | None = None


def score_or_flag(X: Any, iter_scores: IterScores) -> Iterator[Scored]:
    """Score images one after the other, and go on after those that can't be scored.

    Parameters
    ----------
    X : sequence of images
        They are sliced.
    iter_scores : callable
        ``iter_scores(images)`` yields batches of scores; raises an ImageError with the index of the image.

    Returns
    -------
    iterator of Scored
        In the order of `X`. An image is scored twice at most: if another one of its batch fails.
    """
    n_images, done = n_images_of(X), 0

    def scored(start: int, stop: int) -> Iterator[Scored]:
        nonlocal done
        some = X if (start, stop) == (0, n_images) else safe_indexing(X, slice(start, stop))
        for scores, kept in iter_scores(some):
            done += len(scores)
            yield Scored(scores, kept)

    def flagged(start: int, stop: int) -> Iterator[Scored]:
        nonlocal done
        done = start
        while done < stop:
            begin = done
            try:
                yield from scored(begin, stop)
            except ImageError as error:
                failed = begin + error.index
                if not done <= failed < stop:  # an extractor of the user's counted in another way
                    raise
                if done < failed:  # the images before it in its batch
                    yield from flagged(done, failed)
                done = failed + 1
                flag = ImageError(error.message, failed, error.path)
                flag.__cause__ = error.__cause__
                yield Scored(np.full(1, np.nan), [None], flag)

    return flagged(0, n_images)


def results_of(
    X: Any, scored: Callable[[Any], Iterator[Scored]], calibration_scores: np.ndarray, offset: float, chunk_size: int
) -> Iterator[ImageResult]:
    """Yield what a detector says about each image.

    Parameters
    ----------
    X : sequence or iterable of images
        The images.
    scored : callable
        ``scored(images)`` yields the anomaly scores of a sequence of images.
    calibration_scores : array of shape (n_calibration,)
        Of the detector, bigger = more normal.
    offset : float
        Of the detector; NaN without a threshold.
    chunk_size : int
        Images that are taken at once from an iterable without a length.
    """
    has_threshold, calibration = not math.isnan(offset), turned(calibration_scores)
    for start, images in _chunks_of(X, chunk_size):
        done = start
        try:
            for anomaly_scores, maps, error in scored(images):
                label_of_failed = -1 if error is not None else None
                p_values = np.full(len(anomaly_scores), np.nan)
                if has_threshold and error is None:
                    p_values = upper_tail_p_values(calibration, anomaly_scores)
                for i, score in enumerate(turned(anomaly_scores).tolist()):
                    decision = score - offset
                    yield ImageResult(
                        index=done,
                        image=(images.iloc if isinstance(images, pd.DataFrame | pd.Series) else images)[done - start],
                        score=score,
                        decision=decision,
                        label=(1 if decision >= 0 else -1) if has_threshold else label_of_failed,
                        p_value=float(p_values[i]),
                        anomaly_map=maps[i] if maps else None,
                        error=_shifted(error, start) if error is not None else None,
                    )
                    done += 1
        except ImageError as error:
            if start == 0:
                raise
            raise _shifted(error, start) from error


def _chunks_of(X: Any, chunk_size: int) -> Iterator[tuple[int, Any]]:
    """Yield the index of the first of some images, and these: all if `X` has a length, otherwise chunks."""
    if hasattr(X, "__len__") or not isinstance(X, Iterable):
        yield 0, X
        return
    iterator, start = iter(X), 0
    while chunk := list(islice(iterator, chunk_size)):
        yield start, chunk
        start += len(chunk)


def _shifted(error: ImageError, start: int) -> ImageError:
    return error if not start else ImageError(error.message, start + error.index, error.path)


def as_stack(maps: Sequence[np.ndarray | None]) -> np.ndarray | list[Any]:
    """Return maps of one size as one array; a list if sizes differ or one is None."""
    same_size = len({None if anomaly_map is None else anomaly_map.shape for anomaly_map in maps}) == 1
    return np.stack([m for m in maps if m is not None]) if same_size and maps[0] is not None else list(maps)
