"""`quantized`: a copy of a network whose convolutions and matrix products compute with 8-bit integers.

How it works:

1. The network is run on calibration images. The smallest and the largest value of each tensor before and after a
   quantised operator are recorded, and the mean of each input channel.
2. The weights are rounded to int8 with one scale per output channel, the tensors to uint8 with one scale per tensor.
   Both are written as pairs of QuantizeLinear and DequantizeLinear, which are standard operators. Most
   runtimes fuse each pair with the operator in between. Other runtimes compute the same result in float32.
3. Rounded weights shift the mean of an output channel. The bias is corrected by the shift that the recorded means of
   the input channels predict. Without this correction, the errors of the layer maps of efficientnet_lite2 are 1.3 to
   2.2 times as large.
4. The outputs of ReLU and Clip are quantised, not their inputs: the range of the inputs is several times wider.
5. The first operators stay in float32. They see the pixels, where a rounding error is amplified by all later layers.

The ranges are not clipped to percentiles: a defect may cause larger values than the good calibration images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

# Largest absolute value of an int8 weight: -128 is not used, so that the weights are symmetric.
_MAX_WEIGHT = 127
# Largest absolute value of a bias as int32 before its correction. The correction needs less than the other half.
_MAX_BIAS = 2**30


@dataclass(frozen=True)
class _Observations:
    """Range of each tensor and mean of each channel (the second axis), observed on the calibration images."""

    ranges: dict[str, tuple[float, float]]
    means: dict[str, np.ndarray]


def quantized(model: onnx.ModelProto, batches: Iterable[np.ndarray], *, n_float: int = 2) -> onnx.ModelProto:
    """Return a copy of a network whose convolutions and matrix products with constant weights compute in int8.

    The inputs and outputs of the network stay float32. The result contains operators of the ONNX standard only.

    Parameters
    ----------
    model : onnx.ModelProto
        Network with one input and float32 weights and opset 13 or later. The model is not changed.
    batches : iterable of array of shape (n_images, n_channels, height, width), float32
        Inputs of the network for some good images. The sizes of the batches may differ. Some ten images suffice.
    n_float : int, default=2
        Number of convolutions and matrix products at the beginning of the network that stay in float32.

    Returns
    -------
    onnx.ModelProto
        Network with int8 weights.

    Raises
    ------
    ValueError
        If `batches` is empty, a tensor of the network is not finite, the opset is lower than 13, or the network has no
        operator to quantise.
    """
    import onnx

    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < 13:
        raise ValueError(f"the model has opset {opset}, expected at least 13. Export the network again.")
    model, input_name = onnx.ModelProto.FromString(model.SerializeToString()), model.graph.input[0].name
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    products = _products(model.graph, weights)[n_float:]
    if not products:
        raise ValueError(
            f"the model has no convolution or matrix product with constant weights after the first n_float={n_float}."
        )
    rounded = _tensors_to_round(model.graph, products)
    seen = _observed(
        model, batches, input_name, rounded, {node.input[0] for node in products if node.op_type == "Conv"}
    )
    _rewrite(model.graph, {node.output[0] for node in products}, weights, rounded, seen)
    onnx.checker.check_model(model)
    return model


def _products(graph: onnx.GraphProto, weights: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    """Return the convolutions, and the matrix products with a constant right matrix, in the order of the graph."""
    dimensions = {"Conv": (3, 4, 5), "MatMul": (2,)}
    return [
        node
        for node in graph.node
        if node.op_type in dimensions
        and node.input[1] in weights
        and weights[node.input[1]].ndim in dimensions[node.op_type]
        and weights[node.input[1]].dtype == np.float32
        and all(name in weights for name in node.input[2:])
    ]


def _tensors_to_round(graph: onnx.GraphProto, products: list[onnx.NodeProto]) -> set[str]:
    """Return the names of the tensors to round to uint8.

    These are the inputs of all products, and the outputs of the convolutions after their ReLU or Clip. A runtime needs
    both to compute a convolution in integers. An output of the graph stays exact: if it is also the input of a product,
    only the nodes that follow see its rounded values.
    """
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    names = {node.input[0] for node in products}
    for node in products:
        name = node.output[0]
        while name not in outputs and len(users.get(name, [])) == 1 and users[name][0].op_type in ("Relu", "Clip"):
            name = users[name][0].output[0]
        if node.op_type == "Conv" and name not in outputs:
            names.add(name)
    return names


def _observed(
    model: onnx.ModelProto, batches: Iterable[np.ndarray], input_name: str, ranges_of: set[str], means_of: set[str]
) -> _Observations:
    """Run the network on the batches and record the ranges and the channel means of its tensors."""
    import onnx
    import onnxruntime

    inner = sorted((ranges_of | means_of) - {input_name})
    observer = onnx.ModelProto.FromString(model.SerializeToString())
    del observer.graph.output[:]
    observer.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    session = onnxruntime.InferenceSession(observer.SerializeToString(), providers=["CPUExecutionProvider"])
    ranges = dict.fromkeys(ranges_of, (0.0, 0.0))  # zero must be an exact value: convolutions pad with zeros
    sums = dict.fromkeys(means_of, 0.0)
    n_images = 0
    for batch in batches:
        values = {input_name: batch, **dict(zip(inner, session.run(inner, {input_name: batch}), strict=True))}
        for name in filter(ranges_of.__contains__, values):
            low, high = float(values[name].min()), float(values[name].max())
            if not np.isfinite([low, high]).all():
                raise ValueError(f"tensor {name!r} has values in [{low}, {high}] for a calibration image, not finite.")
            ranges[name] = (min(ranges[name][0], low), max(ranges[name][1], high))
        for name in means_of:
            axes = tuple(range(2, values[name].ndim))
            sums[name] = sums[name] + values[name].mean(axes, dtype=np.float64).sum(axis=0)
        n_images += len(batch)
    if n_images == 0:
        raise ValueError("batches is empty, expected the pixels of some good images.")
    return _Observations(ranges, {name: np.asarray(total) / n_images for name, total in sums.items()})


def _rewrite(
    graph: onnx.GraphProto,
    products: set[str],
    weights: dict[str, np.ndarray],
    rounded: set[str],
    seen: _Observations,
) -> None:
    """Replace the weights of the products and insert the rounding of the tensors, in place.

    `products` are the names of the outputs of the products.
    """
    from onnx import NodeProto, helper, numpy_helper

    constants: dict[str, np.ndarray] = {}
    nodes: list[Any] = []

    def dequantised(name: str, values: np.ndarray, scale: np.ndarray, axis: int) -> str:
        """Add a constant tensor of integers, and return the name of its float values."""
        constants.update({f"{name}_int": values, f"{name}_scale": scale})
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_int", f"{name}_scale"], [name], axis=axis))
        return name

    def add_rounding(name: str) -> None:
        """Add the rounding of a tensor to uint8."""
        scale, zero = _scale_and_zero(*seen.ranges[name])
        constants.update({f"{name}_scale": np.asarray(scale), f"{name}_zero": np.asarray(zero)})
        ends = [f"{name}_scale", f"{name}_zero"]
        nodes.append(helper.make_node("QuantizeLinear", [name, *ends], [f"{name}_uint8"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_uint8", *ends], [f"{name}_rounded"]))

    for name in [entry.name for entry in graph.input if entry.name in rounded]:
        add_rounding(name)
    for old in graph.node:
        node = NodeProto.FromString(old.SerializeToString())
        output = node.output[0]
        if output in products:
            weight = weights[node.input[1]]
            if node.op_type == "Conv":
                bias = weights[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
                scale_in = _scale_and_zero(*seen.ranges[node.input[0]])[0]
                values, scale, bias = _rounded_convolution(weight, bias, seen.means[node.input[0]], scale_in)
                del node.input[1:]
                bias_name = dequantised(f"{output}_bias", bias, scale * scale_in, 0)
                node.input.extend([dequantised(f"{output}_weight", values, scale, 0), bias_name])
            else:
                scale = _scales(np.abs(weight).max(axis=0))
                values = np.rint(weight / scale).astype(np.int8)
                node.input[1] = dequantised(f"{output}_weight", values, scale, 1)
        node.input[:] = [f"{name}_rounded" if name in rounded else name for name in node.input]
        nodes.append(node)
        for name in rounded & set(node.output):
            add_rounding(name)
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    kept += [numpy_helper.from_array(values, name) for name, values in constants.items()]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _scale_and_zero(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Return the scale and the zero point that map [low, high] to 0, ..., 255. The range contains zero."""
    scale = _scales(np.array((high - low) / 2), 127.5)
    return np.float32(scale), np.uint8(np.rint(-low / scale))


