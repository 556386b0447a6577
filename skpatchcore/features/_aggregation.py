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
    pooled = [F.avg_pool2d(m, patch_size, 1, patch_size // 2) for m in maps]
    grid = pooled[0].shape[-2:]
    # The stride is applied after the layers are aligned. All layers of a patch then lie over the same place.
    aligned = [_to_grid(p, grid)[..., ::stride, ::stride] for p in pooled]
    return torch.cat(aligned, dim=1).permute(0, 2, 3, 1)


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
    """Resize a layer map to a grid of (height, width) by bilinear interpolation."""
    if tuple(layer.shape[-2:]) == tuple(grid):
        return layer
    return F.interpolate(layer, size=tuple(grid), mode="bilinear", align_corners=False)


def tokens_to_grid(tokens: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Arrange a transformer's patch tokens as a layer map and drop the class and register tokens before them.

    Parameters
    ----------
    tokens : tensor of shape (n_images, n_tokens, n_channels)
        Class and register tokens, if any, then the patch tokens in row-major order.
    image_size : (int, int)
        Height and width in pixels of the network's input.

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
    the largest grid to the smallest. The first grid with no more positions than there are tokens is used. The
    remaining tokens are class and register tokens.
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
        f"the {n_tokens} tokens of a layer do not form a grid of square patches of an image of {height}×{width} "
        "pixels. Choose an image_size or crop_size with sides that are multiples of the network's patch size."
    )
