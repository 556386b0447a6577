"""PNG files: their checksums, and what Pillow can't read exactly of them, which is colour with 16 bits a channel."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image

from skpatchcore.images.raster import DecodingError, Raster

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield kind and data of each chunk, whose checksum has been verified.

    Raises
    ------
    DecodingError
        If a checksum is wrong, or the file ends before its last chunk.
    """
    view, at = memoryview(content), len(SIGNATURE)
    while at < len(content):
        if at + 12 > len(content):
            break
        (length,) = struct.unpack_from(">I", content, at)
        end = at + 8 + length
        if end + 4 > len(content):
            break
        kind = bytes(view[at + 4 : at + 8])
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", content, end)[0]:
            raise DecodingError("is damaged: a checksum does not match.")
        yield kind, view[at + 8 : end]
        if kind == b"IEND":
            return
        at = end + 4
    raise DecodingError("is truncated.")


def verified_orientation(content: bytes) -> int:
    """Verify all checksums of a PNG file, and return its EXIF orientation; 1 if it has none."""
    orientation = 1
    for kind, data in png_chunks(content):
        if kind == b"eXIf":
            exif = Image.Exif()
            exif.load(bytes(data))
            orientation = exif.get(ExifTags.Base.Orientation, 1)
    return orientation


def has_deep_colour(content: bytes) -> bool:
    """Return whether a PNG file has 16 bits a channel and several channels: Pillow drops the low byte of these."""
    return content[12:16] == b"IHDR" and content[24] == 16 and content[25] in (2, 4, 6)


def decode_deep_png(content: bytes) -> Raster:
    """Return the pixels of a PNG file with 16 bits a channel, as stored.

    Raises
    ------
    DecodingError
        If imagecodecs is missing, or the file is animated.
    Exception
        Others, of imagecodecs, if the file is damaged.
    """
    if any(kind == b"acTL" for kind, _ in png_chunks(content)):
        raise DecodingError("holds several pages, expected one.")
    try:
        import imagecodecs
    except ImportError as error:
        raise DecodingError(
            "is a PNG file with 16 bits per channel, which needs imagecodecs: pip install imagecodecs."
        ) from error
    pixels = imagecodecs.png_decode(content)
    has_alpha = pixels.shape[2] in (2, 4)
    alpha = pixels[..., -1] if has_alpha else None
    return Raster(pixels[..., :-1] if has_alpha else pixels, 65535.0, alpha)
