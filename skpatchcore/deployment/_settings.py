"""ExportSettings: the parameters of an export that shape the graph."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

_CHOICES = {
    "precision": ("float32", "float16", "int8"),
    "map_size": ("input", "image"),
    "input_dtype": ("uint8", "float32"),
}


@dataclass(frozen=True)
class ExportSettings:
    """Parameters of :func:`~skpatchcore.export`, validated.

    Attributes
    ----------
    precision, image_size, map_size, input_dtype, max_flipped
        As for :func:`~skpatchcore.export`.
    """

    precision: str
    image_size: tuple[int, int] | None
    map_size: str
    input_dtype: str
    max_flipped: float

    @classmethod
    def of(cls, precision: str, image_size: Any, map_size: str, input_dtype: str, max_flipped: float) -> ExportSettings:
        """Return the settings.

        Raises
        ------
        ValueError
            If a parameter is invalid.
        """
        given = {"precision": precision, "map_size": map_size, "input_dtype": input_dtype}
        for name, value in given.items():
            if value not in _CHOICES[name]:
                raise ValueError(f"{name}={value!r}: expected {' or '.join(map(repr, _CHOICES[name]))}.")
        if not isinstance(max_flipped, Real) or not 0 <= max_flipped <= 1:
            raise ValueError(f"max_flipped={max_flipped!r}: expected a fraction from 0 to 1.")
        if image_size is None:
            return cls(precision, None, map_size, input_dtype, float(max_flipped))
        is_pair = np.shape(image_size) == (2,) and all(isinstance(side, Real) for side in image_size)
        if not is_pair or not all(int(side) == side > 0 for side in image_size):
            raise ValueError(f"image_size={image_size!r}: expected (height, width) in pixels, or None.")
        size = (int(image_size[0]), int(image_size[1]))
        return cls(precision, size, map_size, input_dtype, float(max_flipped))

    @property
    def white(self) -> float:
        """Value of white in the images that the graph takes."""
        return 255.0 if self.input_dtype == "uint8" else 1.0
