"""explain: the nearest nominal patch of anomalous images, with a crop of each patch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import PixelFormat, load_image
from skpatchcore.protocols import pixel_format_of
from skpatchcore.reports.cards import Nearest
from skpatchcore.reports.layers import as_picture
from skpatchcore.reports.pictures import PictureFolder
from skpatchcore.reports.pipelines import image_detector_of

# Images that are explained at once.
_CHUNK = 16
# Side of a crop: in patches, and in pixels of the picture.
_CONTEXT, _CROP_SIDE = 7, 240
_SIDES = ("top", "left", "height", "width")

Box = tuple[float, float, float, float]


def explain(
    detector: Any,
    paths: Sequence[str],
    pictures: PictureFolder,
    *,
    on_explained: Callable[[int, int], Any] | None = None,
) -> dict[str, Nearest]:
    """Find the nearest nominal patch of images, and write a crop of both patches.

    Parameters
    ----------
    detector : detector or Pipeline
        The detector that scored the images. Only detectors with ``nearest_patches`` explain images.
    paths : sequence of str
        The images.
    pictures : PictureFolder
        The folder of the crops.
    on_explained : callable or None, default=None
        Called with the number of images done and the number of all images, e.g. to show progress.

    Returns
    -------
    dict of str to Nearest
        By path. Images that cannot be explained are left out. Empty if the detector has no ``nearest_patches`` or is
        the last step of a pipeline whose first steps change images.
    """
    search = getattr(image_detector_of(detector), "nearest_patches", None)
    if search is None:
        return {}
    writer = _CropWriter(image_detector_of(detector), pictures)
    found: dict[str, Nearest] = {}
    for start in range(0, len(paths), _CHUNK):
        chunk = list(paths[start : start + _CHUNK])
        for path, row in _nearest_rows(search, chunk):
            found[path] = writer.nearest(path, row)
        if on_explained is not None:
            on_explained(min(start + _CHUNK, len(paths)), len(paths))
    return found


def _nearest_rows(search: Any, paths: list[str]) -> list[tuple[str, Any]]:
    """Return the most anomalous patch of each image; without the images that cannot be read any more."""
    try:
        table = search(paths)
        return [(paths[row.image], row) for row in table[table["rank"] == 0].itertuples()]
    except ImageError:
        if len(paths) == 1:
            return []
        return [pair for path in paths for pair in _nearest_rows(search, [path])]


class _CropWriter:
    """Writes the crops of an anomalous patch and of its nearest nominal patch.

    Parameters
    ----------
    detector : detector
        Its ``training_paths_`` are the files of the training images.
    pictures : PictureFolder
        The folder of the crops.
    """

    def __init__(self, detector: Any, pictures: PictureFolder):
        self.paths = getattr(detector, "training_paths_", None)
        self.pictures = pictures
        pixel_format: PixelFormat = pixel_format_of(detector)
        self.load = lru_cache(maxsize=4)(lambda path: load_image(path, 0, pixel_format=pixel_format))

    def nearest(self, path: str, row: Any) -> Nearest:
        """Return the explanation of an image from its row of ``nearest_patches``."""
        box: Box = tuple(float(getattr(row, side)) for side in _SIDES)  # type: ignore[assignment]
        nominal: Box = tuple(float(getattr(row, f"nominal_{side}")) for side in _SIDES)  # type: ignore[assignment]
        number, distance = int(row.nominal_image), float(row.distance)
        training = None if self.paths is None or number >= len(self.paths) else self.paths[number]
        name = f"training image {number}" if training is None else training
        if np.isnan([*box, *nominal]).any():
            return Nearest(name, distance, problem="The model does not hold the places of its patches.")
        # The same number of pixels in both crops: they are shown at the same scale.
        side = max(24, round(_CONTEXT * max(*box[2:], *nominal[2:])))
        stem, problems = self.pictures.new_stem(), []
        try:
            patch = self._write(f"{stem}.patch.jpg", self.load(path), box, side)
        except Exception as error:  # a crop that fails leaves the card its other pictures
            patch = None
            problems.append(f"The crop of this image could not be written: {error}")
        if training is None:
            why = "The model does not hold the names of its training images"
            return Nearest(name, distance, patch, None, " ".join([*problems, f"{why}: {name} is not available."]))
        if not os.path.isfile(training):
            return Nearest(name, distance, patch, None, " ".join([*problems, "The training image is not available."]))
        try:
            crop = self._write(f"{stem}.nominal.jpg", self.load(training), nominal, side)
        except Exception as error:
            crop = None
            problems.append(f"The training image is not available: {error}")
        return Nearest(name, distance, patch, crop, " ".join(problems))

    def _write(self, name: str, pixels: np.ndarray, box: Box, side: int) -> str:
        height, width = pixels.shape[:2]
        if box[0] + box[2] > height + 1 or box[1] + box[3] > width + 1:
            raise ValueError(f"the file now has {height}×{width} pixels, which do not reach to the patch.")
        # At the border of an image the window is moved inside.
        top, left = (
            int(np.clip(round(start + length / 2 - side / 2), 0, max(0, whole - side)))
            for start, length, whole in ((box[0], box[2], height), (box[1], box[3], width))
        )
        crop = as_picture(pixels[top : top + side, left : left + side]).convert("RGB")
        scale = _CROP_SIDE / side
        size = max(1, round(crop.width * scale)), max(1, round(crop.height * scale))
        crop = crop.resize(size, Image.Resampling.BICUBIC)
        corners = (box[1] - left, box[0] - top, box[1] + box[3] - left, box[0] + box[2] - top)
        frame = [corner * scale for corner in corners]
        draw = ImageDraw.Draw(crop)
        for reach, width, color in ((4, 5, (12, 20, 40)), (3, 3, (0, 229, 255))):
            edges = [frame[0] - reach, frame[1] - reach, frame[2] + reach, frame[3] + reach]
            draw.rectangle(edges, outline=color, width=width)
        return self.pictures.write(name, crop)
