"""Conversion between numpy arrays and torch tensors, and a check for values that are too large for distances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.threads import SMALL_PASS, one_thread

# Largest absolute values that distances are computed from, by the size of the float type in bytes. A sum of millions of
# their squares is finite, even if features are weighted by 10. Real features are smaller by many orders of magnitude.
_LARGEST = {4: 1e15, 8: 1e150}


def largest_value(dtype: np.dtype | type) -> float:
    """Return the largest absolute value of a float type for which distances do not overflow."""
    return _LARGEST[8 if np.dtype(dtype).itemsize >= 8 else 4]


@default_modes()
def exceeds(rows: np.ndarray, limit: float) -> bool:
    """Return whether any value is NaN or outside ±`limit`. The array is read once."""
    if not rows.size:
        return False
    with one_thread(rows.size < SMALL_PASS):
        low, high = (float(value) for value in torch.aminmax(as_tensor(rows, torch.device("cpu"))))
    return not (-limit <= low and high <= limit)


def first_beyond(rows: np.ndarray, limit: float) -> tuple[int, int, float] | None:
    """Return the position and the value of the first entry that is NaN or outside ±`limit`.

    Parameters
    ----------
    rows : array of shape (n_rows, n_columns), float
        The values to check.
    limit : float
        Largest absolute value that is allowed.

    Returns
    -------
    (int, int, float) or None
        Row, column and value; None if there is no such value.
    """
    if not exceeds(rows, limit):
        return None
    for i in range(0, len(rows), 4096):  # in blocks, because a mask of all rows might not fit in memory
        bad = ~(np.abs(rows[i : i + 4096]) <= limit)
        if bad.any():
            row, column = (int(k) for k in np.unravel_index(bad.argmax(), bad.shape))
            return i + row, column, float(rows[i + row, column])
    return None


def describe_beyond(value: float, column: str, limit: float) -> str:
    """Return the second half of an error message about a value that `first_beyond` found."""
    if not math.isfinite(value):
        return f"NaN or infinity ({column} is {value:g})."
    return (
        f"{value:g} in {column}, which is too large: distances overflow beyond ±{limit:g}. Remove this value if it "
        "marks a missing value. Otherwise, scale the features."
    )


class _Writable:
    """Declare a read-only array, such as a memory map, writable, because torch requires writable memory.

    The array is not copied. No code writes to the resulting tensor.
    """

    def __init__(self, array: np.ndarray):
        self.array = array  # this reference keeps the memory alive
        pointer, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (pointer, False)}


def as_tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return `array` as a tensor on `device`.

    On the CPU, the tensor shares the memory of the array, even if the array is read-only. Arrays with a non-native byte
    order or with negative strides are copied, because torch does not support them.
    """
    if not array.dtype.isnative or any(step < 0 for step in array.strides):
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array).to(device)


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a view of an array that cannot be written to, or the array itself if it is read-only."""
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def stacked_on(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Stack CPU tensors and return the result on `device`. Pinned memory makes the copy to a GPU asynchronous."""
    if device.type != "cuda":
        return torch.stack(list(tensors)).to(device)
    staged = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype, pin_memory=True)
    return torch.stack(list(tensors), out=staged).to(device, non_blocking=True)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array. Copying from a GPU through pinned memory takes a tenth of the time."""
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy()
    staged = started_copy(tensor)
    torch.cuda.current_stream(tensor.device).synchronize()
    return staged.numpy()


def started_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Start to copy a tensor from a GPU, and return the copy, which is complete after the next synchronisation.

    A tensor on another device is returned as it is.
    """
    if tensor.device.type != "cuda":
        return tensor
    staged = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)  # torch reuses freed pinned memory
    return staged.copy_(tensor, non_blocking=True)
