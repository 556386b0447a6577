"""concatenate_layers and pool_layers: from a network's layer maps to patch features (Equations 1 to 4 of the paper).

A patch feature is the average over the neighbourhood of one grid position (Equations 1 and 2), joined over the layers
(Equations 3 and 4). Deeper layers are first resized to the grid of the first layer. The two published implementations
make the channels differently. :func:`concatenate_layers` keeps all channels, as anomalib does. :func:`pool_layers`
reduces them twice to a fixed number by adaptive average pooling, as the paper's authors do. Both functions take and
return torch tensors and have no state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

# Maximum number of class and register tokens that a vision transformer may put before its patch tokens.
_MAX_PREFIX_TOKENS = 16


# Number of values per image that are averaged and aligned at a time: 256 MB in float32. All channels of a layer of an
# ordinary image are fewer.
_BLOCK = 64_000_000
# Number of values per image that are unfolded at a time: 1 GB in float32. Maps of ordinary images are unfolded at once.
_BAND = 250_000_000


class NotAGridError(ValueError):
    """Raised if the tokens of a layer do not form a grid of square patches of the image."""


def concatenate_layers(maps: Sequence[torch.Tensor], patch_size: int = 3, stride: int = 1) -> torch.Tensor:
    """Average each layer over the neighbourhoods, align the grids and concatenate the channels.

    Parameters
    ----------
    maps : sequence of tensors of shape (n_images, n_channels_l, height_l, width_l)
        Outputs of the layers. The grid of the result is the grid of the first layer, thinned out by `stride`.
    patch_size : int, default=3
        Side of the neighbourhood in positions of each layer's own grid; an odd number. Positions beyond the border are
        zeros and count in the average.
    stride : int, default=1
        Step between neighbouring patches in positions of the first layer's grid.

    Returns
    -------
    tensor of shape (n_images, grid_height, grid_width, sum of n_channels_l)
        Patch features.
    """
    grid = maps[0].shape[-2:]
    features = _empty_features(maps[0], [-(-n // stride) for n in grid], sum(m.shape[1] for m in maps))
    start = 0
    for some in (part for m in maps for part in _parts(m, grid[0] * grid[1])):
        stop = start + some.shape[1]
        # The stride is applied after the layers are aligned. All layers of a patch then lie over the same place.
        aligned = _to_grid(F.avg_pool2d(some, patch_size, 1, patch_size // 2), grid)[..., ::stride, ::stride]
        features[..., start:stop] = aligned.permute(0, 2, 3, 1)
        start = stop
    return features


def pool_layers(
    maps: Sequence[torch.Tensor],
    patch_size: int = 3,
    stride: int = 1,
    n_layer_channels: int = 1024,
    n_channels: int = 1024,
) -> torch.Tensor:
    """Unfold the neighbourhoods and reduce the channels twice by adaptive average pooling, as the paper's authors do.

    Parameters
    ----------
    maps : sequence of tensors of shape (n_images, n_channels_l, height_l, width_l)
        Outputs of the layers. The grid of the result is the grid of the first layer's patches.
    patch_size : int, default=3
        Side of the neighbourhood in positions of each layer's own grid; an odd number. Positions beyond the border are
        zeros and count in the average.
    stride : int, default=1
        Step between neighbouring patches in positions of *each* layer's own grid, as in the authors' implementation.
        With a stride other than 1, the deeper layers of a patch lie beside its place in the first layer.
    n_layer_channels : int, default=1024
        Number of channels per layer after the first pooling, which runs over channels and neighbourhood together.
    n_channels : int, default=1024
        Number of channels after the second pooling, which runs over the channels of all layers in sequence.

    Returns
    -------
    tensor of shape (n_images, grid_height, grid_width, n_channels)
        Patch features.

    Notes
    -----
    The authors' implementation resizes the unfolded neighbourhoods to the first layer's grid and then pools them. Both
    steps are linear and act on different axes. Therefore, pooling first gives the same numbers and takes
    ``patch_size ** 2`` times less memory.
    """
    layers = [_pooled_neighbourhoods(m, patch_size, stride, n_layer_channels) for m in maps]
    grid = layers[0].shape[-2:]
    joined = _empty_features(maps[0], grid, n_layer_channels * len(layers))
    for i in range(len(layers)):
        aligned = _to_grid(layers[i], grid).permute(0, 2, 3, 1)
        joined[..., i * n_layer_channels : (i + 1) * n_layer_channels] = aligned
        layers[i] = layers[i][:0]  # free the memory of the layer
    rows = joined.reshape(-1, 1, joined.shape[-1])
    return F.adaptive_avg_pool1d(rows, n_channels).reshape(*joined.shape[:3], n_channels)


def _parts(m: torch.Tensor, n_positions: int) -> Sequence[torch.Tensor]:
    """Split the channels of a map so that a part has about `_BLOCK` values per image on a grid of `n_positions`.

    All parts but the last have a multiple of 64 channels, and the last has at least 64. Each value is then computed
    with the same instructions as if the map were not split, and is rounded equally.
    """
    n_at_once = max(1, _BLOCK // n_positions // 64) * 64
    starts = [*range(n_at_once, m.shape[1] - 63, n_at_once)]
    return m.tensor_split(starts, dim=1)


def _empty_features(like: torch.Tensor, grid: Sequence[int], n_channels: int) -> torch.Tensor:
    """Return an uninitialised tensor of shape (n_images, *grid, n_channels), with the dtype and device of `like`."""
    return torch.empty((len(like), *grid, n_channels), dtype=like.dtype, device=like.device)


def _pooled_neighbourhoods(m: torch.Tensor, patch_size: int, stride: int, n_channels: int) -> torch.Tensor:
    """Pool channels and neighbourhood of each position to `n_channels`; return (n_images, n_channels, height, width).

    Unfolding repeats each value up to ``patch_size ** 2`` times. Therefore, a large map is unfolded in bands of rows.
    """
    n_images, n_in, height, width = m.shape
    half = patch_size // 2
    n_rows, n_columns = ((size + 2 * half - patch_size) // stride + 1 for size in (height, width))
    band = max(1, _BAND // (n_columns * n_in * patch_size**2))
    if band >= n_rows:
        return _unfolded_and_pooled(m, patch_size, stride, n_channels, (half, half)).reshape(
            n_images, n_channels, n_rows, n_columns
        )
    # The values are stored in the same order as those of a map that is unfolded at once: resizing then rounds equally.
    pooled = torch.empty((n_images, n_channels, n_rows, n_columns), dtype=m.dtype, device=m.device)
    padded = F.pad(m, (0, 0, half, half))
    for start in range(0, n_rows, band):
        stop = min(start + band, n_rows)
        rows = padded[:, :, start * stride : (stop - 1) * stride + patch_size]
        found = _unfolded_and_pooled(rows, patch_size, stride, n_channels, (0, half))
        pooled[:, :, start:stop] = found.reshape(n_images, n_channels, stop - start, n_columns)
    return pooled


def _unfolded_and_pooled(
    m: torch.Tensor, patch_size: int, stride: int, n_channels: int, padding: tuple[int, int]
) -> torch.Tensor:
    """Unfold the neighbourhoods of a map and pool them; return shape (n_images, n_channels, n_positions)."""
    unfolded = F.unfold(m, patch_size, padding=padding, stride=stride).transpose(1, 2)
    return F.adaptive_avg_pool1d(unfolded, n_channels).transpose(1, 2)


def _to_grid(layer: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Resize a layer map to a grid of (height, width) by bilinear interpolation."""
    if tuple(layer.shape[-2:]) == tuple(grid):
        return layer
    return F.interpolate(layer, size=tuple(grid), mode="bilinear", align_corners=False)


