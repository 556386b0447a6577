"""Choice of the torch device, and detection of device errors such as a lack of memory."""

from __future__ import annotations

import os

import torch

from skpatchcore._utils.warning import warn_user

# A forked process has none of its parent's OpenMP threads. Without this limit, torch would wait for them without end.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def require_device(device: str) -> torch.device:
    """Return the torch device named `device`; raise a ValueError if this machine has no such device. Used by `fit`.

    Parameters
    ----------
    device : str
        ``"auto"``, or a name that torch knows, such as ``"cpu"`` or ``"cuda:1"``. ``"auto"`` selects CUDA if a CUDA
        device is available, otherwise the CPU.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        If torch does not know the name, or the machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not a device that torch knows: use 'auto', 'cpu' or 'cuda'.") from error
    if not _is_present(found):
        raise ValueError(
            f"device={device!r} is not available: torch finds no such device on this machine. Use 'auto' or 'cpu'."
        )
    return found


def available_device(device: str) -> torch.device:
    """Return the torch device named `device`; if the device is absent, warn and return the CPU.

    Fitted estimators use this function. Therefore a detector that was fitted on a GPU can score on a machine without a
    GPU.
    """
    try:
        return require_device(device)
    except ValueError as error:
        warn_user(f"{error} The CPU is used instead.", RuntimeWarning)
        return torch.device("cpu")


def _is_present(device: torch.device) -> bool:
    """Return whether the machine has a device."""
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error reports a lack of memory, in RAM or on a GPU."""
    texts = (  # torch and its backends also raise plain RuntimeErrors, which are recognized by these texts
        "out of memory",
        "allocate memory",
        "ALLOC_FAILED",
        "could not create a primitive",
        "could not create a mem",
    )
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def is_device_fault(error: Exception) -> bool:
    """Return whether an error comes from the device or from a lack of memory, rather than from the images."""
    texts = ("CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS", "CUDA driver", "device-side assert")
    return is_out_of_memory(error) or any(text in str(error) for text in texts)
