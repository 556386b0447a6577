"""The supported image formats: their file suffixes, and the Pillow decoders that may open them."""

from __future__ import annotations

import importlib
import os
from contextlib import suppress
from functools import lru_cache

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
# The plugins of Pillow that open these formats. `Image.init()` imports all plugins, which takes several times as long.
_PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg", "Jpeg2K", "Mpo", "Pcx", "Png", "Ppm", "Tga", "Tiff", "WebP")
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def has_image_suffix(path: str | os.PathLike[str]) -> bool:
    """Return whether a file name has the suffix of a supported image format, in upper or lower case."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def pillow_formats() -> list[str]:
    """Return the names of the supported formats that the installed version of Pillow can open."""
    _import_plugins()
    return [name for name in FORMATS if name in Image.OPEN]


@lru_cache(maxsize=1)
def _import_plugins() -> None:
    """Import the plugins of Pillow for the supported formats. Each plugin registers its formats."""
    for name in _PLUGINS:
        with suppress(ImportError):  # this version of Pillow does not have the format
            importlib.import_module(f"PIL.{name}ImagePlugin")
