"""Trials of synthetic defects: which sizes are tested, and the images with the defects, drawn when they are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logit

from skpatchcore.datasets.defects import black_and_white, draw_defect
from skpatchcore.evaluation.pod import PodCurve
from skpatchcore.images.reading import PixelFormat, as_stored, load_image

# Smallest tested size in pixels, and the largest as a fraction of the shorter side: of lines, and of other kinds.
_SCRATCH_RANGE, _SPOT_RANGE = (0.5, 0.1), (2.0, 0.5)
# Sizes between these probabilities of detection are tested in the second stage.
_TRANSITION = (0.15, 0.98)
# The second stage covers at least this factor between its smallest and its largest size.
_LEAST_FACTOR = 2.0


@dataclass(frozen=True)
class Trial:
    """One synthetic defect on one good image.

    Attributes
    ----------
    image : int
        Index of the good image.
    kind : str
        Kind of the defect.
    size : float
        Its size in pixels.
    contrast : float
        Its contrast.
    seed : tuple of int
        Seed of its shape and position.
    """

    image: int
    kind: str
    size: float
    contrast: float
    seed: tuple[int, ...]


class DrawnImages(Sequence[Any]):
    """Sequence of good images with one defect each, which are drawn when they are accessed.

    Parameters
    ----------
    images : sequence of images
        The good images.
    trials : sequence of Trial
        The defects.
    regions : sequence of (array of shape (height, width), bool, or None)
        For each image, the pixels that may get a defect; None means all pixels.
    pixel_format : PixelFormat
        Meaning of stored values, in which the detector reads arrays.
    on_drawn : callable or None, default=None
        Called after each drawing.
    """

    def __init__(
        self,
        images: Sequence[Any],
        trials: Sequence[Trial],
        regions: Sequence[np.ndarray | None],
        pixel_format: PixelFormat,
        on_drawn: Callable[[], Any] | None = None,
    ):
        self.images, self.trials, self.regions = images, trials, regions
        self.pixel_format, self.on_drawn = pixel_format, on_drawn
        self._last: tuple[int, np.ndarray] | None = None  # trials on one image follow each other

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return DrawnImages(self.images, self.trials[index], self.regions, self.pixel_format, self.on_drawn)
        drawn = self.draw(int(index))[0]
        if self.on_drawn is not None:
            self.on_drawn()
        return drawn

    def draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the image of a trial as an array that the detector reads, and the mask of the defect."""
        return self._drawn(self.trials[index])

    def change_of(self, trial: Trial) -> float:
        """Return the mean change of the pixels of a defect, as a fraction of white; 0 if no pixel belongs to it."""
        image, mask = self._drawn(trial)
        assert self._last is not None
        before = self._last[1][mask].astype(np.float64)
        low, high = black_and_white(image.dtype, self.pixel_format.value_range)
        return float(np.abs(image[mask] - before).mean() / (high - low)) if mask.any() else 0.0

    def _drawn(self, trial: Trial) -> tuple[np.ndarray, np.ndarray]:
        if self._last is None or self._last[0] != trial.image:
            self._last = trial.image, _as_array(self.images[trial.image], trial.image, self.pixel_format)
        return draw_defect(
            self._last[1],
            trial.kind,
            trial.size,
            contrast=trial.contrast,
            region=self.regions[trial.image],
            value_range=self.pixel_format.value_range,
            random_state=trial.seed,
        )


def _as_array(image: Any, index: int, pixel_format: PixelFormat) -> np.ndarray:
    """Return an image as an array in the form in which the detector reads arrays.

    Arrays keep their dtype. All other images become float32, in the range and with the order of channels that the
    detector expects of arrays. An image with three equal channels becomes a grey image: a camera that sees no colour
    sees no coloured defects either.
    """
    if not (isinstance(image, np.ndarray) and image.dtype.kind in "uf" and image.ndim in (2, 3)):
        image = as_stored(load_image(image, index, pixel_format=pixel_format), pixel_format)
    is_grey = image.ndim == 3 and image.shape[2] == 3 and (image[..., :1] == image[..., 1:]).all()
    grey: np.ndarray = image[..., :1] if is_grey else image
    return grey


def drawable_pixels(anomaly_map: np.ndarray, region: np.ndarray | None, index: int) -> np.ndarray | None:
    """Return the inspected pixels in the region, which may get a defect. None means all pixels.

    Parameters
    ----------
    anomaly_map : array of shape (height, width)
        Anomaly map of the image; NaN for pixels that are not inspected.
    region : array of shape (height, width), bool, or None
        The region; None means all pixels.
    index : int
        Index of the image, for the error message.
    """
    known = ~np.isnan(anomaly_map)
    if known.all():
        return region
    drawable: np.ndarray = known if region is None else known & region
    if not drawable.any():
        raise ValueError(f"the detector inspects no pixel of image {index} in region: no defect can be drawn there.")
    return drawable


def extent_of(size: tuple[int, ...], region: np.ndarray | None) -> tuple[int, int]:
    """Return the height and width of an image, or of the bounding box of a region."""
    if region is None:
        return size[0], size[1]
    return int(np.ptp(np.flatnonzero(region.any(axis=1)))) + 1, int(np.ptp(np.flatnonzero(region.any(axis=0)))) + 1


def size_range(kind: str, shorter_side: float) -> tuple[float, float]:
    """Return the smallest and the largest tested size in pixels, by default."""
    low, share = _SCRATCH_RANGE if kind in ("scratch", "crack") else _SPOT_RANGE
    return low, max(share * shorter_side, 2 * low)


def spread_sizes(low: float, high: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return `n` sizes: one at a random place in each of `n` equal steps of log(size) from `low` to `high`."""
    sizes: np.ndarray = low * (high / low) ** ((np.arange(n) + rng.random(n)) / n)
    return sizes


def transition(curve: PodCurve, low: float, high: float) -> tuple[float, float]:
    """Return the sizes between which detection changes from rare to nearly certain, within `low` and `high`.

    Parameters
    ----------
    curve : PodCurve
        Curve of the first trials, which cover `low` to `high`.
    low, high : float
        Smallest and largest size.
    """
    whole = np.log([low, high])
    if curve.slope > 0:
        ends = (logit(_TRANSITION) - curve.intercept) / curve.slope
    else:  # no curve: test the small sizes again if most defects are found, otherwise the large ones
        third = (whole[1] - whole[0]) / 3
        ends = whole - np.array([0, 2 * third]) if curve.hits.mean() > 0.5 else whole + np.array([2 * third, 0])
    ends = np.clip(ends, *whole)
    half = min(max(ends[1] - ends[0], np.log(_LEAST_FACTOR)), whole[1] - whole[0]) / 2
    # moved as a whole into the range, so that the least factor is kept
    middle = float(np.clip(ends.mean(), whole[0] + half, whole[1] - half))
    return float(np.exp(middle - half)), float(np.exp(middle + half))
