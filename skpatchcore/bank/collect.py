"""Selection of memory banks: :func:`collect_banks` selects coresets from patches in memory or from a stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone

from skpatchcore._utils.progress import phase, progress_bar
from skpatchcore._utils.warning import warn_user
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.bank.folds import FoldBanks
from skpatchcore.bank.memory_bank import MemoryBank
from skpatchcore.bank.reserve import Reserve, images_of_rows
from skpatchcore.coreset._base import count_of
from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.coreset.reserve import ReserveRequest
from skpatchcore.patches.patches import Patches, PatchLayout
from skpatchcore.patches.stream import PatchSource, PatchStream
from skpatchcore.protocols import (
    Index,
    Sampler,
    components_of,
    ratio_of,
    selected_by,
    selects_from_batches,
    selects_reserve,
)

# Rows of the reserve per row of the bank, times the fraction of the patches that is selected, and at most. Measured on
# images of magnetic tiles: 1.7 rows at 1 %, and 0.12 rows at 10 %.
_RESERVED, _MOST_RESERVED = 0.02, 2.0


def bank_needs(n_patches: int, first: Patches, sampler: Sampler, with_reserve: bool = False) -> MemoryNeeds:
    """Return the memory that the selection of a memory bank needs.

    Parameters
    ----------
    n_patches : int
        Number of patches of all images together.
    first : Patches
        Patches of some of the images.
    sampler : Sampler
        Sampler that will select the coreset.
    with_reserve : bool, default=False
        Whether the bank gets a reserve, if the sampler can select one.

    Returns
    -------
    MemoryNeeds
        Bytes for the selection and for the memory bank. If the sampler cannot select from batches, all patch features
        must be held in memory.
    """
    n_channels = first.n_channels
    n_selected = count_of(ratio_of(sampler), n_patches)
    model = n_selected * n_channels * first.itemsize
    if with_reserve and selects_reserve(sampler):
        model += int(min(_MOST_RESERVED, _RESERVED * n_patches / n_selected) * model)
    if not selects_from_batches(sampler):
        return MemoryNeeds(learning=None, model=model)
    # A shard has at least twice as many rows as are selected, and takes a third of the memory: 6 * n_selected rows.
    # Samplers estimate for float32 rows, so the number is scaled by the size of the actual dtype.
    least = sampler.estimate_memory(6 * n_selected * first.itemsize // 4, n_channels)
    learning = sampler.estimate_memory(n_patches, n_channels)
    return MemoryNeeds(learning, model, in_shards=True, least_learning=min(least, learning))


def collect_banks(
    patches: PatchSource,
    sampler: Sampler,
    index: Index,
    budget: Budget,
    n_neighbors: int,
    left_out: Sequence[np.ndarray] = (),
    reserve_of: int | None = None,
) -> tuple[MemoryBank, Iterable[list[MemoryBank]]]:
    """Select the memory bank and fit its index. Also select the banks of calibration folds.

    Parameters
    ----------
    patches : Patches or PatchStream
        Patches of all training images: held in memory, or extracted in each pass.
    sampler : Sampler
        Sampler that selects the coreset. A clone is fitted.
    index : Index
        Index that searches the memory bank. A clone is fitted.
    budget : Budget
        Memory limit of the selection if `patches` is a stream.
    n_neighbors : int
        *b* of Equation 7 of the PatchCore paper: number of neighbours in the re-weighting of image scores.
    left_out : sequence of arrays of int, default=()
        Images that each fold leaves out. Folds require a sampler with the method ``fit_folds``.
    reserve_of : int or None, default=None
        Number of original images, which are followed by their turned views, if the bank of all images gets a reserve.
        There is no reserve if the sampler cannot select one, or selects in shards. None selects no reserve.

    Returns
    -------
    bank : MemoryBank
        The bank of all images, with its fitted sampler and index.
    fold_banks : iterable of lists of MemoryBank
        The bank of each fold, in lists of banks that fit in memory together. The banks of a list are built when the
        iterator reaches it.

    Raises
    ------
    ImageError
        If an image cannot be read.
    ValueError
        If the features are not valid, the memory limit is too small, or the sampler selects no rows.
    """
    sampler, index = clone(sampler), clone(index)
    if not selects_reserve(sampler):
        reserve_of = None
    if isinstance(patches, Patches):
        rows, picked, layout, picks, request = _select_held(patches, sampler, left_out, reserve_of)
        reserve = Reserve.of_request(request, layout, patches.taken, _radius_of(sampler))
        fold_banks = FoldBanks(picks, layout.image_of, patches.taken, sampler, index, n_neighbors)
    else:
        rows, picked, layout, picks, rows_of, reserve = _select_seen_once(
            patches, sampler, budget, left_out, reserve_of
        )
        # Each row is read once, copied to its banks, and held again in the data that is derived for the search.
        capacity = sum(map(len, picks)) if budget.n_bytes is None else budget.n_bytes // (4 * rows[:1].nbytes)
        fold_banks = FoldBanks(picks, layout.image_of, rows_of, sampler, index, n_neighbors, capacity)
    origin = layout.image_of(picked), layout.original_positions_of(picked), layout.boxes_of(picked)
    bank = MemoryBank(rows, *origin, sampler, index, n_neighbors, reserve=reserve)
    with phase("index"):
        bank.build_index()
    return bank, fold_banks


def _select_held(
    patches: Patches, sampler: Any, left_out: Sequence[np.ndarray], reserve_of: int | None
) -> tuple[np.ndarray, np.ndarray, PatchLayout, list[np.ndarray], ReserveRequest | None]:
    """Select from patches in memory.

    Return the rows of the bank, their row numbers among all patches, the layout, the row numbers of each fold, and the
    selected reserve.
    """
    picks: list[np.ndarray] = []
    request = None if reserve_of is None else ReserveRequest(iter([images_of_rows(patches) % reserve_of]))
    digest = patches.digest() if type(sampler) is GreedyCoresetSampler and sampler.memory is not None else None
    with phase("selection"):
        if len(left_out):
            folds = _rows_of_images(patches, left_out)
            images = _pooled(sampler, lambda: iter([images_of_rows(patches)]))
            picks = sampler.fit_folds(patches.parts(), patches.n_rows, folds, **_with(request, digest, images))
        elif request is not None or digest is not None:
            sampler.fit_batches(patches.parts(), patches.n_rows, **_with(request, digest))
        else:
            sampler.fit(patches.rows)
    picked = selected_by(sampler)
    if len(left_out) or request is not None or digest is not None:
        sampler.components_ = patches.taken(picked)
    rows = components_of(sampler)  # the bank and the sampler share this array
    return patches.taken(picked) if rows is None else rows, picked, patches, picks, request


def _pooled(sampler: Any, images: Callable[[], Iterator[np.ndarray]]) -> Iterator[np.ndarray] | None:
    """Return the images of all rows if the sampler can select folds from a pool of rows of each image; else None."""
    own = getattr(type(sampler), "fit_folds", None)
    return images() if own is GreedyCoresetSampler.fit_folds else None


def _with(
    request: ReserveRequest | None, digest: bytes | None = None, images: Iterator[np.ndarray] | None = None
) -> dict[str, Any]:
    """Return the arguments that samplers without a reserve, without a cache, or without a pool, do not have."""
    given = {"reserve": request, "digest": digest, "images": images}
    return {name: value for name, value in given.items() if value is not None}


def _radius_of(sampler: Any) -> float:
    """Return the covering radius of a sampler that can select a reserve; 0 if it is unknown."""
    return float(getattr(sampler, "covering_radius_", 0.0))


def _rows_of_images(layout: PatchLayout, folds: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the row numbers of the patches of each array of images."""
    image_of = np.repeat(np.arange(len(layout)), np.diff(layout.starts))
    for images in folds:
        yield np.flatnonzero(np.isin(image_of, images))