def _scales(largest: np.ndarray, steps: float = _MAX_WEIGHT) -> np.ndarray:
    """Return the float32 scales with which values up to `largest` become integers up to `steps`; 1 for zeros only."""
    scales = (largest / steps).astype(np.float32)
    return np.where(scales > 0, scales, np.float32(1))


def _rounded_convolution(
    weight: np.ndarray, bias: np.ndarray, means: np.ndarray, scale_in: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the int8 weights of a convolution, their scales, and the corrected bias as int32.

    Parameters
    ----------
    weight : array of shape (n_out, n_in_per_group, ...), float32
        Weights.
    bias : array of shape (n_out,), float32
        Bias.
    means : array of shape (n_in,), float64
        Means of the input channels.
    scale_in : float32
        Scale of the input. The scale of the bias is the product of the scales of input and weights.

    Returns
    -------
    values : array of shape (n_out, n_in_per_group, ...), int8
        Rounded weights.
    scale : array of shape (n_out,), float32
        Scale of the weights of each output channel.
    corrected : array of shape (n_out,), int32
        Bias after the correction, divided by its scale.
    """
    n_out, n_in_per_group = weight.shape[:2]
    flat = weight.reshape(n_out, -1).astype(np.float64)
    # A channel with tiny weights and a large bias gets a larger scale, so that the bias fits into 32 bits.
    largest = np.maximum(np.abs(flat).max(axis=1), np.abs(bias) * (_MAX_WEIGHT / _MAX_BIAS) / float(scale_in))
    scale = _scales(largest)
    values = np.rint(flat / scale[:, None]).clip(-_MAX_WEIGHT, _MAX_WEIGHT)
    lost = (flat - values * scale[:, None]).reshape(n_out, n_in_per_group, -1).sum(axis=2)
    group = np.arange(n_out) // (n_out // (len(means) // n_in_per_group))
    inputs = means.reshape(-1, n_in_per_group)[group]
    corrected = (bias + (lost * inputs).sum(axis=1)) / (scale.astype(np.float64) * scale_in)
    return values.astype(np.int8).reshape(weight.shape), scale, np.rint(corrected).astype(np.int32)
