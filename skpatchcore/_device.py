"""Where torch computes, and numpy arrays as torch tensors there."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

# A forked child has none of the threads that torch (OpenMP) thinks it has, and would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def require_device(device: str) -> torch.device:
    """Return the torch device that `device` names; what ``fit`` uses.

    Parameters
    ----------
    device : str
        ``"auto"`` (CUDA where there is one, else the CPU) or a name that torch knows, such as ``"cpu"`` or
        ``"cuda:1"``.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        If torch knows no such name, or the machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not a device that torch knows: use 'auto', 'cpu' or 'cuda'.") from error
    if not _is_present(found):
        raise ValueError(f"device={device!r} was asked for, but torch finds no such device on this machine.")
    return found


def available_device(device: str) -> torch.device:
    """Return the device that `device` names, or warn and return the CPU where it is absent.

    What a *fitted* estimator uses: a detector that was fitted on a GPU still scores on a machine without one.
    """
    try:
        return require_device(device)
    except ValueError as error:
        warnings.warn(f"{error} The CPU is used instead.", RuntimeWarning, stacklevel=3)
        return torch.device("cpu")


def _is_present(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory did not do: torch and what is below it raise plain RuntimeErrors too."""
    texts = (
        "out of memory",
        "allocate memory",
        "ALLOC_FAILED",
        "could not create a primitive",
        "could not create a mem",
    )
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def is_device_fault(error: Exception) -> bool:
    """Return whether an error is the device's: nothing that the images can be blamed for."""
    texts = ("CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS", "CUDA driver", "device-side assert")
    return is_out_of_memory(error) or any(text in str(error) for text in texts)


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


class ForkSafeLock:
    """A re-entrant lock that is free in a forked child, whichever of its parent's threads held it."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


class DerivedCache:
    """Process-wide store of things computed from an estimator's fitted array: copies on a device, search graphs.

    Fitted estimators hold numpy arrays and nothing else, so that they pickle to plain files. What is expensive to
    derive from such an array is kept here, and dropped when the estimator is, or is fitted anew. Not when the array
    is: what is derived may share its memory, and so keep it for ever. A new process starts with an empty cache and
    derives again on first use. Building happens behind a lock: threads that ask for the same thing build it once.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[np.ndarray, dict[Hashable, Any]]] = {}
        self._lock = ForkSafeLock()

    def get(self, owner: Any, array: np.ndarray, key: Hashable, build: Callable[[np.ndarray], Any]) -> Any:
        """Return ``build(array)``, from the first time that its owner came with this array (the object) and `key`."""
        with self._lock:
            known = self._entries.get(id(owner))
            if known is None:
                weakref.finalize(owner, self._entries.pop, id(owner), None)
            if known is None or known[0] is not array:
                self._entries[id(owner)] = known = array, {}
            _, derived = known
            if key not in derived:
                derived[key] = build(array)
            return derived[key]
