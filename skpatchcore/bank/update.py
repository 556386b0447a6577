"""Changes of a fitted memory bank: :func:`grown` adds images, and :func:`without_images` removes images.

Both return a new bank. The bank that is given, its sampler and its index are not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone

from skpatchcore._utils.progress import phase
from skpatchcore._utils.warning import warn_user
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.bank.collect import extracted_again
from skpatchcore.bank.memory_bank import MemoryBank
from skpatchcore.bank.reserve import Reserve, images_of_rows
from skpatchcore.coreset.reserve import ReserveRequest
from skpatchcore.patches.patches import Patches, PatchLayout
from skpatchcore.patches.stream import PatchSource
from skpatchcore.protocols import require_extension, with_components


def growth_needs(n_patches: int, first: Patches, bank: MemoryBank) -> MemoryNeeds:
    """Return the memory that :func:`grown` needs for `n_patches` new patches like `first`."""
    require_extension(bank.sampler)
    n_channels = first.rows.shape[1]
    estimate = getattr(bank.sampler, "estimate_memory", None)
    return MemoryNeeds(None if estimate is None else estimate(n_patches, n_channels), 2 * bank.rows.nbytes)


def grown(
    bank: MemoryBank,
    patches: PatchSource,
    budget: Budget,
    growth: str,
    numbers: np.ndarray,
    see: Callable[[Patches, int], None],
) -> MemoryBank:
    """Return a bank to which the patches of new images are added.

    Parameters
    ----------
    bank : MemoryBank
        The bank. Its rows stay.
    patches : Patches or PatchStream
        Patches of the new images: held in memory, or extracted again where rows are selected.
    budget : Budget
        Expected number of patches, and the memory limit if `patches` is a stream.
    growth : {"radius", "ratio"}
        When the selection stops; see :meth:`skpatchcore.GreedyCoresetSampler.extend`.
    numbers : array of shape (n_images,), int64
        Index of each image among all training images. A turned view has the index of its image.
    see : callable
        ``see(batch, first)`` is called once for each batch, before anything is selected. ``first`` is the index of its
        first image in `patches`.

    Returns
    -------
    MemoryBank

    Raises
    ------
    ImageError
        If an image cannot be read.
    ValueError
        If the sampler cannot go on selecting, or the new features do not fit those of the bank.
    """
    require_extension(bank.sampler)
    sampler: Any = copy(bank.sampler)
    layouts: list[PatchLayout] = []

    def rows() -> Iterator[np.ndarray]:
        done = 0
        for batch in patches:
            see(batch, done)
            layouts.append(batch.layout())
            done += len(batch)
            yield batch.rows

    def images() -> Iterator[np.ndarray]:
        yield numbers[images_of_rows(PatchLayout.joined(layouts))]  # complete after the last batch

    request = None if bank.reserve is None else ReserveRequest(images(), bank.images)
    seen = sampler.n_samples_seen_
    picked = sampler.extend(rows(), budget.n_patches, growth, request)
    layout = PatchLayout.joined(layouts)
    if isinstance(patches, Patches):
        rows_of: Callable[[np.ndarray], np.ndarray] = patches.rows.__getitem__
    else:
        rows_of = partial(extracted_again, patches, layouts, layout)
    reserved = np.zeros(0, np.int64) if request is None or request.rows is None else request.rows
    wanted = np.concatenate([picked, reserved])
    found = rows_of(wanted) if len(wanted) else bank.rows[:0]
    reserve = bank.reserve
    if reserve is not None:
        radius = sampler.covering_radius_
        added = Reserve.of_request(request, layout, lambda _: found[len(picked) :], radius, seen)
        if added is not None:
            reserve = reserve.joined(added)
    if not len(picked):
        return replace(bank, sampler=sampler, reserve=reserve)
    all_rows = _joined_rows(bank.rows, found[: len(picked)])
    sampler.components_ = all_rows
    return _rebuilt(
        replace(
            bank,
            rows=all_rows,
            images=np.concatenate([bank.images, numbers[layout.image_of(picked)]]),
            positions=np.concatenate([bank.positions, layout.original_positions_of(picked)]),
            boxes=np.concatenate([bank.boxes, layout.boxes_of(picked)]),
            sampler=sampler,
            reserve=reserve,
        )
    )


def without_images(bank: MemoryBank, forgotten: np.ndarray, remaining: np.ndarray) -> MemoryBank:
    """Return a bank without the rows of some images, in which rows of the reserve fill the holes.

    Parameters
    ----------
    bank : MemoryBank
        The bank.
    forgotten : array of int
        Indices of the images whose rows are removed.
    remaining : array of int
        Indices of all images that remain.

    Returns
    -------
    MemoryBank
        No row of the bank, of its reserve, of its sampler or of its index comes from the forgotten images.

    Raises
    ------
    ValueError
        If no row remains, or if the sampler computes the rows of the bank.

    Warns
    -----
    UserWarning
        If there is no reserve, so that the holes are not filled.
    """
    places = np.flatnonzero(~np.isin(bank.images, forgotten))
    indices, refilled = np.zeros(0, np.int64), np.zeros(0, np.int64)
    sampler = with_components(bank.sampler, places, indices, bank.rows[places])
    reserve = None if bank.reserve is None else bank.reserve.without(forgotten)
    if reserve is not None:
        needed = reserve.needed_without(remaining)
        refilled = sampler.refill(reserve.rows.astype(_row_dtype(bank.rows)), needed)
        indices = reserve.indices[refilled]
    elif len(places) < len(bank.rows):
        warn_user(
            f"forget: {len(bank.rows) - len(places)} of {len(bank.rows)} rows of the memory bank are removed, and no "
            "other rows replace them, because the detector holds no reserve (reserve=False, a sampler other than "
            "GreedyCoresetSampler, a selection in shards, a Dask cluster, a small max_memory, or an older version). "
            "More good images may be flagged. Fit again without the images for a complete bank."
        )
    if not len(places) + len(refilled):
        raise ValueError("forget: no row of the memory bank would remain. Fit again on other images.")
    rows, images, positions, boxes = bank.rows[places], bank.images[places], bank.positions[places], bank.boxes[places]
    if reserve is not None and len(refilled):
        rows = _joined_rows(rows, reserve.rows[refilled])
        images = np.concatenate([images, reserve.images[refilled]])
        positions = np.concatenate([positions, reserve.positions[refilled]])
        boxes = np.concatenate([boxes, reserve.boxes[refilled]])
        reserve = reserve.taken(np.setdiff1d(np.arange(len(reserve.rows)), refilled))
    sampler = with_components(bank.sampler, places, indices, rows)
    return _rebuilt(
        replace(bank, rows=rows, images=images, positions=positions, boxes=boxes, sampler=sampler, reserve=reserve)
    )


def _rebuilt(bank: MemoryBank) -> MemoryBank:
    """Fit a new index of the bank with the parameters of the old one, and return the bank."""
    bank.index = clone(bank.index)
    with phase("index"):
        bank.build_index()
    return bank


def _row_dtype(rows: np.ndarray) -> np.dtype:
    """Return the dtype with which rows of a bank are computed: float32 for a bank that the index holds as float16."""
    return np.dtype(np.float32) if rows.dtype == np.float16 else rows.dtype


def _joined_rows(rows: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Return rows of the bank followed by further rows, in one dtype."""
    dtype = _row_dtype(rows)
    return np.concatenate([rows.astype(dtype, copy=False), added.astype(dtype, copy=False)])
