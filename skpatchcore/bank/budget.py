"""Memory estimates of a fit, and the choice whether all patch features are held in memory.

:class:`MemoryEstimate` is the estimate. :func:`within_memory` decides how to fit within `max_memory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skpatchcore._utils.arrays import largest_value
from skpatchcore._utils.bytes import available_bytes, format_bytes, parse_bytes
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource, PatchStream

# Fraction of the free memory that max_memory="auto" allows.
_SHARE = 0.6
# Fixed overhead in bytes, independent of the number of images: the imported libraries, and the weights of a network.
_LIBRARIES = 900_000_000
_NETWORK = 300_000_000
# Upper bound on the size of a network's activations, as a multiple of its input. ResNets and EfficientNet-Lites need
# less.
_ACTIVATIONS = 32
# Size of the model and of the data derived from it, as a multiple of the model. The derived search bounds of a small
# bank are nearly as large as the bank.
_MODEL_AND_DERIVED = 2
# Number of copies of an image that is cut into tiles: as decoded, resized, and in the next batch.
_INPUT_COPIES = 4
# Number of copies of a batch's patch features between the outputs of the layers and the final array.
_COPIES = 3


@dataclass(frozen=True)
class MemoryNeeds:
    """Memory that the fit of a detector needs in addition to the patch features, in bytes.

    Attributes
    ----------
    learning : int or None
        Bytes needed to fit from a single pass over batches of patches. None if the detector needs all patch features
        in memory.
    model : int
        Bytes of the fitted model.
    in_shards : bool
        True if the detector can be fitted shard by shard.
    least_learning : int, default=0
        Bytes needed to fit in the smallest possible shards.
    transforming : int, default=0
        Bytes that a transformer of the patch features needs for its own fit.
    transformed : int or None, default=None
        Bytes of all transformed patch features; None without a transformer.
    advice : str, default=""
        End of the error message if the memory limit is too small.
    """

    learning: int | None
    model: int
    in_shards: bool = False
    least_learning: int = 0
    transforming: int = 0
    transformed: int | None = None
    advice: str = ""


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated memory that a fit needs, in bytes in addition to the memory of the interpreter at its start.

    Attributes
    ----------
    n_patches : int
        Number of patches of all images together.
    n_channels : int
        Number of channels of a patch feature.
    overhead : int
        Bytes of the libraries, the network, and one batch that passes through the network.
    features : int
        Bytes of all patch features.
    learning : int or None
        Bytes needed to fit from a single pass over batches of patches. None if the detector needs all patch features
        in memory. For PatchCore, these are the bytes that the sampler needs.
    model : int
        Bytes of the fitted model. For PatchCore, the model is the memory bank.
    in_shards : bool
        True if the detector can be fitted shard by shard.
    least_learning : int, default=0
        Bytes needed to fit in the smallest possible shards.
    transforming, transformed, advice
        As for :class:`MemoryNeeds`.
    at_once, only_transformed, two_passes, least : int or None
        Total bytes for fitting ``"at once"``, ``"transformed"``, in ``"two passes"`` and in ``"shards"`` (see `way`).
        None for a way that the detector does not support.
    """

    n_patches: int
    n_channels: int
    overhead: int
    features: int
    learning: int | None
    model: int
    in_shards: bool = False
    least_learning: int = 0
    transforming: int = 0
    transformed: int | None = None
    advice: str = ""

    @property
    def at_once(self) -> int:
        """Total bytes if all patch features are held in memory, as extracted and, with a transformer, transformed."""
        learning = max(self.learning or 0, _MODEL_AND_DERIVED * self.model)
        return self._overhead() + self.features + (self.transformed or 0) + learning

    @property
    def only_transformed(self) -> int | None:
        """Total bytes if only transformed patch features are held in memory; None if this is not possible."""
        if self.transformed is None or self.learning is None:
            return None
        return self._overhead() + self.transformed + max(self.learning, _MODEL_AND_DERIVED * self.model)

    @property
    def two_passes(self) -> int | None:
        """Total bytes if the patch features are not held in memory; None if the detector needs them in memory."""
        if self.learning is None:
            return None
        return self._overhead() + max(self.learning, _MODEL_AND_DERIVED * self.model)

    @property
    def least(self) -> int | None:
        """Total bytes if only the model and one shard of the patches are held; None if shards are not supported."""
        if not self.in_shards:
            return None
        return self._overhead() + max(self.least_learning, _MODEL_AND_DERIVED * self.model)

    def _overhead(self) -> int:
        return self.overhead + self.transforming

    def way(self, max_memory: int | str) -> str:
        """Return the fastest way to fit within a memory limit.

        Parameters
        ----------
        max_memory : int or str
            Limit in bytes, or a string such as ``"4GB"``.

        Returns
        -------
        {"at once", "transformed", "two passes", "shards"}
            ``"at once"`` holds all patch features in memory. ``"transformed"`` fits the transformer in a pass of its
            own, extracts the patch features again, and holds only the transformed ones. ``"two passes"`` does not hold
            the patch features, and runs the network again on images whose patch features are needed later. The model is
            the same. ``"shards"`` divides the patch features into shards (parts), and selects the memory bank shard by
            shard. The covering radius of the bank (the largest distance of a patch feature from the bank) is then at
            most 4 times the smallest possible radius, instead of 2 times.

        Raises
        ------
        ValueError
            If `max_memory` is too small for every way. The error names the bytes that each way needs.
        """
        max_memory = parse_bytes(max_memory)
        if self.at_once <= max_memory:
            return "at once"
        if self.only_transformed is not None and self.only_transformed <= max_memory:
            return "transformed"
        if self.two_passes is not None and self.two_passes <= max_memory:
            return "two passes"
        if self.least is not None and self.least <= max_memory:
            return "shards"
        ways = (self.at_once, self.only_transformed, self.two_passes, self.least)
        smallest = min(total for total in ways if total is not None)
        raise ValueError(
            f"max_memory={format_bytes(max_memory)} is too small: this fit needs at least {format_bytes(smallest)} "
            f"({self}). Allow more memory, or use smaller images, smaller batches, fewer channels or, for PatchCore, a "
            f"smaller ratio.{self.advice}"
        )

    def __str__(self) -> str:
        parts = [
            f"{self.n_patches} patches of {self.n_channels} channels take {format_bytes(self.at_once)} at once",
            f"libraries and network {format_bytes(self.overhead)}",
        ]
        if self.model:
            parts.insert(1, f"the model alone {format_bytes(self.model)}")
        if self.least is not None:
            parts.insert(1, f"{format_bytes(self.least)} in shards")
        if self.two_passes is not None:
            parts.insert(1, f"{format_bytes(self.two_passes)} in two passes")
        if self.only_transformed is not None:
            parts.insert(1, f"{format_bytes(self.only_transformed)} with only the transformed ones in memory")
        return ", ".join(parts)


