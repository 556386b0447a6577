"""What a fit needs of memory, and how it gets by with less."""

from __future__ import annotations

from dataclasses import dataclass

from skpatchcore._utils.bytes import format_bytes

# Bytes that are taken whatever the number of images: the interpreter's libraries, and with images a network's weights.
_LIBRARIES = 900_000_000
_NETWORK = 300_000_000
# A network's intermediate results, in units of its input: ResNets and EfficientNet-Lites take less.
_ACTIVATIONS = 32
# The bank, and what an index derives from it, in units of the bank: bounds of a small bank's rows are nearly as large.
_BANK_AND_INDEX = 2
# Copies of a batch's patch features, on their way from the layers' outputs to the place where they stay.
_COPIES = 3


def overhead_bytes(batch_size: int, input_size: tuple[int, int] | None, grid_bytes: int) -> int:
    """Return what a fit takes whatever the number of images.

    Parameters
    ----------
    batch_size : int
        Images that go through the network at once.
    input_size : (int, int) or None
        Height and width in pixels of what the network sees; None if there is no network.
    grid_bytes : int
        Of one image's patch features.

    Returns
    -------
    int
        Bytes.
    """
    if input_size is None:
        return _LIBRARIES + batch_size * grid_bytes
    input_bytes = 3 * 4 * input_size[0] * input_size[1]
    return _LIBRARIES + _NETWORK + batch_size * (_ACTIVATIONS * input_bytes + _COPIES * grid_bytes)


@dataclass(frozen=True)
class MemoryEstimate:
    """What a fit needs, in bytes above what the interpreter had at its start.

    Attributes
    ----------
    n_patches, n_channels : int
        Of all images together, and of each patch.
    overhead : int
        Libraries, network, a batch on its way through it.
    features : int
        All patch features.
    selection : int or None
        What the sampler needs to select from patches that it sees once; None if it can't.
    bank : int
        The memory bank.
    at_once, two_passes, least : int or None
        Totals of the ways to fit, see `way`; None where the sampler can't go that way.
    """

    n_patches: int
    n_channels: int
    overhead: int
    features: int
    selection: int | None
    bank: int

    @property
    def at_once(self) -> int:
        """Bytes if all patch features are held."""
        return self.overhead + self.features + max(self.selection or 0, _BANK_AND_INDEX * self.bank)

    @property
    def two_passes(self) -> int | None:
        """Bytes if patch features are not held, but what selection looks at is."""
        return None if self.selection is None else self.overhead + max(self.selection, _BANK_AND_INDEX * self.bank)

    @property
    def least(self) -> int | None:
        """Bytes if not even that is held, but the memory bank must be."""
        return None if self.selection is None else self.overhead + _BANK_AND_INDEX * self.bank

    def way(self, max_memory: int) -> str:
        """Return how a fit gets by with so many bytes.

        Parameters
        ----------
        max_memory : int
            Bytes.

        Returns
        -------
        {"at once", "two passes", "shards"}
            ``"at once"`` holds all patch features. ``"two passes"`` holds what selection looks at, and runs the network
            again on images that were selected from: the same memory bank. ``"shards"`` selects shard by shard, which
            covers the patches less well: within 4 times the smallest radius possible, not 2.

        Raises
        ------
        ValueError
            If no way will do; the error says what each needs.
        """
        if self.at_once <= max_memory:
            return "at once"
        if self.two_passes is not None and self.two_passes <= max_memory:
            return "two passes"
        if self.least is not None and self.least <= max_memory:
            return "shards"
        raise ValueError(
            f"{format_bytes(max_memory)} of memory do not do. {self}. Select less (ratio), use smaller images, batches "
            "or features, or allow more (max_memory)."
        )

    def __str__(self) -> str:
        parts = [
            f"{self.n_patches} patches of {self.n_channels} channels take {format_bytes(self.at_once)} at once",
            f"the memory bank alone {format_bytes(self.bank)}",
            f"libraries and network {format_bytes(self.overhead)}",
        ]
        if self.two_passes is not None:
            parts.insert(1, f"{format_bytes(self.two_passes)} in two passes")
        return ", ".join(parts)
