"""`load_image`: read an image of any supported form as a float32 array.

Every image is converted to float32 in [0, 1] with one or three channels before it is resized. Therefore the same
picture gives the same features as uint8, uint16, float, file or PIL image. An image that cannot be read, or that has
values without a defined meaning, raises :class:`~skpatchcore.ImageError`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from skpatchcore._utils.loaded import is_tensor
from skpatchcore._utils.missing import is_missing
from skpatchcore.images.decoding import decode_file, decode_image, size_of_file, size_of_image
from skpatchcore.images.errors import ImageError
from skpatchcore.images.files import read_content
from skpatchcore.images.kept import KeptPath
from skpatchcore.images.raster import Raster, white_of

if TYPE_CHECKING:
    import torch

# Tolerance for rounding errors of float images that exceed their range, as a fraction of the range.
_TOLERANCE = 1e-5
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class PixelFormat:
    """Interpretation of the stored values of images.

    Attributes
    ----------
    channel_order : {"rgb", "bgr"}
        Order of the channels in arrays and tensors. Files and PIL images define their own order.
    value_range : (float, float) or None
        Stored values of black and of white (full intensity), such as (0, 4095) for 12 bits in uint16. None uses the
        values that the dtype or the file defines.
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
    """Read one image as a float32 array with values in [0, 1].

    Parameters
    ----------
    image : path, bytes, binary file, PIL image, array or tensor
        The image: grey, RGB or RGBA. Alpha is ignored. Arrays have the shape (height, width) or (height, width,
        n_channels). Tensors can also have the shape (n_channels, height, width). The dtype of arrays and tensors is
        bool, uint8, uint16 (65535 is white) or float in [0, 1]. Bytes are the content of a file. Files and PIL images
        are turned upright by their EXIF orientation.
    index : int
        Position of the image in `X`, for error messages.
    max_pixels : int or None, default=None
        Maximum number of pixels. Files and PIL images with more pixels are refused before they are decoded. If None,
        only Pillow's own limit applies.
    content : bytes or None, default=None
        Content of the file, if it has already been read.
    pixel_format : PixelFormat
        Order of the channels and range of the values.

    Returns
    -------
    array of shape (height, width, 1 or 3), float32
        Pixels in [0, 1]. 0 is black and 1 is full intensity.

    Raises
    ------
    ImageError
        If the file cannot be read completely, contains several pages, or has more pixels than allowed. The error is
        also raised if the shape, the dtype or the range of the values is not supported, or if a value is NaN or
        infinite.
    """
    path = path_of(image)
    kept = image if isinstance(image, KeptPath) else None
    if path is None and content is None:
        content = content_of(image, index)
    elif kept is not None and content is None:
        content = kept.content
    if kept is not None and kept.raster is not None:
        raster = kept.raster
    elif path is not None or content is not None:
        raster = decode_file(read_content(str(path), index) if content is None else content, index, path, max_pixels)
    elif isinstance(image, Image.Image):
        raster = decode_image(image, index, max_pixels)
    else:
        raster = _raster_of_array(image, index, pixel_format.channel_order)
    if kept is not None:
        kept.content, kept.raster = None, raster
    return _scaled(raster, pixel_format.value_range, index, path)


def image_size(
    image: Any,
    index: int,
    max_pixels: int | None = None,
    pixel_format: PixelFormat = DEFAULT_FORMAT,
) -> tuple[int, int]:
    """Return the height and width in pixels that :func:`load_image` returns for an image.

    The size of a file is read from its header, if the header states it reliably. The parameters are those of
    :func:`load_image`.

    Returns
    -------
    (int, int)
        Height and width.

    Raises
    ------
    ImageError
        If the file cannot be opened, is not an image, or has more pixels than allowed.
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

    The position of an open file is restored after reading.

    Raises
    ------
    ImageError
        If the file cannot be read from its beginning, or is opened in text mode.
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
        raise ImageError("the file object cannot be read from its beginning. Pass the file's path.", index) from error
    if not isinstance(content, bytes):
        raise ImageError("the file object is open as text. Open the file with mode 'rb'.", index)
    return content


def from_tensor(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor on any device and of any dtype as an array."""
    tensor = tensor.detach().cpu()
    is_bfloat16 = str(tensor.dtype) == "torch.bfloat16"  # numpy has no such type
    return np.asarray(tensor.float() if is_bfloat16 else tensor)


