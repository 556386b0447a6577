"""Values that stand for none: None, NaN, pandas' NA."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import pandas as pd


def is_missing(value: Any) -> bool:
    """Return whether a value stands for none.

    Parameters
    ----------
    value : object
        An item of a list or a column, such as the mask of an image.

    Returns
    -------
    bool
        True for None, NaN, ``pandas.NA``, ``pandas.NaT`` and the empty text. Tables of pandas and CSV files write a
        missing value in any of these ways. Arrays are never missing.
    """
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    if isinstance(value, str):
        return not value
    if isinstance(value, np.ndarray):
        return False
    return isinstance(value, numbers.Real) and math.isnan(value)
