"""Golden results: what the original detector computes for a few images, stage by stage.

:func:`golden_arrays` makes the arrays that an exported file carries. :func:`compared` compares the outputs of a runtime
with these arrays. Nothing here needs the original detector or torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

# Stages that are compared, in the order of the computation.
STAGES = ("pixels", "features", "patch_scores", "anomaly_map", "score", "decision", "p_value")
# Maximum number of values of a result that are stored: every n-th value in row-major order.
_N_SAMPLED = 4096
# Stages in the unit of the scores. Their differences are divided by at least the threshold: the scores of training
# images can be nearly 0, where rounding is as large as the score.
_IN_UNITS_OF_SCORE = ("patch_scores", "anomaly_map", "score", "decision")
#: Largest relative difference per stage that counts as equal, for files in float32.
TOLERANCE = 1e-4
#: Decisions that are nearer to the threshold than this fraction of the threshold may flip by rounding.
MARGIN = 1e-5


@dataclass(frozen=True)
class StageDifference:
    """Largest difference between the results of a stage and the golden results.

    Attributes
    ----------
    stage : str
        Name of the output.
    difference : float
        Largest absolute difference, divided by the largest golden value of the same image, or by the threshold if this
        is larger and the stage is in the unit of the scores. Infinity if the shapes differ, or if values are NaN in one
        of the results only.
    tolerance : float
        Largest difference that is accepted.
    """

    stage: str
    difference: float
    tolerance: float

    @property
    def is_off(self) -> bool:
        """Whether the difference is larger than the tolerance."""
        return not self.difference <= self.tolerance


def synthetic_images(size: tuple[int, int] | None, side: int, least: int = 1) -> list[np.ndarray]:
    """Return images made from formulas: gradients, stripes, discs and grey noise.

    Parameters
    ----------
    size : (int, int) or None
        Height and width of all images. None makes images of several sizes and proportions.
    side : int
        Length in pixels of the shorter side of the network's input.
    least : int, default=1
        Smallest side of an image in pixels.

    Returns
    -------
    list of arrays of shape (height, width, 3), uint8
    """
    if size is not None:
        sizes = [size, size]
    else:
        sizes = [(side * 5 // 4, side * 7 // 4), (side * 2, side), (max(side * 3 // 4, least),) * 2]
    return [_synthetic(height, width, number) for number, (height, width) in enumerate(sizes)]


def _synthetic(height: int, width: int, number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width] / max(height, width)
    stripes = 0.5 + 0.3 * np.sin(2 * np.pi * (7 + 4 * number) * (x + 0.4 * y))
    picture = np.stack([0.2 + 0.6 * x, stripes, 0.8 - 0.5 * y], axis=2)
    for _ in range(4):
        top, left, radius = rng.random(3) * (height / max(height, width), width / max(height, width), 0.15)
        picture[(y - top) ** 2 + (x - left) ** 2 < radius**2] = rng.random(3)
    blocks = rng.random((height // 8 + 1, width // 8 + 1, 1)).repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return np.rint(255 * (0.9 * picture + 0.1 * blocks)).clip(0, 255).astype(np.uint8)


def golden_arrays(images: Sequence[np.ndarray], results: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return the arrays that a file carries, for images and the results of the original detector.

    Parameters
    ----------
    images : sequence of arrays of shape (height, width, 3), uint8 or float32
        The images.
    results : sequence of mappings
        The outputs of each image by name, without the axis of the images.

    Returns
    -------
    dict of arrays
        ``"0/image"`` is the first image: the bytes of a PNG file if it is uint8, otherwise the array.
        ``"0/features"`` holds every n-th value of its result ``features`` in row-major order, where n is
        ``max(1, size // 4096)``. ``"0/features/shape"`` is the shape of the result, and ``"0/features/sha256"`` the
        digest of its float32 values.
    """
    arrays = {}
    for number, (image, result) in enumerate(zip(images, results, strict=True)):
        arrays[f"{number}/image"] = _as_png(image) if image.dtype == np.uint8 else image
        for stage in STAGES:
            value = np.asarray(result[stage], np.float32, order="C")
            arrays[f"{number}/{stage}"] = sampled(value)
            arrays[f"{number}/{stage}/shape"] = np.array(value.shape, np.int64)
            digest = hashlib.sha256(value.tobytes()).digest()
            arrays[f"{number}/{stage}/sha256"] = np.frombuffer(digest, np.uint8)
        arrays[f"{number}/label"] = np.array(result["label"], np.int64)
    return arrays


