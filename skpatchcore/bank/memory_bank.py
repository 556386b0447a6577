"""The memory bank of a fitted detector, which its stages share: one array in memory, and once in a file."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np

# Stages that hold the memory bank too; files shall hold it once.
_STAGES = ("sampler_", "index_")


class SameAsBank:
    """Stands in a file where a stage holds the memory bank."""


def without_copies_of_bank(state: dict[str, Any]) -> dict[str, Any]:
    """Return a detector's state in which the stages' references to the memory bank are marks instead.

    Pickle would keep them apart from the bank only by luck: joblib writes an array again each time it meets it.
    """
    if "memory_bank_" not in state:
        return state
    return {**state, **{name: _replace(state[name], state["memory_bank_"], SameAsBank) for name in _STAGES}}


def with_shared_bank(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state that :func:`without_copies_of_bank` was given: the stages share the bank again."""
    if "memory_bank_" not in state:
        return state
    return {**state, **{name: _replace(state[name], SameAsBank, state["memory_bank_"]) for name in _STAGES}}


def _replace(estimator: Any, old: Any, new: Any) -> Any:
    """Return a shallow copy of an estimator whose attributes that are `old` are `new`."""
    replaced = copy(estimator)
    for name, value in vars(estimator).items():
        if value is old:
            setattr(replaced, name, new)
    return replaced


def with_bank(detector: Any, rows: np.ndarray) -> Any:
    """Return a shallow copy of a detector that holds other rows as its memory bank, its stages too."""
    replaced = copy(detector)
    for name in _STAGES:
        setattr(replaced, name, _replace(getattr(detector, name), detector.memory_bank_, rows))
    replaced.memory_bank_ = rows
    return replaced


def as_half(bank: np.ndarray | None, dtype: str, detector: Any) -> np.ndarray:
    """Return the bank rounded to `dtype`; raise a ValueError where that would not halve the file or would overflow."""
    if dtype != "float16":
        raise ValueError(f"bank_dtype={dtype!r}: expected 'float16' or None.")
    if bank is None:
        raise ValueError(f"bank_dtype={dtype!r}: a {type(detector).__name__} has no memory bank of its own.")
    held = vars(detector.index_)
    # scikit-learn's trees copy the bank beside keeping it
    if held.get("_tree") is not None or not any(value is bank for value in held.values()):
        raise ValueError(
            f"bank_dtype={dtype!r}: {type(detector.index_).__name__} keeps a bank of its own, in which nothing would "
            "be rounded."
        )
    with np.errstate(over="ignore"):
        half = bank.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError("bank_dtype='float16' holds values up to 65504, and the bank has larger ones.")
    return half
