"""Measure the grid, the channels, the parameters and the time per image of several backbones.

    python benchmarks/backbones.py -o benchmarks/results/backbones.md

All networks have random weights: the results are valid for the sizes and the speed only. Networks of timm are left out
if timm is not installed.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from skpatchcore import TorchFeatureExtractor
from skpatchcore.features._backbones import load_network

BACKBONES = (
    "efficientnet_lite0", "efficientnet_lite2", "resnet18", "wide_resnet50_2",
    "timm/convnext_tiny.dinov3_lvd1689m", "timm/swin_tiny_patch4_window7_224.ms_in1k",
    "timm/vit_small_patch16_dinov3.lvd1689m", "timm/vit_small_patch14_dinov2.lvd142m",
    "timm/vit_small_patch14_reg4_dinov2.lvd142m", "timm/vit_base_patch14_dinov2.lvd142m",
)  # fmt: skip
SIDE = 224
N_RUNS = 15


def row_of(name: str, image: np.ndarray) -> str:
    """Return the row of the table for a backbone."""
    extractor = TorchFeatureExtractor(name, weights=None, image_size=SIDE, device="cpu").fit()
    seconds = []
    for _ in range(N_RUNS + 2):
        begin = time.process_time()
        features = extractor.transform([image])
        seconds.append(time.process_time() - begin)
    network = load_network(name, None, None, torch.device("cpu"))
    layers = ", ".join(f"`{layer}`" for layer in network.layers)
    _, height, width, n_channels = features.shape
    milliseconds = 1000 * float(np.median(seconds[2:]))  # the first runs fill caches
    millions = network.n_parameters / 1e6
    return f"| {name} | {layers} | {height} × {width} | {n_channels:,} | {millions:.1f} | {milliseconds:.0f} |"


def main() -> None:
    """Measure all backbones and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    packages = [package for package in ("torch", "torchvision", "timm") if find_spec(package)]
    names = [name for name in BACKBONES if "timm" in packages or not name.startswith("timm/")]
    rows = []
    for name in names:
        rows.append(row_of(name, image))
        print(rows[-1], flush=True)
    given.output.write_text(
        f"""# Backbones

Made by `benchmarks/backbones.py` with {", ".join(f"{package} {version(package)}" for package in packages)}. Random
weights, default layers, one image of {SIDE} × {SIDE} pixels, float32. The time is CPU time in one thread, and the
median of {N_RUNS} runs. It includes resizing and the average over neighbourhoods. Parameters are those up to the last
layer.

| backbone | layers | grid | channels | million parameters | ms per image |
|---|---|---|---:|---:|---:|
{chr(10).join(rows)}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