def golden_images(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the images from the arrays of :func:`golden_arrays`."""
    images = []
    for number in range(sum(name.endswith("/image") for name in arrays)):
        stored = arrays[f"{number}/image"]
        images.append(np.array(Image.open(BytesIO(stored.tobytes()))) if stored.ndim == 1 else stored)
    return images


def sampled(value: np.ndarray) -> np.ndarray:
    """Return every n-th value in row-major order, so that about 4096 values remain."""
    flat = value.reshape(-1)
    return flat[:: max(1, flat.size // _N_SAMPLED)]


def compared(
    arrays: Mapping[str, np.ndarray],
    outputs: Sequence[Mapping[str, np.ndarray]],
    offset: float,
    tolerances: Mapping[str, float],
) -> list[StageDifference]:
    """Compare the outputs of a runtime with the golden results.

    Parameters
    ----------
    arrays : mapping
        Arrays of :func:`golden_arrays`.
    outputs : sequence of mappings
        Outputs of each golden image by name, without the axis of the images.
    offset : float
        Threshold of the scores.
    tolerances : mapping
        Tolerance of each stage.

    Returns
    -------
    list of StageDifference
        One item per stage.
    """
    differences = []
    for stage in STAGES:
        largest = 0.0
        for number, output in enumerate(outputs):
            shape, expected = tuple(arrays[f"{number}/{stage}/shape"]), arrays[f"{number}/{stage}"]
            found = np.asarray(output[stage], np.float32)
            is_same = found.shape == shape
            difference = stage_difference(stage, sampled(found), expected, offset) if is_same else np.inf
            largest = max(largest, difference)
        differences.append(StageDifference(stage, largest, tolerances[stage]))
    return differences


def stage_difference(stage: str, found: np.ndarray, expected: np.ndarray, offset: float) -> float:
    """Return the difference of the results of a stage for one image, as :class:`StageDifference` defines it."""
    if np.shape(found) != np.shape(expected):
        return float("inf")
    least = abs(offset) if stage in _IN_UNITS_OF_SCORE else 1.0 if stage == "p_value" else 0.0
    return relative_difference(found, expected, least)


def relative_difference(found: np.ndarray, expected: np.ndarray, least: float = 0.0) -> float:
    """Return the largest absolute difference, divided by the largest expected value.

    Parameters
    ----------
    found, expected : arrays of equal shape
        The results.
    least : float, default=0.0
        Smallest divisor.

    Returns
    -------
    float
        Infinity if a value is NaN or infinite in one of the arrays only. 0 if all values are NaN in both.
    """
    found, expected = (np.atleast_1d(np.asarray(some, np.float64)) for some in (found, expected))
    is_finite = np.isfinite(expected)
    if (is_finite != np.isfinite(found)).any():
        return float("inf")
    if not is_finite.any():
        return 0.0
    largest = max(float(np.abs(expected[is_finite]).max()), least)
    difference = float(np.abs(found - expected)[is_finite].max())
    return difference / largest if largest else (0.0 if difference == 0 else float("inf"))


def _as_png(image: np.ndarray) -> np.ndarray:
    """Return the bytes of a PNG file of an image of shape (height, width, 3), uint8."""
    content = BytesIO()
    Image.fromarray(image).save(content, "PNG", optimize=True)
    return np.frombuffer(content.getvalue(), np.uint8)
