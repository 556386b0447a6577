"""Golden results: results of a few images, stage by stage, that an exported file carries.

:func:`golden_arrays` makes the arrays that the file carries, and :func:`golden_results` reads them as
:class:`Reference` objects. A Reference compares the outputs of a runtime with the results. Nothing here needs the
original detector or torch.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from skpatchcore.calibration.conformal import conformal_p_values
from skpatchcore.deployment.errors import ExportError, ModelFileError
from skpatchcore.deployment.outputs import with_ties

# Stages that are compared, in the order of the computation.
STAGES = ("pixels", "grid", "features", "patch_scores", "anomaly_map", "mask", "score", "decision", "p_value")
# Stages that are stored as every n-th value in row-major order. `grid` and `mask` are stored completely.
_SAMPLED = tuple(stage for stage in STAGES if stage not in ("grid", "mask"))
# Number of values of a sampled result that are stored, about.
_N_SAMPLED = 4096
# Stages in the unit of the scores. Their differences are divided by at least the threshold: the scores of training
# images can be nearly 0, where rounding is as large as the score.
_IN_UNITS_OF_SCORE = ("patch_scores", "anomaly_map", "score", "decision")
#: Largest relative difference per stage that counts as equal, for files that compute in float32.
TOLERANCE = 1e-4
#: Largest fraction of pixels of a mask that may differ: the map is rounded at pixels that are at the threshold.
MASK_TOLERANCE = 1e-3
#: The same for int8 files, and for their masks. Runtimes round int8 products differently, and the next layers amplify
#: this. Between ONNX Runtime and OpenVINO (CPU with AVX512-VNNI), with the pretrained efficientnet_lite0 and
#: efficientnet_lite2 on good and defective photos and on synthetic images, features differed by at most 3.3e-2, patch
#: scores by 3.0e-2, scores by 1.7e-2, and masks in 2.4e-3 of the pixels.
INT8_TOLERANCE = 0.05
INT8_MASK_TOLERANCE = 0.01
#: Decisions that are nearer to the threshold than this fraction of the threshold may flip by rounding.
MARGIN = 1e-5
#: Largest number of pixels of a golden image.
MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class StageDifference:
    """Largest difference between the results of a stage and the expected results.

    Attributes
    ----------
    stage : str
        Name of the output.
    difference : float
        Largest absolute difference, divided by the largest expected value of the same image, or by the threshold if
        this is larger and the stage is in the unit of the scores. For ``mask``, the fraction of pixels that differ. For
        ``p_value``, the distance from the p-values of all scores that are accepted: 0 if only rounding moves the score
        past a calibration score. Infinity if the shapes differ, or if values are NaN in one of the results only.
    tolerance : float
        Largest difference that is accepted. Infinity accepts every finite difference.
    """

    stage: str
    difference: float
    tolerance: float

    @property
    def is_off(self) -> bool:
        """Whether the difference is larger than the tolerance, or not finite."""
        return not (math.isfinite(self.difference) and self.difference <= self.tolerance)


@dataclass(frozen=True)
class ScoreScale:
    """Threshold and calibration scores of a detector, with which differences of scores and p-values are judged.

    Attributes
    ----------
    offset : float
        Threshold of the scores.
    calibration_scores : array of shape (n_calibration,)
        Scores of good images, bigger = more normal. NaN for images without a score.
    tolerance : float
        Largest accepted difference of a score, as :class:`StageDifference` defines it.
    """

    offset: float
    calibration_scores: np.ndarray
    tolerance: float = TOLERANCE

    def distance_of_p_value(self, found: float, score: float) -> float:
        """Return the distance of a p-value from the p-values of all scores that are accepted for an expected score.

        A calibration image has exactly the score of the calibration. There, rounding changes the rank.
        """
        if not math.isfinite(found):
            return math.inf
        score = score if math.isfinite(score) else -math.inf
        slack = self.tolerance * max(abs(score), abs(self.offset)) if math.isfinite(score) else 0.0
        lowest = np.float32(conformal_p_values(self.calibration_scores, [score - slack])[0])
        highest = np.float32(conformal_p_values(with_ties(self.calibration_scores), [score + slack])[0])
        return max(float(lowest) - found, found - float(highest), 0.0)


@dataclass(frozen=True)
class Reference:
    """An image with its expected results. The results of some stages may be sampled.

    Attributes
    ----------
    image : array of shape (height, width, 3), uint8 or float32
        The image as the graph takes it.
    values : dict of str to array
        Expected values of each stage: every ``steps[stage]``-th value in row-major order, one-dimensional.
    shapes : dict of str to tuple
        Shape of the complete result of each stage.
    steps : dict of str to int
        Distance of the sampled values; 1 for a complete result.
    label : int
        Expected label.
    """

    image: np.ndarray
    values: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    steps: dict[str, int]
    label: int

    @classmethod
    def of(cls, image: np.ndarray, results: Mapping[str, Any]) -> Reference:
        """Return an image with complete results, without the axis of the images."""
        values = {stage: np.asarray(results[stage]) for stage in STAGES}
        shapes = {stage: value.shape for stage, value in values.items()}
        flat = {stage: value.reshape(-1) for stage, value in values.items()}
        return cls(image, flat, shapes, dict.fromkeys(STAGES, 1), int(results["label"]))

    def results(self) -> dict[str, np.ndarray]:
        """Return the results by name, if they are complete."""
        complete = {stage: value.reshape(self.shapes[stage]) for stage, value in self.values.items()}
        return {**complete, "label": np.array(self.label)}

    @property
    def decision(self) -> float:
        """Expected score minus the threshold, negative = anomalous."""
        return float(self.values["decision"][0])

    def differences(self, output: Mapping[str, np.ndarray], scale: ScoreScale) -> dict[str, float]:
        """Return the difference of each stage, as :class:`StageDifference` defines it.

        Parameters
        ----------
        output : mapping
            Outputs of a runtime by name, without the axis of the images.
        scale : ScoreScale
            Threshold and calibration scores.
        """
        return {stage: self._difference(stage, np.asarray(output[stage]), scale) for stage in STAGES}

    def _difference(self, stage: str, complete: np.ndarray, scale: ScoreScale) -> float:
        if complete.shape != self.shapes[stage]:
            return math.inf
        found, expected = complete.reshape(-1)[:: self.steps[stage]], self.values[stage]
        if stage == "mask":
            return float(np.mean(found != expected)) if expected.size else 0.0
        if stage == "p_value":
            return scale.distance_of_p_value(float(found[0]), float(self.values["score"][0]))
        return relative_difference(found, expected, abs(scale.offset) if stage in _IN_UNITS_OF_SCORE else 0.0)


def tolerances_of(precision: str) -> dict[str, float]:
    """Return the largest difference of each stage between a runtime and the golden results that is accepted.

    Parameters
    ----------
    precision : {"float32", "float16", "int8"}
        Precision of the file. A float16 file computes in float32.
    """
    is_int8 = precision == "int8"
    found = dict.fromkeys(STAGES, INT8_TOLERANCE if is_int8 else TOLERANCE)
    mask = INT8_MASK_TOLERANCE if is_int8 else MASK_TOLERANCE
    # The pixels are never rounded. A p-value has its own rule for rounding: ScoreScale.
    return {**found, "pixels": TOLERANCE, "grid": 0.0, "mask": mask, "p_value": TOLERANCE}


def synthetic_sizes(side: int, least: int = 1) -> list[tuple[int, int]]:
    """Return heights and widths of a wide, an upright and a square image.

    Parameters
    ----------
    side : int
        Length in pixels of the shorter side of the network's input.
    least : int, default=1
        Smallest side of an image in pixels.
    """
    return [(side * 5 // 4, side * 7 // 4), (side * 2, side), (max(side * 3 // 4, least),) * 2]


def synthetic_images(sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Return images made from formulas: gradients, stripes, discs and grey noise.

    Parameters
    ----------
    sizes : sequence of (int, int)
        Height and width of each image.

    Returns
    -------
    list of arrays of shape (height, width, 3), uint8
    """
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
    """Return the arrays that a file carries, for images and their results.

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
        ``"0/features"`` holds every n-th value of its result ``features`` in row-major order, float32. The number n is
        ``"0/features/step"``: see :func:`sampling_step`. ``"0/features/shape"`` is the shape of the result.
        ``"0/features/sha256"`` is the digest of its float32 values. The digest is for information only: it identifies
        the result, but another runtime rounds differently and has another digest. ``"0/mask"`` holds all pixels as
        packed bits, ``"0/grid"`` both numbers, and ``"0/label"`` the label.

    Raises
    ------
    ExportError
        If an image has more than 64 million pixels.
    """
    arrays = {}
    for number, (image, result) in enumerate(zip(images, results, strict=True)):
        if image.shape[0] * image.shape[1] > MAX_PIXELS:
            raise ExportError(
                f"golden image {number} has {image.shape[0]}×{image.shape[1]} pixels: a file carries images of at most "
                f"{MAX_PIXELS // 10**6} million pixels. Pass a smaller image."
            )
        arrays[f"{number}/image"] = _as_png(image) if image.dtype == np.uint8 else image
        for stage in _SAMPLED:
            value = np.asarray(result[stage], np.float32, order="C")
            step = sampling_step(value.shape)
            arrays[f"{number}/{stage}"] = value.reshape(-1)[::step]
            arrays[f"{number}/{stage}/step"] = np.array(step, np.int64)
            arrays[f"{number}/{stage}/shape"] = np.array(value.shape, np.int64)
            digest = hashlib.sha256(value.tobytes()).digest()
            arrays[f"{number}/{stage}/sha256"] = np.frombuffer(digest, np.uint8)
        mask = np.asarray(result["mask"], bool)
        arrays[f"{number}/mask"] = np.packbits(mask)
        arrays[f"{number}/mask/shape"] = np.array(mask.shape, np.int64)
        arrays[f"{number}/grid"] = np.asarray(result["grid"], np.int64)
        arrays[f"{number}/label"] = np.array(result["label"], np.int64)
    return arrays