def _select_seen_once(
    stream: PatchStream, sampler: Any, budget: Budget, left_out: Sequence[np.ndarray], reserve_of: int | None
) -> tuple[np.ndarray, np.ndarray, PatchLayout, list[np.ndarray], Callable[[np.ndarray], np.ndarray], Reserve | None]:
    """Select from a stream in two passes.

    The first pass gives each batch to the sampler once. The second pass extracts only the batches that contain
    selected patches. Return the first values of `_select_held`, a function that extracts rows again, and the reserve.
    """
    layouts: list[PatchLayout] = []
    row_bytes = 0

    def rows() -> Iterator[np.ndarray]:
        nonlocal row_bytes
        for patches in stream:
            row_bytes = patches.n_channels * patches.itemsize
            layouts.append(patches.layout())
            yield patches.rows

    def folds() -> Iterator[np.ndarray]:
        yield from _rows_of_images(PatchLayout.joined(layouts), left_out)  # complete after the last batch

    def images(n_images: int | None = None) -> Iterator[np.ndarray]:
        found = images_of_rows(PatchLayout.joined(layouts))
        yield found if n_images is None else found % n_images

    def most_reserved(n_selected: int) -> int:
        return sys.maxsize if budget.n_bytes is None else _most_reserved(budget.n_bytes, row_bytes, n_selected)

    picks: list[np.ndarray] = []
    request = None if reserve_of is None else ReserveRequest(images(reserve_of), most_rows=most_reserved)
    with phase("selection"):
        if len(left_out):
            pooled = _pooled(sampler, images)
            picks = sampler.fit_folds(rows(), budget.n_patches, folds(), **_with(request, images=pooled))
        else:
            sampler.fit_batches(rows(), budget.n_patches, budget.n_bytes, **_with(request))
    picked, layout = selected_by(sampler), PatchLayout.joined(layouts)
    rows_of = partial(extracted_again, stream, layouts, layout)
    if request is not None and request.is_too_large:
        warn_user(
            f"the memory bank has no reserve: it would have more than {most_reserved(len(picked)):,} patches, and "
            f"max_memory does not allow them in addition to a bank of {len(picked):,} patches. Without it, `forget` "
            "does not fill the holes that forgotten images leave in the bank. Raise max_memory, or set reserve=False."
        )
    # One pass extracts the rows of the bank and those of the reserve.
    reserved = np.zeros(0, np.int64) if request is None or request.rows is None else request.rows
    found = rows_of(np.concatenate([picked, reserved]))
    sampler.components_ = found[: len(picked)].copy() if len(reserved) else found
    reserve = Reserve.of_request(request, layout, lambda _: found[len(picked) :], _radius_of(sampler))
    return sampler.components_, picked, layout, picks, rows_of, reserve


