"""`is_missing`: recognize missing values in lists and tables, such as None, NaN and pandas' NA."""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any

import numpy as np


def is_missing(value: Any) -> bool:
    """Return whether a value is missing.

    Parameters
    ----------
    value : object
        An item of a list or of a column of a table, such as a mask or its path.

    Returns
    -------
    bool
        True for None, NaN, ``pandas.NA``, ``pandas.NaT`` and the empty text, because pandas and CSV files represent
        missing values in all of these ways. False for arrays, even if they contain NaN, and for all other values.
    """
    pandas = sys.modules.get("pandas")  # its missing values exist only if it has been imported
    if value is None or (pandas is not None and (value is pandas.NA or value is pandas.NaT)):
        return True
    if isinstance(value, str):
        return not value
    if isinstance(value, np.ndarray):
        return False
    return isinstance(value, numbers.Real) and math.isnan(value)
