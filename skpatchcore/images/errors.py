"""Errors and warnings about images: `ImageError`, `ImageWarning` and `AppearanceWarning`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ImageError(ValueError):
    """Raised if an image cannot be read, or if an object is not an image.

    Parameters
    ----------
    message : str
        Description of the error, without index and path.
    index : int
        Position of the image in `X`.
    path : str or None
        Path of the image's file. None if the image is not given by its path.

    Attributes
    ----------
    message : str
        The error without index and path.
    index : int
        Position of the image in `X`.
    path : str or None
        Path of the image's file, if known.
    """

    def __init__(self, message: str, index: int, path: str | None = None):
        super().__init__(f"image {index}{f' ({path})' if path else ''}: {message}")
        self.message, self.index, self.path = message, index, path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.index, self.path)


class AppearanceWarning(UserWarning):
    """Issued if all new images look unlike the training images, or if all training images are nearly black."""


class ImageWarning(UserWarning):
    """Issued if images that cannot be scored are flagged as anomalous, with a score of NaN.

    Parameters
    ----------
    failures : list of ImageError
        One error per image that cannot be scored. Each error holds the image's index, its path and the reason.

    Attributes
    ----------
    failures : list of ImageError
        The errors, one per image that cannot be scored.
    """

    def __init__(self, failures: Sequence[ImageError]):
        super().__init__(
            f"{len(failures)} images could not be scored: their scores are NaN. First error: {failures[0]}"
        )
        self.failures = list(failures)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failures,)
