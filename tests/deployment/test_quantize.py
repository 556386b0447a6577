"""Test the rounding of a network to 8-bit integers."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the package onnx, which holds the networks, is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")

from skpatchcore.deployment._quantize import _rounded_convolution, quantized  # noqa: E402

N_PRODUCTS = 5


def network(opset: int = 18):
    """Return a network with a stem, a depthwise convolution, a residual block, a convolution without bias and a MatMul.

    Its outputs are the sum of the residual block, which is also used further on, and a product of channels.
    """
    rng, helper = np.random.default_rng(0), onnx.helper
    shapes = {"stem": (8, 3, 3, 3), "depthwise": (8, 1, 3, 3), "narrow": (8, 8, 1, 1), "last": (12, 8, 3, 3)}
    weights = {f"{name}_w": rng.normal(0, 1 / np.sqrt(np.prod(s[1:])), s) for name, s in shapes.items()}
    weights |= {f"{name}_b": rng.normal(0, 0.3, s[0]) for name, s in shapes.items() if name != "last"}
    weights |= {"matrix": rng.normal(0, 0.3, (12, 5)), "low": np.array(0.0), "high": np.array(6.0)}
    nodes = [
        helper.make_node("Conv", ["x", "stem_w", "stem_b"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise_w", "depthwise_b"], ["c"], group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "narrow_w", "narrow_b"], ["e"]),
        helper.make_node("Add", ["b", "e"], ["block"]),
        helper.make_node("Conv", ["block", "last_w"], ["f"]),
        helper.make_node("Transpose", ["f"], ["g"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["g", "matrix"], ["product"]),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, ["n", 3, "height", "width"])],
        [helper.make_tensor_value_info(name, kind, ["n", None, None, None]) for name in ("block", "product")],
        [onnx.numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def images(seed: int, n: int, height: int = 40, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3, height, width)).astype(np.float32)


def outputs_of(model, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs of a model by name, computed without optimisations of the graph."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": pixels}), strict=True))


def n_int8(model) -> int:
    return sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer)


@pytest.fixture(scope="module")
def rounded():
    return quantized(network(), [images(seed, 2) for seed in range(3)], n_float=0)


@pytest.mark.parametrize("size", [(40, 32), (33, 57)])
def test_outputs_are_close_to_those_in_float32(rounded, size):
    pixels = images(9, 3, *size)
    expected, found = outputs_of(network(), pixels), outputs_of(rounded, pixels)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert values.shape == found[name].shape
        assert found[name].dtype == np.float32
        assert 0 < np.linalg.norm(found[name] - values) < 0.03 * np.linalg.norm(values), name


def test_a_runtime_that_fuses_the_integers_gives_close_results(rounded):
    pixels = images(9, 3)
    session = onnxruntime.InferenceSession(rounded.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    expected = outputs_of(rounded, pixels)
    for name, values in zip(names, session.run(names, {"x": pixels}), strict=True):
        assert np.linalg.norm(values - expected[name]) < 0.02 * np.linalg.norm(expected[name])


def test_result_has_int8_weights_and_standard_operators_only(rounded):
    assert {node.domain for node in rounded.graph.node} == {""}
    assert n_int8(rounded) == N_PRODUCTS
    assert not {tensor.name for tensor in rounded.graph.initializer} & {"stem_w", "stem_b", "last_w", "matrix"}
    assert not [node for node in rounded.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in "ac"]


def test_first_products_stay_in_float32_and_the_model_is_not_changed():
    model, batches = network(), [images(0, 2)]
    before = model.SerializeToString()
    assert [n_int8(quantized(model, batches, n_float=n)) for n in range(N_PRODUCTS)] == [5, 4, 3, 2, 1]
    assert n_int8(quantized(model, batches)) == N_PRODUCTS - 2
    assert model.SerializeToString() == before


def test_correction_keeps_the_response_to_the_mean_input():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(6, 2, 3, 3)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    means, scale_in = rng.uniform(1, 4, 4), np.float32(6 / 255)  # two groups of two input channels
    values, scale, corrected = _rounded_convolution(weight, bias, means, scale_in)
    assert (values.dtype, scale.shape, corrected.dtype) == (np.int8, (6,), np.int32)
    inputs = np.repeat(means.reshape(2, 2), 3, axis=0)
    wanted = (weight.sum((2, 3)) * inputs).sum(1) + bias
    response = ((values * scale[:, None, None, None]).sum((2, 3)) * inputs).sum(1) + corrected * (scale * scale_in)
    assert np.abs(response - wanted).max() <= (scale * scale_in).max()


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-30])
def test_bias_of_a_channel_with_tiny_weights_is_kept(size):
    weight = np.full((2, 1, 3, 3), size, np.float32)
    weight[1] = 0.5
    bias = np.array([-3.7, 2.0], np.float32)
    values, scale, corrected = _rounded_convolution(weight, bias, np.array([1.0]), np.float32(0.01))
    assert np.allclose(corrected * scale.astype(float) * 0.01, bias, rtol=1e-3)
    assert (values[1] == 127).all()


def test_unusable_input_is_refused():
    model = network()
    with pytest.raises(ValueError, match="batches is empty"):
        quantized(model, [])
    with pytest.raises(ValueError, match=r"tensor 'x' has values in \[nan, nan\]"):
        quantized(model, [np.full((1, 3, 16, 16), np.nan, np.float32)], n_float=0)
    with pytest.raises(ValueError, match="after the first n_float=5"):
        quantized(model, [images(0, 1)], n_float=5)
    with pytest.raises(ValueError, match="opset 11, expected at least 13"):
        quantized(network(opset=11), [images(0, 1)])
