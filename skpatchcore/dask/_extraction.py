"""extract: the task that reads the images of a shard and computes their patch features, and what it returns.

All tasks are pure: the same arguments give the same result on each worker. Dask can therefore compute a lost result
again on another worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone

from skpatchcore._utils.arrays import largest_value
from skpatchcore.bank.budget import MemoryEstimate, estimate_memory
from skpatchcore.bank.collect import bank_needs
from skpatchcore.coreset.distributed import ProjectedRows
from skpatchcore.dask._cluster import Environment, difference, environment_of
from skpatchcore.dask._shards import Shard, absolute_paths
from skpatchcore.dask._worker import Reports
from skpatchcore.detectors._records import ImageRecords
from skpatchcore.images.containers import ImagesWithRegions, as_image_sequence, item_of
from skpatchcore.images.errors import ImageError
from skpatchcore.images.roi import Region
from skpatchcore.patches.patches import Patches, PatchLayout
from skpatchcore.patches.stream import PatchStream, as_grids
from skpatchcore.protocols import Extractor, input_sizes_of, reports_views


@dataclass
class Extraction:
    """Objects and settings that the tasks of all shards share.

    Attributes
    ----------
    extractor : Extractor or None
        The fitted extractor. None for precomputed patch features.
    region : Region or None
        Region of interest of all images.
    sampler : GreedyCoresetSampler
        Sampler that projects the patch features, with an int as its seed.
    environment : Environment
        Software with which the fit was started.
    memory : int or None
        Memory in bytes that a worker process may use. None sets no limit.
    n_held : int
        Number of shards that a worker process holds at the same time.
    topic : str
        Topic of the reports of the progress.
    """

    extractor: Extractor | None
    region: Region | None
    sampler: Any
    environment: Environment
    memory: int | None
    n_held: int
    topic: str

    def stream(self, source: Any, shard: Shard, records: ImageRecords | None = None) -> PatchStream:
        """Return the stream of the patches of a shard; `source` holds its images."""
        images = images_of(source, shard, self.extractor)
        images = images if shard.regions is None else ImagesWithRegions(images, shard.regions)
        stream = PatchStream(self.extractor, images, shard.numbers, check=records, region=self.region)
        stream.limit = largest_value(np.float32)
        return stream


@dataclass
class Profile:
    """Measures of one batch of images, from which the division into shards is computed.

    Attributes
    ----------
    n_images, n_rows, n_channels, itemsize : int
        Number of images, of their patches and of the channels, and bytes per value.
    overhead : int
        Bytes of the libraries, the network and a batch.
    """

    n_images: int
    n_rows: int
    n_channels: int
    itemsize: int
    overhead: int


@dataclass
class Summary:
    """Small part of the result of an extraction, which the client reads.

    Attributes
    ----------
    records : ImageRecords
        What is recorded of each image.
    n_images, n_rows, n_channels : int
        Number of images, of patches, and of channels.
    first_cells : (int, int)
        Number of images of the first batch, and of all cells of their grids.
    n_cells : int
        Number of all cells of the grids.
    sizes : array of shape (n_images, 2) or None
        Size of the network's input for each image; None if all are equal or unknown.
    row_bytes : int
        Bytes of a patch feature.
    is_held : bool
        Whether the patch features are held.
    is_table : bool
        Whether the images are rows of a 2-D table of features.
    """

    records: ImageRecords
    n_images: int
    n_rows: int
    n_channels: int
    first_cells: tuple[int, int]
    n_cells: int
    sizes: np.ndarray | None
    row_bytes: int
    is_held: bool
    is_table: bool


@dataclass
class Held:
    """Patches of a shard on a worker.

    Attributes
    ----------
    patches : Patches or None
        The patch features. None if they are extracted again when they are needed.
    layouts : list of PatchLayout
        Layout of each batch.
    layout : PatchLayout
        Layout of all patches of the shard.
    """

    patches: Patches | None
    layouts: list[PatchLayout]
    layout: PatchLayout

    def check(self, shard: Shard) -> None:
        """Raise a RuntimeError if the numbers of images and patches are not those of the first extraction."""
        n_images, n_rows = len(self.layout), int(self.layout.starts[-1])
        if (n_images, n_rows) != (len(shard), shard.n_rows):
            raise RuntimeError(
                f"the images {shard.numbers[0]} to {shard.numbers[-1]} were extracted again because a worker stopped, "
                f"and the result has {n_images} images with {n_rows} patches instead of {len(shard)} images with "
                f"{shard.n_rows} patches. Fit again on images that do not change."
            )

    def __sizeof__(self) -> int:
        return 500 * len(self.layout) + (0 if self.patches is None else int(self.patches.rows.nbytes))


@dataclass
class Extracted:
    """Result of the extraction of a shard. Other tasks take its parts out, so that each part is held for itself."""

    projected: ProjectedRows
    held: Held
    summary: Summary

    def __sizeof__(self) -> int:
        return self.projected.__sizeof__() + self.held.__sizeof__()


def images_of(source: Any, shard: Shard, extractor: Extractor | None) -> Any:
    """Return the images, or the patch features, of a shard from its part of a sequence or from its partition."""
    # A partition of a Dask bag can be any iterable.
    images = source if hasattr(source, "__len__") else list(source)
    if len(images) != shard.n_source:
        raise RuntimeError(
            f"a partition has {len(images)} images, but it had {shard.n_source} when the images were counted. Fit "
            "again on a collection that does not change."
        )
    if shard.positions is not None:
        images = images[shard.positions] if isinstance(images, np.ndarray) else [images[i] for i in shard.positions]
    if extractor is None:
        grids = as_grids(images)
        return np.asarray(images) if grids is None else grids
    return as_image_sequence(images)


def count_images(partition: Any) -> tuple[int, list[str] | None]:
    """Return the number of images in a partition, and their absolute paths; None if they are not all paths."""
    images = partition if hasattr(partition, "__len__") else list(partition)
    return len(images), absolute_paths(images)


def measure(source: Any, shard: Shard, extraction: Extraction) -> tuple[np.ndarray | None, list[str] | None]:
    """Return the sizes of the network's input for each image, and the absolute paths of the images; or None."""
    with _numbered(shard):
        images = images_of(source, shard, extraction.extractor)
        return input_sizes_of(extraction.extractor, images), absolute_paths(images)


