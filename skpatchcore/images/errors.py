"""ImageError, ImageWarning and AppearanceWarning: which images can't be used or trusted, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ImageError(ValueError):
    """An image that can't be read, or that is not an image.

    Parameters
    ----------
    message : str
        What is wrong with the image.
    index : int
        Its position in `X`.
    path : str or None
        Its file, if it came from one.

    Attributes
    ----------
    index, path
        As above, to find the image again.
    """

    def __init__(self, message: str, index: int, path: str | None = None):
        super().__init__(f"image {index}{f' ({path})' if path else ''}: {message}")
        self.message, self.index, self.path = message, index, path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.index, self.path)


class AppearanceWarning(UserWarning):
    """All new images look unlike the training images, or all training images are nearly black."""


class ImageWarning(UserWarning):
    """Images that can't be scored were flagged as anomalous, with a score of NaN.

    Parameters
    ----------
    failures : list of ImageError
        One per image: its index, its path and what is wrong with it.

    Attributes
    ----------
    failures
        As above.
    """

    def __init__(self, failures: Sequence[ImageError]):
        super().__init__(f"{len(failures)} images could not be judged; first {failures[0]}")
        self.failures = list(failures)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failures,)
