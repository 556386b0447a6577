"""Decoding of Netpbm files (PBM, PGM, PPM, PAM and PFM), exact for every maximum value.

Pillow rescales the values to 8 bits if the maximum value is not 255. netpbmfile mirrors PFM files. Therefore this
module decodes the files itself. The formats are simple: a short header is followed by the values, as bytes or as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from skpatchcore.images.raster import CheckSize, DecodingError, Raster

MAGIC = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"PF", b"Pf")
# Separator of two numbers in a header: white space and comments, which end at the end of their line.
_GAP = rb"(?:\s|#[^\n\r]*[\n\r])+"
_HEADERS = {
    2: re.compile(rb"P[14]" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})(?:#[^\n\r]*)?\s"),
    3: re.compile(rb"P[2356]" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,5})(?:#[^\n\r]*)?\s"),
}
_FLOAT_HEADER = re.compile(rb"P[Ff]\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s")
_PAM_HEADER = re.compile(rb"P7\s((?:[^\n]*\n)*?)ENDHDR\n")
# Maximum length of a header in bytes. Comments can make a header long.
_LONGEST_HEADER = 65536


@dataclass(frozen=True)
class _Header:
    """Content of a header. `start` is the position of the first value in the file."""

    kind: bytes
    height: int
    width: int
    n_channels: int
    maxval: float
    start: int


def netpbm_size(content: bytes) -> tuple[int, int]:
    """Return the height and width of a Netpbm file. `content` may hold the beginning of the file only."""
    header = _header_of(content)
    return header.height, header.width


def decode_netpbm(content: bytes, check_size: CheckSize) -> Raster:
    """Return the pixels of a Netpbm file.

    Parameters
    ----------
    content : bytes
        Content of the file.
    check_size : callable
        Called with height and width before the pixels are decoded. Raises an error if the image is too large.

    Returns
    -------
    Raster

    Raises
    ------
    DecodingError
        If the file is damaged, holds several images, or has more than 4 channels.

    References
    ----------
    The formats are specified at https://netpbm.sourceforge.net/doc/.
    """
    header = _header_of(content)
    check_size(header.height, header.width)
    if header.kind in (b"P1", b"P2", b"P3"):
        values = _from_text(content, header)
    elif header.kind == b"P4":
        values = _from_bits(content, header)
    else:
        values = _from_bytes(content, header)
    if header.kind in (b"PF", b"Pf"):  # PFM files store the bottom row first
        return Raster(values[::-1], 1.0)
    if values.max(initial=0) > header.maxval:
        raise DecodingError(
            f"the Netpbm file holds the value {values.max()}, above the maximum value {header.maxval:g} of its header."
        )
    if header.kind in (b"P1", b"P4"):  # 1 is black
        values = 1 - values
    alpha = values[..., -1] if header.n_channels in (2, 4) else None
    return Raster(values[..., : header.n_channels - (alpha is not None)], header.maxval, alpha)


def _header_of(content: bytes) -> _Header:
    """Parse and check the header of a Netpbm file of any kind."""
    kind, start = content[:2], content[:_LONGEST_HEADER]
    if kind == b"P7":
        header = _pam_header(start)
    elif kind in (b"PF", b"Pf"):
        found = _FLOAT_HEADER.match(start)
        if found is None or float(found[3]) == 0:
            raise DecodingError("the header of the PFM file is damaged.")
        n_channels = 3 if kind == b"PF" else 1
        header = _Header(kind, int(found[2]), int(found[1]), n_channels, float(found[3]), found.end())
    else:
        is_bitmap = kind in (b"P1", b"P4")
        found = _HEADERS[2 if is_bitmap else 3].match(start)
        if found is None:
            raise DecodingError("the header of the Netpbm file is damaged.")
        n_channels = 3 if kind in (b"P3", b"P6") else 1
        maxval = 1 if is_bitmap else int(found[3])
        header = _Header(kind, int(found[2]), int(found[1]), n_channels, maxval, found.end())
    if kind not in (b"PF", b"Pf") and not 1 <= header.maxval <= 65535:
        raise DecodingError(f"the header states the maximum value {header.maxval:g}, expected 1 to 65535.")
    if not 1 <= header.n_channels <= 4:
        raise DecodingError(f"the image has {header.n_channels} channels, expected 1 to 4.")
    if header.height == 0 or header.width == 0:
        raise DecodingError("the image has no pixels: its height or its width is 0.")
    return header


def _pam_header(start: bytes) -> _Header:
    """Parse the header of a PAM file, which consists of names and values."""
    found = _PAM_HEADER.match(start)
    if found is None:
        raise DecodingError("the header of the PAM file is damaged.")
    fields = dict(line.split(None, 1) for line in found[1].splitlines() if line.strip() and line[:1] != b"#")
    try:
        height, width, depth, maxval = (int(fields[name]) for name in (b"HEIGHT", b"WIDTH", b"DEPTH", b"MAXVAL"))
    except (KeyError, ValueError) as error:
        raise DecodingError("the header of the PAM file is damaged.") from error
    return _Header(b"P7", height, width, depth, maxval, found.end())


def _from_bytes(content: bytes, header: _Header) -> np.ndarray:
    """Return values that are stored as bytes, of shape (height, width, n_channels)."""
    if header.kind in (b"PF", b"Pf"):
        name = "<f4" if header.maxval < 0 else ">f4"
    else:
        name = "u1" if header.maxval < 256 else ">u2"
    dtype: np.dtype = np.dtype(name)
    n_values = header.height * header.width * header.n_channels
    _require_one_image(len(content) - header.start, n_values * dtype.itemsize, content[header.start :])
    values = np.frombuffer(content, dtype, n_values, header.start)
    return values.astype(dtype.newbyteorder("=")).reshape(header.height, header.width, header.n_channels)


def _from_bits(content: bytes, header: _Header) -> np.ndarray:
    """Return values that are stored as bits, of shape (height, width, 1). Each row starts at a new byte."""
    n_bytes = (header.width + 7) // 8 * header.height
    _require_one_image(len(content) - header.start, n_bytes, content[header.start :])
    rows = np.frombuffer(content, np.uint8, n_bytes, header.start).reshape(header.height, -1)
    return np.unpackbits(rows, axis=1, count=header.width)[..., None]


def _from_text(content: bytes, header: _Header) -> np.ndarray:
    """Return values that are stored as decimal text, of shape (height, width, n_channels)."""
    text = re.sub(rb"#[^\n\r]*", b" ", content[header.start :])
    if header.kind == b"P1":  # in these files, digits need no spaces between them
        text = b" ".join(text[i : i + 1] for i in range(len(text)) if not text[i : i + 1].isspace())
    words = text.split()
    n_values = header.height * header.width * header.n_channels
    if len(words) != n_values:
        raise DecodingError(f"the Netpbm file holds {len(words)} values, expected {n_values}.")
    if not all(word.isdigit() and len(word) <= 5 for word in words):
        raise DecodingError("the Netpbm file holds values that are not numbers from 0 to 65535.")
    values = np.array(words, np.int64)
    if values.max() > header.maxval:
        raise DecodingError(
            f"the Netpbm file holds the value {values.max()}, above the maximum value {header.maxval:g} of its header."
        )
    dtype = np.uint8 if header.maxval < 256 else np.uint16
    return values.astype(dtype).reshape(header.height, header.width, header.n_channels)


def _require_one_image(n_bytes: int, expected: int, rest: bytes) -> None:
    """Raise an error if the file is truncated, or if another image follows the first one."""
    if n_bytes < expected:
        raise DecodingError(f"the file is truncated: it holds {n_bytes} bytes of pixels, expected {expected}.")
    if rest[expected:].lstrip()[:2] in MAGIC:
        raise DecodingError("the file holds several pages, expected one page.")
