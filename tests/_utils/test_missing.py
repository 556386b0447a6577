"""Tests of `is_missing`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from skpatchcore._utils.missing import is_missing


@pytest.mark.parametrize("value", [None, np.nan, float("nan"), np.float32("nan"), pd.NA, pd.NaT, ""])
def test_is_missing_returns_true_for_missing_values(value):
    assert is_missing(value) is True


@pytest.mark.parametrize(
    "value", ["mask.png", 0, 0.0, False, np.zeros((2, 2)), np.full((2, 2), np.nan), np.array(np.nan), [], "nan"]
)
def test_is_missing_returns_false_for_other_values(value):
    assert is_missing(value) is False
