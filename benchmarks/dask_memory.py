"""Measure the peak memory of Dask's workers in a fit whose patch features exceed their memory limit several times.

    python benchmarks/dask_memory.py -o benchmarks/results/dask_memory.md

The images are synthetic (noise with stripes) and are made on the workers, because only their number matters. The
features have 1,392 channels (efficientnet_lite0 with random weights). Images of 224×224 pixels give 784 patches. The
same fit runs with a small and with a large memory limit of the workers. The kernel records the peak of each process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import dask.bag
import distributed
import numpy as np
import torch
from dask.utils import parse_bytes

import skpatchcore
from skpatchcore import GreedyCoresetSampler, TorchFeatureExtractor
from skpatchcore.dask import DaskPatchCoreDetector

LAYERS = ("stage3.1.expand", "stage4.1.expand", "stage5.1.expand")
N_PATCHES, N_CHANNELS = 784, 1392


def make_image(number: int) -> np.ndarray:
    """Return a synthetic image of 224×224 pixels. This function runs on a worker."""
    rng = np.random.default_rng(number)
    stripes = np.sin(np.arange(224) * rng.uniform(0.05, 0.5))[:, None, None] * 60
    return (128 + stripes + rng.normal(0, 20, (224, 224, 3))).clip(0, 255).astype(np.uint8)


def peak() -> tuple[int, int]:
    """Return the number of this process and its peak resident memory in bytes. This function runs on a worker."""
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fit(options: argparse.Namespace, limit: str) -> dict[str, Any]:
    """Fit on a new cluster whose workers have a memory limit, and return what was measured."""
    images = dask.bag.from_sequence(range(options.images), partition_size=options.partition).map(make_image)
    with (
        tempfile.TemporaryDirectory() as folder,
        distributed.LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            memory_limit=limit,
            dashboard_address=":0",
            local_directory=folder,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(options.workers, timeout=300)
        before = client.run(peak)
        detector = DaskPatchCoreDetector(
            TorchFeatureExtractor("efficientnet_lite0", weights=None, layers=LAYERS, image_size=None, crop_size=None),
            sampler=GreedyCoresetSampler(options.ratio),
            calibration=options.calibration,
            random_state=0,
            client=client,
        )
        start = time.perf_counter()
        detector.fit(images)
        seconds = time.perf_counter() - start
        after = client.run(peak)
    same = {pid for pid, _ in before.values()} & {pid for pid, _ in after.values()}
    return {
        "limit": parse_bytes(limit),
        "seconds": seconds,
        "before": sorted(n_bytes for _, n_bytes in before.values()),
        "peaks": sorted(n_bytes for _, n_bytes in after.values()),
        "n_lost": options.workers - len(same),  # Dask ends a worker that exceeds its limit, and starts another one
        "bank": hashlib.sha256(detector.memory_bank_.tobytes()).hexdigest(),
        "n_bank": len(detector.memory_bank_),
        "parts": len(detector.shard_sizes_),
    }


def main() -> None:
    """Fit with all limits, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "dask_memory.md")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--partition", type=int, default=64, help="number of images per partition")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limits", nargs="+", default=["1.5GB", "9GB"])
    parser.add_argument("--ratio", type=float, default=0.001)
    parser.add_argument("--calibration", type=int, default=None, help="number of folds (default: no calibration)")
    options = parser.parse_args()
    n_bytes = options.images * N_PATCHES * N_CHANNELS * 4 / options.workers
    lines = [
        "# Memory of the workers of a Dask cluster",
        "",
        f"{options.images} synthetic images of 224×224 pixels, {N_PATCHES} patches each, {N_CHANNELS} channels "
        f"(efficientnet_lite0 with random weights, expanded outputs), ratio {options.ratio:g}, "
        f"{'no calibration' if options.calibration is None else f'{options.calibration} folds'}. LocalCluster with "
        f"{options.workers} workers of one thread on {os.cpu_count()} CPU cores, torch "
        f"{torch.__version__.split('+')[0]}, distributed {distributed.__version__}, skpatchcore "
        f"{skpatchcore.__version__}. *Limit*: `memory_limit` of each worker. *Features*: the patch features of one "
        "worker's part of the images. *Peak*: highest resident memory of each worker process, including libraries. "
        "*Start*: the same before the fit. *Lost*: workers that Dask ended because of their memory. Equal digests mean "
        "equal banks.",
        "",
        "| limit | features of one worker | features / limit | start | **peak of each worker** | lost | parts "
        "| seconds | rows of the bank | bank (digest) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for limit in options.limits:
        r = fit(options, limit)
        lines.append(
            f"| {r['limit'] / 1e9:.2f} GB | {n_bytes / 1e9:.2f} GB | {n_bytes / r['limit']:.1f} "
            f"| {max(r['before']) / 1e9:.2f} GB | **{', '.join(f'{p / 1e9:.2f} GB' for p in r['peaks'])}** "
            f"| {r['n_lost']} | {r['parts']} | {r['seconds']:.0f} | {r['n_bank']} | `{r['bank'][:8]}` |"
        )
        print(lines[-1], flush=True)
    lines += ["", "Made by `python benchmarks/dask_memory.py`.", ""]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
