"""cut_after: cut a network after the last layer that is needed, so that it returns the outputs of the layers.

:func:`overwritten_layers` and :func:`with_copies` protect outputs that later operations overwrite in place.
:func:`folded` merges batch normalisations into convolutions.
"""

from __future__ import annotations

import difflib
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Sides in pixels of the square test images that are passed through a network to examine its layer maps. The small image
# is fast. Some networks only accept 224, the size with which most networks are trained.
PROBE_SIDES = (96, 224)


def cut_by_torchvision(module: nn.Module, layers: list[str]) -> nn.Module:
    """Cut a network with the tracer of torchvision."""
    from torchvision.models.feature_extraction import create_feature_extractor

    cut: nn.Module = create_feature_extractor(module, return_nodes=layers)
    return cut


class _NamingTracer(fx.Tracer):
    """Tracer that records the node with the output of each module."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[self.path_of_module(m)] = output.node
        return output


def cut_by_modules(module: nn.Module, layers: list[str]) -> nn.Module:
    """Cut a network in which each layer is a module that is called once and returns one tensor.

    The result is that of torchvision's tracer, which accepts more networks. This function imports no other package, so
    that the embedded networks are ready without the import of torchvision, which takes as long as that of torch.
    """
    tracer = _NamingTracer()
    graph = tracer.trace(module)
    graph.erase_node(_output_of(graph))
    graph.output({layer: tracer.outputs[layer] for layer in layers})
    cut = fx.GraphModule(module, graph, type(module).__name__)
    cut.graph.eliminate_dead_code()
    cut.delete_all_unused_submodules()
    cut.recompile()
    return cut.eval()


def cut_after(
    module: nn.Module, layers: tuple[str, ...], tracer: Callable[..., nn.Module] | None = cut_by_torchvision
) -> nn.Module:
    """Return a module that returns the outputs of `layers` as a dictionary and computes nothing after the last layer.

    A network that torch.fx cannot trace is not cut: forward hooks collect the outputs and the whole network runs.

    Parameters
    ----------
    module : nn.Module
        Network in evaluation mode.
    layers : tuple of str
        Dotted names of the modules with the outputs to return.
    tracer : callable or None
        Function of the network and of a list of names that cuts the network with torch.fx. None does not cut it.

    Raises
    ------
    ValueError
        If the network has no module with the name of a layer.
    """
    check_layers(module, layers)
    try:
        if tracer is not None:
            return tracer(module, list(layers))
    except Exception:  # torch.fx cannot trace every network, and fails with many types of errors: use hooks
        pass
    # A failed attempt has left the network in training mode, in which batch normalisation depends on the batch.
    return _HookedLayers(module, layers).eval()


def check_layers(module: nn.Module, layers: tuple[str, ...]) -> None:
    """Raise a ValueError that suggests similar names if the network has no module with the name of a layer."""
    names = [name for name, _ in module.named_modules() if name]
    for layer in layers:
        if layer not in names:
            near = difflib.get_close_matches(layer, names, n=3) or [name for name, _ in module.named_children()]
            raise ValueError(f"layers: the backbone has no {layer!r}. Did you mean {near}?")


def _output_of(graph: fx.Graph) -> fx.Node:
    """Return the output node of a graph."""
    output: fx.Node = next(node for node in graph.nodes if node.op == "output")
    return output


@torch.no_grad()
def overwritten_layers(traced: fx.GraphModule) -> frozenset[str]:
    """Return the layers with outputs that later operations overwrite in place.

    Such operations are e.g. ``F.relu(x, inplace=True)`` and ``x += y``. The outputs of these layers must be copied. The
    layers are found by a forward pass of a random image. If the network accepts no such image, all layers are returned.
    """
    outputs: dict[str, fx.Node] = dict(_output_of(traced.graph).args[0])  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for side in PROBE_SIDES:
        watcher = _Watcher(traced, set(outputs.values()))
        try:
            watcher.run(torch.randn((1, 3, side, side), generator=generator))
        except Exception:  # the image is too small, the network needs another fixed size, or a user's network fails
            continue
        return frozenset(layer for layer, node in outputs.items() if node in watcher.changed())
    return frozenset(outputs)


class _Watcher(fx.Interpreter):
    """Runs a graph and records the results of some nodes."""

    def __init__(self, module: fx.GraphModule, watched: set[fx.Node]):
        super().__init__(module)
        self._watched = watched
        self._seen: dict[fx.Node, tuple[torch.Tensor, int, torch.Tensor]] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node in self._watched and isinstance(result, torch.Tensor):
            self._seen[node] = result, result._version, result.clone()
        return result

    def changed(self) -> set[fx.Node]:
        """Return the nodes with results that were overwritten later."""
        return {
            node
            for node, (result, version, before) in self._seen.items()
            if result._version != version or not torch.equal(result, before)
        }


def with_copies(traced: fx.GraphModule, layers: frozenset[str]) -> fx.GraphModule:
    """Return a network that copies the outputs of some layers before later operations can overwrite them."""
    module = fx.GraphModule(traced, traced.graph)
    output = _output_of(module.graph)
    outputs: Any = dict(output.args[0])  # type: ignore[arg-type]
    for layer in layers:
        with module.graph.inserting_after(outputs[layer]):
            outputs[layer] = module.graph.call_function(copied, (outputs[layer],))
    output.args = (outputs,)
    module.recompile()
    return module.eval()


def copied(output: Any) -> Any:
    """Return a copy of a tensor; return other objects unchanged."""
    return output.clone() if isinstance(output, torch.Tensor) else output


def folded(traced: fx.GraphModule) -> fx.GraphModule:
    """Merge each batch normalisation into the convolution before it, if nothing else uses the convolution's output.

    In evaluation mode, a batch normalisation is a linear map per channel. Its factors can be multiplied into the
    weights of the convolution, which saves one pass over the map.
    """
    module = fx.GraphModule(
        traced, traced.graph
    )  # torchvision traces one graph for training and one for evaluation: this is the one for evaluation
    modules = dict(module.named_modules())
    calls = Counter(node.target for node in module.graph.nodes if node.op == "call_module")
    for node in list(module.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) is not nn.BatchNorm2d:
            continue
        before = node.args[0]
        if before.op != "call_module" or type(modules[before.target]) is not nn.Conv2d:
            continue
        # Skip a convolution with an output that is also used elsewhere, or a module that is called several times.
        if len(before.users) > 1 or calls[before.target] > 1:
            continue
        convolution = fuse_conv_bn_eval(modules[before.target], modules[node.target])
        module.set_submodule(before.target, convolution)
        modules[before.target] = convolution
        node.replace_all_uses_with(before)
        module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()
    return module.eval().requires_grad_(False)


class _HookedLayers(nn.Module):
    """Collects the outputs of layers by forward hooks, for networks that torch.fx cannot trace.

    The whole network runs, also the part after the last layer.
    """

    def __init__(self, module: nn.Module, layers: tuple[str, ...]):
        super().__init__()
        self.module, self.layers = module, layers
        self._seen = threading.local()  # threads share the network, but each thread has its own outputs
        for layer in layers:
            module.get_submodule(layer).register_forward_hook(self._keeper(layer))

    def _keeper(self, layer: str) -> Callable[..., None]:
        """Return a forward hook that stores the output of a layer."""

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            # A copy: a later in-place operation could overwrite the output.
            self._seen.outputs[layer] = copied(output)

        return keep

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return self.module.load_state_dict(state, *args, **kwargs)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self._seen.outputs = {}
        self.module(x)
        unused = [layer for layer in self.layers if layer not in self._seen.outputs]
        if unused:
            raise ValueError(f"layers: the backbone has {unused}, but its forward pass does not run them. Remove them.")
        return {layer: self._seen.outputs[layer] for layer in self.layers}
