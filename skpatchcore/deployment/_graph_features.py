"""aggregated: the second stage of an exported graph, from layer maps to patch features (Equations 1 to 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from skpatchcore.deployment._graph import Graph, Value


def normalised(pixels: Value, mean: Sequence[float], std: Sequence[float]) -> Value:
    """Return the network's input (n_images, 3, height, width) for pixels of shape (n_images, height, 3, width)."""
    shape = (1, 3, 1, 1)
    centred = pixels.transpose(0, 2, 1, 3) - np.array(mean, np.float32).reshape(shape)
    return centred / np.array(std, np.float32).reshape(shape)


def aggregated(
    maps: Sequence[Value], n_map_channels: Sequence[int], patch_size: int, stride: int, n_channels: int | None
) -> tuple[Value, Value]:
    """Return the patch features of layer maps, as the extractor does.

    Parameters
    ----------
    maps : sequence of Values of shape (n_images, n_map_channels, height, width)
        Layer maps.
    n_map_channels : sequence of int
        Number of channels of each map.
    patch_size, stride, n_channels
        As for :class:`~skpatchcore.TorchFeatureExtractor`.

    Returns
    -------
    features : Value of shape (n_images, grid_height, grid_width, n_channels)
        Patch features.
    grid : Value of shape (2,), int64
        Height and width of the first layer's map, before the stride is applied.
    """
    graph = maps[0].graph
    grid = graph.op("Shape", maps[0], start=2, end=4)
    if n_channels is None:
        averaged = [_averaged(some, patch_size) for some in maps]
        aligned = [averaged[0], *(_resized_to(some, averaged[0]) for some in averaged[1:])]
        joined = graph.concat(aligned, 1)
        if stride > 1:  # not by the operator Slice: OpenVINO computes empty maps from its result
            joined = graph.op("MaxPool", joined, kernel_shape=[1, 1], strides=[stride] * 2)
    else:
        pooled = [
            _pooled(some, own, patch_size, stride, n_channels) for some, own in zip(maps, n_map_channels, strict=True)
        ]
        aligned = [pooled[0], *(_resized_to(some, pooled[0]) for some in pooled[1:])]
        size = pooled[0].size(2), pooled[0].size(3)
        # Each of the joined channels is the mean of as many consecutive channels as there are layers.
        parts = graph.concat(aligned, 1).reshape(0, n_channels, len(maps), *size)
        joined = graph.op("ReduceMean", parts, np.array([2]), keepdims=0)
    return joined.transpose(0, 2, 3, 1), grid


def _averaged(some: Value, patch_size: int) -> Value:
    """Average a map over the neighbourhood of each position; zeros beyond the border count."""
    if patch_size == 1:
        return some
    return some.graph.op(
        "AveragePool",
        some,
        kernel_shape=[patch_size] * 2,
        pads=[patch_size // 2] * 4,
        count_include_pad=1,
    )


def _resized_to(some: Value, like: Value) -> Value:
    """Resize a map to the grid of another map by bilinear interpolation."""
    graph = some.graph
    shape = graph.concat([some.size(0), some.size(1), like.size(2), like.size(3)], 0)
    return graph.op("Resize", some, None, None, shape, mode="linear", coordinate_transformation_mode="half_pixel")


def _pooled(some: Value, n_in: int, patch_size: int, stride: int, n_channels: int) -> Value:
    """Pool channels and neighbourhood of each position to `n_channels`, as one grouped convolution."""
    graph: Graph = some.graph
    weights, n_groups = pooling_weights(n_in, patch_size, n_channels)
    pads = [patch_size // 2] * 4
    return graph.op(
        "Conv", some, weights, kernel_shape=[patch_size] * 2, pads=pads, strides=[stride] * 2, group=n_groups
    )


def pooling_weights(n_in: int, patch_size: int, n_channels: int) -> tuple[np.ndarray, int]:
    """Return the adaptive average pooling of an unfolded neighbourhood as the weights of a grouped convolution.

    Parameters
    ----------
    n_in : int
        Number of channels of the map.
    patch_size : int
        Side of the neighbourhood.
    n_channels : int
        Number of channels after pooling.

    Returns
    -------
    weights : array of shape (n_channels, n_in / n_groups, patch_size, patch_size), float32
        Weights of the convolution.
    n_groups : int
        Number of groups of the convolution.
    """
    # The sequence of all channels with their neighbourhoods is divided into bins that may overlap by one item. Bins of
    # one group of channels never reach into another group, because the groups start at whole bins.
    n_groups = math.gcd(n_in, n_channels)
    length = n_in * patch_size**2
    own = length // n_groups
    weights = np.zeros((n_channels, own), np.float32)
    for i in range(n_channels):
        start, stop = i * length // n_channels, -(-(i + 1) * length // n_channels)
        offset = i // (n_channels // n_groups) * own
        weights[i, start - offset : stop - offset] = 1 / (stop - start)
    return weights.reshape(n_channels, n_in // n_groups, patch_size, patch_size), n_groups
