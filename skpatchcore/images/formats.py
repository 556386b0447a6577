"""The supported image formats: their file suffixes, and the Pillow decoders that may open them."""

from __future__ import annotations

import os

from PIL import Image

# Suffixes of the files, by Pillow's name of the format. Cameras and image programs write these formats. Pillow can open
# other formats, which are not used here. Some of them run external programs (e.g. EPS).
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
    """Return whether a file name has the suffix of a supported image format, in upper or lower case."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def pillow_formats() -> list[str]:
    """Return the names of the supported formats that the installed version of Pillow can open."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
