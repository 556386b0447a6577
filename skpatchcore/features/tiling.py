"""TilePlan and stitched_maps: compute the layer maps of a large image from overlapping tiles, in bounded memory.

The tiles go through the network instead of the whole image. From the layer maps of a tile, only the positions that do
not depend on pixels outside the tile are kept, and all positions at the true border of the image. The kept positions
of all tiles are written into one map per layer. The result equals the layer maps of the whole image, except for
rounding. For this, all tiles lie on the same grid as the positions of the layers: their origins are multiples of the
network's period, and their sizes have the same remainder as the size of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from skpatchcore._utils.device import is_out_of_memory
from skpatchcore._utils.warning import warn_user
from skpatchcore.features._backbones import Network
from skpatchcore.features._locality import Maps, NotLocalError, Reach, locality_of

# Memory that "auto" allows for one image or tile in the network, and the upper bound on the memory of a network per
# pixel of its input: 32 times the input, which has 3 channels of 4 bytes. The limit does not depend on the free memory,
# because rounding, and therefore the result, depends on the tiles.
_AUTO_BYTES = 805_306_368
_BYTES_PER_PIXEL = 32 * 3 * 4
# Maximum number of pixels that "auto" passes through the network as one image: 2 ** 21, about 2 megapixels.
AUTO_PIXELS = _AUTO_BYTES // _BYTES_PER_PIXEL
# Side of the tiles of "auto" in pixels: a square tile has at most AUTO_PIXELS. If less than half of the side would be
# kept, the side is increased in steps.
_AUTO_SIDE, _AUTO_STEP = 1440, 240

TileSize = int | tuple[int, int] | str | None


@dataclass(frozen=True)
class Span:
    """Range of a tile along one axis, and the positions that are kept.

    Attributes
    ----------
    pixels : slice
        Pixels of the image.
    of_tile : tuple of slice
        Kept positions of the tile's layer maps, one slice per layer.
    of_image : tuple of slice
        The places of these positions in the image's layer maps.
    """

    pixels: slice
    of_tile: tuple[slice, ...]
    of_image: tuple[slice, ...]


@dataclass(frozen=True)
class TilePlan:
    """Tiles of an image of a given size.

    Attributes
    ----------
    tile : (int, int)
        Height and width of every tile in pixels.
    rows, columns : tuple of Span
        Ranges of the tiles. There is one tile per combination of a row range and a column range.
    grids : tuple of (int, int)
        Height and width of the layer maps of the whole image, one pair per layer.
    """

    tile: tuple[int, int]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    grids: tuple[tuple[int, int], ...]

    @property
    def tiles(self) -> list[tuple[Span, Span]]:
        """All tiles as pairs (row range, column range), row by row."""
        return [(row, column) for row in self.rows for column in self.columns]

    def __str__(self) -> str:
        return f"{len(self.rows)}×{len(self.columns)} tiles of {self.tile[0]}×{self.tile[1]} pixels"


def is_whole(size: tuple[int, int], tile_size: TileSize) -> bool:
    """Return whether an image goes through every network as a whole, because of its size in pixels."""
    sides = _pair(tile_size)
    if sides is not None:
        return all(n <= side for n, side in zip(size, sides, strict=True))
    return tile_size is None or size[0] * size[1] <= AUTO_PIXELS


def plan_tiles(
    network: Network,
    size: tuple[int, int],
    tile_size: TileSize,
    as_maps: Maps,
    device: torch.device,
    dtype: torch.dtype,
    margin: float = 1.0,
) -> TilePlan | None:
    """Return the tiles into which an image is cut, or None if the image goes through the network as a whole.

    Parameters
    ----------
    network : Network
        Network that computes the layer maps.
    size : (int, int)
        Height and width of the network's input in pixels.
    tile_size : int, (int, int), "auto" or None
        Maximum size of a tile in pixels, as in :class:`~skpatchcore.TorchFeatureExtractor`.
    as_maps : callable
        Function that runs the network on normalised images and returns the layer maps.
    device : torch.device
        Device on which the network runs.
    dtype : torch.dtype
        Type in which the network computes.
    margin : float, default=1.0
        Some positions at the border of a tile depend on pixels outside the tile. This fraction of them is discarded.
        With less than 1, the result differs from that of the whole image. Used to measure this difference.

    Returns
    -------
    TilePlan or None

    Raises
    ------
    ValueError
        If the tiles are too small for the network, or the network looks at the whole image. With ``"auto"``, such a
        network sees the whole image.

    Warns
    -----
    UserWarning
        If `tile_size` is ``"auto"`` and a large image cannot be cut because the network looks at the whole image.
    """
    if is_whole(size, tile_size):
        return None
    sides = _pair(tile_size)
    try:
        reaches = [locality_of(network, axis, size[axis], as_maps, device, dtype) for axis in (0, 1)]
    except NotLocalError as error:
        if tile_size != "auto":
            raise ValueError(
                f"tile_size={tile_size!r}: the network cannot be applied to tiles. {_sentence(error)} Pass "
                "tile_size=None, or choose another backbone or other layers."
            ) from error
        warn_user(
            f"tile_size='auto': images with more than {AUTO_PIXELS} pixels are not cut into tiles, because the network "
            f"cannot be applied to tiles. {_sentence(error)} Such images take much memory. Choose a smaller "
            "image_size, or pass tile_size=None to accept this.",
            UserWarning,
        )
        return None
    if margin != 1:
        reaches = [reach.scaled(margin) for reach in reaches]
    if sides is None:
        sides = _auto_side(reaches[0], size[0]), _auto_side(reaches[1], size[1])
    rows, columns = (_spans(reach, n, side, tile_size) for reach, n, side in zip(reaches, size, sides, strict=True))
    if len(rows) == len(columns) == 1:
        return None
    grids = [tuple(layer.count(n) for layer, n in zip(layers, size, strict=True)) for layers in _layers(reaches)]
    tile = rows[0].pixels.stop, columns[0].pixels.stop
    return TilePlan(tile, rows, columns, tuple(grids))


def check_tile_size(
    network: Network, tile_size: TileSize, as_maps: Maps, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise a ValueError if tiles of this size cannot be used with a network.

    The parameters are those of :func:`plan_tiles`. None and ``"auto"`` are always accepted.
    """
    sides = _pair(tile_size)
    if sides is not None:  # an image that is divided in both directions
        plan_tiles(network, (4 * sides[0], 4 * sides[1]), tile_size, as_maps, device, dtype)


