"""load_image: an image of any form that a user has, as one kind of array.

Every image becomes float32 in [0, 1] with one or three channels before it is resized. Therefore the same picture as
uint8, uint16, float, file or PIL image gives the same features. An image that can't be read, or whose values have no
defined meaning, raises :class:`~skpatchcore.ImageError`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from skpatchcore._utils.missing import is_missing
from skpatchcore.images.decoding import decode_file, decode_image, size_of_file, size_of_image
from skpatchcore.images.errors import ImageError
from skpatchcore.images.files import read_content
from skpatchcore.images.raster import Raster, white_of

# How far rounding may carry a float image beyond its range, in shares of the range.
_TOLERANCE = 1e-5
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class PixelFormat:
    """How the values of images are to be understood.

    Attributes
    ----------
    channel_order : {"rgb", "bgr"}
        Order of the channels of arrays and tensors. Files and PIL images state their own order.
    value_range : (float, float) or None
        The stored values that are black and full intensity, such as (0, 4095) for 12 bits in uint16. None takes them
        from the dtype or from the file.
    """

    channel_order: str = "rgb"
    value_range: tuple[float, float] | None = None


DEFAULT_FORMAT = PixelFormat()


def load_image(
    image: Any,
    index: int,
    max_pixels: int | None = None,
    content: bytes | None = None,
    pixel_format: PixelFormat = DEFAULT_FORMAT,
) -> np.ndarray:
    """Read one image.

    Parameters
    ----------
    image : path, bytes, binary file, PIL image, array or tensor
        Arrays are of shape (height, width) or (height, width, n_channels), tensors also of shape (n_channels, height,
        width). Grey, RGB or RGBA; bool, uint8, uint16 (65535 is white) or float in [0, 1]. Alpha is ignored. Bytes are
        the content of a file. The EXIF orientation of files and PIL images is applied.
    index : int
        Position in `X`, for the error.
    max_pixels : int or None, default=None
        Files and PIL images of more pixels are refused before they are decoded. None is Pillow's own limit.
    content : bytes or None, default=None
        Content of the file, if it has been read.
    pixel_format : PixelFormat
        Order of the channels, and range of the values.

    Returns
    -------
    array of shape (height, width, 1 or 3), float32 in [0, 1]

    Raises
    ------
    ImageError
        If the file can't be read to its end, holds several pages or too many pixels, or if shape, dtype, range or a NaN
        rule the image out.
    """
    path = path_of(image)
    if path is None and content is None:
        content = content_of(image, index)
    if path is not None or content is not None:
        raster = decode_file(read_content(str(path), index) if content is None else content, index, path, max_pixels)
    elif isinstance(image, Image.Image):
        raster = decode_image(image, index, max_pixels)
    else:
        raster = _raster_of_array(image, index, pixel_format.channel_order)
    return _scaled(raster, pixel_format.value_range, index, path)


def image_size(
    image: Any,
    index: int,
    max_pixels: int | None = None,
    pixel_format: PixelFormat = DEFAULT_FORMAT,
) -> tuple[int, int]:
    """Return the height and width in pixels of one image, as :func:`load_image` returns it; of a file from its header.

    Raises
    ------
    ImageError
        If the file can't be opened, is not an image, or has more pixels than allowed.
    """
    path, size = path_of(image), None
    if path is not None:
        size = size_of_file(path, index, max_pixels)
    elif isinstance(image, Image.Image):
        size = size_of_image(image, index, max_pixels)
    elif isinstance(image, np.ndarray) and image.ndim in (2, 3):
        size = image.shape[0], image.shape[1]
    if size is None:
        height, width, _ = load_image(image, index, max_pixels, pixel_format=pixel_format).shape
        size = height, width
    return size


def content_of(image: Any, index: int) -> bytes | None:
    """Return the content of an image that is given as bytes or as an open binary file; None for other forms.

    Raises
    ------
    ImageError
        If the file can't be read from its beginning, or is open as text.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not callable(getattr(image, "read", None)) or not callable(getattr(image, "seek", None)):
        return None
    try:
        position = image.tell()
        image.seek(0)
        content = image.read()
        image.seek(position)
    except (OSError, ValueError) as error:
        raise ImageError("is a file object that can't be read from its beginning; pass its path.", index) from error
    if not isinstance(content, bytes):
        raise ImageError("is a file that is open as text; open it with mode 'rb'.", index)
    return content


