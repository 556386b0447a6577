"""Numpy arrays as torch tensors and back, and which row of an array is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def first_not_finite(rows: np.ndarray) -> int | None:
    """Return the first of `rows`, an array of 2 dimensions, that holds NaN or infinity; None where all are finite."""
    # NaN or infinity anywhere shows in the sum, which is cheap
    if bool(as_tensor(rows, torch.device("cpu")).sum().isfinite()):
        return None
    for i in range(0, len(rows), 4096):  # a mask of all rows could be more than there is memory for
        bad = ~np.isfinite(rows[i : i + 4096]).all(axis=1)
        if bad.any():
            return i + int(bad.argmax())
    return None  # only the sum was too large


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
