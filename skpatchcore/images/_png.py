"""PNG files: verification of checksums, and decoding of colour with 16 bits per channel.

Pillow reduces such colours to 8 bits per channel. Therefore imagecodecs decodes them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image

from skpatchcore.images.raster import DecodingError, Raster

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the type and the data of each chunk of a PNG file. The checksum of each chunk is verified first.

    Raises
    ------
    DecodingError
        If a checksum is wrong, or the file ends before the end of its last chunk.
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
            raise DecodingError("the PNG file is damaged: a checksum does not match.")
        yield kind, view[at + 8 : end]
        if kind == b"IEND":
            return
        at = end + 4
    raise DecodingError("the PNG file is truncated.")


def verified_orientation(content: bytes) -> int:
    """Verify all checksums of a PNG file and return its EXIF orientation; 1 if the file states no orientation."""
    orientation = 1
    for kind, data in png_chunks(content):
        if kind == b"eXIf":
            exif = Image.Exif()
            exif.load(bytes(data))
            orientation = exif.get(ExifTags.Base.Orientation, 1)
    return orientation


def has_deep_colour(content: bytes) -> bool:
    """Return whether a PNG file has several channels of 16 bits. Pillow would drop the low byte of each value."""
    return content[12:16] == b"IHDR" and content[24] == 16 and content[25] in (2, 4, 6)


def decode_deep_png(content: bytes) -> Raster:
    """Return the pixels of a PNG file with 16 bits per channel, in their stored orientation.

    Raises
    ------
    DecodingError
        If imagecodecs is not installed, or the file is animated.
    Exception
        Any exception of imagecodecs, if the file is damaged.
    """
    if any(kind == b"acTL" for kind, _ in png_chunks(content)):
        raise DecodingError("the PNG file holds several pages (it is animated), expected one page.")
    try:
        import imagecodecs
    except ImportError as error:
        raise DecodingError(
            "a PNG file with 16 bits per channel can only be decoded with imagecodecs. Run: pip install imagecodecs."
        ) from error
    pixels = imagecodecs.png_decode(content)
    has_alpha = pixels.shape[2] in (2, 4)
    alpha = pixels[..., -1] if has_alpha else None
    return Raster(pixels[..., :-1] if has_alpha else pixels, 65535.0, alpha)
