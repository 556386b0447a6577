"""locality_of: find which part of an image each position of a layer map depends on, by probing the network.

A probe is an image with NaN in some rows or columns. NaN passes through the operations of a network. The positions of a
layer map that become NaN are exactly the positions that depend on these rows or columns. Convolutions are replaced
during the probe: an output of the replacement is NaN if and only if a value under the kernel is NaN. Therefore, the
result depends neither on the algorithm of a convolution (Winograd's algorithm spreads NaN too far), nor on the weights,
nor on the device. A comparison with random numbers verifies each result.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from skpatchcore._utils.derived import ForkSafeLock
from skpatchcore._utils.device import is_device_fault
from skpatchcore._utils.modes import default_modes
from skpatchcore.features._backbones import Network

# Lengths in pixels of the probes, in ascending order. Half of a probe is NaN. The shortest probe is so long that the
# reach of dilated convolutions, which skip pixels, is found too.
_LENGTHS = (2048, 4096, 8192)
# Widths in pixels of the probes. Most networks accept the first width.
_WIDTHS = (64, 128, 224)
# Difference of the lengths of two probes from which strides are computed. It is a multiple of all usual strides.
_DIFFERENCE = 960
# The phase of a network may repeat only after several strides of its deepest used layer, e.g. if deeper layers are
# upsampled and added. These multiples of the deepest stride are tried.
_MULTIPLES = (1, 2, 4)
# Tolerated difference in the verification, as a fraction of the largest value of a layer map, per data type.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}

_IN_WINDOWS = "its outputs depend on the place of a tile in the image, as those of attention in windows do."

# Makes layer maps, each of shape (n_images, n_channels, height, width), from images.
Maps = Callable[[torch.Tensor], list[torch.Tensor]]


class NotLocalError(ValueError):
    """Raised if positions of a layer map depend on the whole image, or on the place of a tile in the image."""


@dataclass(frozen=True)
class LayerReach:
    """Positions of a layer map that a tile determines, along one axis.

    Attributes
    ----------
    stride : int
        Pixels of the image per position.
    first : int
        A tile of `size` pixels has ``first + size // stride`` positions, if `size` has the residue of the image.
    lead, tail : int
        Number of positions at the start and at the end of a tile that depend on pixels outside the tile.
    """

    stride: int
    first: int
    lead: int
    tail: int

    def count(self, size: int) -> int:
        """Return the number of positions of a tile or an image of `size` pixels."""
        return self.first + size // self.stride


@dataclass(frozen=True)
class Reach:
    """Positions of all layer maps that a tile determines, along one axis, for images with one residue of the size.

    Attributes
    ----------
    period : int
        Origins of tiles are multiples of this number of pixels. The sizes of tiles and image have the same residue.
    layers : tuple of LayerReach
        One per layer, in the order of the network's layers.
    """

    period: int
    layers: tuple[LayerReach, ...]

    def step(self, size: int) -> int:
        """Return the largest distance between the origins of two tiles of `size` pixels; at most 0 if too small."""
        # The kept positions of the next tile must begin where the kept positions of this tile end.
        new = min(a.stride * (a.count(size) - a.lead - a.tail) for a in self.layers)
        return new // self.period * self.period

    def smallest(self, residue: int) -> int:
        """Return the smallest size of a tile that determines at least one period of the image."""
        size = self.period + residue
        return size + max(0, self.period - self.step(size))

    def scaled(self, margin: float) -> Reach:
        """Return a copy in which `lead` and `tail` are multiplied by `margin`, for measurements with other margins."""
        layers = (replace(a, lead=round(margin * a.lead), tail=round(margin * a.tail)) for a in self.layers)
        return Reach(self.period, tuple(layers))


# The results of each network. An entry is dropped with its network. The key of a result is an axis and a residue.
_known: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, int], Reach | str]] = weakref.WeakKeyDictionary()
_periods: weakref.WeakKeyDictionary[nn.Module, int | str] = weakref.WeakKeyDictionary()
_lock = ForkSafeLock()


@default_modes()
def locality_of(
    network: Network, axis: int, size: int, as_maps: Maps, device: torch.device, dtype: torch.dtype
) -> Reach:
    """Return the positions of the layer maps that a tile determines, along one axis.

    Parameters
    ----------
    network : Network
        Network to examine.
    axis : {0, 1}
        0 for rows, 1 for columns.
    size : int
        Height or width of the image in pixels. The result depends on the remainder of the division by the period only.
    as_maps : callable
        Function that runs the network on normalised images of shape (n_images, 3, height, width).
    device : torch.device
        Device on which the network runs.
    dtype : torch.dtype
        Type in which the network computes.

    Returns
    -------
    Reach

    Raises
    ------
    NotLocalError
        If positions depend on the whole image, or on the place of a tile in the image.
    """
    module = network.module
    with _lock:
        if module not in _periods:
            try:
                _periods[module] = _verified_period(as_maps, device, dtype)
            except NotLocalError as error:
                _periods[module] = str(error)
        period = _periods[module]
        if isinstance(period, str):
            raise NotLocalError(period)
        known, key = _known.setdefault(module, {}), (axis, size % period)
        if key not in known:
            prober = _Prober(as_maps, axis, device, dtype)
            try:
                reach = _probed(prober, period, size % period)
                # The period was verified for sizes that it divides. Other sizes may have other paddings.
                known[key] = reach if _verify(prober, reach, size % period) else _IN_WINDOWS
            except NotLocalError as error:
                known[key] = str(error)
        found = known[key]
        if isinstance(found, str):
            raise NotLocalError(found)
        return found


class _Prober:
    """Runs images that are long in one axis and narrow in the other through a network."""

    def __init__(self, as_maps: Maps, axis: int, device: torch.device, dtype: torch.dtype):
        self.as_maps, self.axis, self.device, self.dtype = as_maps, axis, device, dtype

    def counts(self, length: int) -> list[int]:
        """Return the number of positions of each layer for an image of this length."""
        return [len(m) for m in self.nan_positions(length, [])]

    def nan_positions(self, length: int, lost: Sequence[slice]) -> list[torch.Tensor]:
        """Return for each layer which positions become NaN if some pixels are NaN: bool of shape (n_positions,)."""
        image = torch.ones(1, 3, length, 1, dtype=self.dtype, device=self.device)
        for part in lost:
            image[:, :, part] = math.nan
        with _Spreading():  # type: ignore[no-untyped-call]
            maps = self.run(image)
        return [m.isnan().any(3).any(1)[0].cpu() for m in maps]

    def run(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the layer maps, with the long axis first, of an image of shape (1, 3, length, width or 1)."""
        error: Exception | None = None
        for width in _WIDTHS:
            whole = image.expand(-1, -1, -1, width) if image.shape[3] == 1 else image[..., :width]
            whole = (whole if self.axis == 0 else whole.transpose(2, 3)).contiguous(memory_format=torch.channels_last)
            try:
                maps = self.as_maps(whole)
            except (RuntimeError, AssertionError, ValueError) as reason:
                if is_device_fault(reason):
                    raise
                error = reason
                continue
            return maps if self.axis == 0 else [m.transpose(2, 3) for m in maps]
        raise NotLocalError(f"the network does not accept images of any height and width ({error}).")


