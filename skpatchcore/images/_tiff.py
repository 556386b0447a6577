"""TIFF files, exact for all bit depths, photometric interpretations and layouts that tifffile reads."""

from __future__ import annotations

import logging
import math
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import tifffile

from skpatchcore.images.raster import CheckSize, DecodingError, Raster, white_of

# tifffile logs details of damaged files. Without a handler, Python would print them.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = 0, 1, 2, 3
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
# Compressions that change values: JPEG in two kinds, JPEG 2000 in three, lossy DNG, WebP, JPEG XL.
_LOSSY = (6, 7, 33003, 33004, 33005, 34712, 34892, 50001, 50002, 34927)
# JPEG, whose colours libtiff converts; Pillow decodes these. They have 8 bits.
_JPEG = (6, 7)


def tiff_size(file: BinaryIO) -> tuple[int, int]:
    """Return height and width of a TIFF file as they are seen, from its first page's tags."""
    with tifffile.TiffFile(file) as tif:
        page = _the_page(tif)
        height, width = page.imagelength, page.imagewidth
        return (width, height) if _orientation_of(page) >= 5 else (height, width)


def is_lossy(file: BinaryIO) -> bool:
    """Return whether the compression of a TIFF file changes values."""
    with tifffile.TiffFile(file) as tif:
        return _the_page(tif).compression in _LOSSY


def decode_tiff(file: BinaryIO, n_bytes: int, check_size: CheckSize) -> Raster | None:
    """Return the pixels of a TIFF file; None if Pillow should decode it, because its colours must be converted.

    Parameters
    ----------
    file : binary file
        Positioned at its beginning.
    n_bytes : int
        Size of the file.
    check_size : callable
        Called with height and width before pixels are decoded.

    Raises
    ------
    DecodingError
        If the file holds several pages, is truncated, or stores something other than grey values or colours.
    Exception
        Others, of tifffile, if the file is damaged.
    """
    with tifffile.TiffFile(file) as tif:
        page = _the_page(tif)
        check_size(page.imagelength, page.imagewidth)
        if page.compression in _JPEG or page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE):
            if page.bitspersample != 8:
                name = getattr(page.photometric, "name", page.photometric)
                raise DecodingError(
                    f"stores {page.bitspersample} bits as {name}: convert it to grey or RGB, uncompressed or deflated."
                )
            return None
        n_colours, alpha_at, is_premultiplied = _channels_of(page)
        _require_whole(page, n_bytes)
        try:
            values = _as_rows(page)
        except ImportError as error:
            raise _needs_imagecodecs(page) from error
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise _needs_imagecodecs(page) from error
            raise
        orientation, changes_values = _orientation_of(page), page.compression in _LOSSY
        n_bits, photometric = page.bitspersample, page.photometric
        colours = page.colormap if photometric == _PALETTE else None
    alpha = None if alpha_at is None else values[..., alpha_at]
    pixels, white = values[..., :n_colours], white_of(values.dtype, n_bits if values.dtype.kind == "u" else None)
    if colours is not None:
        return _looked_up(pixels[..., 0], colours, alpha).turned(orientation)
    if photometric == _WHITE_IS_ZERO:
        if white is None or pixels.dtype.kind != "u":
            raise DecodingError(f"stores {pixels.dtype} with white as 0, which has no defined black: convert it.")
        pixels = (white - pixels).astype(pixels.dtype)
    if is_premultiplied and alpha is not None:
        pixels, white = _unmultiplied(pixels, alpha, white), 1.0
    return Raster(pixels, white, alpha, is_lossy=changes_values).turned(orientation)


