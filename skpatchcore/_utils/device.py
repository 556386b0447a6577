"""Where torch computes."""

from __future__ import annotations

import os

import torch

from skpatchcore._utils.warning import warn_user

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
        warn_user(f"{error} The CPU is used instead.", RuntimeWarning)
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