def as_stored(pixels: np.ndarray, pixel_format: PixelFormat) -> np.ndarray:
    """Return pixels in [0, 1] in the form in which :func:`load_image` reads arrays with a pixel format.

    Parameters
    ----------
    pixels : array of shape (height, width, 1 or 3), float
        Pixels as returned by :func:`load_image`.
    pixel_format : PixelFormat
        Order of the channels and range of the values of arrays.

    Returns
    -------
    array of shape (height, width, 1 or 3), float
    """
    if pixel_format.value_range is not None:
        black, white = pixel_format.value_range
        pixels = pixels.astype(np.float64) * (white - black) + black
    return pixels[:, :, ::-1] if pixel_format.channel_order == "bgr" else pixels


def path_of(image: Any) -> str | None:
    """Return the path of an image that is given by its path; None for other forms."""
    return str(os.fsdecode(image)) if isinstance(image, str | os.PathLike) else None


def is_channels_first(shape: tuple[int, ...]) -> bool | None:
    """Return whether the last three axes of a tensor are (n_channels, height, width); None if this is ambiguous."""
    first, last = shape[-3] in _CHANNELS, shape[-1] in _CHANNELS
    return None if first and last else first


def _raster_of_array(image: Any, index: int, channel_order: str) -> Raster:
    """Return the values of an array or a tensor as a raster. Raise if the object is not an image."""
    if is_tensor(image):
        pixels = from_tensor(image)
        if pixels.ndim == 3 and (first := is_channels_first(pixels.shape)) is not False:
            if first is None:
                raise ImageError(
                    f"the tensor of shape {pixels.shape} is ambiguous: the channels may be the first or the last axis. "
                    "Convert it to an array of shape (height, width, n_channels).",
                    index,
                )
            pixels = np.moveaxis(pixels, 0, -1)
    elif isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
        raise ImageError("the masked array has masked pixels, which have no value. Fill them.", index)
    elif isinstance(image, np.ndarray):
        pixels = np.asarray(image)
    elif is_missing(image):
        raise ImageError(f"the image is missing ({image!r}). Remove this item.", index)
    else:
        raise ImageError(
            f"the image is of type {type(image).__name__}, expected a path, bytes, a binary file, an array, a tensor "
            "or a PIL image.",
            index,
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3:
        raise ImageError(
            f"the image has shape {pixels.shape}, expected (height, width) or (height, width, channels).", index
        )
    if pixels.shape[2] not in _CHANNELS:
        hint = " The array looks channels-first: move the axis to the end." if pixels.shape[0] in _CHANNELS else ""
        raise ImageError(
            f"the image has {pixels.shape[2]} channels, expected 1, 3 or 4 channels in the last axis.{hint}", index
        )
    alpha = pixels[:, :, 3] if pixels.shape[2] == 4 else None
    pixels = pixels[:, :, :3]
    if channel_order == "bgr" and pixels.shape[2] == 3:
        pixels = pixels[:, :, ::-1]
    return Raster(pixels, white_of(pixels.dtype), alpha)


def _scaled(raster: Raster, value_range: tuple[float, float] | None, index: int, path: str | None) -> np.ndarray:
    """Return the pixels of a raster as float32 in [0, 1]. Raise if their values have no defined meaning."""
    pixels, white = raster.pixels, raster.white
    if 0 in pixels.shape:
        raise ImageError(f"the image has shape {pixels.shape}, which holds no pixels.", index, path)
    if pixels.dtype.kind not in "biuf":
        raise ImageError(f"the image has dtype {pixels.dtype}, expected uint8, uint16 or float in [0, 1].", index, path)
    if value_range is None and white is None:
        raise ImageError(
            f"dtype {pixels.dtype} does not define white; expected bool, uint8, uint16 or float in [0, 1]. The "
            f"values are in [{pixels.min()}, {pixels.max()}]. Convert the image, such as with "
            ".astype(np.uint8) if white is 255, or set value_range of the extractor.",
            index,
            path,
        )
    if value_range is None and pixels.dtype.kind in ("b", "u"):
        return pixels.astype(np.float32) / np.float32(white)
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # if any value is NaN, minimum and maximum are NaN
        raise ImageError("holds NaN or infinity.", index, path)
    black, full = (0.0, 1.0) if value_range is None else map(float, value_range)
    slack = _TOLERANCE * (full - black) if pixels.dtype.kind == "f" else 0.0
    if low < black - slack or high > full + slack:
        if value_range is None:
            raise ImageError(
                f"the image has float values in [{low:g}, {high:g}], expected [0, 1]. Divide them by the value of "
                "white, or set value_range of the extractor.",
                index,
                path,
            )
        raise ImageError(
            f"the values are in [{low:g}, {high:g}], outside value_range=({black:g}, {full:g}).", index, path
        )
    if value_range is None:
        return pixels.astype(np.float32)
    return ((pixels.astype(np.float64) - black) / (full - black)).astype(np.float32)
