"""Tests of `is_instance_of`, `is_tensor`, `is_table` and `is_column`."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import torch

from skpatchcore._utils.loaded import is_column, is_instance_of, is_table, is_tensor


def test_objects_of_loaded_libraries_are_recognised():
    values = [
        torch.zeros(2),
        torch.nn.Parameter(torch.zeros(2)),
        pd.DataFrame(),
        pd.Series(dtype=float),
        np.zeros(2),
        1,
    ]
    assert [is_tensor(value) for value in values] == [True, True, False, False, False, False]
    assert [is_table(value) for value in values] == [False, False, True, False, False, False]
    assert [is_column(value) for value in values] == [False, False, False, True, False, False]


def test_unknown_modules_and_names_are_no_error():
    assert not is_instance_of(1, "no_such_module", "Thing")
    assert not is_instance_of(1, "math", "NoSuchClass")


def test_no_library_is_imported():
    code = (
        "import sys; from skpatchcore._utils.loaded import is_tensor, is_table; "
        "print(is_tensor(1), is_table(1), 'torch' in sys.modules, 'pandas' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60).split() == ["False"] * 4
