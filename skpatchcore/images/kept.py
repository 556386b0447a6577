"""KeptPath: the path of an image file that is read and decoded once for several uses."""

from __future__ import annotations

from typing import Any

from skpatchcore.images.raster import Raster


class KeptPath(str):
    """Path of an image file that keeps the content of the file after the first use, until it is released.

    It is a string, so every function of paths accepts it. :func:`~skpatchcore.images.reading.load_image` reads the file
    once, even if the file changes meanwhile.

    Attributes
    ----------
    content : bytes or None
        Content of the file, if it was read but not decoded.
    raster : Raster or None
        Pixels of the file, if it was decoded. `content` is then None.
    """

    content: bytes | None = None
    raster: Raster | None = None

    def n_bytes(self) -> int:
        """Return the size of the kept data."""
        if self.raster is not None:
            return self.raster.pixels.nbytes
        return 0 if self.content is None else len(self.content)

    def release(self) -> None:
        """Keep nothing more."""
        self.content = self.raster = None


def kept_content(image: Any) -> bytes | None:
    """Return the content that a KeptPath keeps; None if it keeps none, and for other images."""
    return image.content if isinstance(image, KeptPath) else None


def keep_content(image: Any, content: bytes | None) -> None:
    """Keep the content of a file if `image` is a KeptPath; otherwise do nothing."""
    if isinstance(image, KeptPath):
        image.content = content
