"""Decoding of TIFF files, exact for all bit depths, photometric interpretations and layouts that tifffile reads."""

from __future__ import annotations

import logging
import math
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from skpatchcore.images.raster import CheckSize, DecodingError, Raster, white_of

if TYPE_CHECKING:
    from tifffile import TiffFile

# tifffile logs details of damaged files. Without a handler, Python would print these log messages.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = 0, 1, 2, 3
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
# Lossy compressions: two kinds of JPEG, three kinds of JPEG 2000, lossy DNG, WebP, JPEG XL.
_LOSSY = (6, 7, 33003, 33004, 33005, 34712, 34892, 50001, 50002, 34927)
# JPEG compressions, which have 8 bits. Pillow decodes these files, because libtiff converts their colours.
_JPEG = (6, 7)


def tiff_size(file: BinaryIO) -> tuple[int, int]:
    """Return the height and width of a TIFF file in upright orientation, from the tags of its page."""
    with _opened(file) as tif:
        page = _the_page(tif)
        height, width = page.imagelength, page.imagewidth
        return (width, height) if _orientation_of(page) >= 5 else (height, width)


def is_lossy(file: BinaryIO) -> bool:
    """Return whether the compression of a TIFF file is lossy."""
    with _opened(file) as tif:
        return _the_page(tif).compression in _LOSSY


