"""`decode_file` and `decode_image`: return the values of an image file or a Pillow image exactly as stored."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from skpatchcore.images import _netpbm, _png, _tiff
from skpatchcore.images._pillow import (
    content_behind,
    decode_png,
    decode_with_pillow,
    open_file,
    raster_of,
    upright_size,
)
from skpatchcore.images.errors import ImageError
from skpatchcore.images.files import opened
from skpatchcore.images.formats import FORMATS
from skpatchcore.images.raster import CheckSize, DecodingError, Raster

T = TypeVar("T")


def decode_file(content: bytes, index: int, path: str | None, max_pixels: int | None) -> Raster:
    """Return the stored values of an image file.

    Parameters
    ----------
    content : bytes
        Content of the file.
    index : int
        Position of the image in `X`, for error messages.
    path : str or None
        Path of the file, for error messages.
    max_pixels : int or None
        Maximum number of pixels. Larger images are refused before they are decoded. Pillow's own limit applies to all
        images, also if this value is None.

    Returns
    -------
    Raster

    Raises
    ------
    ImageError
        If the file is damaged, contains several pages, has more pixels than allowed, or uses a feature that the
        installed libraries do not support.
    """
    return _explained(lambda: _decoder_of(content)(content, _size_check(max_pixels)), index, path)


def decode_image(image: Image.Image, index: int, max_pixels: int | None) -> Raster:
    """Return the values of a Pillow image, decoded from the image's file if the image is not loaded yet.

    Parameters
    ----------
    image : PIL image
        The image.
    index : int
        Position of the image in `X`, for error messages.
    max_pixels : int or None
        Maximum number of pixels, as for :func:`decode_file`.

    Returns
    -------
    Raster

    Raises
    ------
    ImageError
        If the image cannot be decoded exactly, for the reasons that :func:`decode_file` lists.
    """
    content = content_behind(image)
    if content is not None:
        return decode_file(content, index, None, max_pixels)
    return _explained(lambda: raster_of(image, _size_check(max_pixels)), index, None)


def size_of_file(path: str, index: int, max_pixels: int | None) -> tuple[int, int] | None:
    """Return the height and width of an image file in upright orientation, from its header.

    Parameters
    ----------
    path : str
        Path of the file.
    index : int
        Position of the image in `X`, for error messages.
    max_pixels : int or None
        Maximum number of pixels, as for :func:`decode_file`.

    Returns
    -------
    (int, int) or None
        Height and width in pixels. None if the header does not state the orientation reliably.

    Raises
    ------
    ImageError
        If the file cannot be opened or has too many pixels.
    """
    check_size = _size_check(max_pixels)

    def read() -> tuple[int, int] | None:
        with opened(path, index) as file:
            start = file.read(16)
            file.seek(0)
            if start[:4] in _tiff.MAGIC:
                size = _tiff.tiff_size(file)
            elif start[:2] in _netpbm.MAGIC:
                size = _netpbm.netpbm_size(file.read(1 << 16))
            else:
                with open_file(file) as image:
                    check_size(image.height, image.width)
                    return upright_size(image)
            check_size(*size)
            return size

    return _explained(read, index, path)


def size_of_image(image: Image.Image, index: int, max_pixels: int | None) -> tuple[int, int] | None:
    """Return the height and width of a Pillow image in upright orientation.

    Parameters
    ----------
    image : PIL image
        The image.
    index : int
        Position of the image in `X`, for error messages.
    max_pixels : int or None
        Maximum number of pixels, as for :func:`decode_file`.

    Returns
    -------
    (int, int) or None
        Height and width in pixels. None if the header does not state the orientation reliably.

    Raises
    ------
    ImageError
        If the image has too many pixels.
    """

    def read() -> tuple[int, int] | None:
        _size_check(max_pixels)(image.height, image.width)
        return upright_size(image)

    return _explained(read, index, None)


def _decoder_of(content: bytes) -> Callable[[bytes, CheckSize], Raster]:
    """Return the decoder for a file, which depends on the first bytes of the file."""
    if content[:4] in _tiff.MAGIC:
        return _decode_tiff
    if content[:2] in _netpbm.MAGIC:
        return _netpbm.decode_netpbm
    return decode_png if content[:8] == _png.SIGNATURE else decode_with_pillow


def _decode_tiff(content: bytes, check_size: CheckSize) -> Raster:
    """Return the pixels of a TIFF file. Pillow decodes files with colours that must be converted."""
    raster = _tiff.decode_tiff(BytesIO(content), len(content), check_size)
    if raster is None:
        raster = replace(decode_with_pillow(content, check_size), is_lossy=_tiff.is_lossy(BytesIO(content)))
    return raster


def _size_check(max_pixels: int | None) -> CheckSize:
    """Return a function that raises an error if an image has too many pixels."""

    def check(height: int, width: int) -> None:
        if max_pixels is not None and width * height > max_pixels:
            raise DecodingError(f"the image has {height}×{width} pixels, more than max_pixels={max_pixels}.")
        # Pillow's own limit also applies to files that other libraries decode.
        if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
            raise DecodingError(
                f"the image has {height}×{width} pixels, more than twice PIL.Image.MAX_IMAGE_PIXELS="
                f"{Image.MAX_IMAGE_PIXELS}."
            )

    return check


def _explained(read: Callable[[], T], index: int, path: str | None) -> T:
    """Return the result of `read`. Errors about the content of the image are raised as ImageError.

    Decoders report damaged files with exceptions of many types, and their messages name internal objects of the
    decoder. The ImageError states a plain reason instead. The decoder's exception is its cause in the traceback.
    """
    try:
        return read()
    except (ImageError, MemoryError):
        raise
    except DecodingError as error:
        raise ImageError(str(error), index, path) from error
    except Exception as error:
        raise ImageError(f"cannot be read: {_reason(error)}", index, path) from error


def _reason(error: Exception) -> str:
    """Return the reason why an image cannot be decoded, as one plain sentence."""
    if isinstance(error, UnidentifiedImageError):
        return f"the file is not an image of a known format ({', '.join(FORMATS)})."
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "the image has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)}."
    if isinstance(error, ValueError) and "closed" in str(error):
        return "the file of the image is closed."
    return "the file is damaged or truncated, or it uses an unsupported feature of its format."
