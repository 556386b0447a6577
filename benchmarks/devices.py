"""Compare the time of a fit and of a prediction, stage by stage, on the CPU and on a CUDA device.

    python benchmarks/devices.py -o benchmarks/results/devices.md

The backbone is WideResNet-50 with random weights. The images are crops of scikit-image's textures, 224×224 pixels. The
results are valid for speed only, not for accuracy.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from sklearn.base import clone

import skpatchcore
from skpatchcore import ExactIndex, GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore._utils.progress import record_seconds


def make_images(n_images: int) -> np.ndarray:
    """Return random crops of textures, uint8 of shape (n_images, 224, 224, 3)."""
    rng = np.random.default_rng(0)
    textures = [skimage.data.brick(), skimage.data.grass(), skimage.data.gravel()]
    images = np.empty((n_images, 224, 224, 3), np.uint8)
    for i in range(n_images):
        top, left = rng.integers(0, 512 - 224, 2)
        images[i] = textures[i % 3][top : top + 224, left : left + 224, None]
    return images


def seconds_of(function: Callable[[], object], repetitions: int = 3) -> float:
    """Return the shortest time of several calls in seconds, after one call that fills caches."""
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(device: str, images: np.ndarray) -> dict[str, float]:
    """Return the time of each stage on a device; the name of each value states its unit."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        for batch_size in (4, 32) if device == "cuda" else (4,):
            extractor = TorchFeatureExtractor(
                "wide_resnet50_2", weights=None, image_size=None, crop_size=None, device=device, dtype=dtype,
                batch_size=batch_size,
            )  # fmt: skip
            some = images[:64]
            found[f"network, {dtype}, batches of {batch_size}: ms per image"] = (
                seconds_of(lambda: extractor.transform(some)) / len(some) * 1e3  # noqa: B023
            )
    detector = PatchCoreDetector(
        TorchFeatureExtractor(
            "wide_resnet50_2", weights=None, image_size=None, crop_size=None, device=device,
            batch_size=32 if device == "cuda" else 4,
        ),
        sampler=GreedyCoresetSampler(0.1, device=device),
        index=ExactIndex(device=device),
        random_state=0,
    )  # fmt: skip
    with record_seconds() as seconds:
        start = time.perf_counter()
        detector.fit(images)
        whole = time.perf_counter() - start
    for stage in ("network", "selection", "calibration"):
        found[f"fit, {stage}: s"] = seconds[stage]
    found["fit, total: s"] = whole
    for n in (1, 32):
        X = images[:n]
        found[f"score, {n} per call: ms per image"] = seconds_of(lambda: detector.score_samples(X), 10) / n * 1e3  # noqa: B023
        found[f"score and map, {n} per call: ms per image"] = (
            seconds_of(lambda: detector.score_and_segment(X), 10) / n * 1e3  # noqa: B023
        )
    if device == "cuda":
        found |= measure_targets(images, detector)
    queries = detector.extractor_.transform(images[:1]).reshape(-1, detector.memory_bank_.shape[1])
    found["search, 784 patches, 1 neighbour: ms"] = seconds_of(lambda: detector.index_.kneighbors(queries, 1), 10) * 1e3
    print(device, found, flush=True)
    return found


def measure_targets(images: np.ndarray, detector: PatchCoreDetector) -> dict[str, float]:
    """Return the values of the targets for a GPU: selections, image files, and the network alone."""
    found = {}
    rng = np.random.default_rng(0)
    for n_rows, n_selected in ((163_856, 16_386), (1_000_000, 10_000)):
        rows = rng.standard_normal((n_rows, 128)).astype(np.float32)
        sampler = GreedyCoresetSampler(n_selected, device="cuda", random_state=0)
        found[f"selection, {n_selected} of {n_rows} rows × 128: s"] = seconds_of(lambda: sampler.fit(rows), 1)  # noqa: B023
        if n_rows < 500_000:  # the selection on the CPU takes minutes otherwise
            on_cpu = clone(sampler).set_params(device="cpu").fit(rows)
            radii = sampler.covering_radius_ / on_cpu.covering_radius_
            found[f"selection, {n_selected} of {n_rows} rows × 128: covering radius, GPU / CPU"] = radii
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{i}.png" for i in range(64)]
        for path, image in zip(paths, images, strict=False):
            Image.fromarray(image).save(path)
        network = seconds_of(lambda: detector.extractor_.transform(images[:64])) / 64
        scored = seconds_of(lambda: detector.score_and_segment(paths)) / 64
    found["score and map, 64 PNG files, batches of 32: ms per image"] = scored * 1e3
    found["score and map, 64 PNG files, batches of 32, relative to the network alone"] = scored / network
    return found


def main() -> None:
    """Measure all stages on each device and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "devices.md")
    parser.add_argument("--images", type=int, default=209)
    options = parser.parse_args()
    images = make_images(options.images)
    names = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    found = {name: measure(name, images) for name in names}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    lines = [
        "# CPU and GPU",
        "",
        f"The backbone is WideResNet-50 with random weights. {options.images} images of 224×224 pixels give "
        f"{options.images * 784} patches with 1536 channels. The memory bank holds 10 % of the patches. "
        f"{os.cpu_count()} CPU cores, {gpu}, torch {torch.__version__.split('+')[0]}, skpatchcore "
        f"{skpatchcore.__version__}. Each time is the shortest of several calls after a warm-up call. A fit is timed "
        "once.",
        "",
        "| stage | CPU | GPU | CPU / GPU |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(key for values in found.values() for key in values):
        cells = [found.get(device, {}).get(name, float("nan")) for device in ("cpu", "cuda")]
        texts = ["-" if np.isnan(cell) else f"{cell:.3g}" for cell in cells]
        ratio = "-" if np.isnan(cells).any() else f"{cells[0] / cells[1]:.1f}×"
        lines.append(f"| {name} | {texts[0]} | {texts[1]} | {ratio} |")
    lines += ["", "Made by `python benchmarks/devices.py`.", ""]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