def from_tensor(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor of any device and dtype as an array."""
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def path_of(image: Any) -> str | None:
    """Return the path of an image that is given by its path, else None."""
    return os.fsdecode(image) if isinstance(image, str | os.PathLike) else None


def is_channels_first(shape: tuple[int, ...]) -> bool | None:
    """Return whether the last three axes of a tensor are (n_channels, height, width); None if it can't be told."""
    first, last = shape[-3] in _CHANNELS, shape[-1] in _CHANNELS
    return None if first and last else first


def _raster_of_array(image: Any, index: int, channel_order: str) -> Raster:
    if isinstance(image, torch.Tensor):
        pixels = from_tensor(image)
        if pixels.ndim == 3 and (first := is_channels_first(pixels.shape)) is not False:
            if first is None:
                raise ImageError(
                    f"is a tensor of shape {pixels.shape}, whose channels may be the first or the last axis: convert "
                    "it to an array of shape (height, width, n_channels).",
                    index,
                )
            pixels = np.moveaxis(pixels, 0, -1)
    elif isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
        raise ImageError("has masked pixels, which have no value: fill them.", index)
    elif isinstance(image, np.ndarray):
        pixels = np.asarray(image)
    elif is_missing(image):
        raise ImageError(f"is missing ({image!r}).", index)
    else:
        raise ImageError(
            f"of type {type(image).__name__}, expected a path, bytes, a binary file, an array, a tensor or a PIL "
            "image.",
            index,
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3:
        raise ImageError(f"shape {pixels.shape}, expected (height, width) or (height, width, channels).", index)
    if pixels.shape[2] not in _CHANNELS:
        hint = " It looks channels-first: move the axis to the end." if pixels.shape[0] in _CHANNELS else ""
        raise ImageError(f"{pixels.shape[2]} channels, expected 1, 3 or 4 in the last axis.{hint}", index)
    alpha = pixels[:, :, 3] if pixels.shape[2] == 4 else None
    pixels = pixels[:, :, :3]
    if channel_order == "bgr" and pixels.shape[2] == 3:
        pixels = pixels[:, :, ::-1]
    return Raster(pixels, white_of(pixels.dtype), alpha)


def _scaled(raster: Raster, value_range: tuple[float, float] | None, index: int, path: str | None) -> np.ndarray:
    """Return pixels as float32 in [0, 1]."""
    pixels, white = raster.pixels, raster.white
    if 0 in pixels.shape:
        raise ImageError(f"shape {pixels.shape} holds no pixels.", index, path)
    if pixels.dtype.kind not in "biuf":
        raise ImageError(f"dtype {pixels.dtype}, expected uint8, uint16 or float in [0, 1].", index, path)
    if value_range is None and white is None:
        raise ImageError(
            f"dtype {pixels.dtype}, whose white is not defined; expected bool, uint8, uint16 or float in [0, 1]. Its "
            f"values are in [{pixels.min()}, {pixels.max()}]: convert it, such as with .astype(np.uint8) if white is "
            "255, or set value_range of the extractor.",
            index,
            path,
        )
    if value_range is None and pixels.dtype.kind in ("b", "u"):
        return pixels.astype(np.float32) / np.float32(white)
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # a NaN anywhere makes both NaN
        raise ImageError("holds NaN or infinity.", index, path)
    black, full = (0.0, 1.0) if value_range is None else map(float, value_range)
    slack = _TOLERANCE * (full - black) if pixels.dtype.kind == "f" else 0.0
    if low < black - slack or high > full + slack:
        if value_range is None:
            raise ImageError(
                f"float values in [{low:g}, {high:g}], expected [0, 1]; divide them by the value of white, or set "
                "value_range of the extractor.",
                index,
                path,
            )
        raise ImageError(f"values in [{low:g}, {high:g}], outside value_range=({black:g}, {full:g}).", index, path)
    if value_range is None:
        return pixels.astype(np.float32)
    return ((pixels.astype(np.float64) - black) / (full - black)).astype(np.float32)
