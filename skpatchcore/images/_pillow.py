"""Decoding with Pillow: most file formats with 8 bits per channel, and Pillow's own image objects."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from skpatchcore.images._png import decode_deep_png, has_deep_colour, verified_orientation
from skpatchcore.images.formats import FORMATS, pillow_formats
from skpatchcore.images.raster import CheckSize, DecodingError, Raster

# Pillow's modes with 16 bits per pixel.
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_BITS_OF_JPEG2000 = b"\xff\x4f\xff\x51"  # markers of a JPEG 2000 codestream and of its size segment
_IS_REVERSIBLE = b"\xff\x52"  # marker of the coding segment


def open_file(file: BinaryIO) -> Image.Image:
    """Open an image file with Pillow. Only the header is decoded.

    Raises
    ------
    Exception
        Any exception of Pillow, if the file is not an image.
    """
    return Image.open(file, formats=pillow_formats())


def upright_size(image: Image.Image) -> tuple[int, int] | None:
    """Return the height and width of an opened image in upright orientation; None if the header is ambiguous."""
    exif = image.getexif()
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    # Some versions of Pillow turn TIFF files on opening. PNG files may state their orientation at the end of the file.
    if (image.format == "TIFF" and orientation != 1) or (image.format == "PNG" and exif):
        return None
    return (image.width, image.height) if orientation in (5, 6, 7, 8) else (image.height, image.width)


def decode_png(content: bytes, check_size: CheckSize) -> Raster:
    """Return the pixels of a PNG file. All checksums are verified first.

    Raises
    ------
    DecodingError
        If a checksum is wrong or the file is animated.
    Exception
        Any exception of Pillow or imagecodecs, if the file is damaged.
    """
    orientation = verified_orientation(content)
    if not has_deep_colour(content):
        return decode_with_pillow(content, check_size)
    width, height = struct.unpack_from(">II", content, 16)
    check_size(height, width)
    return decode_deep_png(content).turned(orientation)


def decode_with_pillow(content: bytes, check_size: CheckSize) -> Raster:
    """Return the pixels of an image file of any format that Pillow can open.

    Raises
    ------
    DecodingError
        If the file contains several pages, or has more than 8 bits per channel and Pillow would drop the lowest bits.
    Exception
        Any exception of Pillow, if the file is damaged or not an image.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DecodingError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, so Pillow would fill damaged images with grey. Set it to "
            "False."
        )
    # Open bytes, not a path: Pillow maps some files into memory if they are opened by path, and does not turn them.
    with open_file(BytesIO(content)) as image:
        check_size(image.height, image.width)
        _require_one_page(image)
        is_lossy = image.format in ("JPEG", "MPO", "AVIF")
        if image.format == "JPEG2000":
            n_bits, is_lossy = _jpeg2000_facts(content)
            if n_bits != 8:
                return _deep_jpeg2000(content, n_bits, is_lossy)
        elif image.format == "AVIF" and _has_deep_avif(content):
            raise DecodingError(
                "AVIF files with more than 8 bits per channel are not supported. Convert the file to PNG or TIFF."
            )
        elif image.format == "WEBP":
            is_lossy = b"VP8L" not in _riff_chunks(content)
        return raster_of_loaded(image, is_lossy)


