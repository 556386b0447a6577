"""write_layers: the pictures of one image that a report page lays over each other, and the regions of its map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from skpatchcore.display.overlay import HEAT_RANGE, as_bytes, dilated, heat_colors
from skpatchcore.maps import regions_of_map
from skpatchcore.reports.inspection import InspectedPart, inspected_part
from skpatchcore.reports.pictures import PictureFolder

if TYPE_CHECKING:
    import pandas as pd

# Longer sides in pixels: picture of a card, opened image, its anomaly map (which is smooth).
_THUMB_SIDE, _IMAGE_SIDE, _MAP_SIDE = 320, 1200, 400
# Regions that a card lists. Its number of regions counts all of them.
N_REGIONS = 20
# Colour levels of a map. The first one is transparent.
_N_LEVELS = 48
# Brightness of pixels that are not inspected, in the picture of a card.
_MARGIN = 0.4
# Width in pixels of the stripes over pixels that are not inspected, and the opacity of dark and of light stripes.
_STRIPE, _STRIPE_OPACITY = 5, (170, 100)
_CYAN, _DARK = (0, 229, 255), (12, 20, 40)


@dataclass(frozen=True)
class Region:
    """A connected region of pixels above the pixel threshold.

    Attributes
    ----------
    top, left, bottom, right : int
        Its box in pixels of the image. Bottom and right are the first pixels outside.
    area : int
        Number of its pixels.
    peak : float
        Highest value of the anomaly map in the region, bigger = more anomalous.
    """

    top: int
    left: int
    bottom: int
    right: int
    area: int
    peak: float


@dataclass(frozen=True)
class Layers:
    """Pictures of one image for a report page, and the regions of its anomaly map.

    Attributes
    ----------
    size : (int, int)
        Height and width of the image in pixels.
    thumb, image, heat, outline, truth, unseen : str or None
        Files of the pictures relative to the page: the small picture with the outline, the image, its anomaly map in
        colours, the line around the pixels above the pixel threshold, the line around a known defect, and stripes over
        the pixels that are not inspected. None if there is no such picture.
    regions : tuple of Region
        The regions with the highest peaks, at most 20.
    n_regions : int
        Number of all regions.
    largest : int
        Area of the largest region in pixels; 0 without regions.
    inspected : InspectedPart
        The part of the image that is inspected.
    problem : str
        Why a picture is missing; empty if none is.
    """

    size: tuple[int, int] | None = None
    thumb: str | None = None
    image: str | None = None
    heat: str | None = None
    outline: str | None = None
    truth: str | None = None
    unseen: str | None = None
    regions: tuple[Region, ...] = ()
    n_regions: int = 0
    largest: int = 0
    inspected: InspectedPart = field(default_factory=InspectedPart)
    problem: str = ""

    def files(self) -> list[str]:
        """Return the files of the pictures that exist.

        Returns
        -------
        list of str
            Relative to the page.
        """
        files = (self.thumb, self.image, self.heat, self.outline, self.truth, self.unseen)
        return [file for file in files if file is not None]


def write_layers(
    pixels: np.ndarray,
    anomaly_map: np.ndarray | None,
    threshold: float,
    pictures: PictureFolder,
    *,
    truth: Any = None,
    stem: str = "",
) -> Layers:
    """Write the pictures of one image for a report page.

    A picture that cannot be written is left out, and `problem` of the result says why.

    Parameters
    ----------
    pixels : array of shape (height, width, 1 or 3), float in [0, 1]
        The image.
    anomaly_map : array of shape (height, width) or None
        Its anomaly map, bigger = more anomalous. NaN for pixels that are not inspected. None if the detector has no
        anomaly maps.
    threshold : float
        The detector's ``pixel_offset_``. If NaN, there are no regions and no outline, and colours run over the map's
        own range.
    pictures : PictureFolder
        The folder of the pictures.
    truth : array of shape (height, width) or None, default=None
        True (or non-zero) where the image is known to be defective.
    stem : str, default=""
        Start of the file names, from ``pictures.new_stem()``. If empty, a new one is used.

    Returns
    -------
    Layers
    """
    unseen, mask, table = None, None, None
    if anomaly_map is not None:
        is_unseen = np.isnan(anomaly_map)
        unseen = is_unseen if is_unseen.any() else None
        mask = None if math.isnan(threshold) else anomaly_map > threshold
        table = regions_of_map(anomaly_map, threshold) if mask is not None and mask.any() else None
    stem = stem or pictures.new_stem()
    problems: list[str] = []

    def written(name: str, make: Callable[[], Image.Image], **options: Any) -> str | None:
        try:
            return pictures.write(f"{stem}.{name}", make(), **options)
        except Exception as error:  # one picture that fails leaves the other pictures and all numbers
            problems.append(f"{' '.join(str(error).split()) or type(error).__name__}")
            return None

    photo = as_picture(pixels)
    outline = None if table is None or mask is None else mask
    return Layers(
        size=(pixels.shape[0], pixels.shape[1]),
        thumb=written("thumb.jpg", lambda: _thumb(photo, outline, unseen)),
        image=written("image.jpg", lambda: photo.resize(_within(photo.size, _IMAGE_SIDE), Image.Resampling.LANCZOS)),
        heat=None if anomaly_map is None else written("map.png", lambda: _heat(anomaly_map, threshold)),
        outline=None if outline is None else written("outline.png", lambda: _outline(outline, _CYAN)),
        truth=None if truth is None else written("truth.png", lambda: _outline(np.asarray(truth) != 0, (255, 214, 0))),
        unseen=None if unseen is None else written("unseen.png", lambda: _stripes(unseen)),
        inspected=InspectedPart() if anomaly_map is None else inspected_part(anomaly_map),
        regions=() if table is None else _regions(table.head(N_REGIONS)),
        n_regions=0 if table is None else len(table),
        largest=0 if table is None else int(table["area"].max()),
        problem=f"a picture could not be written: {problems[0]}" if problems else "",
    )


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Return an image of floats in [0, 1] as a picture, grey if it has one channel."""
    return Image.fromarray(as_bytes(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


def _regions(table: pd.DataFrame) -> tuple[Region, ...]:
    boxes = table[["top", "left", "bottom", "right", "area"]].to_numpy().tolist()
    peaks = table["peak"].tolist()
    return tuple(Region(b[0], b[1], b[2], b[3], b[4], peak) for b, peak in zip(boxes, peaks, strict=True))


def _within(size: tuple[int, int], longest: int, enlarge: bool = False) -> tuple[int, int]:
    """Return width and height at which the longer side has at most `longest` pixels, or exactly so many."""
    scale = longest / max(size)
    if scale > 1 and not enlarge:
        return size
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _heat(anomaly_map: np.ndarray, threshold: float) -> Image.Image:
    """Return a map in colours of the same meaning in all pictures, transparent where it is low."""
    if math.isnan(threshold):  # without calibration, there is only the map's own range
        threshold = float(np.nanmax(anomaly_map)) / 2
    values = np.nan_to_num(np.asarray(anomaly_map, np.float32), nan=min(float(np.nanmin(anomaly_map)), 0.0))
    small = Image.fromarray(values).resize(_within(values.shape[::-1], _MAP_SIDE), Image.Resampling.BILINEAR)
    ratio = np.asarray(small) / max(threshold, np.finfo(float).tiny)
    levels = ((ratio - HEAT_RANGE[0]) / (HEAT_RANGE[1] - HEAT_RANGE[0])).clip(0, 1)
    indices = np.ceil(levels * (_N_LEVELS - 1)).astype(np.uint8)
    heat = np.linspace(0, 1, _N_LEVELS)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette(as_bytes(heat_colors(heat)).tobytes())
    picture.info["transparency"] = bytes(np.uint8((heat * 2.5).clip(0, 1) * 255))
    return picture


def _edges(mask: np.ndarray, size: tuple[int, int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the line around a mask in a picture of `size` (width, height), and the thin dark line around that line."""
    small = np.asarray(Image.fromarray(np.uint8(mask) * 255).resize(size, Image.Resampling.BOX)) > 0
    line = dilated(small, width) & ~small
    halo = dilated(small, width + 1) & ~small & ~line
    return line, halo


def _outline(mask: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    """Return the line around a mask as a picture that is transparent elsewhere."""
    size = _within(mask.shape[::-1], _IMAGE_SIDE)
    line, halo = _edges(mask, size, 1 + max(size) // 700)
    picture = Image.fromarray(np.uint8(line) + 2 * np.uint8(halo)).convert("P")
    picture.putpalette([*_DARK, *color, *_DARK])
    picture.info["transparency"] = bytes([0, 255, 150])
    return picture


def _stripes(unseen: np.ndarray) -> Image.Image:
    """Return diagonal stripes over the pixels that are not inspected, as a picture that is transparent elsewhere."""
    size = _within(unseen.shape[::-1], _IMAGE_SIDE)
    small = np.asarray(Image.fromarray(np.uint8(unseen) * 255).resize(size, Image.Resampling.BOX)) >= 128
    rows, columns = np.indices(small.shape)
    dark = (rows + columns) // (_STRIPE * (1 + max(size) // 700)) % 2
    picture = Image.fromarray(np.where(small, 1 + dark, 0).astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, *_DARK, *_DARK])
    picture.info["transparency"] = bytes([0, *_STRIPE_OPACITY])
    return picture


def _thumb(photo: Image.Image, mask: np.ndarray | None, unseen: np.ndarray | None) -> Image.Image:
    """Return a small picture with the line around a mask. Pixels that are not inspected are dark."""
    small = photo.resize(_within(photo.size, _THUMB_SIDE, enlarge=True), Image.Resampling.LANCZOS)
    if unseen is not None:
        dark = Image.eval(small, lambda value: int(_MARGIN * value))
        dark.paste(small, mask=Image.fromarray(np.uint8(~unseen) * 255).resize(small.size, Image.Resampling.BOX))
        small = dark
    if mask is None:
        return small
    picture = np.array(small.convert("RGB"))
    line, halo = _edges(mask, small.size, 1)
    picture[halo] = _DARK
    picture[line] = _CYAN
    return Image.fromarray(picture)
