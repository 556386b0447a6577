"""The one table of image formats: which files are images by their names, and which decoders may open them."""

from __future__ import annotations

import os

from PIL import Image

# Pillow's name of a format -> the endings of its files. These formats are written by cameras and image programs. Pillow
# opens others too; some of them run external programs (EPS).
FORMATS = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "MPO": (".mpo",),
    "PCX": (".pcx",),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def has_image_suffix(path: str | os.PathLike[str]) -> bool:
    """Return whether the ending of a file name, in upper or lower case, is that of an image format."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def pillow_formats() -> list[str]:
    """Return the formats of the table that the installed Pillow can open."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
