"""from_timm and cut_timm: networks of the package timm by name, with weights from a file, and without its hub.

timm is an optional dependency. It describes each network: the layers at the end of each stage with their strides, and
the mean and standard deviation of the training. It also renames the tensors of the files that the authors of networks
publish, such as those of DINOv2 and DINOv3. The weights are downloaded only with ``weights="hub"``.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skpatchcore.features._cut import check_layers, cut_after
from skpatchcore.features._weights import WeightsError

_PREFIX = "timm/"
# Arguments with which transformers accept images of any size: their position embeddings are interpolated, or their
# windows are padded. Networks differ in the name of the argument. Some have none and accept one size only.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def is_timm(backbone: str) -> bool:
    """Return whether a name of a backbone is that of a network of timm."""
    return backbone.startswith(_PREFIX)


def patch_side_of(backbone: str) -> int | None:
    """Return the side in pixels of the patches of a transformer of timm, from its name; None if the name has none."""
    found = re.search(r"_patch(\d+)", backbone)
    return int(found[1]) if is_timm(backbone) and found else None


def default_timm_layers(backbone: str) -> tuple[str, str]:
    """Return the default layers of a network of timm.

    These are the last layers with stride 8 and 16. If all layers have the same stride, as in a vision transformer, they
    are the blocks at half and at three quarters of the depth.

    Raises
    ------
    ValueError
        If the name is unknown, or the network has other strides.
    WeightsError
        If timm is not installed.
    """
    stages = _stages(backbone)
    by_stride = {stride: name for name, stride in stages}
    if len(by_stride) == 1 and len(stages) >= 4:
        return stages[len(stages) // 2 - 1][0], stages[3 * len(stages) // 4 - 1][0]
    if {8, 16} <= by_stride.keys():
        return by_stride[8], by_stride[16]
    known = ", ".join(f"{name!r} (stride {stride})" for name, stride in stages)
    raise ValueError(
        f"layers=None: {backbone} has no layers with strides 8 and 16. Name the layers. Its stages are: "
        f"{known or 'unknown'}."
    )


def from_timm(
    backbone: str, weights: str | Path | None, file: Path | None, state: Mapping[str, torch.Tensor] | None
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """Return a network of timm with its weights, and the mean and standard deviation of its training.

    Parameters
    ----------
    backbone : str
        Name of the network, with the prefix ``timm/``.
    weights : str or None
        ``"hub"`` downloads the weights. None gives random weights. Ignored if `state` is given.
    file : Path or None
        File from which `state` was read, for error messages.
    state : mapping or None
        Content of a file of weights, with the names of timm or of the authors of the network.

    Raises
    ------
    ValueError
        If the name of the network or of the weights is unknown.
    WeightsError
        If timm is not installed, or if the weights are missing or belong to another network.
    """
    name = _checked(backbone)
    if state is not None and file is not None:
        module = _with_weights(backbone, name, file, state)
    elif weights is None:
        module = _created(name)
    elif weights == "hub":
        module = _downloaded(backbone, name)
    elif weights == "DEFAULT":
        raise WeightsError(
            f"weights='DEFAULT': the weights of {backbone} are not installed, and they are downloaded on request only. "
            f"Pass weights=PATH with the path of a .pth, .pt or .safetensors file, or weights='hub' to download "
            f"{_source(name)} once. weights=None gives random weights."
        )
    else:
        raise ValueError(f"weights={weights!r}: {backbone} takes a path, 'hub' or None.")
    config = module.pretrained_cfg
    return module, tuple(config["mean"]), tuple(config["std"])


def cut_timm(module: nn.Module, layers: tuple[str, ...]) -> nn.Module:
    """Return a module that returns the outputs of `layers` as a dictionary and ends after the last layer if possible.

    Transformers compute intermediate outputs with a method of timm, which arranges the tokens as maps and drops the
    class and register tokens. Other networks are cut by torch.fx. If this fails, forward hooks collect the outputs.

    Raises
    ------
    ValueError
        If the network has no module with the name of a layer.
    """
    check_layers(module, layers)
    indices = [name for name, _ in _described(module)]
    has_intermediates = hasattr(module, "forward_intermediates") and hasattr(module, "prune_intermediate_layers")
    # torch.fx fixes parts of the computation of transformers that depend on the size of the image.
    if has_intermediates and hasattr(module, "patch_embed") and set(layers) <= set(indices):
        return IntermediateLayers(module, {layer: indices.index(layer) for layer in layers}).eval()
    if hasattr(module, "patch_embed"):
        return cut_after(module, layers, None)
    from timm.models import create_feature_extractor

    return cut_after(module, layers, create_feature_extractor)


def side_multiple_of(module: nn.Module) -> int:
    """Return the number of pixels that must divide the sides of an image: the side of a transformer's patch.

    It is 1 for networks without patches, and for networks that pad the image.
    """
    embedding = getattr(module, "patch_embed", None)
    sides = getattr(embedding, "patch_size", 1)
    if getattr(embedding, "dynamic_img_pad", False):
        return 1
    return int(max(sides)) if isinstance(sides, Sequence) else int(sides)


class IntermediateLayers(nn.Module):
    """Transformer of timm that ends after the last of some blocks and returns their outputs as maps.

    Parameters
    ----------
    module : nn.Module
        Network of timm. The layers after the last one are removed from it.
    indices : dict
        Index of each layer in the order of the network's blocks or stages.
    """

    def __init__(self, module: Any, indices: dict[str, int]):
        super().__init__()
        self.order = sorted(set(indices.values()))
        module.prune_intermediate_layers(self.order, prune_norm=True, prune_head=True)
        self.module, self.indices = module, indices

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the map of each layer, of shape (n_images, n_channels, grid_height, grid_width)."""
        maps = self.module.forward_intermediates(
            x, indices=self.order, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return {layer: maps[self.order.index(index)] for layer, index in self.indices.items()}


def _package() -> Any:
    """Return the module timm, or raise a WeightsError if it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise WeightsError(
            f"backbone: names that begin with 'timm/' need the package timm, which cannot be imported ({error}). "
            "Install it with pip install timm."
        ) from error
    return timm


def _checked(backbone: str) -> str:
    """Return the name that timm knows, or raise a ValueError that suggests similar names."""
    timm = _package()
    name = backbone.removeprefix(_PREFIX)
    architecture, _, tag = name.partition(".")
    if not re.fullmatch(r"\w+", architecture) or not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        advice = f"Did you mean {[_PREFIX + found for found in near]}?" if near else "See timm.list_models()."
        raise ValueError(f"backbone={backbone!r}: timm {timm.__version__} has no such network. {advice}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        known = [f"{_PREFIX}{architecture}.{tag}" for tag in tags]
        raise ValueError(f"backbone={backbone!r}: timm {timm.__version__} has no weights of this name, but {known}.")
    return name


def _created(name: str, **given: Any) -> Any:
    """Return a network that accepts images of any size, if its class allows this."""
    timm = _package()
    for options in _ANY_SIZE:
        try:
            return timm.create_model(name, **options, **given)
        except TypeError as error:
            if not options or "unexpected keyword argument" not in str(error):
                raise
    raise AssertionError("the last options are empty")


def _with_weights(backbone: str, name: str, file: Path, state: Mapping[str, torch.Tensor]) -> Any:
    """Return a network with the weights of a file, loaded strictly: each tensor must be used, and none may be missing.

    A classifier may have another number of classes than that of the published weights, or be missing.
    """
    config = _package().get_pretrained_cfg(name)
    classifier = config.classifier if isinstance(config.classifier, str) else None
    _check_biases(backbone, name, file, state)
    # First as published; then with the number of classes in the file.
    counts = [config.num_classes, len(state.get(f"{classifier}.weight", ()))]
    problems = []
    for n_classes in counts[: 1 if classifier is None or counts[0] == counts[1] else 2]:
        overlay = {"state_dict": dict(state), "num_classes": n_classes}
        try:
            with redirect_stdout(io.StringIO()):  # timm prints the names of tensors that DINOv3 networks do not use
                module = _created(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=n_classes)
        except (RuntimeError, KeyError, ValueError, AttributeError, IndexError) as error:
            problems.append(error)
            continue
        module.pretrained_cfg["state_dict"] = None  # the tensors have been copied into the network
        _check_patches(backbone, module, file, state)
        return module
    text = " ".join(str(problems[-1]).split())
    raise WeightsError(
        f"weights: {str(file)!r} does not fit {backbone}. Use weights of the same architecture, with the names of timm "
        f"or of the authors of the network. timm reports: {text[:500]}{'…' if len(text) > 500 else ''}"
    ) from problems[-1]


def _check_patches(backbone: str, module: Any, file: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raise a WeightsError if the patches of the file have another size: timm would resize their weights."""
    name = "patch_embed.proj.weight"
    if name in state and state[name].ndim == 4 and hasattr(module, "patch_embed"):
        found, expected = (tuple(weight.shape[2:]) for weight in (state[name], module.get_parameter(name)))
        if found != expected:
            raise WeightsError(
                f"weights: the patches in {str(file)!r} have {found[0]}×{found[1]} pixels, and those of {backbone} "
                f"{expected[0]}×{expected[1]}. Use weights of the same architecture."
            )


def _check_biases(backbone: str, name: str, file: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raise a WeightsError if a DINOv3 file has biases of queries or values that the network would ignore.

    timm has two networks per architecture: with these biases, and without them for files in which they are zero.
    """
    if "storage_tokens" not in state or name.partition(".")[0].endswith("_qkvb"):
        return
    for key, value in state.items():
        if key.endswith("attn.qkv.bias"):
            queries, _, values = value.chunk(3)
            if queries.any() or values.any():
                architecture = name.partition(".")[0]
                raise WeightsError(
                    f"weights: {key!r} in {str(file)!r} is not zero, and {backbone} has no such bias. Use "
                    f"backbone='{_PREFIX}{architecture}_qkvb'."
                )


def _downloaded(backbone: str, name: str) -> Any:
    """Return a network with the weights that timm downloads once, or takes from its folder of downloads."""
    try:
        with redirect_stdout(io.StringIO()):
            return _created(name, pretrained=True)
    except Exception as error:  # no connection, a proxy error, a licence that was not accepted, or no such weights
        raise WeightsError(
            f"weights='hub': the weights of {backbone} are not on this machine and cannot be downloaded ({error}). "
            f"Pass weights=PATH with the path of a copy of {_source(name)}."
        ) from error


def _source(name: str) -> str:
    """Return where the weights of a network are published."""
    config = _package().get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        return "its weights"
    return str(f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url)


@lru_cache(maxsize=32)
def _stages(backbone: str) -> tuple[tuple[str, int], ...]:
    """Return the name and the stride of the last layer of each stage of a network, without computing its weights."""
    name = _checked(backbone)
    try:
        with torch.device("meta"):
            module = _created(name)
    except (RuntimeError, NotImplementedError):  # the network computes with values while it is built
        with torch.random.fork_rng(devices=[]):
            module = _created(name)
    return _described(module)


def _described(module: Any) -> tuple[tuple[str, int], ...]:
    """Return the name and the stride of the last layer of each stage of a network of timm."""
    found = getattr(module, "feature_info", ())
    return tuple((stage["module"], int(stage["reduction"])) for stage in getattr(found, "info", found))
