"""Graph and Value: write an ONNX graph as arithmetic of named tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx.compose
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from skpatchcore._utils.version import __version__
from skpatchcore.deployment.errors import ExportError

# Version of the standard operators. 18 is the first version in which the axes of all reductions are inputs.
OPSET = 18
# Version of the file format. Runtimes of 2023 and later read it.
IR_VERSION = 9
# Maximum size of the constants. Protocol Buffers, the format of ONNX files, holds at most 2**31 - 1 bytes.
_MAX_BYTES = 2_100_000_000
# Constants with at least this number of values are stored in float16 if the graph is compressed.
_N_COMPRESSED = 1024
# Types of tensors.
TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
}


@dataclass(frozen=True)
class Value:
    """A tensor of a graph. Operators such as ``a + b`` and ``a @ b`` add nodes to the graph.

    Attributes
    ----------
    graph : Graph
        The graph to which the tensor belongs.
    name : str
        Name of the tensor.
    """

    graph: Graph
    name: str
    __array_ufunc__: ClassVar[None] = None  # numpy numbers on the left side leave the operation to this class

    def __add__(self, other: Any) -> Value:
        return self.graph.op("Add", self, other)

    def __sub__(self, other: Any) -> Value:
        return self.graph.op("Sub", self, other)

    def __mul__(self, other: Any) -> Value:
        return self.graph.op("Mul", self, other)

    def __truediv__(self, other: Any) -> Value:
        return self.graph.op("Div", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self.graph.op("Sub", other, self)

    def __rtruediv__(self, other: Any) -> Value:
        return self.graph.op("Div", other, self)

    def __matmul__(self, other: Any) -> Value:
        return self.graph.op("MatMul", self, other)

    def __neg__(self) -> Value:
        return self.graph.op("Neg", self)

    # OpenVINO evaluates "NaN > x" and "NaN >= x" as True, but "x < NaN" and "x <= NaN" as False.
    def __gt__(self, other: Any) -> Value:
        return self.graph.op("Less", other, self)

    def __ge__(self, other: Any) -> Value:
        return self.graph.op("LessOrEqual", other, self)

    def __lt__(self, other: Any) -> Value:
        return self.graph.op("Less", self, other)

    def __le__(self, other: Any) -> Value:
        return self.graph.op("LessOrEqual", self, other)

    def __and__(self, other: Any) -> Value:
        return self.graph.op("And", self, other)

    def __invert__(self) -> Value:
        return self.graph.op("Not", self)

    def __or__(self, other: Any) -> Value:
        return self.graph.op("Or", self, other)

    def cast(self, dtype: str) -> Value:
        """Convert the tensor to a dtype, e.g. ``"float32"``."""
        return self.graph.op("Cast", self, to=TYPES[dtype])

    def reshape(self, *shape: Any) -> Value:
        """Change the shape. Items are ints, or 1-D tensors of one int64 item. 0 keeps a length, and -1 infers it."""
        return self.graph.op("Reshape", self, self.graph.shape(*shape))

    def transpose(self, *axes: int) -> Value:
        """Permute the axes."""
        return self.graph.op("Transpose", self, perm=list(axes))

    def size(self, axis: int) -> Value:
        """Return the length of an axis as a 1-D tensor of one int64 item."""
        return self.graph.op("Shape", self, start=axis, end=axis + 1)

    def sum(self, *axes: int, keepdims: bool = False) -> Value:
        """Return the sum over axes."""
        return self.graph.op("ReduceSum", self, np.array(axes), keepdims=int(keepdims))

    def all(self, *axes: int) -> Value:
        """Return whether all values of a boolean tensor are True along axes."""
        return self.graph.op("ReduceMin", self.cast("float32"), np.array(axes), keepdims=0) > np.float32(0.5)

    def max(self, *axes: int, keepdims: bool = False) -> Value:
        """Return the maximum over axes."""
        return self.graph.op("ReduceMax", self, np.array(axes), keepdims=int(keepdims))

    def where(self, yes: Any, no: Any) -> Value:
        """Return `yes` where this boolean tensor is True, otherwise `no`."""
        return self.graph.op("Where", self, yes, no)

    def between(self, start: Any, stop: Any, axis: int, step: int = 1) -> Value:
        """Return the items of an axis from `start` to `stop`: 1-D tensors of one item, or ints."""
        graph = self.graph
        return graph.op("Slice", self, graph.shape(start), graph.shape(stop), np.array([axis]), np.array([step]))

    def unsqueeze(self, *axes: int) -> Value:
        """Insert axes of length 1."""
        return self.graph.op("Unsqueeze", self, np.array(axes))

    def squeeze(self, *axes: int) -> Value:
        """Remove axes of length 1."""
        return self.graph.op("Squeeze", self, np.array(axes))


class Graph:
    """An ONNX graph that is under construction. Only standard operators of `OPSET` are used.

    Parameters
    ----------
    compress : bool, default=False
        Whether large constants that are added with `weights` are stored in float16. The graph converts them to float32
        before it uses them.
    """

    def __init__(self, compress: bool = False):
        self.compress = compress
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._n_names = 0

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> Value:
        """Add an input. Strings in the shape name dynamic lengths."""
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[dtype], list(shape)))
        return Value(self, name)

    def output(self, value: Value, name: str, dtype: str, shape: Sequence[int | str], description: str = "") -> None:
        """Add a tensor to the outputs, with a name of its own."""
        self.nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
        info = helper.make_tensor_value_info(name, TYPES[dtype], list(shape))
        info.doc_string = description
        self.outputs.append(info)

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> Value:
        """Add a node with one output. Inputs that are not tensors become constants; None is an absent input."""
        return self.ops(kind, *inputs, n_outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: Any, n_outputs: int, **attributes: Any) -> list[Value]:
        """Add a node with several outputs."""
        names = ["" if item is None else self.as_value(item).name for item in inputs]
        outputs = [self._new_name(kind.lower()) for _ in range(n_outputs)]
        self.nodes.append(helper.make_node(kind, names, outputs, name=outputs[0], **attributes))
        return [Value(self, name) for name in outputs]

    def as_value(self, item: Any) -> Value:
        """Return a tensor. Floats become float32 constants, and ints become int64 constants."""
        if isinstance(item, Value):
            return item
        array = np.asarray(item)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return self.constant(array)

    def constant(self, array: np.ndarray) -> Value:
        """Add a constant with the dtype of the array. Equal constants are stored once."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (str(array.dtype), array.shape, array.tobytes()) if array.size < _N_COMPRESSED else None
        if key is not None and key in self._known:
            return self._known[key]
        name = self._new_name("constant")
        self.initializers.append(numpy_helper.from_array(array, name))
        if key is not None:
            self._known[key] = Value(self, name)
        return Value(self, name)

    def weights(self, array: np.ndarray) -> Value:
        """Add a float32 constant that is part of the model. It is stored in float16 if the graph is compressed."""
        if not self.compress or array.size < _N_COMPRESSED:
            return self.constant(array.astype(np.float32))
        return self.constant(as_half(array)).cast("float32")

    def shape(self, *items: Any) -> Value:
        """Return a 1-D int64 tensor made of ints and of 1-D tensors."""
        if not any(isinstance(item, Value) for item in items):
            return self.constant(np.array(items, np.int64))
        parts = [item if isinstance(item, Value) else np.array([item], np.int64) for item in items]
        return self.as_value(parts[0]) if len(parts) == 1 else self.concat(parts, 0)

    def concat(self, values: Sequence[Any], axis: int) -> Value:
        """Join tensors along an axis."""
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=axis)

    def range(self, n: Value) -> Value:
        """Return the float32 numbers from 0 to n - 1, for a 1-D int64 tensor of one item."""
        return self.op("Range", np.int64(0), n.squeeze(0), np.int64(1)).cast("float32")

    def embed(self, model: ModelProto, value: Value, prefix: str) -> list[Value]:
        """Add all nodes of a model with one input, which is `value`; return the outputs of the model."""
        inner = onnx.compose.add_prefix(model, prefix).graph
        own = inner.input[0].name
        for node in inner.node:
            node.input[:] = [value.name if name == own else name for name in node.input]
            self.nodes.append(node)
        for tensor in inner.initializer:
            array = numpy_helper.to_array(tensor)
            if self.compress and array.dtype == np.float32 and array.size >= _N_COMPRESSED:
                stored = f"{tensor.name}/float16"
                self.initializers.append(numpy_helper.from_array(as_half(array), stored))
                cast = helper.make_node("Cast", [stored], [tensor.name], name=tensor.name, to=TensorProto.FLOAT)
                self.nodes.insert(0, cast)
            else:
                self.initializers.append(tensor)
        return [Value(self, output.name) for output in inner.output]

    def model(self, description: str) -> ModelProto:
        """Return the model, checked.

        Raises
        ------
        ExportError
            If the model is too large for an ONNX file.
        """
        n_bytes = sum(len(tensor.raw_data) for tensor in self.initializers)
        if n_bytes > _MAX_BYTES:
            raise ExportError(
                f"the file would have {n_bytes / 1e9:.1f} GB, and an ONNX file has at most 2.1 GB. Use a smaller ratio "
                "of the sampler, or precision='float16'."
            )
        graph = helper.make_graph(
            self.nodes, "skpatchcore", self.inputs, self.outputs, self.initializers, doc_string=description
        )
        made = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="skpatchcore",
            producer_version=__version__,
        )
        onnx.checker.check_model(made)
        return made

    def _new_name(self, kind: str) -> str:
        self._n_names += 1
        return f"{kind}_{self._n_names}"


def as_half(array: np.ndarray) -> np.ndarray:
    """Return an array rounded to float16.

    Raises
    ------
    ValueError
        If a value is beyond 65504, the largest float16 value.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(
            "precision='float16': the model has values beyond 65504, the largest float16 value. Use 'float32'."
        )
    return half
