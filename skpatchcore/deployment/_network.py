"""network_model: the ONNX model of a backbone, from normalised images to the maps of its layers."""

from __future__ import annotations

import copy
import io
import logging
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import onnx.inliner
import torch
from onnx import ModelProto, helper
from torch import nn

from skpatchcore._utils.modes import default_modes
from skpatchcore.deployment._graph import OPSET
from skpatchcore.deployment.errors import ExportError
from skpatchcore.features import _efficientnet_lite
from skpatchcore.features._aggregation import tokens_to_grid
from skpatchcore.features._backbones import Network

# Sides in pixels of the example with which a network is traced, if its input is not fixed. They differ, so that the
# exporter does not assume a square.
_EXAMPLE = (224, 288)
_ADVICE = (
    "Fit with an extractor with image_size=(height, width) or crop_size, or export with image_size=(height, width)."
)
# Loggers of torch that report details of the export.
_LOGGERS = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes")
# Domains of standard operators.
_STANDARD = ("", "ai.onnx")


class _Last:
    """The model of the last network, because exports of one detector in several forms need the same model."""

    def __init__(self) -> None:
        self._made: tuple[weakref.ref[nn.Module], Any, bytes] | None = None

    def get(self, network: Network, size: tuple[int, int] | None) -> ModelProto | None:
        """Return the model for a network and a size; None if it is not the last one."""
        if self._made is None or self._made[0]() is not network.module or self._made[1] != (network.layers, size):
            return None
        return onnx.load_from_string(self._made[2])

    def keep(self, network: Network, size: tuple[int, int] | None, model: ModelProto) -> None:
        """Keep a model instead of the one before, as long as the network exists."""
        reference = weakref.ref(network.module, self._forget)
        self._made = reference, (network.layers, size), model.SerializeToString()

    def _forget(self, reference: weakref.ref[nn.Module]) -> None:
        if self._made is not None and self._made[0] is reference:
            self._made = None


_last = _Last()
_lock = threading.Lock()  # torch's exporter cannot run in several threads at once


@default_modes()
def network_model(network: Network, size: tuple[int, int] | None) -> ModelProto:
    """Return the ONNX model of a network: layer maps of normalised images.

    Parameters
    ----------
    network : Network
        The network, on the CPU and in float32.
    size : (int, int) or None
        Height and width of all images in pixels. None exports a graph for images of any size.

    Returns
    -------
    ModelProto
        Model with the input (n_images, 3, height, width) and one output of shape (n_images, n_channels, grid_height,
        grid_width) per layer.

    Raises
    ------
    ExportError
        If the network cannot be exported.
    """
    with _lock:
        known = _last.get(network, size)
        if known is None:
            known = _exported(network, size)
            _last.keep(network, size, known)
    return known


def _exported(network: Network, size: tuple[int, int] | None) -> ModelProto:
    """Return the model of a network from torch's exporter."""
    example = torch.zeros((2, 3, *(size or _EXAMPLE)))
    if size is None and _is_transformer(network, example):
        raise ExportError(
            "the backbone is a transformer, and its windows or positions depend on the size of the image: the size "
            f"must be fixed. {_ADVICE}"
        )
    dynamic: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    if size is None:
        dynamic |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    module, is_changed = _with_fixed_padding(network.module)
    try:
        with _quiet():
            program = torch.onnx.export(
                _LayerMaps(module, network),
                (example,),
                dynamo=True,
                dynamic_shapes=(dynamic,),
                opset_version=OPSET,
                verbose=False,
                external_data=False,
            )
        assert program is not None
        model: ModelProto = onnx.inliner.inline_local_functions(program.model_proto)
    except Exception as error:  # the exporter of torch raises many types of errors
        raise ExportError(_reason(error, size)) from error
    if is_changed:
        _pad_in_convolutions(model)
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in _STANDARD})
    if foreign:
        raise ExportError(f"the backbone needs operators that are not standard: {', '.join(foreign)}.")
    _without_comments(model)
    return model


def _without_comments(model: ModelProto) -> None:
    """Remove the comments of torch's exporter, which contain paths of this machine."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def _reason(error: Exception, size: tuple[int, int] | None) -> str:
    """Return the message for a network that torch cannot export."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    advice = "" if size is not None else f" The network may accept images of one size only. {_ADVICE}"
    return f"the backbone cannot be exported to ONNX.{advice} torch.onnx reports: {first}"


@torch.inference_mode()
def _is_transformer(network: Network, example: torch.Tensor) -> bool:
    """Return whether a network returns tokens, or has its channels last, or takes multiples of a patch."""
    if network.channels_last or network.side_multiple > 1:
        return True
    try:
        return any(network.module(example[:1])[layer].ndim == 3 for layer in network.layers)
    except (RuntimeError, AssertionError):  # the network does not accept this size
        return True


class _LayerMaps(nn.Module):
    """Runs a network and returns its layer maps as a tuple, with the channels in the second axis."""

    def __init__(self, module: nn.Module, network: Network):
        super().__init__()
        self.module, self.network = module, network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.module(x)
        return tuple(self._as_map(outputs[layer], layer, x) for layer in self.network.layers)

    def _as_map(self, output: torch.Tensor, layer: str, x: torch.Tensor) -> torch.Tensor:
        if output.ndim == 3:
            return tokens_to_grid(output, (int(x.shape[2]), int(x.shape[3])), self.network.n_prefix_tokens)
        return output.permute(0, 3, 1, 2) if layer in self.network.channels_last else output


def _padded_everywhere(x: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Stand in for `pad_same` during the export; `_pad_in_convolutions` replaces the padding afterwards."""
    return nn.functional.pad(x, (0, kernel_size, 0, kernel_size))


def _with_fixed_padding(module: nn.Module) -> tuple[nn.Module, bool]:
    """Return a network with a stand-in for TensorFlow's "SAME" padding, and whether the network has such paddings.

    The padding depends on the size of the image. The exporter of torch would write the formula of each padding into the
    graph. This takes a minute, and the formula rounds negative quotients in another way than Python.
    """
    nodes = getattr(getattr(module, "graph", None), "nodes", ())
    if not any(node.target is _efficientnet_lite.pad_same for node in nodes):
        return module, False
    changed: Any = copy.deepcopy(module)
    for node in changed.graph.nodes:
        if node.target is _efficientnet_lite.pad_same:
            node.target = _padded_everywhere
    changed.recompile()
    return changed, True


def _pad_in_convolutions(model: ModelProto) -> None:
    """Replace each stand-in by the padding of the convolution after it: ONNX's SAME_UPPER is TensorFlow's "SAME"."""
    pads = {node.output[0]: node for node in model.graph.node if node.op_type == "Pad"}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        attributes = {attribute.name: attribute for attribute in node.attribute}
        side = attributes["kernel_shape"].ints[0]
        # Torch's exporter may already have moved the padding into the convolution.
        is_merged = "pads" in attributes and list(attributes["pads"].ints) == [0, 0, side, side]
        if not is_merged and node.input[0] not in pads:
            continue
        if not is_merged:
            node.input[0] = pads[node.input[0]].input[0]
        kept = [attribute for name, attribute in attributes.items() if name not in ("pads", "auto_pad")]
        kept.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
        del node.attribute[:]
        node.attribute.extend(kept)
    for node in pads.values():
        model.graph.node.remove(node)
    del model.graph.value_info[:]  # the recorded sizes are those with the other padding


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress messages and the warnings of torch's exporter in the block."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
