"""`default_modes`: run torch and numpy code with the modes that they have when a process starts.

Users may change modes such as the default dtype, autocast or the default device. These modes change results or break
code that is not written for them. Therefore this package sets them to their defaults before its torch code runs, and
restores them afterwards. Modes of a thread (autocast, gradients, function modes, numpy's error state) are set for that
thread only. Modes of the process (default dtype, deterministic algorithms, precision of float32 products) keep their
defaults while any thread is inside the block.

The number of threads is not changed. Switches that select an implementation, such as
``torch.backends.mkldnn.enabled``, are not changed either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch.overrides import _pop_mode_temporarily
from torch.utils._python_dispatch import _disable_current_modes

from skpatchcore._utils.derived import ForkSafeLock

T = TypeVar("T")

_lock = ForkSafeLock()
_n_inside = 0
_restore: list[Callable[[], None]] = []
_EXACT = ("none", "ieee")
_NUMPY_DEFAULTS: Any = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


@contextmanager
def default_modes(grad: bool = False) -> Iterator[None]:
    """Set the modes of torch and numpy to their defaults within the block. Can also be used as a decorator.

    Parameters
    ----------
    grad : bool, default=False
        Whether gradients are recorded within the block.
    """
    with ExitStack() as stack:
        if np.geterr() != _NUMPY_DEFAULTS:
            stack.enter_context(np.errstate(**_NUMPY_DEFAULTS))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.is_grad_enabled() != grad:
            stack.enter_context(torch.set_grad_enabled(grad))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        for _ in range(torch._C._len_torch_function_stack()):  # e.g. the default device
            stack.enter_context(_pop_mode_temporarily())
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        with _lock:
            is_changed = _n_inside > 0 or _are_globals_changed()
        if is_changed:
            stack.enter_context(_default_globals())
        yield


def in_default_modes(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`. Each item is computed in default modes, but the caller's code runs in the caller's modes."""
    end = object()
    with default_modes():
        item: Any = next(items, end)
    while item is not end:
        yield item
        with default_modes():
            item = next(items, end)


@contextmanager
def _default_globals() -> Iterator[None]:
    """Set process-wide modes to their defaults. The last thread that leaves the block restores the old modes."""
    global _n_inside
    with _lock:
        if _n_inside == 0:
            _restore.extend(_set_globals())
        _n_inside += 1
    try:
        yield
    finally:
        with _lock:
            _n_inside -= 1
            if _n_inside == 0:
                for restore in _restore:
                    restore()
                _restore.clear()


def _are_globals_changed() -> bool:
    """Return whether any process-wide mode differs from its default."""
    return (
        torch.get_default_dtype() != torch.float32
        or torch.are_deterministic_algorithms_enabled()
        or any(product.fp32_precision not in _EXACT for product in _products())
        or (not _products() and torch.get_float32_matmul_precision() != "highest")
    )


def _products() -> list[Any]:
    """Return torch's precision switches for float32 products and convolutions; an empty list before torch 2.9."""
    cpu, cuda = torch.backends.mkldnn, torch.backends.cuda
    found = [getattr(cpu, "matmul", None), getattr(cuda, "matmul", None), getattr(cpu, "conv", None)]
    return [switch for switch in found if hasattr(switch, "fp32_precision")]


def _set_globals() -> Iterator[Callable[[], None]]:
    """Set process-wide modes to their defaults. Yield one function per changed mode, which restores this mode."""
    dtype = torch.get_default_dtype()
    if dtype != torch.float32:
        torch.set_default_dtype(torch.float32)
        yield lambda: torch.set_default_dtype(dtype)
    if torch.are_deterministic_algorithms_enabled():
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(False)
        yield lambda: torch.use_deterministic_algorithms(True, warn_only=warns)
    yield from _set_precision()


def _set_precision() -> Iterator[Callable[[], None]]:
    """Set the precision of float32 products to full float32. Yield the functions that restore the old precision."""
    if not _products():
        precision = torch.get_float32_matmul_precision()
        if precision != "highest":
            torch.set_float32_matmul_precision("highest")
            yield lambda: torch.set_float32_matmul_precision(precision)
    for product in _products():
        given = product.fp32_precision
        if given not in _EXACT:
            product.fp32_precision = "ieee"
            yield lambda product=product, given=given: setattr(product, "fp32_precision", given)  # type: ignore[misc]