@dataclass(frozen=True)
class Budget:
    """Number of patches and memory limit of a fit.

    Attributes
    ----------
    n_patches : int
        Expected number of patches.
    n_bytes : int or None
        Maximum number of bytes for the fit and the model together. None sets no limit.
    n_cells : int or None, default=None
        Expected number of cells of all patch grids, also of those outside the region of interest. None means that it is
        `n_patches`.
    """

    n_patches: int
    n_bytes: int | None
    n_cells: int | None = None

    def holds(self, n_bytes: int, needed: MemoryNeeds) -> bool:
        """Return whether patch features of a number of bytes can be held in memory beside what the fit needs."""
        learning = max(needed.learning or 0, _MODEL_AND_DERIVED * needed.model)
        return self.n_bytes is None or n_bytes + learning + needed.transforming <= self.n_bytes


# Callable that returns the memory needs of a detector from the number of patches and the patches of some images.
Needs = Callable[[int, Patches], MemoryNeeds]


def estimate_memory(
    n_patches: int,
    first: Patches,
    batch_size: int,
    n_copies: int,
    needs: Needs,
    tile: tuple[int, int] | None = None,
) -> MemoryEstimate:
    """Estimate the memory that a fit needs.

    Parameters
    ----------
    n_patches : int
        Number of patches of all images together.
    first : Patches
        Patches of some of the images.
    batch_size : int
        Number of images per network pass.
    n_copies : int
        Number of copies of all patch features that the fit makes in memory.
    needs : callable
        ``needs(n_patches, first)`` returns the :class:`MemoryNeeds` of the detector.
    tile : (int, int) or None, default=None
        Height and width of the tiles into which an image is cut. None if images go through the network as a whole.

    Returns
    -------
    MemoryEstimate
        Estimate in bytes.
    """
    needed = needs(n_patches, first)
    n_channels = first.n_channels
    seen = first.views[0].input_size if first.views[0] else None
    return MemoryEstimate(
        n_patches=n_patches,
        n_channels=n_channels,
        overhead=_overhead_bytes(batch_size, seen, first.n_rows * n_channels * first.itemsize // len(first), tile),
        features=n_copies * n_patches * n_channels * first.itemsize,
        learning=needed.learning,
        model=needed.model,
        in_shards=needed.in_shards,
        least_learning=needed.least_learning,
        transforming=needed.transforming,
        transformed=needed.transformed,
        advice=needed.advice,
    )


def within_memory(
    stream: PatchStream, max_memory: int | str | None, extra_copies: int, needs: Needs
) -> tuple[PatchSource, Budget]:
    """Return the patches in memory if the memory limit allows it, otherwise the stream; also return the budget.

    Parameters
    ----------
    stream : PatchStream
        Patches of the training images.
    max_memory : int, "auto" or None
        Limit in bytes in addition to the memory of the interpreter at its start. ``"auto"`` allows 60 percent of the
        free memory, or the smallest amount with which the fit is possible if that amount is larger. None sets no limit.
    extra_copies : int
        Number of copies of the patch features that calibration makes if the features are held in memory.
    needs : callable
        ``needs(n_patches, first)`` returns the :class:`MemoryNeeds` of the detector.

    Returns
    -------
    patches : Patches or PatchStream
        Patches held in memory, or `stream` if the patches are too large for the limit.
    budget : Budget
        Expected number of patches, and the bytes left for the fit and the model.

    Raises
    ------
    ImageError
        If an image cannot be read.
    ValueError
        If the features are not valid, if the features hold values beyond ±1e15 (the squares of larger values could
        overflow), or if `max_memory` is too small.
    """
    stream.limit = largest_value(np.float32)  # detectors compute some results in float32, also for float64 features
    first = stream.peek()
    n_copies = extra_copies + (0 if stream.is_in_memory() else 1)
    batch_size = min(len(stream), stream.batch_size())
    tile = stream.tile_shape(first)
    if tile is not None:
        batch_size = stream.batch_size()  # number of tiles, also for a single image
    n_cells = stream.expected_patches(first, in_region=False)
    estimate = estimate_memory(stream.expected_patches(first), first, batch_size, n_copies, needs, tile)
    del first  # free one batch before all features are loaded
    if isinstance(max_memory, str):
        max_memory = max(int(_SHARE * available_bytes()), estimate.least or estimate.two_passes or estimate.at_once)
    if max_memory is None or estimate.way(max_memory) == "at once":
        return stream.held(estimate.n_patches), Budget(estimate.n_patches, None, n_cells)
    return stream, Budget(estimate.n_patches, max_memory - estimate.overhead, n_cells)


def _overhead_bytes(
    batch_size: int, input_size: tuple[int, int] | None, grid_bytes: int, tile: tuple[int, int] | None = None
) -> int:
    """Return the bytes that a fit needs independently of the number of images.

    Parameters
    ----------
    batch_size : int
        Number of images, or of tiles of an image, per network pass.
    input_size : (int, int) or None
        Height and width in pixels of the network's input. None if there is no network.
    grid_bytes : int
        Bytes of the patch features of one image.
    tile : (int, int) or None, default=None
        Height and width of the tiles into which an image is cut. None if images go through the network as a whole.

    Returns
    -------
    int
        Bytes of the libraries, the network, and one batch.
    """
    if input_size is None:
        return _LIBRARIES + batch_size * grid_bytes
    input_bytes = 3 * 4 * input_size[0] * input_size[1]
    if tile is not None:  # one image at a time, and the next image is prepared
        n_tiles = min(batch_size, math.ceil(input_size[0] / tile[0]) * math.ceil(input_size[1] / tile[1]))
        tile_bytes = 3 * 4 * tile[0] * tile[1]
        network = n_tiles * _ACTIVATIONS * tile_bytes + _INPUT_COPIES * input_bytes
        return _LIBRARIES + _NETWORK + network + _COPIES * grid_bytes
    return _LIBRARIES + _NETWORK + batch_size * (_ACTIVATIONS * input_bytes + _COPIES * grid_bytes)
