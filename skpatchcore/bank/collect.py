"""From a stream of patch features to the memory bank, in as much memory as there may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from skpatchcore._utils.bytes import available_bytes
from skpatchcore._utils.progress import progress_bar, stage
from skpatchcore.bank.budget import MemoryEstimate, overhead_bytes
from skpatchcore.coreset._base import count_of
from skpatchcore.images.views import View
from skpatchcore.patches.patches import GridLayout, HeldPatches, PatchGrids, boxes_in_images
from skpatchcore.patches.stream import PatchStream, images_at_once

# Of the memory that is free, how much "auto" takes.
_SHARE = 0.6

Batch = tuple[PatchGrids, list[View | None]]


@dataclass
class Bank:
    """The coreset, and where it came from.

    Attributes
    ----------
    rows : array of shape (n_bank, n_channels)
        The memory bank, in order of selection.
    images : array of shape (n_bank,), int64
        Which image of the stream each row came from.
    positions : array of shape (n_bank, 2), int64
        Where in that image's grid: row and column.
    boxes : array of shape (n_bank, 4), float64
        Where in that image: top, left, height and width in its own pixels; NaN where nothing is known of it.
    patches : PatchStream or HeldPatches
        All patch features: held in memory, or to be extracted again.
    """

    rows: np.ndarray
    images: np.ndarray
    positions: np.ndarray
    boxes: np.ndarray
    patches: PatchStream | HeldPatches


def estimate_memory(n_patches: int, first: Batch, batch_size: int, sampler: Any, n_copies: int) -> MemoryEstimate:
    """Estimate what collecting the bank takes.

    Parameters
    ----------
    n_patches : int
        Of all images.
    first : (PatchGrids, list of View)
        What comes of some of them.
    batch_size : int
        How many images come at once.
    sampler : estimator
        Selects the coreset.
    n_copies : int
        Of the patch features that will be in memory, beside what was there before.

    Returns
    -------
    MemoryEstimate
    """
    grids, views = first
    n_channels = grids.rows.shape[1]
    row_bytes = n_channels * grids.rows.itemsize
    sees_once = hasattr(sampler, "fit_batches") and hasattr(sampler, "estimate_memory")
    ratio = getattr(sampler, "ratio", 1.0)  # at worst, another sampler keeps all
    seen = views[0].input_size if views[0] else None
    return MemoryEstimate(
        n_patches=n_patches,
        n_channels=n_channels,
        overhead=overhead_bytes(batch_size, seen, grids.rows.nbytes // len(grids)),
        features=n_copies * n_patches * row_bytes,
        selection=sampler.estimate_memory(n_patches, n_channels) if sees_once else None,
        bank=count_of(ratio, n_patches) * row_bytes,
    )


def collect_bank(
    stream: PatchStream | HeldPatches, sampler: Any, max_memory: int | str | None, extra_copies: int = 0
) -> Bank:
    """Select the memory bank from patch features, extracted first if they are not held.

    Parameters
    ----------
    stream : PatchStream or HeldPatches
        Of all images.
    sampler : estimator
        Selects the coreset; fitted here.
    max_memory : int, "auto" or None
        Bytes above what the interpreter had at its start; ``"auto"`` is a share of what is free, or if that is too
        little the least that it takes; None as much as it takes.
    extra_copies : int, default=0
        Of the patch features, if they are held, that will be made of them later: memory has to do for them too.

    Returns
    -------
    Bank

    Raises
    ------
    ImageError
        If an image can't be read.
    ValueError
        If the features don't do, the memory does not, or the sampler selects no rows.
    """
    if isinstance(stream, HeldPatches):
        return _select(stream, sampler)
    batches = iter(stream)
    first = next(batches)
    is_held = stream.holds_features()
    batch_size = min(len(stream), images_at_once(stream.extractor, stream.X))
    n_copies = extra_copies + (0 if is_held else 1)
    estimate = estimate_memory(stream.expected_patches(first[0]), first, batch_size, sampler, n_copies)
    if isinstance(max_memory, str):
        max_memory = max(int(_SHARE * available_bytes()), estimate.least or estimate.at_once)
    batches = chain([first], batches)
    if max_memory is not None and estimate.way(max_memory) != "at once":
        return _collect_seen_once(stream, batches, sampler, estimate, max_memory - estimate.overhead)
    if is_held:
        held = HeldPatches(PatchGrids.from_features(stream.X), [None] * len(stream))
    else:
        held = HeldPatches.gather(batches, estimate.n_patches)
    return _select(held, sampler)


def _select(held: HeldPatches, sampler: Any) -> Bank:
    with stage("selection"):
        sampler.fit(held.grids.rows)
    picked = _picked_by(sampler)
    # Proxies are in the bank themselves; of rows there is no need for a second copy either.
    rows = getattr(sampler, "components_", None)
    if rows is None:
        rows = held.grids.rows[picked]
    images, positions = held.grids.image_of(picked), held.grids.positions_of(picked)
    return Bank(rows, images, positions, boxes_in_images(held.grids, held.views, images, positions), held)


def _collect_seen_once(
    stream: PatchStream, batches: Iterator[Batch], sampler: Any, estimate: MemoryEstimate, max_memory: int
) -> Bank:
    """Let the sampler look at each patch once, then extract those that it picked again."""
    sizes: list[np.ndarray] = []
    views: list[View | None] = []

    def rows() -> Iterator[np.ndarray]:
        for grids, seen in batches:
            sizes.append(grids.sizes)
            views.extend(seen)
            yield grids.rows

    with stage("selection"):
        sampler.fit_batches(rows(), estimate.n_patches, max_memory)
    picked, layout = _picked_by(sampler), GridLayout(np.concatenate(sizes))
    images, bank, start = layout.image_of(picked), None, 0
    with progress_bar(len(stream), "extracting the coreset", "image", stream.verbose) as bar:
        for size in sizes:
            stop = start + len(size)
            here = np.flatnonzero((images >= start) & (images < stop))
            # The same batches again: in others, a network's results may differ in the last bit.
            for grids, _ in stream.between(start, stop) if len(here) else ():
                if not np.array_equal(grids.sizes, size):
                    raise ValueError("images have changed while they were learnt from: their grids are of other sizes.")
                if bank is None:
                    bank = np.empty((len(picked), estimate.n_channels), grids.rows.dtype)
                bank[here] = grids.rows[picked[here] - layout.starts[start]]
            bar.update(stop - start)
            start = stop
    sampler.components_ = bank
    positions = layout.positions_of(picked)
    return Bank(sampler.components_, images, positions, boxes_in_images(layout, views, images, positions), stream)


def _picked_by(sampler: Any) -> np.ndarray:
    if not hasattr(sampler, "component_indices_"):
        raise ValueError(f"sampler={sampler!r} selects no rows: after fit it has no component_indices_.")
    return np.asarray(sampler.component_indices_, np.int64)
