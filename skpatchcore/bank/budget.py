"""How much memory a fit needs, and whether it can hold all patch features within its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skpatchcore._utils.arrays import largest_value
from skpatchcore._utils.bytes import available_bytes, format_bytes, parse_bytes
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource, PatchStream

# Share of the free memory that max_memory="auto" allows.
_SHARE = 0.6
# Bytes that are taken whatever the number of images: the interpreter's libraries, and with images a network's weights.
_LIBRARIES = 900_000_000
_NETWORK = 300_000_000
# A network's intermediate results, in units of its input: ResNets and EfficientNet-Lites take less.
_ACTIVATIONS = 32
# The model and what is derived from it, in units of the model: a small bank's search bounds are nearly as large.
_MODEL_AND_DERIVED = 2
# Copies of a batch's patch features on their way from the layers' outputs to the place where they stay.
_COPIES = 3


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes that a detector needs to learn, beside the patch features.

    Attributes
    ----------
    learning : int or None
        What it needs to learn from patches that it sees once; None if it must hold all patch features.
    model : int
        What it has learnt, beside the patch features.
    in_shards : bool
        Whether it can learn from one part of the patches after another.
    least_learning : int, default=0
        What it needs to learn in the smallest shards possible.
    """

    learning: int | None
    model: int
    in_shards: bool = False
    least_learning: int = 0


