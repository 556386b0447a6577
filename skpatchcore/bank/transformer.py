"""The transformer of the patch features of a memory bank: :func:`fit_transformer` and :class:`TransformedModel`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import clone

from skpatchcore._utils.arrays import read_only
from skpatchcore._utils.progress import phase
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.bank.collect import bank_needs
from skpatchcore.patches.model import PatchModel
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource
from skpatchcore.patches.transform import N_ROWS, RowTransform, equal_parts
from skpatchcore.protocols import Sampler, drop_fit_state, fits_in_parts, n_columns_of

# Memory of the fit of a transformer: number of float64 matrices with one row and one column per channel, and number of
# parts of the patch features.
_N_MATRICES, _N_PARTS = 5, 6
# Number of copies of all patch features that a transformer without `partial_fit` makes.
_N_COPIES = 2
_ADVICE = (
    " transformer={} has no partial_fit and needs all patch features in memory. With many images, a transformer with "
    "partial_fit needs less, e.g. PatchWhitening or sklearn.decomposition.IncrementalPCA."
)


def transformed_needs(
    n_patches: int, first: Patches, transformer: Any, sampler: Sampler, with_reserve: bool = False
) -> MemoryNeeds:
    """Return the memory that a transformer and the selection of a memory bank need.

    Parameters
    ----------
    n_patches, first, sampler, with_reserve
        As for :func:`~skpatchcore.bank.collect.bank_needs`. The patches are not transformed.
    transformer : Transformer or None
        The transformer; None if there is none.
    """
    if transformer is None:
        return bank_needs(n_patches, first, sampler, with_reserve)
    n_channels, itemsize = first.n_channels, first.itemsize
    n_columns = n_columns_of(transformer, n_channels)
    like_first = first.with_rows(np.empty((len(first.rows), n_columns), first.rows.dtype))
    needs = bank_needs(n_patches, like_first, sampler, with_reserve)
    needs = replace(needs, transformed=n_patches * n_columns * itemsize)
    if fits_in_parts(transformer):
        own = _N_MATRICES * 8 * n_channels**2 + _N_PARTS * N_ROWS * n_channels * itemsize
        return replace(needs, transforming=own)
    own = _N_COPIES * n_patches * n_channels * itemsize
    advice = _ADVICE.format(type(transformer).__name__)
    return replace(needs, learning=None, in_shards=False, transforming=own, advice=advice)


def fit_transformer(transformer: Any, patches: PatchSource) -> RowTransform:
    """Fit a clone of a transformer on patches.

    A transformer with ``partial_fit`` gets the same matrices from patches in memory and from a stream, so the result is
    the same. Other transformers need patches in memory.
    """
    fitted = clone(transformer)
    with phase("transformer"):
        if fits_in_parts(fitted):
            for part in equal_parts(batch.rows for batch in patches):
                fitted.partial_fit(part)
        else:
            assert isinstance(patches, Patches)  # the memory estimate excludes a stream
            fitted.fit(read_only(patches.rows))  # PCA(copy=False) and others change rows that are writable
        drop_fit_state(fitted)
    return RowTransform(fitted)


def transformed(
    patches: PatchSource, transform: RowTransform, budget: Budget, needs: MemoryNeeds
) -> tuple[PatchSource, Budget]:
    """Return transformed patches, in memory if the budget allows it; also return the budget of the selection.

    Parameters
    ----------
    patches : Patches or PatchStream
        The patches as extracted.
    transform : RowTransform
        The fitted step.
    budget : Budget
        Memory limit if `patches` is a stream.
    needs : MemoryNeeds
        Memory that the selection needs.
    """
    if isinstance(patches, Patches):

        def batches() -> Iterator[Patches]:
            for batch in patches:
                yield transform.of(batch, None, None)

        with phase("transformer"):
            return Patches.gather(batches(), len(patches.rows)), budget
    stream = patches.transformed(transform)
    if budget.holds(needs.transformed or 0, needs):
        return stream.held(budget.n_patches), replace(budget, n_bytes=None)
    return stream, budget


@dataclass(frozen=True)
class TransformedModel:
    """A :class:`~skpatchcore.patches.model.PatchModel` that transforms patches before another model scores them.

    Attributes
    ----------
    model : PatchModel
        Model of transformed patches.
    transform : RowTransform
        The fitted step. It was fitted on the same images as the model.
    """

    model: Any
    transform: RowTransform

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores and patch scores, **bigger = more anomalous**."""
        found: tuple[np.ndarray, list[np.ndarray]] = self.model.score(
            self.transform.of(patches, None, None), with_patch_scores
        )
        return found

    def without(self, images: np.ndarray) -> PatchModel | None:
        """Return the model without the given images; None if nothing is left. The transformer stays the same."""
        model = self.model.without(images)
        return None if model is None else TransformedModel(model, self.transform)

    def of_originals(self, n_images: int) -> TransformedModel:
        """Return the model in which patches of turned views count as patches of their original images."""
        return TransformedModel(self.model.of_originals(n_images), self.transform)