def _the_page(tif: tifffile.TiffFile) -> Any:
    """Return the only page at full resolution. Others may be smaller copies of it, or its transparency mask."""
    pages: Any = tif.pages
    # two suffice to refuse a file of many
    whole = list(islice((page for page in pages if not int(page.subfiletype) & 0b101), 2))
    if not whole:
        raise DecodingError("holds only a smaller copy of an image, or only its mask.")
    if len(whole) > 1:
        raise DecodingError("holds several pages, expected one.")
    first = whole[0]
    series = tif.series[0] if len(tif.series) else None  # ImageJ stores stacks behind a single page
    if first.imagedepth != 1 or (
        first is pages[0] and series is not None and math.prod(series.shape) > math.prod(first.shape)
    ):
        raise DecodingError("holds several pages, expected one.")
    return first


def _orientation_of(page: Any) -> int:
    tag = page.tags.get("Orientation")
    return 1 if tag is None else int(tag.value)


def _channels_of(page: Any) -> tuple[int, int | None, bool]:
    """Return the number of grey or colour channels, the position of alpha, and whether it is premultiplied."""
    if page.sampleformat not in (_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED):
        raise DecodingError("stores complex numbers, which are not grey values.")
    if isinstance(page.bitspersample, tuple) or page.dtype is None:
        raise DecodingError(f"has channels of {page.bitspersample} bits, which can't be read: convert it.")
    n_colours, extras = (3 if page.photometric == _RGB else 1), [int(kind) for kind in page.extrasamples]
    n_extras = page.samplesperpixel - n_colours
    if n_extras < 0 or n_extras > 1:
        raise DecodingError(
            f"has {page.samplesperpixel} channels, expected {n_colours} and at most one of transparency."
        )
    return n_colours, (n_colours if n_extras else None), extras[:1] == [1]


def _require_whole(page: Any, n_bytes: int) -> None:
    """Raise an error if a part of the image is missing. tifffile would fill some of these with zeros."""
    n_segments = math.prod(page.chunked)
    if len(page.dataoffsets) != n_segments or len(page.databytecounts) != n_segments:
        raise DecodingError(f"has {len(page.dataoffsets)} of {n_segments} parts of its pixels: the file is damaged.")
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count == 0 or offset + count > n_bytes:
            raise DecodingError("is truncated, or a part of its pixels is missing.")


def _as_rows(page: Any) -> np.ndarray:
    """Return the stored values, of shape (height, width, n_samples)."""
    values: np.ndarray = page.asarray()
    axes = "".join(page.axes)
    if axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif axes == "YX":
        values = values[..., None]
    elif axes != "YXS":
        raise DecodingError("holds several pages, expected one.")
    return values.astype(np.uint8) if values.dtype.kind == "b" else values


def _looked_up(indices: np.ndarray, colours: np.ndarray, alpha: np.ndarray | None) -> Raster:
    table = np.asarray(colours).T  # (n_colours, 3)
    if indices.max(initial=0) >= len(table):
        raise DecodingError(f"holds the index {indices.max()} of a palette of {len(table)} colours.")
    # Some programs write palettes of 8 bits where the format asks for 16.
    white = 255.0 if table.max(initial=0) <= 255 else 65535.0
    if white == 65535.0 and not (table & 255).any():  # Pillow writes 8 bits as multiples of 256
        table, white = table >> 8, 255.0
    return Raster(table[indices], white, alpha, labels=indices)


def _unmultiplied(pixels: np.ndarray, alpha: np.ndarray, white: float | None) -> np.ndarray:
    """Return colours that were stored multiplied by their opacity, in [0, 1]; 0 where nothing is visible."""
    if white is None:
        raise DecodingError(f"stores {pixels.dtype} multiplied by transparency: convert it.")
    colours, opacity = pixels.astype(np.float64), alpha[..., None].astype(np.float64)
    return np.divide(colours, opacity, out=np.zeros_like(colours), where=opacity > 0).clip(0, 1)


def _needs_imagecodecs(page: Any) -> DecodingError:
    name = getattr(page.compression, "name", page.compression)
    return DecodingError(f"is a TIFF file with {name} compression, which needs imagecodecs: pip install imagecodecs.")
