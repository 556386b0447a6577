"""check_parameters: check the parameters of a feature extractor that constraints of single values do not cover."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def check_parameters(extractor: Any) -> None:
    """Raise a ValueError if a parameter of a :class:`~skpatchcore.TorchFeatureExtractor` is out of its range."""
    if extractor.patch_size % 2 == 0:
        raise ValueError(f"patch_size={extractor.patch_size} is even. Choose an odd number: patches need a centre.")
    if extractor.layers is not None and not len(extractor.layers):
        raise ValueError("layers is empty. Name at least one layer, or pass layers=None.")
    for name in ("image_size", "crop_size", "tile_size"):
        size = getattr(extractor, name)
        if isinstance(size, tuple | list) and not (
            len(size) == 2 and all(isinstance(side, Integral) and int(side) > 0 for side in size)
        ):
            raise ValueError(f"{name}={size!r}: expected a positive int, a pair (height, width) of them, or None.")
    if extractor.value_range is not None and not (
        len(extractor.value_range) == 2
        and all(isinstance(value, Real) and math.isfinite(value) for value in extractor.value_range)
        and extractor.value_range[0] < extractor.value_range[1]
    ):
        raise ValueError(
            f"value_range={extractor.value_range!r}: expected the values of black and of white, ascending."
        )
    for name in ("mean", "std"):
        values = getattr(extractor, name)
        if values is not None and len(values) != 3:
            raise ValueError(f"{name}={values!r}: expected three numbers: for red, green and blue.")
