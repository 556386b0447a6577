"""From a network's layer maps to patch features: pure torch functions (Eq. 1-4 of the paper).

A patch feature gathers the neighbourhood of one position (Eq. 1-2) by average pooling and joins it over the layers, the
deeper ones brought to the first one's grid (Eq. 3-4). The two published implementations differ in how the channels are
made (section 5 of the design): :func:`concatenate_layers` keeps all of them, :func:`pool_layers` reduces them twice
to a fixed number by adaptive average pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

# Class and register tokens that a vision transformer may put before its patches.
_MAX_PREFIX_TOKENS = 16


class NotAGridError(ValueError):
    """Tokens that are no grid of patches of the image."""


def concatenate_layers(maps: Sequence[torch.Tensor], patch_size: int = 3, stride: int = 1) -> torch.Tensor:
    """Pool each layer over the neighbourhood, align the grids and concatenate the channels.

    Parameters
    ----------
    maps : sequence of tensors of shape (n_images, n_channels_l, height_l, width_l)
        The layers' outputs; the first one's grid is that of the result.
    patch_size : int, default=3
        Odd side of the neighbourhood, in positions of each layer's own grid. Beyond the border lie zeros, which count.
    stride : int, default=1
        Step between neighbouring patches, in positions of the first layer's grid.

    Returns
    -------
    tensor of shape (n_images, grid_height, grid_width, sum of n_channels_l)
    """
    pooled = [F.avg_pool2d(m, patch_size, 1, patch_size // 2) for m in maps]
    grid = pooled[0].shape[-2:]
    # Thinned out after the layers are aligned: a patch and its context stay over the same place.
    aligned = [_to_grid(p, grid)[..., ::stride, ::stride] for p in pooled]
    return torch.cat(aligned, dim=1).permute(0, 2, 3, 1)


def pool_layers(
    maps: Sequence[torch.Tensor],
    patch_size: int = 3,
    stride: int = 1,
    n_layer_channels: int = 1024,
    n_channels: int = 1024,
) -> torch.Tensor:
    """Unfold the neighbourhoods and reduce them twice by adaptive average pooling, as the paper's authors do.

    Parameters
    ----------
    maps : sequence of tensors of shape (n_images, n_channels_l, height_l, width_l)
        The layers' outputs; the first one's grid is that of the result.
    patch_size : int
        As in :func:`concatenate_layers`.
    stride : int
        Step between neighbouring patches, in positions of *each* layer's own grid: with the reference's steps, the
        deeper layers of a patch lie beside it where the stride is not 1.
    n_layer_channels : int, default=1024
        Channels of each layer after the first pooling, which runs over channels and neighbourhood together.
    n_channels : int, default=1024
        Channels after the second pooling, which runs over the layers one after the other.

    Returns
    -------
    tensor of shape (n_images, grid_height, grid_width, n_channels)

    Notes
    -----
    The reference brings the unfolded neighbourhoods to the first layer's grid and pools then. Both steps are linear and
    act on different axes, so pooling first gives the same numbers with ``patch_size ** 2`` times less memory.
    """
    layers = []
    for m in maps:
        n_images, _, height, width = m.shape
        unfolded = F.unfold(m, patch_size, padding=patch_size // 2, stride=stride).transpose(1, 2)
        pooled = F.adaptive_avg_pool1d(unfolded, n_layer_channels).transpose(1, 2)
        shape = [(size + 2 * (patch_size // 2) - patch_size) // stride + 1 for size in (height, width)]
        layers.append(pooled.reshape(n_images, n_layer_channels, *shape))
    grid = layers[0].shape[-2:]
    aligned = torch.cat([_to_grid(layer, grid) for layer in layers], dim=1).permute(0, 2, 3, 1)
    rows = aligned.reshape(-1, 1, aligned.shape[-1])
    return F.adaptive_avg_pool1d(rows, n_channels).reshape(*aligned.shape[:3], n_channels)


def _to_grid(layer: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    if tuple(layer.shape[-2:]) == tuple(grid):
        return layer
    return F.interpolate(layer, size=tuple(grid), mode="bilinear", align_corners=False)


def tokens_to_grid(tokens: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Arrange a transformer's tokens as a map, without the class and register tokens that stand before the patches.

    Parameters
    ----------
    tokens : tensor of shape (n_images, n_tokens, n_channels)
        Patches in row-major order, after any class and register tokens.
    image_size : (int, int)
        Height and width in pixels of the images that the network saw.

    Returns
    -------
    tensor of shape (n_images, n_channels, grid_height, grid_width)

    Raises
    ------
    NotAGridError
        If no square patch that divides the image gives that number of tokens.

    Notes
    -----
    The patch's side divides both sides of the image, so the grid is the largest one with a common divisor of the two as
    patch that needs no more tokens than there are.
    """
    n_images, n_tokens, n_channels = tokens.shape
    height, width = image_size
    for side in range(1, min(height, width) + 1):
        if height % side or width % side:
            continue
        grid = (height // side, width // side)
        n_prefix = n_tokens - grid[0] * grid[1]
        if n_prefix < 0:
            continue
        if n_prefix > _MAX_PREFIX_TOKENS:
            break
        return tokens[:, n_prefix:].transpose(1, 2).reshape(n_images, n_channels, *grid)
    raise NotAGridError(
        f"a layer gives {n_tokens} tokens for an image of {height}×{width} pixels, which is no grid of square patches; "
        "choose an image_size or crop_size whose sides are multiples of the network's patch size."
    )