def golden_results(arrays: Mapping[str, np.ndarray], name: str) -> list[Reference]:
    """Return the golden images and their results from the arrays of :func:`golden_arrays`.

    Parameters
    ----------
    arrays : mapping
        Arrays of :func:`golden_arrays`.
    name : str
        Path of the file, for errors.

    Raises
    ------
    ModelFileError
        If there is no golden image, if an array is missing or has another form, or if an image is not a PNG file in RGB
        of at most 64 million pixels.
    """
    n_images = sum(key.endswith("/image") for key in arrays)
    if not n_images:
        raise ModelFileError(f"{name!r} has no golden images: export the detector again.")
    found = []
    for number in range(n_images):
        try:
            found.append(_reference_of(arrays, number))
        except Exception as error:  # arrays of another program can raise any error
            raise ModelFileError(
                f"golden image {number} of {name!r} cannot be used: {type(error).__name__}: {error}"
            ) from error
    return found


def _reference_of(arrays: Mapping[str, np.ndarray], number: int) -> Reference:
    """Return one golden image and its results. Raise any error if an array is missing or has another form."""
    shapes = {
        stage: (2,) if stage == "grid" else tuple(int(n) for n in arrays[f"{number}/{stage}/shape"]) for stage in STAGES
    }
    steps = {stage: int(arrays[f"{number}/{stage}/step"]) if stage in _SAMPLED else 1 for stage in STAGES}
    values = {stage: arrays[f"{number}/{stage}"] for stage in STAGES}
    values["mask"] = np.unpackbits(values["mask"], count=math.prod(shapes["mask"])).astype(bool)
    for stage, value in values.items():
        n_values = len(range(0, math.prod(shapes[stage]), steps[stage]))
        if value.shape != (n_values,):
            raise ValueError(f"{stage} has the shape {value.shape}, expected ({n_values},).")
    return Reference(_image_of(arrays[f"{number}/image"]), values, shapes, steps, int(arrays[f"{number}/label"]))


