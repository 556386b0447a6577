"""drawn: the last stage of an exported graph, from patch scores to anomaly maps."""

from __future__ import annotations

import math

import numpy as np

from skpatchcore.deployment._graph import Graph, Value

# A Gaussian is cut off at this number of standard deviations, as in scipy.
_TRUNCATE = 4.0


def drawn(
    patch_scores: Value, sizes: tuple[Value, Value], grid: Value, stride: int, sigmas: tuple[Value, Value] | None,
    boxes: tuple[tuple[Value, Value], tuple[Value, Value]] | None, n_repeats: int,
) -> Value:  # fmt: skip
    """Upsample patch scores bilinearly and smooth them with a Gaussian; bigger = more anomalous.

    Parameters
    ----------
    patch_scores : Value of shape (n_images, grid_height, grid_width)
        Patch scores without NaN.
    sizes : (Value, Value)
        Height and width of the maps, each of shape (1,), int64.
    grid : Value of shape (2,), int64
        Height and width of the complete grid, before the stride is applied.
    stride : int
        Step between patches in the complete grid.
    sigmas : (Value, Value) or None
        Standard deviation of the Gaussian in pixels of the map, vertically and horizontally. None does not smooth.
    boxes : pair of (Value, Value), or None
        Start and length, in pixels of the map, of the region that the grid covers, vertically and horizontally. None
        means the whole map.
    n_repeats : int
        Number of times that the map is mirrored at each border: the reach of the Gaussian, divided by the side.

    Returns
    -------
    Value of shape (n_images, height, width), float32
    """
    graph = patch_scores.graph
    matrices = []
    for axis in range(2):
        size = sizes[axis]
        start, length = boxes[axis] if boxes is not None else (graph.as_value(np.zeros(1, np.float32)), None)
        length = size.cast("float32") if length is None else length
        whole, kept = grid.between(axis, axis + 1, 0), patch_scores.size(axis + 1)
        matrix = _upsampling(graph, size, whole, kept, stride, start, length)
        if sigmas is not None:
            matrix = _gaussian(graph, size, sigmas[axis], n_repeats) @ matrix
        matrices.append(matrix)
    return matrices[0] @ patch_scores @ matrices[1].transpose(1, 0)


def _upsampling(
    graph: Graph, size: Value, whole: Value, kept: Value, stride: int, start: Value, length: Value
) -> Value:
    """Return the matrix of shape (size, kept) of a bilinear upsampling along one axis."""
    # Position of each pixel centre in units of kept patches; 0 is the centre of the first patch.
    in_cells = (graph.range(size) + np.float32(0.5) - start) / length * whole.cast("float32")
    position = (in_cells - np.float32(0.5)) / np.float32(stride)
    position = graph.op("Min", graph.op("Max", position, np.float32(0)), kept.cast("float32") - np.float32(1))
    distance = graph.op("Abs", position.unsqueeze(1) - graph.range(kept).unsqueeze(0))
    return graph.op("Max", np.float32(1) - distance, np.float32(0))


def _gaussian(graph: Graph, size: Value, sigma: Value, n_repeats: int) -> Value:
    """Return the matrix of shape (size, size) of a Gaussian filter that mirrors the signal at its borders."""
    radius = graph.op("Floor", sigma * np.float32(_TRUNCATE) + np.float32(0.5))
    factor = np.float32(-0.5) / (sigma * sigma)

    def kernel(offsets: Value) -> Value:
        inside = graph.op("Abs", offsets) <= radius
        return graph.op("Where", inside, graph.op("Exp", offsets * offsets * factor), np.float32(0))

    places = graph.range(size)
    rows, columns = places.unsqueeze(1), places.unsqueeze(0)
    period = size.cast("float32") * np.float32(2)
    weights = None
    for m in range(-n_repeats, n_repeats + 2):
        shift = period * np.float32(m)
        terms = [kernel(rows + columns + np.float32(1) - shift)]
        if m <= n_repeats:
            terms.append(kernel(rows - columns - shift))
        for term in terms:
            weights = term if weights is None else weights + term
    assert weights is not None
    return weights / weights.sum(1, keepdims=True)


def n_repeats_of(smoothing: float, side: int) -> int:
    """Return how often a signal must be mirrored at its borders so that a Gaussian does not reach beyond it."""
    return max(0, math.ceil((_TRUNCATE * smoothing + 1) / side) - 1)
