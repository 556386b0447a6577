"""decode_file and decode_image: any image file or Pillow image as a Raster, exactly as stored."""

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
        Of the file.
    index : int
        Position in `X`, for the error.
    path : str or None
        Of the file, for the error.
    max_pixels : int or None
        Images of more are refused before they are decoded.

    Returns
    -------
    Raster

    Raises
    ------
    ImageError
        If the file can't be decoded exactly: it is damaged, holds several pages, has too many pixels, or is stored in a
        way that the installed libraries can't read.
    """
    return _explained(lambda: _decoder_of(content)(content, _size_check(max_pixels)), index, path)


def decode_image(image: Image.Image, index: int, max_pixels: int | None) -> Raster:
    """Return the values of a Pillow image; of its file if it has not been loaded yet.

    Parameters
    ----------
    image : PIL image
        The image.
    index, max_pixels
        As of :func:`decode_file`.

    Raises
    ------
    ImageError
        As :func:`decode_file`.
    """
    content = content_behind(image)
    if content is not None:
        return decode_file(content, index, None, max_pixels)
    return _explained(lambda: raster_of(image, _size_check(max_pixels)), index, None)


def size_of_file(path: str, index: int, max_pixels: int | None) -> tuple[int, int] | None:
    """Return height and width of an image file as it is seen, from its header; None if the header does not say.

    Raises
    ------
    ImageError
        If the file can't be opened or has too many pixels.
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
    """Return height and width of a Pillow image as it is seen; None if its header does not say.

    Raises
    ------
    ImageError
        If it has too many pixels.
    """

    def read() -> tuple[int, int] | None:
        _size_check(max_pixels)(image.height, image.width)
        return upright_size(image)

    return _explained(read, index, None)


def _decoder_of(content: bytes) -> Callable[[bytes, CheckSize], Raster]:
    if content[:4] in _tiff.MAGIC:
        return _decode_tiff
    if content[:2] in _netpbm.MAGIC:
        return _netpbm.decode_netpbm
    return decode_png if content[:8] == _png.SIGNATURE else decode_with_pillow


def _decode_tiff(content: bytes, check_size: CheckSize) -> Raster:
    raster = _tiff.decode_tiff(BytesIO(content), len(content), check_size)
    if raster is None:
        raster = replace(decode_with_pillow(content, check_size), is_lossy=_tiff.is_lossy(BytesIO(content)))
    return raster


def _size_check(max_pixels: int | None) -> CheckSize:
    def check(height: int, width: int) -> None:
        if max_pixels is not None and width * height > max_pixels:
            raise DecodingError(f"{height}×{width} pixels, more than max_pixels={max_pixels}.")
        # Pillow's own limit, also for files that other libraries decode
        if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
            raise DecodingError(
                f"{height}×{width} pixels, more than twice PIL.Image.MAX_IMAGE_PIXELS={Image.MAX_IMAGE_PIXELS}."
            )

    return check


def _explained(read: Callable[[], T], index: int, path: str | None) -> T:
    """Return what `read` returns; turn errors about the image's content into an ImageError.

    Decoders report damaged files with errors of many types, and their texts name objects of the decoder. Users get a
    plain reason; the decoder's error is the cause in the traceback.
    """
    try:
        return read()
    except (ImageError, MemoryError):
        raise
    except DecodingError as error:
        raise ImageError(str(error), index, path) from error
    except Exception as error:
        raise ImageError(f"can't be read: {_reason(error)}", index, path) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is not an image of a known format ({', '.join(FORMATS)})."
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "it has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)}."
    if isinstance(error, ValueError) and "closed" in str(error):
        return "its file has been closed."
    return "the file is damaged or truncated, or uses a feature of its format that is not supported."
