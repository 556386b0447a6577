"""write_heat_map: write the heat map of one image, and its layers for the report."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from skpatchcore._utils.files import partial_path
from skpatchcore.detectors import ImageResult
from skpatchcore.display import overlay_anomaly_map
from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import PixelFormat, load_image
from skpatchcore.reports.layers import Layers, write_layers
from skpatchcore.reports.pictures import PictureFolder

# Level of the PNG compression. Pillow's default level (6) takes four to five times as long for files that are 10 to
# 15 % smaller. Then the compression would take longer than the network of a fast backbone.
_LEVEL = 1


class HeatMap(NamedTuple):
    """What was written for one image.

    Attributes
    ----------
    picture : str or None
        File name of the heat map; None if it could not be written.
    problem : str
        Why the heat map could not be written; empty if it was written.
    layers : Layers or None
        Pictures for the report; None if none were asked for.
    error : Exception or None
        Why the heat map could not be written; None if it was written.
    """

    picture: str | None
    problem: str = ""
    layers: Layers | None = None
    error: Exception | None = None


def write_heat_map(
    result: ImageResult,
    target: Path,
    threshold: float,
    pixel_format: PixelFormat,
    pictures: PictureFolder | None = None,
    stem: str = "",
) -> HeatMap:
    """Write the heat map of an image, and its layers if a folder for them is given.

    A failure is returned, not raised: the other heat maps and all scores are written.

    Parameters
    ----------
    result : ImageResult
        Result of the image, with an anomaly map.
    target : path
        File of the heat map.
    threshold : float
        The detector's ``pixel_offset_``. If NaN, colours run over the map's own range.
    pixel_format : PixelFormat
        Form in which the detector reads arrays.
    pictures : PictureFolder or None, default=None
        Folder of the layers; None writes no layers.
    stem : str, default=""
        Start of the file names of the layers, from :meth:`PictureFolder.new_stem`.

    Returns
    -------
    HeatMap
    """
    anomaly_map = np.asarray(result.anomaly_map)
    try:
        background = background_of(result, pixel_format)
    except Exception as error:
        unseen = None if pictures is None else Layers(problem=f"the image cannot be shown: {reason_of(error)}")
        return HeatMap(None, _not_written(target, error), unseen, error)
    written = HeatMap(target.name)
    try:
        _write_overlay(target, background, anomaly_map, threshold)
    except Exception as error:
        written = HeatMap(None, _not_written(target, error), error=error)
    if pictures is None:
        return written
    return written._replace(layers=write_layers(background, anomaly_map, threshold, pictures, stem=stem))


def background_of(result: ImageResult, pixel_format: PixelFormat) -> np.ndarray:
    """Return the image of a result; a grey area if a pipeline turned the image into something else, e.g. features."""
    if isinstance(result.image, str | os.PathLike):
        return load_image(result.image, 0, pixel_format=pixel_format)
    shape = None if result.anomaly_map is None else np.shape(result.anomaly_map)
    with suppress(ImageError):
        pixels = load_image(result.image, 0, pixel_format=pixel_format)
        if shape in (None, pixels.shape[:2]):
            return pixels
    return np.full((*(shape or (1, 1)), 1), 0.5, np.float32)


def write_picture_layers(
    result: ImageResult, threshold: float, pixel_format: PixelFormat, pictures: PictureFolder, stem: str = ""
) -> Layers:
    """Write the layers of an image, also without an anomaly map. A failure is stated in `problem` of the layers.

    Parameters
    ----------
    result, threshold, pixel_format, pictures, stem
        As for :func:`write_heat_map`. The result may have no anomaly map.
    """
    try:
        background = background_of(result, pixel_format)
    except Exception as error:
        return Layers(problem=f"the image cannot be shown: {reason_of(error)}")
    anomaly_map = None if result.anomaly_map is None else np.asarray(result.anomaly_map)
    return write_layers(background, anomaly_map, threshold, pictures, stem=stem)


def reason_of(error: Exception) -> str:
    """Return the text of an error in one line; its type if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def _not_written(target: Path, error: Exception) -> str:
    return f"the heat map {target.name!r} could not be written: {reason_of(error)}"


def _write_overlay(target: Path, background: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> None:
    """Write a heat map in one step. An existing file is replaced; a link at its place is not followed."""
    if math.isnan(threshold):  # without calibration, there is only the map's own range
        threshold = float(np.nanmax(anomaly_map)) / 2
    picture = Image.fromarray(overlay_anomaly_map(background, anomaly_map, threshold))
    partial = partial_path(target)  # several threads write the same file if a path is given several times
    try:
        picture.save(partial, format="PNG", compress_level=_LEVEL)
        os.replace(partial, target)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
