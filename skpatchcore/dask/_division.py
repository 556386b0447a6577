"""Division: divide the images of a fit into shards that fit into the memory of the workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from skpatchcore._utils.bytes import format_bytes
from skpatchcore.dask._cluster import Worker
from skpatchcore.dask._extraction import Extraction, Profile, measure, profile
from skpatchcore.dask._group import DaskGroup
from skpatchcore.dask._shards import PartitionedImages, Shard, Sources, cut_points, without_regions
from skpatchcore.images.containers import items_between
from skpatchcore.patches.patches import N_IMAGES
from skpatchcore.protocols import batch_size_of

# Number of shards per worker thread. With more than one, a worker that joins late or stops changes less.
_PER_THREAD = 2
# Memory of the selection at least, as a multiple of the projected rows.
_N_COPIES = 2
# Fraction of the memory of a worker process that the projected rows of one shard may take, and the memory that is
# assumed for a worker without a limit.
_SHARE_OF_SHARD, _ASSUMED = 0.1, 8 * 10**9


class Division:
    """Divides images into shards.

    Parameters
    ----------
    group : DaskGroup
        Group that runs the
    extraction : Extraction
        Settings of the
    workers : dict of str to Worker
        The workers at the start of the fit.
    n_shards : int or None
        Number of shards; None chooses it.

    Attributes
    ----------
    paths : dict of int to str
        Absolute paths of images on the workers, by their indices in `X`.
    """

    def __init__(self, group: DaskGroup, extraction: Extraction, workers: Mapping[str, Worker], n_shards: int | None):
        self.group, self.extraction, self.workers, self.n_shards = group, extraction, workers, n_shards
        self.paths: dict[int, str] = {}
        self._shared = group.share("skpatchcore-settings", extraction)
        self._images_per_shard: float | None = None

    def of(self, X: Any, numbers: np.ndarray) -> tuple[list[Shard], Sources]:
        """Divide images, whose indices in the `X` of `fit` are `numbers`."""
        X, regions = without_regions(X)
        if isinstance(X, PartitionedImages):
            return self._partitions(X, regions, numbers)
        sizes = self._measured(X, numbers)
        n_shards = self.n_shards or self._number_of_shards(X, numbers)
        self._images_per_shard = len(numbers) / n_shards
        extractor = self.extraction.extractor
        batch_size = 1 if extractor is None else batch_size_of(extractor, N_IMAGES)
        return self._cut(X, regions, numbers, cut_points(len(numbers), n_shards, batch_size, sizes))

    def _partitions(
        self, X: PartitionedImages, regions: list[Any] | None, numbers: np.ndarray
    ) -> tuple[list[Shard], Sources]:
        """Return one shard per partition with images."""
        shards, partitions, first = [], [], 0
        for partition, positions, n_images in X.parts():
            some = slice(first, first + n_images)
            own = None if regions is None else regions[some]
            shards.append(Shard(numbers[some], first, own, positions, X.lengths[partition]))
            partitions.append(X.partitions[partition])
            first += n_images
        return shards, Sources(self.group, partitions)

    def _cut(
        self, X: Any, regions: list[Any] | None, numbers: np.ndarray, cuts: list[int]
    ) -> tuple[list[Shard], Sources]:
        """Return the shards of a sequence between the given cuts."""
        pairs = list(pairwise(cuts))
        shards = [Shard(numbers[a:b], a, None if regions is None else regions[a:b], None, b - a) for a, b in pairs]
        return shards, Sources(self.group, [items_between(X, a, b) for a, b in pairs])

    def _measured(self, X: Any, numbers: np.ndarray) -> np.ndarray | None:
        """Return the size of the network's input for each image, read on the workers; None if all are equal."""
        if self.extraction.extractor is None:
            return None
        shards, sources = self._cut(X, None, numbers, cut_points(len(numbers), _PER_THREAD * self._n_threads(), 1))
        found = self.group.gather(
            self.group.map("skpatchcore-measure", measure, sources.handles(), shards, common=[self._shared])
        )
        for shard, (_, paths) in zip(shards, found, strict=True):
            self.paths.update(zip(shard.numbers.tolist(), paths or (), strict=False))
        sizes = [of_shard for of_shard, _ in found]
        return None if any(of_shard is None for of_shard in sizes) else np.concatenate(sizes)

    def _number_of_shards(self, X: Any, numbers: np.ndarray) -> int:
        """Return a number of shards that keeps all threads busy, and with which the rows of a shard fit in memory."""
        if self._images_per_shard is not None:
            return math.ceil(len(numbers) / self._images_per_shard)
        extraction = self.extraction
        n_first = len(numbers) if extraction.extractor is None else batch_size_of(extraction.extractor, N_IMAGES)
        shards, sources = self._cut(X, None, numbers, [0, min(n_first, len(numbers))])
        handles = self.group.map("skpatchcore-profile", profile, sources.handles(), shards, common=[self._shared])
        found: Profile = self.group.gather(handles)[0]
        n_rows = math.ceil(found.n_rows / found.n_images * len(numbers))
        n_bytes: int = extraction.sampler.estimate_memory(n_rows, found.n_channels)
        n_bytes -= extraction.sampler.estimate_memory(0, found.n_channels)  # what each selection needs for any rows
        memory = extraction.memory
        if memory is not None and _N_COPIES * n_bytes > memory * len(self.workers):
            raise ValueError(
                f"the selection takes {format_bytes(_N_COPIES * n_bytes)}, and the {len(self.workers)} workers may "
                f"use {format_bytes(memory)} each. Use more workers or more memory per worker (their memory_limit, and "
                "max_memory of the detector), fewer n_projections of the sampler, or smaller images."
            )
        n_parts = math.ceil(n_bytes / (_SHARE_OF_SHARD * (memory or _ASSUMED)))
        per_thread = max(_PER_THREAD, math.ceil(n_parts / self._n_threads()))
        return min(len(numbers), per_thread * self._n_threads())

    def _n_threads(self) -> int:
        return sum(worker.n_threads for worker in self.workers.values())
