"""Numpy arrays as torch tensors and back, and which value of an array is too large to compute distances with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.threads import SMALL_PASS, one_thread

# Largest absolute values from which distances are computed: their squares, added up over millions of entries, are
# finite, and still are when features are weighted by 10. Real features are smaller by many orders of magnitude.
_LARGEST = {4: 1e15, 8: 1e150}


def largest_value(dtype: np.dtype | type) -> float:
    """Return the largest absolute value of a float type from which distances can be computed without overflow."""
    return _LARGEST[8 if np.dtype(dtype).itemsize >= 8 else 4]


@default_modes()
def exceeds(rows: np.ndarray, limit: float) -> bool:
    """Return whether any value is NaN or beyond ±`limit`: one pass over the array."""
    if not rows.size:
        return False
    with one_thread(rows.size < SMALL_PASS):
        low, high = (float(value) for value in torch.aminmax(as_tensor(rows, torch.device("cpu"))))
    return not (-limit <= low and high <= limit)


def first_beyond(rows: np.ndarray, limit: float) -> tuple[int, int, float] | None:
    """Return the first value that is NaN or beyond ±`limit`.

    Parameters
    ----------
    rows : array of shape (n_rows, n_columns)
        Floats.
    limit : float
        Largest absolute value.

    Returns
    -------
    (int, int, float) or None
        Row, column and value; None if there is no such value.
    """
    if not exceeds(rows, limit):
        return None
    for i in range(0, len(rows), 4096):  # a mask of all rows could be more than there is memory for
        bad = ~(np.abs(rows[i : i + 4096]) <= limit)
        if bad.any():
            row, column = (int(k) for k in np.unravel_index(bad.argmax(), bad.shape))
            return i + row, column, float(rows[i + row, column])
    return None


def describe_beyond(value: float, column: str, limit: float) -> str:
    """Return what is wrong with a value that `first_beyond` found, and what to do."""
    if not math.isfinite(value):
        return f"NaN or infinity ({column} is {value:g})."
    return (
        f"{value:g} in {column}, which is too large: distances overflow beyond ±{limit:g}. Remove the value if it "
        "stands for a missing one; otherwise scale the features."
    )


class _Writable:
    """Lets torch read a read-only array (a memory map) without a copy; nobody writes to the result."""

    def __init__(self, array: np.ndarray):
        self.array = array  # keeps the memory alive
        pointer, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (pointer, False)}


def as_tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return `array` as a tensor on `device`, sharing its memory on the CPU even if it is read-only.

    Arrays of another byte order or with negative strides, which torch can't hold, are copied.
    """
    if not array.dtype.isnative or any(step < 0 for step in array.strides):
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array).to(device)


def stacked_on(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return tensors of the CPU as one on `device`, by way of memory that a GPU reads by itself."""
    if device.type != "cuda":
        return torch.stack(list(tensors)).to(device)
    staged = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype, pin_memory=True)
    return torch.stack(list(tensors), out=staged).to(device, non_blocking=True)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array, from a GPU by way of memory that it writes by itself: a tenth of the time."""
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy()
    staged = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)  # torch keeps it for the next one
    staged.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return staged.numpy()