def _image_of(stored: np.ndarray) -> np.ndarray:
    """Return a golden image. Raise any error if it is neither a PNG file in RGB nor an array of float32."""
    if stored.ndim == 1:
        if stored[:8].tobytes() != b"\x89PNG\r\n\x1a\n":
            raise ValueError("the image is not a PNG file.")
        image = Image.open(BytesIO(stored.tobytes()), formats=["PNG"])  # no other decoder ever runs
        if image.mode != "RGB" or image.width * image.height > MAX_PIXELS:
            raise ValueError(f"the image is {image.mode} with {image.height}×{image.width} pixels.")
        return np.array(image)
    if stored.dtype != np.float32 or stored.ndim != 3 or stored.shape[2] != 3 or stored.size > 3 * MAX_PIXELS:
        raise ValueError(f"the image has the shape {stored.shape} and the type {stored.dtype}.")
    return stored


def sampling_step(shape: Sequence[int]) -> int:
    """Return n such that every n-th value in row-major order is stored, about 4096 values.

    Returns
    -------
    int
        The smallest number that is at least ``size // 4096``, at least 1, and coprime to the length of every axis.
        Therefore, the stored values lie in all rows, columns and channels, if there are enough of them. A step of 12
        for pixels with 3 channels would only see the first channel.
    """
    first = max(1, math.prod(shape) // _N_SAMPLED)
    return next(step for step in itertools.count(first) if all(math.gcd(step, max(n, 1)) == 1 for n in shape))


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
