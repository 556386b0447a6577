"""Tasks after the selection: collect picked patches, assemble the memory bank, and score the calibration images.

As all tasks, they are pure; see :mod:`skpatchcore.dask._extraction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.sizeof import sizeof

from skpatchcore.bank.collect import extracted_again
from skpatchcore.bank.folds import FoldBanks
from skpatchcore.bank.memory_bank import MemoryBank
from skpatchcore.calibration.folds import scored_by_folds
from skpatchcore.calibration.plans import NoCalibration, ScoredPart, SketchOf
from skpatchcore.dask._extraction import Extraction, Held
from skpatchcore.dask._shards import Shard
from skpatchcore.dask._worker import Reports
from skpatchcore.detectors._image_scores import ImageScoring
from skpatchcore.detectors._records import ImageRecords

_ORIGIN = ("images", "positions", "boxes")


@dataclass
class Collected:
    """Picked patches of a shard, or of all shards.

    Attributes
    ----------
    rows : array of shape (n_picked, n_channels)
        The patch features.
    images, positions, boxes : arrays or None
        As for :class:`~skpatchcore.bank.memory_bank.MemoryBank`; None if they are not needed.
    """

    rows: np.ndarray
    images: np.ndarray | None = None
    positions: np.ndarray | None = None
    boxes: np.ndarray | None = None

    def __sizeof__(self) -> int:
        return sum(some.nbytes for some in (self.rows, self.images, self.positions, self.boxes) if some is not None)


@sizeof.register(MemoryBank)
def _(bank: MemoryBank) -> int:
    return int(bank.rows.nbytes)


def collect(
    held: Held, source: Any, shard: Shard, numbers: np.ndarray, extraction: Extraction, with_origin: bool
) -> Collected:
    """Return the picked patches of a shard.

    Parameters
    ----------
    held : Held
        Patches of the shard.
    source : sequence of images, partition or None
        The images. None if the patch features are held.
    shard, extraction
        As for `extract`.
    numbers : array of int
        Row numbers of the picked patches in the shard.
    with_origin : bool
        Whether the images, positions and boxes of the patches are returned too.
    """
    held.check(shard)
    if held.patches is not None:
        rows = held.patches.rows[numbers]
    elif len(numbers):
        rows = extracted_again(extraction.stream(source, shard), held.layouts, held.layout, numbers)
    else:
        rows = np.empty((0, 0), np.float32)
    if not with_origin:
        return Collected(rows)
    layout = held.layout
    images = layout.image_of(numbers) + shard.first
    return Collected(rows, images, layout.positions_of(numbers), layout.boxes_of(numbers))


def assemble(parts: Sequence[Collected], places: Sequence[np.ndarray]) -> Collected:
    """Join the picked patches of all shards.

    Parameters
    ----------
    parts : sequence of Collected
        Picked patches of each shard.
    places : sequence of arrays of int
        For each shard, the places of its patches in the result.
    """
    order = np.argsort(np.concatenate(places), kind="stable")
    filled = [part for part in parts if len(part.rows)]
    rows = np.concatenate([part.rows for part in filled])[order]
    if parts[0].images is None:
        return Collected(rows)
    return Collected(rows, *(np.concatenate([getattr(part, name) for part in filled])[order] for name in _ORIGIN))


def build_bank(collected: Collected, sampler: Any, index: Any, n_neighbors: int) -> MemoryBank:
    """Return the memory bank of collected patches, with a fitted index."""
    origin: Any = {name: getattr(collected, name) for name in _ORIGIN}
    bank = MemoryBank(collected.rows, **origin, sampler=sampler, index=index, n_neighbors=n_neighbors)
    bank.build_index()
    return bank


@dataclass
class Folds:
    """Picks of the banks of calibration folds that are scored together.

    Attributes
    ----------
    first : int
        Number of the first of these folds.
    numbers : array of int
        Row numbers of all picks, ascending, without repetitions.
    picks : list of arrays of int
        Per fold, the row numbers of its bank, in order of selection.
    index : Index
        Unfitted index.
    n_neighbors : int
        As for the detector.
    """

    first: int
    numbers: np.ndarray
    picks: list[np.ndarray]
    index: Any
    n_neighbors: int


def calibrate_folds(
    held: Held,
    source: Any,
    shard: Shard,
    tests: list[np.ndarray],
    number: int,
    rows: Collected,
    folds: Folds,
    extraction: Extraction,
    sketch_of: SketchOf,
    scoring: ImageScoring,
) -> list[ScoredPart]:
    """Score the test images of folds in a shard.

    Parameters
    ----------
    held, source, shard, number, extraction
        As for `collect` and `extract`.
    tests : list of arrays of int
        Test images of each fold in this shard, as indices among the images of all shards.
    rows : Collected
        Patches with the row numbers ``folds.numbers``.
    folds : Folds
        Picks of the banks of the folds.
    sketch_of : callable
        As for :meth:`~skpatchcore.calibration.plans.NoCalibration.calibrate`.
    scoring : ImageScoring
        How patch scores become image scores.
    """
    held.check(shard)
    used = [i for i, test in enumerate(tests) if len(test)]

    def rows_of(numbers: np.ndarray) -> np.ndarray:
        return rows.rows[np.searchsorted(folds.numbers, numbers)]

    picks = [folds.picks[i] for i in used]
    # Patches that are held are scored fold by fold. Otherwise, all banks are needed in one pass over the images.
    capacity = 0 if held.patches is not None else sum(map(len, picks))
    banks = FoldBanks(picks, np.zeros_like, rows_of, None, folds.index, folds.n_neighbors, capacity)  # type: ignore[arg-type]
    patches = held.patches if held.patches is not None else extraction.stream(source, shard)
    models = scoring.of_each(banks)
    parts = scored_by_folds([tests[i] for i in used], patches, models, sketch_of, shard.first)
    reports = Reports(extraction.topic, number)
    return [part._replace(fold=folds.first + used[part.fold]) for part in reports.of(parts, _n_scored)]


def calibrate_shard(
    held: Held | None,
    source: Any,
    shard: Shard,
    number: int,
    bank: MemoryBank,
    plan: NoCalibration,
    extraction: Extraction,
    sketch_of: SketchOf,
    scoring: ImageScoring,
) -> tuple[list[ScoredPart], ImageRecords]:
    """Score the images of a shard with the memory bank, as a plan without folds does it.

    If `held` is None, the shard has not been extracted before. What is recorded of its images is returned too.
    """
    if held is not None:
        held.check(shard)
    records = ImageRecords(None, of_good_images=True)
    is_held = held is not None and held.patches is not None
    patches = held.patches if is_held and held is not None else extraction.stream(source, shard, records)
    assert patches is not None
    reports = Reports(extraction.topic, number)
    scored = plan.scored(patches, scoring.of(bank), (), sketch_of, shard.first)
    return list(reports.of(scored, _n_scored)), records


def _n_scored(part: ScoredPart) -> int:
    return len(part.images)