@contextmanager
def _numbered(shard: Shard) -> Iterator[None]:
    """In an ImageError, replace the index of the image in the shard by its index in `X`."""
    try:
        yield
    except ImageError as error:
        raise ImageError(error.message, int(shard.numbers[error.index]), error.path) from error


def profile(source: Any, shard: Shard, extraction: Extraction) -> Profile:
    """Extract one batch, and return its measures."""
    stream = extraction.stream(source, shard)
    first = stream.peek()
    estimate = _estimate(stream, first, extraction, len(first.rows))
    rows = first.rows
    return Profile(len(first), len(rows), rows.shape[1], rows.itemsize, estimate.overhead)


def extract(source: Any, shard: Shard, number: int, extraction: Extraction) -> Extracted:
    """Extract the patches of a shard once, and project them. Patch features are held if the memory allows it.

    Parameters
    ----------
    source : sequence of images, or partition of a Dask collection
        The images.
    shard : Shard
        The shard.
    number : int
        Number of the task in reports of the progress.
    extraction : Extraction
        What is the same for all shards.
    """
    if problem := difference(extraction.environment, environment_of(extraction.extractor)):
        raise RuntimeError(f"this worker {problem}")
    reports = Reports(extraction.topic, number)
    records = ImageRecords(None, of_good_images=True)
    stream = extraction.stream(source, shard, records)
    first = stream.peek()
    first_cells = (len(first), int(first.sizes.prod(axis=1).sum()))
    estimate = _estimate(stream, first, extraction, stream.expected_patches(first))
    del first
    # The selection holds the rows, and the old and the new state of the selection, which are about as large.
    scratch = extraction.sampler.estimate_memory(0, estimate.n_channels)  # once per process, not per shard
    of_rows = (estimate.learning or scratch) - scratch
    needed = estimate.overhead + scratch + extraction.n_held * (estimate.features + 3 * of_rows)
    patches, layouts = None, []
    batches: Iterator[Patches] = iter(stream)
    if extraction.memory is None or needed <= extraction.memory:
        patches = Patches.gather(reports.of(batches), estimate.n_patches)
        batches = iter(patches)
    else:
        batches = reports.of(batches)
    numbers: deque[np.ndarray] = deque()

    def rows() -> Iterator[np.ndarray]:
        first_image = shard.first
        for batch in batches:
            layouts.append(batch.layout())
            images = np.arange(first_image, first_image + len(batch))
            numbers.append(np.repeat(images, np.diff(batch.starts)))
            first_image += len(batch)
            yield batch.rows

    def images_of_rows() -> Iterator[np.ndarray]:
        while numbers:  # filled by `rows`
            yield numbers.popleft()

    projected = extraction.sampler.project_batches(rows(), images_of_rows())
    held = Held(patches, layouts, PatchLayout.joined(layouts))
    summary = Summary(
        records=records,
        n_images=len(held.layout),
        n_rows=len(projected.values),
        n_channels=projected.n_features,
        first_cells=first_cells,
        n_cells=int(held.layout.sizes.prod(axis=1).sum()),
        sizes=_sizes_of(extraction.extractor, stream, held.layout),
        row_bytes=estimate.features // max(1, estimate.n_patches),
        is_held=patches is not None,
        is_table=isinstance(stream.X, np.ndarray) and stream.X.ndim == 2,
    )
    return Extracted(projected, held, summary)


def _estimate(stream: PatchStream, first: Patches, extraction: Extraction, n_patches: int) -> MemoryEstimate:
    """Return the estimated memory of a fit on the images of a stream, from their first batch."""
    tile = stream.tile_shape(first)
    batch_size = min(len(stream), stream.batch_size()) if tile is None else stream.batch_size()
    sampler = extraction.sampler
    if isinstance(sampler.ratio, Integral) and int(sampler.ratio) > n_patches:  # a shard has a part of the rows
        sampler = clone(sampler).set_params(ratio=n_patches)
    return estimate_memory(n_patches, first, batch_size, 1, partial(bank_needs, sampler=sampler), tile)


def _sizes_of(extractor: Extractor | None, stream: PatchStream, layout: PatchLayout) -> np.ndarray | None:
    """Return the size of the network's input for each image; None if all sizes are equal or unknown."""
    images = stream.X.images if isinstance(stream.X, ImagesWithRegions) else stream.X
    if not reports_views(extractor):
        return input_sizes_of(extractor, images)
    if input_sizes_of(extractor, item_of(images, slice(0, 1))) is None:
        return None
    return np.array([view.input_size for view in layout.views if view is not None])  # without a second look at files


def part_of(extracted: Extracted, name: str) -> Any:
    """Return one part of the result of an extraction."""
    return getattr(extracted, name)


def recount(held: Held, shard: Shard) -> None:
    """Raise a RuntimeError if a shard was extracted again, and the numbers of images or rows differ."""
    held.check(shard)