def _most_reserved(n_bytes: int, row_bytes: int, n_selected: int) -> int:
    """Return how many rows a reserve may have if it is stored in memory beside the memory bank.

    Parameters
    ----------
    n_bytes : int
        Bytes for the model.
    row_bytes : int
        Bytes of a row.
    n_selected : int
        Number of rows of the memory bank.
    """
    # The bank is extracted, copied and searched; the reserve is extracted, and stored with half as many bytes.
    return max(0, int(2 * (n_bytes - 3 * n_selected * row_bytes) // (3 * row_bytes)))


def extracted_again(
    stream: PatchStream, layouts: Sequence[PatchLayout], layout: PatchLayout, picked: np.ndarray
) -> np.ndarray:
    """Extract the batches that contain some patches again, and return the features of these patches.

    Parameters
    ----------
    stream : PatchStream
        Patches of the images.
    layouts : sequence of PatchLayout
        Layout of each batch of the stream in the first pass.
    layout : PatchLayout
        The joined `layouts`.
    picked : array of int
        Row numbers of the patches. There must be at least one.

    Returns
    -------
    array of shape (n_picked, n_channels)

    Raises
    ------
    ImageError
        If an image cannot be read any more.
    ValueError
        If the images have changed.
    """
    images, bank, start = layout.image_of(picked), None, 0
    with progress_bar(len(stream), "extracting the coreset", "image", stream.verbose) as bar:
        for batch in layouts:
            stop = start + len(batch)
            here = np.flatnonzero((images >= start) & (images < stop))
            # Extract the same batches as before: in other batches, the network's results may differ in the last bit.
            for patches in stream.between(start, stop) if len(here) else ():
                if not patches.same_as(batch):
                    raise ValueError(
                        "images have changed during the fit: the second pass returned patch grids of other sizes than "
                        "the first pass, or another region of interest. Fit again on images that do not change."
                    )
                if bank is None:
                    bank = np.empty((len(picked), patches.rows.shape[1]), patches.rows.dtype)
                bank[here] = patches.rows[picked[here] - layout.starts[start]]
            bar.update(stop - start)
            start = stop
    assert bank is not None  # at least one row is picked
    return bank
