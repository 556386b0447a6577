"""ImageResult, the result of a detector for one image, and the scoring that continues after unreadable images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from skpatchcore._utils.warning import warn_user
from skpatchcore.calibration.conformal import upper_tail_p_values
from skpatchcore.images.containers import item_of, items_between, n_images_of
from skpatchcore.images.errors import ImageError, ImageWarning

# A function of images that yields, per batch, the anomaly scores and the values that are kept of the anomaly maps.
IterScores = Callable[[Any], Iterator[tuple[np.ndarray, list[Any]]]]


def turned(scores: Any) -> Any:
    """Convert anomaly scores (bigger = more anomalous) to scikit-learn's scores (bigger = more normal), or back.

    This is the only function that changes the sign. All modules below this one use anomaly scores.
    """
    return -scores


@dataclass(frozen=True)
class ImageResult:
    """Result of a detector for one image: score (**bigger = more normal**), label, p-value and anomaly map.

    Attributes
    ----------
    index : int
        Index of the image in `X`.
    image : path, array or PIL image
        The image as it was passed in `X`.
    score : float
        Score of ``score_samples``, **bigger = more normal**. NaN if the image could not be scored.
    decision : float
        Value of ``decision_function``, negative = anomalous. NaN if the detector has no threshold, or if the image
        could not be scored.
    label : int or None
        +1 for a normal image. -1 for an anomalous image, and for an image that could not be scored. None for an image
        with a score if the detector has no threshold.
    p_value : float
        P-value of ``p_values``, small = anomalous. NaN if the detector has no threshold, or if the image could not be
        scored.
    anomaly_map : array of shape (height, width), float32, or None
        Anomaly map, **bigger = more anomalous**. None if maps were not requested, or if the image could not be scored.
    error : ImageError or None
        The error if the image could not be scored, otherwise None.
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
    """Anomaly scores of the next images (**bigger = more anomalous**), or the error of the next image.

    Attributes
    ----------
    scores : array of shape (n,), float64
        Anomaly scores. NaN for an image that could not be scored.
    kept : list
        The values that were kept of the anomaly maps. None for an image that could not be scored.
    error : ImageError or None
        The error of an image that could not be scored. `scores` then has one item.
    """

    scores: np.ndarray
    kept: list[Any]
    error: ImageError | None = None


def check_on_error(on_error: str) -> None:
    """Raise a ValueError if the parameter `on_error` has an invalid value."""
    if on_error not in ("raise", "flag"):
        raise ValueError(f"on_error={on_error!r}: expected 'raise' or 'flag'.")


def gathered(parts: Iterable[Scored]) -> tuple[np.ndarray, list[Any]]:
    """Return the anomaly scores of all images and the kept values. Warn if images could not be scored."""
    parts = list(parts)
    if failures := [part.error for part in parts if part.error is not None]:
        warn_user(ImageWarning(failures))
    return np.concatenate([part.scores for part in parts]), [item for part in parts for item in part.kept]


def score_or_flag(X: Any, iter_scores: IterScores) -> Iterator[Scored]:
    """Score all images, and continue after images that cannot be scored.

    Parameters
    ----------
    X : sequence of images
        The images. The sequence must support slices.
    iter_scores : callable
        ``iter_scores(images)`` yields batches of scores. It raises an ImageError with the image's index in ``images``.

    Returns
    -------
    iterator of Scored
        The results in the order of `X`. Images before a failed image of the same batch are scored a second time.
    """
    # If an image fails, its whole batch is lost. Then:
    # 1. score the images of the batch before the failed image again,
    # 2. yield NaN and the error for the failed image,
    # 3. continue with the image after the failed image.
    n_images, done = n_images_of(X), 0  # `done` counts the images with a result

    def scored(start: int, stop: int) -> Iterator[Scored]:
        nonlocal done
        some = X if (start, stop) == (0, n_images) else items_between(X, start, stop)
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
                if not done <= failed < stop:  # a user's own extractor raised an error with a wrong index
                    raise
                if done < failed:  # images of the same batch before the failed image
                    yield from flagged(done, failed)
                done = failed + 1
                flag = ImageError(error.message, failed, error.path)
                flag.__cause__ = error.__cause__
                yield Scored(np.full(1, np.nan), [None], flag)

    return flagged(0, n_images)


def results_of(
    X: Any, scored: Callable[[Any], Iterator[Scored]], calibration_scores: np.ndarray, offset: float, chunk_size: int
) -> Iterator[ImageResult]:
    """Yield the ImageResult of each image, in the order of `X`.

    Parameters
    ----------
    X : sequence or iterable of images
        The images.
    scored : callable
        ``scored(images)`` yields the anomaly scores of a sequence of images.
    calibration_scores : array of shape (n_calibration,)
        Calibration scores of the detector, bigger = more normal.
    offset : float
        The detector's ``offset_``. NaN if the detector has no threshold.
    chunk_size : int
        Number of images that are read at once from an iterable without a length.
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
                        image=item_of(images, done - start),
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
    """Yield pairs (index of the first image, images): all images at once if `X` has a length, otherwise chunks."""
    if hasattr(X, "__len__") or not isinstance(X, Iterable):
        yield 0, X
        return
    iterator, start = iter(X), 0
    while chunk := list(islice(iterator, chunk_size)):
        yield start, chunk
        start += len(chunk)


def _shifted(error: ImageError, start: int) -> ImageError:
    """Return the error with its index increased by `start`."""
    return error if not start else ImageError(error.message, start + error.index, error.path)


def as_stack(maps: Sequence[np.ndarray | None]) -> np.ndarray | list[Any]:
    """Return maps as one array if all have the same size, otherwise as a list."""
    same_size = len({None if anomaly_map is None else anomaly_map.shape for anomaly_map in maps}) == 1
    return np.stack([m for m in maps if m is not None]) if same_size and maps[0] is not None else list(maps)
