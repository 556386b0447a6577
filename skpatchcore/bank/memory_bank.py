"""MemoryBank: the coreset, where its rows came from, and how it scores. The stages of a detector share its array."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skpatchcore.bank.scoring import score_patches
from skpatchcore.patches.patches import Patches
from skpatchcore.protocols import Index, Sampler, components_of, stored_rows_of


@dataclass
class MemoryBank:
    """The memory bank of PatchCore, a :class:`~skpatchcore.patches.model.PatchModel`.

    Attributes
    ----------
    rows : array of shape (n_bank, n_channels)
        The coreset, in order of selection.
    images : array of shape (n_bank,), int64
        The image that each row came from: an index into the images that were learnt from; in the bank of a fitted
        detector, an index into the `X` of its `fit`.
    positions : array of shape (n_bank, 2), int64
        Where in that image's grid: row and column.
    boxes : array of shape (n_bank, 4), float64
        Where in that image: top, left, height and width in its own pixels; NaN where the view is unknown.
    sampler : Sampler
        Fitted; it selected the rows.
    index : Index
        Searches the rows.
    n_neighbors : int
        *b* of Eq. 7.
    excluded : array of int or None, default=None
        Rows that are ignored.
    """

    rows: np.ndarray
    images: np.ndarray
    positions: np.ndarray
    boxes: np.ndarray
    sampler: Sampler
    index: Index
    n_neighbors: int
    excluded: np.ndarray | None = None

    def build_index(self) -> None:
        """Fit the index. If it keeps the rows in another form, the bank and the sampler share that form."""
        self.index.fit(self.rows)
        stored = stored_rows_of(self.index, self.rows)
        if stored.dtype != self.rows.dtype:
            if components_of(self.sampler) is self.rows:
                self.sampler.components_ = stored  # type: ignore[attr-defined]
            self.rows = stored

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores (Eq. 6-7) and the distance of each patch, **bigger = more anomalous**."""
        return score_patches(self.index, self.rows, patches, self.n_neighbors, self.excluded, with_patch_scores)

    def without(self, images: np.ndarray) -> MemoryBank | None:
        """Return the bank without the rows that came from some images; None if no row is left."""
        excluded = np.flatnonzero(np.isin(self.images, images))
        return None if len(excluded) == len(self.rows) else replace(self, excluded=excluded)


# Stages that hold the memory bank too; files shall hold it once.
_HOLDERS = ("sampler_", "index_")


class SameAsBank:
    """Stands in a file where a stage holds the memory bank."""


def without_copies_of_bank(state: dict[str, Any]) -> dict[str, Any]:
    """Return a detector's state in which the stages' references to the memory bank are marks instead.

    Pickle would keep them apart from the bank only by luck: joblib writes an array again each time it meets it.
    """
    if "memory_bank_" not in state:
        return state
    return {**state, **{name: _replace(state[name], state["memory_bank_"], SameAsBank) for name in _HOLDERS}}


def with_shared_bank(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state that :func:`without_copies_of_bank` was given: the stages share the bank again."""
    if "memory_bank_" not in state:
        return state
    return {**state, **{name: _replace(state[name], SameAsBank, state["memory_bank_"]) for name in _HOLDERS}}


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
    for name in _HOLDERS:
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