class _Spreading(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces convolutions: an output is NaN if any value under the kernel is NaN, in any channel, and 1 otherwise."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not torch.ops.aten.convolution.default or args[6]:  # args[6]: a transposed convolution
            return function(*args, **(kwargs or {}))
        x, weight, _, stride, padding, dilation, *_ = args
        is_nan = x.isnan().any(1, keepdim=True).float()
        kernel = torch.ones(1, 1, *weight.shape[2:], device=x.device)
        outputs = torch.convolution(is_nan, kernel, None, stride, padding, dilation, False, [0] * (x.ndim - 2), 1)
        spread = torch.ones_like(outputs, dtype=x.dtype).masked_fill(outputs > 0.5, math.nan)
        return spread.expand(-1, weight.shape[0], *[-1] * (x.ndim - 2)).contiguous()


def _verified_period(as_maps: Maps, device: torch.device, dtype: torch.dtype) -> int:
    """Return the smallest period with which two tiles give the same layer maps as the whole image, on both axes."""
    probers = [_Prober(as_maps, axis, device, dtype) for axis in (0, 1)]
    strides = [stride for prober in probers for stride in _strides(prober)]
    for multiple in _MULTIPLES:
        period = multiple * math.lcm(*strides)
        if all(_verify(prober, _probed(prober, period, 0), 0) for prober in probers):
            return period
    raise NotLocalError(_IN_WINDOWS)


def _strides(prober: _Prober) -> list[int]:
    """Return the stride of each layer in pixels."""
    shorter, longer = prober.counts(_WIDTHS[-1]), prober.counts(_WIDTHS[-1] + _DIFFERENCE)
    more = [b - a for a, b in zip(shorter, longer, strict=True)]
    if not all(more):
        raise NotLocalError("it looks at the whole image: the size of a layer map is independent of the image's size.")
    if any(_DIFFERENCE % n for n in more):
        raise NotLocalError("the sizes of its layer maps are no regular fractions of the image's size.")
    return [_DIFFERENCE // n for n in more]


def _probed(prober: _Prober, period: int, residue: int) -> Reach:
    """Return the positions that a tile determines, from a probe in which all pixels outside a tile are NaN."""
    for length in _LENGTHS:
        border = -(-length // 4 // period) * period
        size = -(-length // period) * period + residue
        start, stop = border, size - border
        found = prober.nan_positions(size, [slice(0, start), slice(stop, None)])
        kept = [(~lost).nonzero().flatten().tolist() for lost in found]
        if all(places and len(places) == places[-1] - places[0] + 1 for places in kept):
            break
    else:
        raise NotLocalError(
            f"it looks at the whole image, or at more than {_LENGTHS[-1] // 2} pixels around a position."
        )
    counts = [len(lost) for lost in found]
    more = [b - a for a, b in zip(counts, prober.counts(size + period), strict=True)]
    layers = []
    for places, n, n_more in zip(kept, counts, more, strict=True):
        if n_more <= 0 or period % n_more:
            raise NotLocalError("its outputs depend on pixels in an irregular way.")
        stride = period // n_more
        # The tile has (stop - start) pixels. Its size and the image's size have the same residue.
        n_tile = n - (size - (stop - start)) // stride
        lead = places[0] - start // stride
        layers.append(LayerReach(stride, n - size // stride, max(lead, 0), max(n_tile - lead - len(places), 0)))
    return Reach(period, tuple(layers))


def _verify(prober: _Prober, reach: Reach, residue: int) -> bool:
    """Return whether two tiles of random numbers give the same layer maps as the whole, except for rounding."""
    tile = reach.smallest(residue)
    tile += max(0, -(-(_WIDTHS[-1] - tile) // reach.period)) * reach.period  # some networks refuse small images
    size = tile + reach.step(tile)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, size, _WIDTHS[-1], generator=generator).to(device=prober.device, dtype=prober.dtype)
    whole = prober.run(noise)
    head, end = prober.run(noise[:, :, :tile]), prober.run(noise[:, :, size - tile :])
    for layer, expected, a, b in zip(reach.layers, whole, head, end, strict=True):
        first = a[:, :, : a.shape[2] - layer.tail]
        second = b[:, :, layer.lead :][:, :, -(expected.shape[2] - first.shape[2]) :]
        found = torch.cat([first, second], dim=2)
        if found.shape != expected.shape:
            return False
        if not (found - expected).abs().max() <= _TOLERANCE[prober.dtype] * expected.abs().max():
            return False
    return True
