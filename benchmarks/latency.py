"""Measure the latency of one image, from pixels to score and anomaly map, stage by stage, and compare with anomalib.

    python benchmarks/latency.py PATH/TO/mtd -o benchmarks/results/latency.md

The backbone is WideResNet-50 with random weights at 224×224 pixels. The memory bank holds 10 % of the patches, about
16 thousand rows. The images are real, so that distances have structure, but the network is not trained. anomalib's
model, with its own random weights, gets the same image as a tensor and the same memory bank. anomalib is left out if
it is not installed.
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
from skpatchcore.index._speeds import measured_speeds


def best_of(function: Callable[[], object], repetitions: int) -> float:
    """Return the shortest time of several calls in milliseconds, after two warm-up calls."""
    times = []
    for _ in range(repetitions + 2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[2:]) * 1e3


def anomalib_model(bank: np.ndarray) -> Callable[[torch.Tensor], object] | None:
    """Return a function that scores a tensor with anomalib's PatchCore and a bank; None without anomalib."""
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
    """Fit, time each call, and write the table."""
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
        "# Latency of one image",
        "",
        "The backbone is WideResNet-50 with random weights, layers 2 and 3, on images of 224×224 pixels. "
        f"{os.cpu_count()} CPU cores, torch {torch.__version__.split('+')[0]}, skpatchcore {skpatchcore.__version__}. "
        f"The exact search computes its bounds in {str(measured_speeds().fastest).removeprefix('torch.')}. All times "
        "are milliseconds per image. The times for score, and for score and map, are the best of "
        f"{options.repetitions} calls (with 16 images per call, the best of 3). The times of the stages are means of 3 "
        "calls for score and map.",
        "",
        "| program | rows of the bank | images per call | score | score and map | stage: network | stage: search "
        "| stage: maps | anomalib / skpatchcore: score, score and map |",
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
