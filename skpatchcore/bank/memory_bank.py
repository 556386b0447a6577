""":class:`MemoryBank`: the coreset, the origin of its rows, and scoring against it.

The sampler and the index of a detector share the array of the bank. The functions in this module keep the array
shared when a detector is saved, loaded or converted.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skpatchcore.bank.reserve import Reserve
from skpatchcore.bank.scoring import score_patches
from skpatchcore.coreset.greedy import GreedyCoresetSampler
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
        Image of origin of each row, as an index into the training images that are not left out. In the bank of a
        fitted detector, the indices refer to the `X` of its `fit`.
    positions : array of shape (n_bank, 2), int64
        Row and column of each patch in the patch grid of its image.
    boxes : array of shape (n_bank, 4), float64
        Top, left, height and width of each patch in pixels of its original image. NaN if the view is unknown.
    sampler : Sampler
        The fitted sampler that selected the rows.
    index : Index
        Index that searches the rows.
    n_neighbors : int
        *b* of Equation 7 of the PatchCore paper: number of neighbours in the re-weighting of image scores.
    excluded : array of int or None, default=None
        Rows that are ignored when images are scored. None ignores no row.
    reserve : Reserve or None, default=None
        Patches that can replace rows of the bank when images are forgotten.
    """

    rows: np.ndarray
    images: np.ndarray
    positions: np.ndarray
    boxes: np.ndarray
    sampler: Sampler
    index: Index
    n_neighbors: int
    excluded: np.ndarray | None = None
    reserve: Reserve | None = None

    def build_index(self) -> None:
        """Fit the index. If the index stores the rows in another dtype, the bank and the sampler use these rows."""
        self.index.fit(self.rows)
        stored = stored_rows_of(self.index, self.rows)
        if stored.dtype != self.rows.dtype:
            if components_of(self.sampler) is self.rows:
                self.sampler.components_ = stored  # type: ignore[attr-defined]
            self.rows = stored

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores (Equations 6 and 7) and patch scores, **bigger = more anomalous**.

        Parameters
        ----------
        patches : Patches
            Patches of the images.
        with_patch_scores : bool, default=True
            If False, the list of patch scores is empty, and an :class:`~skpatchcore.ExactIndex` searches faster.

        Returns
        -------
        scores : array of shape (n_images,), float64
            Image scores.
        patch_scores : list of arrays of shape (grid_height, grid_width), float64
            Distance of each patch from the nearest row of the bank.
        """
        memory = self.sampler.memory if isinstance(self.sampler, GreedyCoresetSampler) else None
        return score_patches(self.index, self.rows, patches, self.n_neighbors, self.excluded, with_patch_scores, memory)

    def without(self, images: np.ndarray) -> MemoryBank | None:
        """Return the bank without the rows of the given images; None if no row is left."""
        excluded = np.flatnonzero(np.isin(self.images, images))
        return None if len(excluded) == len(self.rows) else replace(self, excluded=excluded)

    def of_originals(self, n_images: int) -> MemoryBank:
        """Return the bank in which rows of turned views belong to the original images.

        Parameters
        ----------
        n_images : int
            Number of original images. The bank was selected from them and from the same number of each view after them.
        """
        reserve = None if self.reserve is None else self.reserve.with_images(lambda images: images % n_images)
        return replace(self, images=self.images % n_images, reserve=reserve)

    def numbered(self, numbers: np.ndarray) -> MemoryBank:
        """Return the bank in which ``numbers[i]`` replaces the index i of an image."""
        reserve = None if self.reserve is None else self.reserve.with_images(numbers.__getitem__)
        return replace(self, images=numbers[self.images], reserve=reserve)


# Stages of a detector that refer to the array of the memory bank. Model files store the array once.
_HOLDERS = ("sampler_", "index_")


class SameAsBank:
    """Placeholder in a model file for a reference of a stage to the memory bank."""


def without_copies_of_bank(state: dict[str, Any]) -> dict[str, Any]:
    """Return a detector's state in which placeholders replace the stages' references to the memory bank.

    Without the placeholders, a model file could hold the bank several times: joblib writes an array again for each
    reference.
    """
    if "memory_bank_" not in state:
        return state
    return {**state, **{name: _replace(state[name], state["memory_bank_"], SameAsBank) for name in _HOLDERS}}


def with_shared_bank(state: dict[str, Any]) -> dict[str, Any]:
    """Undo :func:`without_copies_of_bank`: return the state in which the stages share the bank again."""
    if "memory_bank_" not in state:
        return state
    return {**state, **{name: _replace(state[name], SameAsBank, state["memory_bank_"]) for name in _HOLDERS}}


def _replace(estimator: Any, old: Any, new: Any) -> Any:
    """Return a shallow copy of an estimator in which `new` replaces each attribute that is the object `old`."""
    replaced = copy(estimator)
    for name, value in vars(estimator).items():
        if value is old:
            setattr(replaced, name, new)
    return replaced


def with_bank(detector: Any, rows: np.ndarray) -> Any:
    """Return a shallow copy of a detector in which `rows` replaces the memory bank, also in the stages."""
    replaced = copy(detector)
    for name in _HOLDERS:
        setattr(replaced, name, _replace(getattr(detector, name), detector.memory_bank_, rows))
    replaced.memory_bank_ = rows
    return replaced


def as_half(bank: np.ndarray | None, dtype: str, detector: Any) -> np.ndarray:
    """Return the memory bank rounded to float16 for a model file.

    Parameters
    ----------
    bank : array of shape (n_bank, n_channels) or None
        The memory bank. None if the detector has none.
    dtype : str
        Requested dtype; only ``"float16"`` is valid.
    detector : estimator
        The fitted detector.

    Returns
    -------
    array of shape (n_bank, n_channels), float16

    Raises
    ------
    ValueError
        If `dtype` is not valid, if the detector has no memory bank, if the detector's index keeps an additional copy of
        the bank (the file would not become smaller), or if a value of the bank is beyond ±65504.
    """
    if dtype != "float16":
        raise ValueError(f"bank_dtype={dtype!r}: expected 'float16' or None.")
    if bank is None:
        raise ValueError(
            f"bank_dtype={dtype!r}: a {type(detector).__name__} has no memory bank of its own. Use bank_dtype=None."
        )
    held = vars(detector.index_)
    # scikit-learn's trees hold a copy of the bank in addition to the bank itself
    if held.get("_tree") is not None or not any(value is bank for value in held.values()):
        raise ValueError(
            f"bank_dtype={dtype!r}: {type(detector.index_).__name__} keeps its own copy of the memory bank, which "
            "would not be rounded. Use bank_dtype=None or ExactIndex."
        )
    with np.errstate(over="ignore"):
        half = bank.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(
            "bank_dtype='float16': the memory bank has values beyond 65504, the largest float16 value. Use "
            "bank_dtype=None."
        )
    return half
