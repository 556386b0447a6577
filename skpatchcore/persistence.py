"""What a fitted detector looks like in a file."""

from __future__ import annotations

from copy import copy
from typing import Any

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
