"""Measure the peak resident memory of fits with different values of `max_memory`, and compare the coresets.

    python benchmarks/memory.py -o benchmarks/results/memory.md

Each fit runs in a separate process. The images are synthetic (noise with stripes) and are made when they are read,
because only their number matters. The backbone is ResNet-50 with random weights. Its layers 2 and 3 have 1,536
channels. Images of 224×224 pixels give 784 patches per image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CHILD = "--child"


class MadeUpImages(Sequence):
    """Sequence of synthetic images of 224×224 pixels. An image is made when it is indexed."""

    def __init__(self, n_images: int):
        self.n_images = n_images

    def __len__(self) -> int:
        return self.n_images

    def __getitem__(self, i):
        import numpy as np

        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(self.n_images))]
        if not 0 <= i < self.n_images:
            raise IndexError(i)
        rng = np.random.default_rng(i)
        stripes = np.sin(np.arange(224) * rng.uniform(0.05, 0.5))[:, None, None] * 60
        return (128 + stripes + rng.normal(0, 20, (224, 224, 3))).clip(0, 255).astype(np.uint8)


def resident() -> int:
    """Return the current resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fit(n_images: int, max_memory: str | None, ratio: float, calibration: str | None) -> None:
    """Fit in this process; print memory, times and digests of the coreset as JSON."""
    at_start = resident()
    import resource

    from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor
    from skpatchcore._utils.progress import record_seconds

    detector = PatchCoreDetector(
        TorchFeatureExtractor("resnet50", weights=None, image_size=None, crop_size=None),
        sampler=GreedyCoresetSampler(ratio),
        calibration=calibration,
        max_memory=max_memory,
        random_state=0,
    )
    estimate = detector.estimate_memory(n_images, MadeUpImages(1)[0])
    start = time.perf_counter()
    with record_seconds() as seconds:
        detector.fit(MadeUpImages(n_images))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    picks = (detector.bank_image_indices_.tobytes(), detector.bank_positions_.tobytes())
    print(
        json.dumps(
            {
                "peak": peak - at_start,
                "at once": estimate.at_once,
                "two passes": estimate.two_passes,
                "seconds": time.perf_counter() - start,
                "stages": seconds,
                "picks": hashlib.sha256(b"".join(picks)).hexdigest(),
                "bank": hashlib.sha256(detector.memory_bank_.tobytes()).hexdigest(),
                "radius": float(detector.sampler_.selection_distances_[-1]),
                "n_bank": len(detector.memory_bank_),
            }
        )
    )


def in_a_process(*arguments: object) -> dict:
    """Run `fit` in a fresh process; return what it prints."""
    command = [sys.executable, __file__, CHILD, json.dumps(arguments)]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=7200).stdout.splitlines()[-1]
    )


def main() -> None:
    """Fit with several memory limits and numbers of images, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "memory.md")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--ratio", type=float, default=0.01)
    options = parser.parse_args()
    import torch

    import skpatchcore

    small = options.images // 10
    cases = [
        (small, None, "leave-one-out"),
        (small, "2.2GB", "leave-one-out"),
        (small, "1.9GB", "leave-one-out"),
        (options.images, "4GB", None),
    ]
    lines = [
        "# Memory of a fit",
        "",
        "The backbone is ResNet-50 with random weights, layers 2 and 3 (1,536 channels), on images of 224×224 pixels. "
        f"The coreset ratio is {options.ratio:g}. {os.cpu_count()} CPU cores, torch "
        f"{torch.__version__.split('+')[0]}, skpatchcore {skpatchcore.__version__}. The peak is the highest "
        "resident memory, including libraries, minus the memory of the interpreter at its start. `estimate_memory` "
        "gives the two estimates: for a fit that holds all patches at once, and for a fit in two passes. Equal digests "
        "mean equal rows in the bank. A reserve that does not fit within `max_memory` is not selected, e.g. with 4,000 "
        "images and 4 GB.",
        "",
        "| images | max_memory | calibration | estimates: at once, two passes | **peak** | seconds: network, "
        "selection, calibration | rows of the bank | selected rows (digest) | bank (digest) | covering radius |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for n_images, max_memory, calibration in cases:
        r = in_a_process(n_images, max_memory, options.ratio, calibration)
        s = r["stages"]
        lines.append(
            f"| {n_images} | {max_memory} | {calibration} "
            f"| {r['at once'] / 1e9:.2f} GB, {r['two passes'] / 1e9:.2f} GB "
            f"| **{r['peak'] / 1e9:.2f} GB** | {s['network']:.0f}, {s['selection']:.0f}, {s['calibration']:.0f} "
            f"| {r['n_bank']} | `{r['picks'][:8]}` | `{r['bank'][:8]}` | {r['radius']:.4f} |"
        )
        print(lines[-1], flush=True)
    lines += ["", "Made by `python benchmarks/memory.py`.", ""]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if CHILD in sys.argv:
        fit(*json.loads(sys.argv[-1]))
    else:
        main()
