"""Milliseconds for one image, from pixels to score and map, and where they go; beside anomalib, where it is installed.

    python benchmarks/latency.py PATH/TO/mtd -o benchmarks/results/latency.md

WideResNet-50 with random weights at 224×224, a 10 % bank of 16 thousand rows: real images, so that distances have
structure, though not the features of a trained network. anomalib's model (its own random weights) gets the same image
as a tensor, and the same bank.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, list_images
from skpatchcore._utils.progress import record_seconds
from skpatchcore.index._bounds import fastest_dtype


def best_of(function: Callable[[], object], repetitions: int) -> float:
    """Return the shortest time in milliseconds, after two rounds that warm caches up."""
    times = []
    for _ in range(repetitions + 2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[2:]) * 1e3


def anomalib_model(bank: np.ndarray) -> Callable[[torch.Tensor], object] | None:
    """Return anomalib's PatchCore with a bank, None where it is not installed."""
    try:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    except ImportError:
        return None
    model = PatchcoreModel(["layer2", "layer3"], backbone="wide_resnet50_2", pre_trained=False, num_neighbors=9)
    model.memory_bank = torch.from_numpy(bank)
    model.eval()

    def score(tensor: torch.Tensor) -> object:
        with torch.inference_mode():
            return model(tensor)

    return score


def main() -> None:
    """Fit, time, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "latency.md")
    parser.add_argument("--images", type=int, default=209)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()

    def load(path: str) -> np.ndarray:
        return np.asarray(Image.open(path).convert("RGB").resize((224, 224)))

    train = [load(path) for path in list_images(options.root / "train" / "good")[: options.images]]
    tests = [load(path) for path in list_images(options.root / "test" / "crack")[:16]]
    lines = [
        "# One image",
        "",
        f"WideResNet-50 with random weights, 224×224, layers 2 and 3; {os.cpu_count()} CPU cores, torch "
        f"{torch.__version__.split('+')[0]}, skpatchcore {skpatchcore.__version__}; bounds of the search in "
        f"{str(fastest_dtype()).removeprefix('torch.')}. Best of {options.repetitions}, milliseconds an image.",
        "",
        "| | rows of the bank | images a call | score | score and map | of it network | search | maps "
        "| anomalib / ours: score, score and map |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    peer_ms = None
    for dtype in ("float32", "bfloat16"):
        extractor = TorchFeatureExtractor("wide_resnet50_2", weights=None, image_size=None, crop_size=None, dtype=dtype)
        detector = PatchCoreDetector(
            extractor, sampler=GreedyCoresetSampler(0.1), calibration=None, random_state=0
        ).fit(train)
        bank = detector.memory_bank_
        if peer_ms is None:
            peer = anomalib_model(bank)
            if peer is not None:
                tensor = torch.from_numpy(tests[0].transpose(2, 0, 1)[None].astype(np.float32) / 255)
                peer_ms = best_of(lambda: peer(tensor), options.repetitions)  # noqa: B023
                lines.append(f"| anomalib, float32 | {len(bank)} | 1 | - | {peer_ms:.0f} | | | | |")
                print(lines[-1], flush=True)
        for n_images in (1, 16):
            X = tests[:n_images]
            repetitions = options.repetitions if n_images == 1 else 3
            score = best_of(lambda: detector.score_samples(X), repetitions) / n_images  # noqa: B023
            both = best_of(lambda: detector.score_and_segment(X), repetitions) / n_images  # noqa: B023
            with record_seconds() as seconds:
                for _ in range(3):
                    detector.score_and_segment(X)
            split = [f"{seconds[stage] / 3 / n_images * 1e3:.0f}" for stage in ("network", "search", "maps")]
            ratio = f"{peer_ms / score:.1f}×, {peer_ms / both:.1f}×" if peer_ms and n_images == 1 else "-"
            lines.append(
                f"| skpatchcore, {dtype} | {len(bank)} | {n_images} | **{score:.0f}** | **{both:.0f}** "
                f"| {split[0]} | {split[1]} | {split[2]} | {ratio} |"
            )
            print(lines[-1], flush=True)
    lines += ["", "Made by `python benchmarks/latency.py PATH/TO/mtd`.", ""]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
