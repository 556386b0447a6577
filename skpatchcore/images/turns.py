"""Turn: the rotations and reflections of an image that keep its pixels, in another order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Turn:
    """Symmetry of the square: a reflection or none, and then a rotation by a multiple of 90 degrees.

    Attributes
    ----------
    quarters : int
        Number of rotations by 90 degrees against the clock, 0 to 3.
    is_mirrored : bool, default=False
        Whether left and right are exchanged before the rotation.
    """

    quarters: int
    is_mirrored: bool = False

    def of(self, image: np.ndarray) -> np.ndarray:
        """Return the turned image or mask; the first two axes are the height and the width."""
        return np.ascontiguousarray(np.rot90(image[:, ::-1] if self.is_mirrored else image, self.quarters))

    def size_of(self, size: Any) -> tuple[int, int]:
        """Return the height and width of the turned image of an image of the given height and width."""
        height, width = size
        return (width, height) if self.quarters % 2 else (height, width)

    def original_boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return where boxes in the turned image lie in the original image.

        Parameters
        ----------
        boxes : array of shape (n_boxes, 4)
            Top, left, height and width in pixels of the turned image.
        size : (int, int)
            Height and width of the turned image in pixels.

        Returns
        -------
        array of shape (n_boxes, 4)
            Top, left, height and width in pixels of the original image.
        """
        top, left, height, width = boxes.T
        n_rows, n_columns = size
        for _ in range(self.quarters):
            # np.rot90 turns row i into column i, and column j of n columns into row n - 1 - j. This is undone.
            top, left, height, width = left, n_rows - (top + height), width, height
            n_rows, n_columns = n_columns, n_rows
        if self.is_mirrored:
            left = n_columns - (left + width)
        return np.stack([top, left, height, width], axis=1)


_ROTATIONS = (Turn(1), Turn(2), Turn(3))
_FLIPS = (Turn(0, is_mirrored=True), Turn(2, is_mirrored=True))  # left-right, up-down
_DIAGONAL = (Turn(1, is_mirrored=True), Turn(3, is_mirrored=True))
# The views of an image for each value of `augment`.
TURNS: dict[str | None, tuple[Turn, ...]] = {
    None: (),
    "rotations": _ROTATIONS,
    "flips": _FLIPS,
    "rotations+flips": (*_ROTATIONS, *_FLIPS, *_DIAGONAL),
}