@dataclass(frozen=True)
class MemoryEstimate:
    """What a fit needs, in bytes above what the interpreter had at its start.

    Attributes
    ----------
    n_patches, n_channels : int
        Of all images together, and of each patch.
    overhead : int
        Libraries, the network, and a batch on its way through it.
    features : int
        All patch features.
    learning : int or None
        What the detector needs to learn from patches that it sees once; None if it must hold all patch features.
        For PatchCore, what the sampler needs.
    model : int
        What is learnt: for PatchCore, the memory bank.
    in_shards : bool
        Whether the detector can learn from one part of the patches after another.
    least_learning : int, default=0
        What the detector needs to learn in the smallest shards possible.
    at_once, two_passes, least : int or None
        Totals of the ways to fit, see `way`; None for a way that the detector does not have.
    """

    n_patches: int
    n_channels: int
    overhead: int
    features: int
    learning: int | None
    model: int
    in_shards: bool = False
    least_learning: int = 0

    @property
    def at_once(self) -> int:
        """Bytes if all patch features are held."""
        return self.overhead + self.features + max(self.learning or 0, _MODEL_AND_DERIVED * self.model)

    @property
    def two_passes(self) -> int | None:
        """Bytes if patch features are not held."""
        if self.learning is None:
            return None
        return self.overhead + max(self.learning, _MODEL_AND_DERIVED * self.model)

    @property
    def least(self) -> int | None:
        """Bytes if only the model and one shard of the patches are held."""
        if not self.in_shards:
            return None
        return self.overhead + max(self.least_learning, _MODEL_AND_DERIVED * self.model)

    def way(self, max_memory: int | str) -> str:
        """Return how a fit can work within a number of bytes.

        Parameters
        ----------
        max_memory : int or str
            Bytes, or a text such as ``"4GB"``.

        Returns
        -------
        {"at once", "two passes", "shards"}
            ``"at once"`` holds all patch features. ``"two passes"`` holds only what learning needs, and runs the
            network again where features are needed later: the same model. ``"shards"`` selects the memory bank shard
            by shard, which covers the patches less well: within 4 times the smallest radius possible, not 2.

        Raises
        ------
        ValueError
            If `max_memory` is too small for every way; the error says what each needs.
        """
        max_memory = parse_bytes(max_memory)
        if self.at_once <= max_memory:
            return "at once"
        if self.two_passes is not None and self.two_passes <= max_memory:
            return "two passes"
        if self.least is not None and self.least <= max_memory:
            return "shards"
        smallest = min(total for total in (self.at_once, self.two_passes, self.least) if total is not None)
        raise ValueError(
            f"max_memory={format_bytes(max_memory)} is too small: this fit needs at least {format_bytes(smallest)} "
            f"({self}). Allow more memory, or use smaller images, batches, features or, for PatchCore, ratio."
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
        return ", ".join(parts)


@dataclass(frozen=True)
class Budget:
    """What a detector may use to learn from patches.

    Attributes
    ----------
    n_patches : int
        How many patches are expected.
    n_bytes : int or None
        Bytes for learning and the model; None: no limit.
    """

    n_patches: int
    n_bytes: int | None


# Returns what a detector needs, from the number of patches and the first of them.
Needs = Callable[[int, Patches], MemoryNeeds]


def estimate_memory(n_patches: int, first: Patches, batch_size: int, n_copies: int, needs: Needs) -> MemoryEstimate:
    """Estimate what a fit needs.

    Parameters
    ----------
    n_patches : int
        Of all images.
    first : Patches
        Of some of them.
    batch_size : int
        How many images go through the network at once.
    n_copies : int
        Copies of the patch features that the fit makes in memory.
    needs : callable
        ``needs(n_patches, first)`` returns what the detector needs to learn.

    Returns
    -------
    MemoryEstimate
    """
    needed = needs(n_patches, first)
    n_channels = first.rows.shape[1]
    seen = first.views[0].input_size if first.views[0] else None
    return MemoryEstimate(
        n_patches=n_patches,
        n_channels=n_channels,
        overhead=_overhead_bytes(batch_size, seen, first.rows.nbytes // len(first)),
        features=n_copies * n_patches * n_channels * first.rows.itemsize,
        learning=needed.learning,
        model=needed.model,
        in_shards=needed.in_shards,
        least_learning=needed.least_learning,
    )


def within_memory(
    stream: PatchStream, max_memory: int | str | None, extra_copies: int, needs: Needs
) -> tuple[PatchSource, Budget]:
    """Return the patches in memory if they fit, otherwise the stream; and the bytes left for learning.

    Parameters
    ----------
    stream : PatchStream
        Of the images to learn from.
    max_memory : int, "auto" or None
        Bytes above what the interpreter had at its start. ``"auto"`` is a share of the free memory, or the smallest
        amount that suffices if that is more; None is no limit.
    extra_copies : int
        Copies of the patch features that are made later if they are held.
    needs : callable
        As for :func:`estimate_memory`.

    Returns
    -------
    patches : Patches or PatchStream
    budget : Budget

    Raises
    ------
    ImageError
        If an image can't be read.
    ValueError
        If the features are not valid, hold values beyond ±1e15, whose squares could overflow, or `max_memory` is too
        small.
    """
    stream.limit = largest_value(np.float32)  # detectors compute in float32 in places, whatever they are given
    first = stream.peek()
    n_copies = extra_copies + (0 if stream.is_in_memory() else 1)
    batch_size = min(len(stream), stream.batch_size())
    estimate = estimate_memory(stream.expected_patches(first), first, batch_size, n_copies, needs)
    del first  # one batch less in memory
    if isinstance(max_memory, str):
        max_memory = max(int(_SHARE * available_bytes()), estimate.least or estimate.two_passes or estimate.at_once)
    if max_memory is None or estimate.way(max_memory) == "at once":
        return stream.held(estimate.n_patches), Budget(estimate.n_patches, None)
    return stream, Budget(estimate.n_patches, max_memory - estimate.overhead)


def _overhead_bytes(batch_size: int, input_size: tuple[int, int] | None, grid_bytes: int) -> int:
    """Return the bytes that a fit needs whatever the number of images.

    Parameters
    ----------
    batch_size : int
        Images that go through the network at once.
    input_size : (int, int) or None
        Height and width in pixels of the network's input; None if there is no network.
    grid_bytes : int
        Of one image's patch features.
    """
    if input_size is None:
        return _LIBRARIES + batch_size * grid_bytes
    input_bytes = 3 * 4 * input_size[0] * input_size[1]
    return _LIBRARIES + _NETWORK + batch_size * (_ACTIVATIONS * input_bytes + _COPIES * grid_bytes)
