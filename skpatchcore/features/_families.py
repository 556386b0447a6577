"""default_layers: the layers of each family of backbones that are used if none are named, and the backbones' names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from torch import nn

from skpatchcore.features import _efficientnet_lite as efficientnet_lite
from skpatchcore.features._timm import default_timm_layers, is_timm, patch_side_of
from skpatchcore.images.views import ROUNDED_TO

# Default layers per family of torchvision models: the layers at stride 8 and 16, like layer2 and layer3 of a ResNet.
# The first pattern that matches the name is used. The names of timm need no table, because timm describes the stride of
# each stage.
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


def default_layers(backbone: str | Callable[[], nn.Module]) -> tuple[str, ...]:
    """Return the names of the default layers of a backbone: the layers at stride 8 and 16, as in the paper.

    All layers of a vision transformer (``vit_...``) have the same stride: the layers at half and at three quarters of
    the depth are the default. A callable is assumed to return a network with the layer names of a ResNet.

    Raises
    ------
    ValueError
        If the name of the backbone is unknown, or its family has no default layers.
    WeightsError
        If the backbone is a network of timm, and timm is not installed.
    """
    if not isinstance(backbone, str):
        return "layer2", "layer3"
    if is_timm(backbone):
        return default_timm_layers(backbone)
    check_name(backbone)
    for pattern, layers in _DEFAULT_LAYERS:
        if re.match(pattern, backbone):
            return layers
    raise ValueError(f"layers=None: the family of backbone={backbone!r} has no default layers. Name the layers.")


def backbone_names() -> list[str]:
    """Return the names of the embedded backbones and of torchvision's classification models."""
    import torchvision

    return [*efficientnet_lite.NAMES, *torchvision.models.list_models(module=torchvision.models)]


def check_name(name: str) -> None:
    """Raise a ValueError that suggests similar names if neither an embedded nor a torchvision model has this name."""
    if name in efficientnet_lite.NAMES:  # importing torchvision takes as long as importing torch
        return
    names = backbone_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or ["wide_resnet50_2", "efficientnet_lite2"]
        raise ValueError(
            f"backbone={name!r} is neither embedded nor a torchvision model. Did you mean {near}? Names of timm begin "
            "with 'timm/'."
        )


def sides_rounded_to(backbone: str | Callable[[], nn.Module]) -> int:
    """Return the number of pixels to whose multiple the difference of the sides of a resized image is rounded.

    The number is 16, or the side of a patch for a transformer of timm whose patch size does not divide 16, e.g. 14. The
    longer side is then a multiple of the patch size if the shorter side is one.
    """
    side = patch_side_of(backbone) if isinstance(backbone, str) else None
    return ROUNDED_TO if side is None or ROUNDED_TO % side == 0 else side
