"""Recognise objects of large libraries without importing these libraries.

An object of a library exists only if the library has been imported. Therefore, reading an image file imports neither
torch nor pandas, although tensors and tables are accepted too.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeGuard

    import pandas as pd
    import torch


def is_instance_of(value: Any, module: str, *names: str) -> bool:
    """Return whether a value is an instance of a class of a module that may not have been imported.

    Parameters
    ----------
    value : object
        The value.
    module : str
        Full name of the module, e.g. ``"torch"``.
    *names : str
        Names of the classes in the module.

    Returns
    -------
    bool
        False if the module has not been imported.
    """
    loaded = sys.modules.get(module)
    kinds = tuple(kind for name in names if (kind := getattr(loaded, name, None)) is not None)
    return isinstance(value, kinds)


def is_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    """Return whether a value is a tensor of torch."""
    return is_instance_of(value, "torch", "Tensor")


def is_table(value: Any) -> TypeGuard[pd.DataFrame]:
    """Return whether a value is a DataFrame of pandas."""
    return is_instance_of(value, "pandas", "DataFrame")


def is_column(value: Any) -> TypeGuard[pd.Series[Any]]:
    """Return whether a value is a Series of pandas."""
    return is_instance_of(value, "pandas", "Series")