def tokens_to_grid(tokens: torch.Tensor, image_size: tuple[int, int], n_prefix: int | None = None) -> torch.Tensor:
    """Arrange a transformer's patch tokens as a layer map and drop the class and register tokens before them.

    Parameters
    ----------
    tokens : tensor of shape (n_images, n_tokens, n_channels)
        Class and register tokens, if any, then the patch tokens in row-major order.
    image_size : (int, int)
        Height and width in pixels of the network's input.
    n_prefix : int or None, default=None
        Number of class and register tokens, if the network states it.

    Returns
    -------
    tensor of shape (n_images, n_channels, grid_height, grid_width)
        Layer map of the patch tokens.

    Raises
    ------
    NotAGridError
        If no side of a square patch divides both sides of the image and explains the number of tokens with at most 16
        class and register tokens.

    Notes
    -----
    The side of a patch divides both sides of the image. The function tries the common divisors in ascending order, from
    the largest grid to the smallest. With a known number of class and register tokens, the grid must have as many
    positions as there are other tokens. Otherwise, the first grid with no more positions than there are tokens is used,
    and the remaining tokens are class and register tokens.
    """
    n_images, n_tokens, n_channels = tokens.shape
    height, width = image_size
    sides = [side for side in range(1, min(height, width) + 1) if not height % side and not width % side]
    n_prefixes = [n_tokens - height // side * (width // side) for side in sides]
    # A layer may not have the network's class token: some networks add it in their last blocks.
    if n_prefix is None or n_prefix not in n_prefixes:
        n_prefix = next((n for n in n_prefixes if n >= 0), -1)
    if 0 <= n_prefix <= _MAX_PREFIX_TOKENS:
        side = sides[n_prefixes.index(n_prefix)]
        return tokens[:, n_prefix:].transpose(1, 2).reshape(n_images, n_channels, height // side, width // side)
    raise NotAGridError(
        f"the {n_tokens} tokens of a layer do not form a grid of square patches of an image of {height}×{width} "
        "pixels. Choose an image_size or crop_size with sides that are multiples of the network's patch size."
    )
