"""CONSTRAINTS, check_parameters and check_sides: the ranges of the parameters of a feature extractor."""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from typing import Any

import numpy as np

from skpatchcore._utils.sklearn import HasMethods, Interval, StrOptions

# Ranges of single parameters. Relations that these do not cover are checked by the functions below.
CONSTRAINTS: dict[str, Any] = {
    "backbone": [str, callable],
    "weights": [str, os.PathLike, None],
    "layers": [list, tuple, None],
    "patch_size": [Interval(Integral, 1, None, closed="left")],
    "stride": [Interval(Integral, 1, None, closed="left")],
    "n_channels": [Interval(Integral, 1, None, closed="left"), None],
    "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
    "crop_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
    "tile_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), tuple, list, None],
    "max_pixels": [Interval(Integral, 1, None, closed="left"), None],
    "channel_order": [StrOptions({"rgb", "bgr"})],
    "value_range": [list, tuple, None],
    "mean": [list, tuple, None],
    "std": [list, tuple, None],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "device": [str],
    "dtype": [StrOptions({"float32", "bfloat16"})],
    "memory": [str, os.PathLike, HasMethods(["cache"]), None],
    "cache_dtype": [StrOptions({"float32", "float16"})],
    "cache_limit": [Interval(Integral, 1, None, closed="left"), str, None],
    "verbose": ["verbose"],
}


def check_parameters(extractor: Any) -> None:
    """Raise a ValueError if a parameter of a :class:`~skpatchcore.TorchFeatureExtractor` is out of its range."""
    if extractor.patch_size % 2 == 0:
        raise ValueError(f"patch_size={extractor.patch_size} is even. Choose an odd number: patches need a centre.")
    if extractor.layers is not None and not len(extractor.layers):
        raise ValueError("layers is empty. Name at least one layer, or pass layers=None.")
    check_image_parameters(extractor)
    for name in ("mean", "std"):
        values = getattr(extractor, name)
        if values is not None and len(values) != 3:
            raise ValueError(f"{name}={values!r}: expected three numbers: for red, green and blue.")


def check_image_parameters(extractor: Any) -> None:
    """Raise a ValueError if a size or the value range of an extractor is out of its range."""
    for name in ("image_size", "crop_size", "tile_size"):
        size = getattr(extractor, name, None)
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


def check_sides(extractor: Any, multiple: int) -> None:
    """Raise a ValueError if the network's input cannot have sides that are multiples of a number of pixels.

    Parameters
    ----------
    extractor : TorchFeatureExtractor
        Extractor with `image_size` and `crop_size`.
    multiple : int
        Side in pixels of the patches into which the network cuts its input.
    """
    name = "image_size" if extractor.crop_size is None else "crop_size"
    size = getattr(extractor, name)
    if size is None or not np.any(np.atleast_1d(size) % multiple):
        return
    below = np.maximum(np.atleast_1d(size) // multiple, 1) * multiple
    nearest = [tuple(sides.tolist()) for sides in (below, below + multiple)]
    shown = [sides if isinstance(size, tuple | list) else sides[0] for sides in nearest]
    raise ValueError(
        f"{name}={size!r} is not a multiple of {multiple}, the side in pixels of the patches of {extractor.backbone}. "
        f"Choose e.g. {name}={shown[0]} or {shown[1]}."
    )