def stitched_maps(
    plan: TilePlan,
    pixels: torch.Tensor,
    run: Callable[[list[torch.Tensor]], list[torch.Tensor]],
    batch_size: int,
) -> list[torch.Tensor]:
    """Return the layer maps of an image, computed from its tiles.

    Parameters
    ----------
    plan : TilePlan
        Tiles of the image.
    pixels : tensor of shape (3, height, width)
        The image.
    run : callable
        Function that returns the layer maps, each of shape (n_tiles, n_channels, height, width), of a list of tiles.
    batch_size : int
        Maximum number of tiles per call of `run`.

    Returns
    -------
    list of tensors of shape (1, n_channels, height, width), on the CPU
        Layer maps of the image.

    Raises
    ------
    MemoryError, RuntimeError
        If a single tile does not fit in memory.

    Warns
    -----
    RuntimeWarning
        If `batch_size` tiles do not fit in memory together. Fewer tiles then go through the network at once.
    """
    maps: list[torch.Tensor] = []
    tiles, done = plan.tiles, 0
    while done < len(tiles):
        some = tiles[done : done + batch_size]
        outputs = _outputs_of(some, pixels, run)
        if outputs is None:  # after the except block: inside, the exception would keep the tensors in memory
            batch_size = len(some) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            warn_user(
                f"{len(some)} tiles of {plan.tile[0]}×{plan.tile[1]} pixels take more memory than is left: "
                f"{batch_size} go through the network at once. Choose a smaller batch_size or tile_size to avoid the "
                "failed attempt.",
                RuntimeWarning,
            )
            continue
        if not maps:
            maps = [
                torch.empty((1, m.shape[1], *grid), dtype=m.dtype, memory_format=torch.channels_last)
                for m, grid in zip(outputs, plan.grids, strict=True)
            ]
        for layer, (output, whole) in enumerate(zip(outputs, maps, strict=True)):
            for tile, (row, column) in zip(output, some, strict=True):
                kept = tile[:, row.of_tile[layer], column.of_tile[layer]]
                whole[0, :, row.of_image[layer], column.of_image[layer]] = kept
        done += len(some)
    return maps


