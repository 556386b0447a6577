"""resized_and_cropped: the first stage of an exported graph, from images to the pixels that the network sees.

The antialiased Resize of ONNX is not used. Its results differ between runtimes: one of them ignores the antialiasing.
Instead, the graph computes the weights of the filter and applies them as two matrix products.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skpatchcore.deployment._graph import Graph, Value
from skpatchcore.images.views import as_pair

# The rows of the resized image are computed in this number of blocks. A block needs only some rows of the image, which
# saves most of the multiplications for large images.
_N_BLOCKS = 8
# Factor of the integer part of a quotient. Its product with a side of 65535 pixels fits into 32 bits.
_STEPS = 2**14


def resized_and_cropped(
    images: Value, image_size: Any, crop_size: Any, rounded_to: int, inside: np.ndarray | None, white: float
) -> tuple[Value, Value]:
    """Resize images with antialiasing and crop their centres, as :func:`~skpatchcore.images.resizing.resize_and_crop`.

    Parameters
    ----------
    images : Value of shape (n_images, height, width, 3)
        RGB images.
    image_size, crop_size, rounded_to
        As for :func:`~skpatchcore.images.resizing.resize_and_crop`.
    inside : array of shape (height, width), bool, or None
        Pixels of the region of interest. All other pixels get the mean colour of these pixels. None means all pixels.
    white : float
        Value of white in the images.

    Returns
    -------
    pixels : Value of shape (n_images, input_height, 3, input_width), float32
        Pixels in [0, 1].
    size : Value of shape (2,), int64
        Height and width of the resized images, before the crop.
    """
    graph = images.graph
    own = images.size(1), images.size(2)
    if inside is not None:
        images = _filled_outside(images, inside)
    resized = _resized_size(graph, own, image_size, rounded_to if crop_size is None else 1)
    size = graph.concat(resized, 0)
    height, width = resized
    n = images.size(0)
    if image_size is None:
        pixels = images.cast("float32").transpose(0, 1, 3, 2)
    else:
        rows = axis_weights(graph, own[0], height)
        flat = _rows_resized(images.reshape(0, 0, -1), rows, own[0], height)
        columns = axis_weights(graph, own[1], width).transpose(1, 0)
        pixels = flat.reshape(n, height, own[1], 3).transpose(0, 1, 3, 2) @ columns
    if crop_size is not None:
        for axis, whole, part in zip((1, 3), resized, as_pair(crop_size), strict=True):
            start = crop_start(graph, whole, part)
            pixels = pixels.between(start, start + part, axis)
        # A smaller image would pass with a smaller crop: the fixed shape makes the runtime refuse it.
        pixels = pixels.reshape(n, as_pair(crop_size)[0], 3, as_pair(crop_size)[1])
    return pixels / np.float32(white), size


def _filled_outside(images: Value, inside: np.ndarray) -> Value:
    """Return images as float32 in which pixels outside a mask have the mean colour of the pixels inside."""
    graph = images.graph
    mask = graph.constant(inside[..., None])
    values = images.cast("float32")
    kept = graph.op("Where", mask, values, np.float32(0))
    # The sums of the rows of 8-bit images are exact in float32. Float64 is not used: OpenVINO then computes wrong means
    # for all images of a batch but the first.
    mean = (kept.sum(2) / np.float32(inside.sum())).sum(1)
    return graph.op("Where", mask, values, mean.unsqueeze(1, 2))


def _resized_size(graph: Graph, own: tuple[Value, Value], image_size: Any, rounded_to: int) -> tuple[Value, Value]:
    """Return the height and width after resizing, each as a tensor of shape (1,), int64."""
    if image_size is None:
        return own
    if not isinstance(image_size, int):
        sides = as_pair(image_size)
        return graph.shape(sides[0]), graph.shape(sides[1])
    height, width = own
    short, long = graph.op("Min", height, width), graph.op("Max", height, width)
    side = np.array([image_size])
    if rounded_to == 1:
        longer = long * side / short
    else:  # round half to even, in integers: side * (long - short) / (rounded_to * short)
        numerator, denominator = (long - short) * side, short * np.array([rounded_to])
        quotient = numerator / denominator
        twice = (numerator - quotient * denominator) * np.array([2])
        is_odd = graph.op("Equal", graph.op("Mod", quotient, np.array([2])), np.array([1]))
        is_up = (twice > denominator) | (graph.op("Equal", twice, denominator) & is_odd)
        longer = (quotient + is_up.cast("int64")) * np.array([rounded_to]) + side
    is_tall = height > width
    return graph.op("Where", is_tall, longer, side), graph.op("Where", is_tall, side, longer)


def crop_start(graph: Graph, whole: Value, part: int) -> Value:
    """Return ``round((whole - part) / 2)``, where halves are rounded to even."""
    difference = whole - np.array([part])
    half = difference / np.array([2])
    is_odd_half = graph.op("Mod", half, np.array([2])) * graph.op("Mod", difference, np.array([2]))
    return half + is_odd_half


def axis_weights(graph: Graph, n_in: Value, n_out: Value) -> Value:
    """Return the weights of an antialiased linear resize along one axis, of shape (n_out, n_in), float32.

    The formulas are those of torch, in float32. The filter is a triangle with the half width of one input pixel or of
    one output pixel, whichever is larger.
    """
    scale = _quotient(n_in, n_out)
    width = graph.op("Max", scale, np.array([1], np.float32))
    centres = ((graph.range(n_out) + np.float32(0.5)) * scale).unsqueeze(1)
    distances = graph.op("Abs", graph.range(n_in).unsqueeze(0) - centres + np.float32(0.5)) * (np.float32(1) / width)
    weights = graph.op("Max", np.float32(1) - distances, np.float32(0))
    return weights / weights.sum(1, keepdims=True)


def _quotient(dividend: Value, divisor: Value) -> Value:
    """Return the quotient of two integers, rounded to float32.

    Some runtimes multiply by the rounded reciprocal instead of dividing. The last bit then differs, which moves the
    filter by up to 1e-4 pixels at the end of a long side. Here, the integer part of 2^14 times the quotient is exact,
    and only the rest is divided.
    """
    scaled = dividend * np.array([_STEPS])
    whole = scaled / divisor
    rest = (scaled - whole * divisor).cast("float32") / divisor.cast("float32")
    return (whole.cast("float32") + rest) * np.float32(1 / _STEPS)


def _rows_resized(rows: Value, weights: Value, n_in: Value, n_out: Value) -> Value:
    """Return ``weights @ rows``, computed in blocks that use only the rows with weights that are not 0."""
    graph = rows.graph
    scale = n_in.cast("float32") / n_out.cast("float32")
    reach = graph.op("Max", scale, np.array([1], np.float32)) + np.float32(1)
    blocks = []
    for number in range(_N_BLOCKS):
        start, stop = (n_out * np.array([i]) / np.array([_N_BLOCKS]) for i in (number, number + 1))
        first = graph.op("Floor", start.cast("float32") * scale - reach).cast("int64")
        last = graph.op("Ceil", stop.cast("float32") * scale + reach).cast("int64")
        first, last = graph.op("Max", first, np.array([0])), graph.op("Min", last, n_in)
        part = weights.between(start, stop, 0).between(first, last, 1)
        blocks.append(part @ rows.between(first, last, 1).cast("float32"))
    return graph.concat(blocks, 1)
