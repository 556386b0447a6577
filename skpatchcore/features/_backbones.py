"""load_network: load a backbone by name, with its layers, its weights and its normalisation.

Networks are kept in a process-wide cache and never in an estimator. Therefore, estimators stay small and can be cloned
and pickled like other scikit-learn estimators.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from skpatchcore._utils.derived import ForkSafeLock
from skpatchcore._utils.modes import default_modes
from skpatchcore.features import _efficientnet_lite as efficientnet_lite
from skpatchcore.features._cut import (
    PROBE_SIDES,
    cut_after,
    cut_by_modules,
    cut_by_torchvision,
    overwritten_layers,
    with_copies,
)
from skpatchcore.features._cut import folded as _folded
from skpatchcore.features._digests import architecture_text, network_fingerprint, weights_digest
from skpatchcore.features._families import default_layers
from skpatchcore.features._named import IMAGENET_MEAN, IMAGENET_STD, embedded, from_torchvision
from skpatchcore.features._timm import IntermediateLayers, cut_timm, from_timm, is_timm, side_multiple_of
from skpatchcore.features._weights import digest_of_weights, load_weights, read_weights, weights_file

_CACHE_SIZE = 4
_cache: OrderedDict[tuple[Any, ...], Network] = OrderedDict()
_cache_lock = ForkSafeLock()


@dataclass(frozen=True)
class Network:
    """A network that ends after the last layer that is needed.

    Attributes
    ----------
    module : nn.Module
        Network in evaluation mode. It maps normalised images of shape (n_images, 3, height, width) to a dictionary of
        layer outputs.
    layers : tuple of str
        Keys of the dictionary, in the requested order.
    mean, std : tuple of 3 floats
        Mean and standard deviation of red, green and blue with which the weights were trained.
    digest : str
        SHA-256 of the weights up to the last layer.
    architecture : str or None
        Text that identifies the computation of the network. This is the name of the backbone, or for a callable a hash
        of the modules and of their source code. None if the source code of a module is not available.
    channels_last : frozenset of str
        Layers with outputs that have the channels as last axis instead of the second, such as those of Swin
        transformers.
    n_parameters : int, default=0
        Number of parameters of `module`.
    n_prefix_tokens : int or None, default=None
        Number of class and register tokens before the patch tokens, in layers that return tokens. None if unknown.
    side_multiple : int, default=1
        The sides of the input must be multiples of this number of pixels.
    """

    module: nn.Module
    layers: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    architecture: str | None
    channels_last: frozenset[str] = frozenset()
    n_parameters: int = 0
    n_prefix_tokens: int | None = None
    side_multiple: int = 1


@default_modes()
def load_network(
    backbone: str | Callable[[], nn.Module],
    weights: str | Path | None,
    layers: Sequence[str] | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Network:
    """Return the network, from the process-wide cache if the cache contains the network.

    The cache identifies networks by content: a weights file by its bytes, a network from a callable by its modules and
    weights. A callable is therefore called each time. The network is prepared again only if the content has changed.

    Parameters
    ----------
    backbone : str or callable
        Name of a torchvision classification model, of an embedded EfficientNet-Lite, or of a network of timm with the
        prefix ``timm/``; or a function without arguments that returns an ``nn.Module``.
    weights : str, path or None
        Weights to load, as in :class:`~skpatchcore.TorchFeatureExtractor`.
    layers : sequence of str or None
        Dotted names of the modules with the outputs to return. None uses the default layers of the backbone's family.
    device : torch.device
        Device on which the network runs.
    dtype : torch.dtype, default=torch.float32
        Type in which the network computes.

    Returns
    -------
    Network
        The prepared network.

    Raises
    ------
    ValueError
        If the name of the backbone, of a layer or of the weights is unknown.
    WeightsError
        If the weights are missing, are unreadable or belong to another network, or a required package is missing.
    """
    file = weights_file(weights)
    chosen = default_layers(backbone) if layers is None else tuple(layers)
    with _cache_lock:
        content = None if file is None else digest_of_weights(file)
        made = backbone if isinstance(backbone, str) else _called(backbone)
        seen = None if isinstance(made, str) else network_fingerprint(made)
        key = (backbone, seen, None if file is not None else weights, content, chosen, str(device), dtype)
        if key not in _cache:
            _cache[key] = _build_network(made, weights, file, chosen, device, dtype)
            if len(_cache) > _CACHE_SIZE:
                _cache.popitem(last=False)
        _cache.move_to_end(key)
        return _cache[key]


def _called(backbone: Callable[[], nn.Module]) -> nn.Module:
    """Call a callable backbone and return its network; random weights are the same in each call."""
    with _own_seed():
        module = backbone()
    if not isinstance(module, nn.Module):
        raise ValueError(f"backbone returned {type(module).__name__}, expected an nn.Module.")
    return module


@contextmanager
def _own_seed() -> Iterator[None]:
    """Seed torch's CPU generator with 0 in the block and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the CUDA generators too
        yield