def raster_of(image: Image.Image, check_size: CheckSize) -> Raster:
    """Return the pixels of a loaded Pillow image.

    Images that are opened but not loaded yet should be decoded from their file instead (see :func:`content_behind`),
    because Pillow drops bits of some formats.

    Raises
    ------
    DecodingError
        If the image holds several pages or has an unsupported colour space.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DecodingError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, so Pillow would fill damaged images with grey. Set it to "
            "False."
        )
    check_size(image.height, image.width)
    _require_one_page(image)
    return raster_of_loaded(image, is_lossy=False)


def content_behind(image: Image.Image) -> bytes | None:
    """Return the file content of a Pillow image that is opened but not loaded yet; None for other images."""
    file = getattr(image, "fp", None)
    if image.format not in FORMATS or not getattr(image, "tile", None) or file is None:
        return None
    if getattr(image, "decoderconfig", None) or image.tell() != 0:  # opened as a draft, or not at the first frame
        return None
    try:
        position = file.tell()
        file.seek(0)
        content: bytes = file.read()
        file.seek(position)
    except (OSError, ValueError):  # the file has been closed; loading the image raises an error later
        return None
    return content


def raster_of_loaded(image: Image.Image, is_lossy: bool) -> Raster:
    """Return the pixels of a Pillow image of any mode, in upright orientation."""
    is_inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode in ("L", "RGB", "1"):
        pixels = _with_axis(np.asarray(image.convert("L") if mode == "1" else image))
        return Raster(pixels, 255.0, _keyed_alpha(image, pixels), is_lossy=is_lossy)
    if mode in ("RGBA", "LA"):
        pixels = np.asarray(image)
        return Raster(pixels[..., :-1], 255.0, pixels[..., -1], is_lossy=is_lossy)
    if mode == "P":
        colours = np.asarray(image.convert("RGBA"))
        alpha = colours[..., 3] if "transparency" in image.info else None
        return Raster(colours[..., :3], 255.0, alpha, labels=np.asarray(image))
    if mode in (*_SIXTEEN_BITS, "I"):
        values = _with_axis(np.asarray(image))
        if values.min() < 0 or values.max() > 65535:
            return Raster(values, None)
        values = values.astype(np.uint16)
        alpha = _keyed_alpha(image, values)
        return Raster(65535 - values if is_inverted and mode != "I" else values, 65535.0, alpha)
    if mode == "F":
        return Raster(_with_axis(np.asarray(image)), 1.0)
    if mode in ("LAB", "HSV"):
        raise DecodingError(f"the colour space {mode} is not supported. Convert the image to RGB.")
    has_alpha = mode in ("PA", "RGBa", "La")
    pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
    return Raster(pixels[..., :3], 255.0, pixels[..., 3] if has_alpha else None, is_lossy=is_lossy)


def _keyed_alpha(image: Image.Image, pixels: np.ndarray) -> np.ndarray | None:
    """Return the opacity of an image that marks one colour as transparent; None if no colour is marked."""
    key = image.info.get("transparency")
    return None if key is None or isinstance(key, bytes) else (pixels != key).any(axis=-1).astype(np.uint8) * 255


def _with_axis(pixels: np.ndarray) -> np.ndarray:
    """Return pixels of shape (height, width, n_channels), also for an image without a channel axis."""
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _require_one_page(image: Image.Image) -> None:
    """Raise an error if an image holds several pages or frames."""
    # The other pages of an MPO file are previews of the same photograph.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise DecodingError("the file holds several pages, expected one page.")


def _jpeg2000_facts(content: bytes) -> tuple[int, bool]:
    """Return the number of bits per channel of a JPEG 2000 file, and whether its compression is lossy."""
    start = content.find(_BITS_OF_JPEG2000)
    if start < 0:
        raise DecodingError("the header of the JPEG 2000 file is damaged.")
    n_channels = struct.unpack_from(">H", content, start + 40)[0]
    depths = {content[start + 42 + 3 * i] for i in range(n_channels)}
    if len(depths) != 1 or max(depths) & 0x80:
        raise DecodingError(
            "JPEG 2000 files with signed channels or channels of different depths are not supported. Convert the file "
            "to PNG or TIFF."
        )
    coding = content.find(_IS_REVERSIBLE, start)
    return depths.pop() + 1, coding < 0 or content[coding + 13] != 1


def _deep_jpeg2000(content: bytes, n_bits: int, is_lossy: bool) -> Raster:
    """Return the pixels of a JPEG 2000 file that does not have 8 bits per channel."""
    if n_bits > 16:
        raise DecodingError(
            f"the JPEG 2000 file has {n_bits} bits per channel, expected at most 16. Convert it to PNG or TIFF."
        )
    try:
        import imagecodecs
    except ImportError as error:
        raise DecodingError(
            f"a JPEG 2000 file with {n_bits} bits per channel can only be decoded with imagecodecs. Run: pip install "
            "imagecodecs."
        ) from error
    pixels = _with_axis(imagecodecs.jpeg2k_decode(content))
    has_alpha = pixels.shape[2] in (2, 4)
    alpha = pixels[..., -1] if has_alpha else None
    return Raster(pixels[..., :-1] if has_alpha else pixels, float(2**n_bits - 1), alpha, is_lossy=is_lossy)


def _riff_chunks(content: bytes) -> list[bytes]:
    """Return the types of the chunks of a RIFF file, such as a WebP file."""
    kinds, at = [], 12
    while at + 8 <= len(content):  # each chunk takes at least 8 bytes
        kinds.append(content[at : at + 4])
        length = struct.unpack_from("<I", content, at + 4)[0]
        at += 8 + length + length % 2
    return kinds


def _has_deep_avif(content: bytes) -> bool:
    """Return whether an AVIF file has more than 8 bits per channel."""
    at = content.find(b"av1C")
    return at >= 0 and bool(content[at + 6] & 0x40)