def _outputs_of(
    tiles: list[tuple[Span, Span]], pixels: torch.Tensor, run: Callable[[list[torch.Tensor]], list[torch.Tensor]]
) -> list[torch.Tensor] | None:
    """Return the layer maps of some tiles; None if several tiles do not fit in memory together."""
    try:
        return run([pixels[:, row.pixels, column.pixels] for row, column in tiles])
    except (MemoryError, RuntimeError) as error:
        if len(tiles) == 1 or not is_out_of_memory(error):
            raise
    return None


def _pair(tile_size: Any) -> tuple[int, int] | None:
    """Return a tile size as height and width; None for "auto" and None."""
    if tile_size is None or isinstance(tile_size, str):
        return None
    return (int(tile_size[0]), int(tile_size[1])) if isinstance(tile_size, tuple | list) else (int(tile_size),) * 2


def _auto_side(reach: Reach, size: int) -> int:
    """Return the side of the tiles of "auto" along one axis: at least half of a tile is kept."""
    side = _AUTO_SIDE
    while 2 * reach.step(_fitted(reach, size, side)) < side and side < size:
        side += _AUTO_STEP
    return side


def _fitted(reach: Reach, size: int, side: int) -> int:
    """Return the largest size of a tile up to `side` with the same remainder as the size of the image."""
    return side - (side - size) % reach.period


def _spans(reach: Reach, size: int, side: int, tile_size: TileSize) -> tuple[Span, ...]:
    """Return the ranges of the tiles along one axis."""
    everything = tuple(slice(0, layer.count(size)) for layer in reach.layers)
    if size <= side:
        return (Span(slice(0, size), everything, everything),)
    tile = _fitted(reach, size, side)
    if tile <= 0 or reach.step(tile) < reach.period:
        raise ValueError(
            f"tile_size={tile_size!r} is too small: with these layers, the smallest possible tile of an image of "
            f"{size} pixels has {reach.smallest(size % reach.period)} pixels, because a position depends on many "
            "pixels around it. Choose a larger tile_size."
        )
    n_tiles = 1 + -(-(size - tile) // reach.step(tile))
    while True:  # smaller tiles that overlap less take less time
        smaller = tile - reach.period
        if reach.step(smaller) <= 0 or smaller + (n_tiles - 1) * reach.step(smaller) < size:
            break
        tile = smaller
    last = size - tile
    spans = []
    for start in [*range(0, last, reach.step(tile)), last]:
        of_tile, of_image = [], []
        for layer in reach.layers:
            first = 0 if start == 0 else layer.lead
            stop = layer.count(tile) - (0 if start == last else layer.tail)
            place = start // layer.stride
            of_tile.append(slice(first, stop))
            of_image.append(slice(place + first, place + stop))
        spans.append(Span(slice(start, start + tile), tuple(of_tile), tuple(of_image)))
    return tuple(spans)


def _layers(reaches: list[Reach]) -> Any:
    """Return pairs of the layers' reaches on both axes."""
    return zip(*(reach.layers for reach in reaches), strict=True)


def _sentence(error: Exception) -> str:
    """Return the text of an error as a sentence."""
    text = str(error)
    return text[:1].upper() + text[1:]