def decode_tiff(file: BinaryIO, n_bytes: int, check_size: CheckSize) -> Raster | None:
    """Return the pixels of a TIFF file; None if the colours must be converted, which requires Pillow.

    Parameters
    ----------
    file : binary file
        The file, positioned at its beginning.
    n_bytes : int
        Size of the file in bytes.
    check_size : callable
        Called with height and width before the pixels are decoded. Raises an error if the image is too large.

    Returns
    -------
    Raster or None

    Raises
    ------
    DecodingError
        If the file contains several pages, is truncated, or stores values that are not grey values or colours. The
        error is also raised if the file can only be decoded with imagecodecs, and imagecodecs is not installed.
    Exception
        Any exception of tifffile, if the file is damaged.
    """
    with _opened(file) as tif:
        page = _the_page(tif)
        check_size(page.imagelength, page.imagewidth)
        if page.compression in _JPEG or page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE):
            if page.bitspersample != 8:
                name = getattr(page.photometric, "name", page.photometric)
                raise DecodingError(
                    f"the TIFF file stores {page.bitspersample} bits as {name}, which is not supported. Convert it to "
                    "grey or RGB, uncompressed or with deflate compression."
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
            raise DecodingError(
                f"the TIFF file stores {pixels.dtype} values with white as 0, so black is not defined. Convert the "
                "values to unsigned integers."
            )
        pixels = (white - pixels).astype(pixels.dtype)
    if is_premultiplied and alpha is not None:
        pixels, white = _unmultiplied(pixels, alpha, white), 1.0
    return Raster(pixels, white, alpha, is_lossy=changes_values).turned(orientation)


def _opened(file: BinaryIO) -> TiffFile:
    """Open a TIFF file. Only its first header is read.

    Raises
    ------
    DecodingError
        If tifffile is not installed.
    """
    try:
        from tifffile import TiffFile
    except ImportError as error:
        raise DecodingError("a TIFF file can only be decoded with tifffile. Run: pip install tifffile.") from error
    return TiffFile(file)


def _the_page(tif: TiffFile) -> Any:
    """Return the only page at full resolution. All other pages must be smaller copies or transparency masks."""
    pages: Any = tif.pages
    # Reading two pages suffices to refuse a file with many pages.
    whole = list(islice((page for page in pages if not int(page.subfiletype) & 0b101), 2))
    if not whole:
        raise DecodingError("the TIFF file holds only a smaller copy of an image or a mask, but no complete image.")
    if len(whole) > 1:
        raise DecodingError("the TIFF file holds several pages, expected one page.")
    first = whole[0]
    series = tif.series[0] if len(tif.series) else None  # ImageJ stores a stack of images behind a single page
    if first.imagedepth != 1 or (
        first is pages[0] and series is not None and math.prod(series.shape) > math.prod(first.shape)
    ):
        raise DecodingError("the TIFF file holds several pages, expected one page.")
    return first


def _orientation_of(page: Any) -> int:
    """Return the orientation of a page, from 1 to 8; 1 (upright) if the page states no orientation."""
    tag = page.tags.get("Orientation")
    return 1 if tag is None else int(tag.value)


def _channels_of(page: Any) -> tuple[int, int | None, bool]:
    """Return the number of grey or colour channels, the position of alpha, and whether colours are premultiplied."""
    if page.sampleformat not in (_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED):
        raise DecodingError("the TIFF file stores complex numbers, expected grey values or colours.")
    if isinstance(page.bitspersample, tuple) or page.dtype is None:
        raise DecodingError(
            f"the TIFF file has channels of {page.bitspersample} bits, which is not supported. Convert it to 8 or 16 "
            "bits per channel."
        )
    n_colours, extras = (3 if page.photometric == _RGB else 1), [int(kind) for kind in page.extrasamples]
    n_extras = page.samplesperpixel - n_colours
    if n_extras < 0 or n_extras > 1:
        raise DecodingError(
            f"the TIFF file has {page.samplesperpixel} channels, expected {n_colours} and at most one for transparency."
        )
    return n_colours, (n_colours if n_extras else None), extras[:1] == [1]


def _require_whole(page: Any, n_bytes: int) -> None:
    """Raise an error if a part of the image is missing. tifffile would fill some missing parts with zeros."""
    n_segments = math.prod(page.chunked)
    if len(page.dataoffsets) != n_segments or len(page.databytecounts) != n_segments:
        raise DecodingError(
            f"the TIFF file is damaged: it lists {len(page.dataoffsets)} of {n_segments} parts of its pixels."
        )
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count == 0 or offset + count > n_bytes:
            raise DecodingError("the TIFF file is truncated, or a part of its pixels is missing.")


def _as_rows(page: Any) -> np.ndarray:
    """Return the stored values, of shape (height, width, n_samples)."""
    values: np.ndarray = page.asarray()
    axes = "".join(page.axes)
    if axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif axes == "YX":
        values = values[..., None]
    elif axes != "YXS":
        raise DecodingError("the TIFF file holds several pages, expected one page.")
    return values.astype(np.uint8) if values.dtype.kind == "b" else values


def _looked_up(indices: np.ndarray, colours: np.ndarray, alpha: np.ndarray | None) -> Raster:
    """Return the colours of an image with a palette."""
    table = np.asarray(colours).T  # (n_colours, 3)
    if table.ndim != 2 or table.shape[1] != 3:
        raise DecodingError("the TIFF file has a damaged palette.")
    if indices.max(initial=0) >= len(table):
        raise DecodingError(f"the TIFF file holds the colour index {indices.max()}, but has only {len(table)} colours.")
    # The format requires palettes of 16 bits, but some programs write palettes of 8 bits.
    white = 255.0 if table.max(initial=0) <= 255 else 65535.0
    if white == 65535.0 and not (table & 255).any():  # Pillow writes 8 bits as multiples of 256
        table, white = table >> 8, 255.0
    return Raster(table[indices], white, alpha, labels=indices)


def _unmultiplied(pixels: np.ndarray, alpha: np.ndarray, white: float | None) -> np.ndarray:
    """Divide premultiplied colours by their opacity. Return values in [0, 1]; transparent pixels are 0."""
    if white is None:
        raise DecodingError(
            f"the TIFF file stores {pixels.dtype} colours that are multiplied by their opacity, but white is not "
            "defined for this dtype. Convert the file to 8 or 16 bits per channel."
        )
    colours, opacity = pixels.astype(np.float64), alpha[..., None].astype(np.float64)
    return np.divide(colours, opacity, out=np.zeros_like(colours), where=opacity > 0).clip(0, 1)


def _needs_imagecodecs(page: Any) -> DecodingError:
    """Return the error for a file that cannot be decoded without imagecodecs."""
    name = getattr(page.compression, "name", page.compression)
    return DecodingError(
        f"a TIFF file with {name} compression can only be decoded with imagecodecs. Run: pip install imagecodecs."
    )