def _build_network(
    backbone: str | nn.Module,
    weights: str | Path | None,
    file: Path | None,
    layers: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Network:
    """Build a network, load its weights, cut it after the last of `layers` and move it to the device."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    state = None if file is None else read_weights(file)
    named = weights if file is None else None
    with _own_seed():  # layers without pretrained weights get random weights
        if not isinstance(backbone, str):
            module = deepcopy(backbone)  # the user may use and train the original elsewhere
            if named not in (None, "DEFAULT"):
                raise ValueError(f"weights={weights!r}: a callable backbone takes a path, 'DEFAULT' or None.")
        elif backbone in efficientnet_lite.NAMES:
            mean = std = (0.5, 0.5, 0.5)
            module = embedded(backbone, named)
        elif is_timm(backbone):
            module, mean, std = from_timm(backbone, named, file, state)
            state = None  # the weights are loaded
        else:
            module, mean, std = from_torchvision(backbone, named)
    if state is not None and isinstance(module, efficientnet_lite.EfficientNetLite) and "_conv_stem.weight" in state:
        state = dict(efficientnet_lite.rename_weights(state, module))
    # An in-place activation would overwrite the output of the layer before it. That output may be requested.
    for part in module.modules():
        if hasattr(part, "inplace"):
            part.inplace = False  # type: ignore[assignment]
    from_name = isinstance(backbone, str) and is_timm(backbone)
    n_prefix_tokens = getattr(module, "num_prefix_tokens", None) if from_name else None
    side_multiple = side_multiple_of(module) if from_name else 1
    if from_name:
        cut = cut_timm(module.eval(), layers)
    else:
        is_embedded = isinstance(module, efficientnet_lite.EfficientNetLite)
        cut = cut_after(module.eval(), layers, cut_by_modules if is_embedded else cut_by_torchvision)
    if state is not None and file is not None:
        load_weights(cut, state, file)
    # Threads can share the parameters in inference if the parameters require no gradient.
    cut.requires_grad_(False)
    digest = weights_digest(cut)
    architecture = backbone if isinstance(backbone, str) else architecture_text(cut)
    overwritten = frozenset() if isinstance(cut, IntermediateLayers) else frozenset(layers)  # hooks copy all outputs
    if isinstance(cut, fx.GraphModule):
        overwritten = overwritten_layers(cut)
    # Older cache entries may hold overwritten outputs of these layers. Another architecture text leaves them unused.
    if overwritten and architecture is not None:
        architecture = f"{architecture}, with copies of {sorted(overwritten)}"
    if isinstance(cut, fx.GraphModule):
        cut = _folded(with_copies(cut, overwritten) if overwritten else cut)
    # Convolutions are fastest if the channels of a pixel are adjacent in memory.
    cut = cut.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    n_parameters = sum(parameter.numel() for parameter in cut.parameters())
    layouts = _channels_last(cut, layers, device, dtype)
    return Network(cut, layers, mean, std, digest, architecture, layouts, n_parameters, n_prefix_tokens, side_multiple)


@torch.inference_mode()
def _channels_last(
    module: nn.Module, layers: tuple[str, ...], device: torch.device, dtype: torch.dtype
) -> frozenset[str]:
    """Return the layers that have the channels as last axis, found by a forward pass of a square image.

    A square image gives square grids. Therefore, a layer has its channels last if the first two axes of its map are
    equal and the third differs. The size of a user's image would not suffice: for some sizes, both layouts fit.
    """
    found: frozenset[str] = frozenset()
    for side in PROBE_SIDES:
        try:
            outputs = module(torch.zeros(1, 3, side, side, device=device, dtype=dtype))
        except (RuntimeError, AssertionError):  # the image is too small, or the network needs another fixed size
            continue
        shapes = {layer: outputs[layer].shape[1:] for layer in layers if getattr(outputs[layer], "ndim", 0) == 4}
        found = frozenset(layer for layer, (a, b, c) in shapes.items() if a == b != c)
        # A layer with as many channels as rows is ambiguous: the next side decides.
        if all(len(set(shape)) > 1 for shape in shapes.values()):
            break
    return found
