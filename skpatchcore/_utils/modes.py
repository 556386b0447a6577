"""default_modes: torch and numpy as they are when a process starts, whatever the user has switched on.

Modes such as a default dtype, autocast or a default device change results, or break code that did not ask for them.
They are set back where torch code of this package is entered, and restored after. What belongs to a thread (autocast,
gradients, function modes, numpy's error state) is set for that thread; what belongs to the process (default dtype,
deterministic algorithms, precision of float32 products) is set while any thread is inside.

Left alone: the number of threads, and switches that select an implementation, such as
``torch.backends.mkldnn.enabled``.
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
    """Set modes of torch and numpy to their defaults; also usable as a decorator.

    Parameters
    ----------
    grad : bool, default=False
        Whether gradients are recorded.
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
        for _ in range(torch._C._len_torch_function_stack()):  # a default device is one of them
            stack.enter_context(_pop_mode_temporarily())
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        with _lock:
            is_changed = _n_inside > 0 or _are_globals_changed()
        if is_changed:
            stack.enter_context(_default_globals())
        yield


def in_default_modes(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`, each made in default modes; the code that uses them keeps its own."""
    end = object()
    with default_modes():
        item: Any = next(items, end)
    while item is not end:  # ends with the items
        yield item
        with default_modes():
            item = next(items, end)


@contextmanager
def _default_globals() -> Iterator[None]:
    """Set what belongs to the process; the first thread that enters saves it, the last one that leaves restores it."""
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
    """Return whether a mode of the process is not at its default."""
    return (
        torch.get_default_dtype() != torch.float32
        or torch.are_deterministic_algorithms_enabled()
        or any(product.fp32_precision not in _EXACT for product in _products())
        or (not _products() and torch.get_float32_matmul_precision() != "highest")
    )


def _products() -> list[Any]:
    """Return the switches for products and convolutions of float32; none before torch 2.9."""
    cpu, cuda = torch.backends.mkldnn, torch.backends.cuda
    found = [getattr(cpu, "matmul", None), getattr(cuda, "matmul", None), getattr(cpu, "conv", None)]
    return [switch for switch in found if hasattr(switch, "fp32_precision")]


def _set_globals() -> Iterator[Callable[[], None]]:
    """Set process-wide modes to their defaults; yield functions that restore those which were changed."""
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
    """Compute products of float32 matrices in float32."""
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
