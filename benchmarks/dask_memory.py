"""Measure the peak memory of Dask workers during fits whose patch features exceed their memory limit several times.

    python benchmarks/dask_memory.py -o benchmarks/results/dask_memory.md

The images are synthetic (noise with stripes) and are made on the workers, because only their number matters. The
backbone is EfficientNet-Lite0, whose features are pooled to 1,536 channels, as many as those of a WideResNet-50. Images
of 224×224 pixels give 784 patches. The peak is the largest resident memory of a worker process, including all
libraries, looked at ten times per second.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

RATIO, N_WORKERS = 0.001, 2


def made_up(first: int, last: int) -> list[np.ndarray]:
    """Return the synthetic images with the numbers `first` to `last` - 1."""
    images = []
    for i in range(first, last):
        rng = np.random.default_rng(i)
        stripes = np.sin(np.arange(224) * rng.uniform(0.05, 0.5))[:, None, None] * 60
        images.append((128 + stripes + rng.normal(0, 20, (224, 224, 3))).clip(0, 255).astype(np.uint8))
    return images


class Watch(threading.Thread):
    """Thread that records the largest resident memory of processes."""

    def __init__(self, processes: list[int]):
        super().__init__(daemon=True)
        self.peaks, self.is_done = dict.fromkeys(processes, 0), threading.Event()

    def run(self) -> None:
        """Look at the processes until `is_done` is set."""
        page = os.sysconf("SC_PAGE_SIZE")
        while not self.is_done.wait(0.1):
            for process in self.peaks:
                try:
                    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
                except OSError:  # the process has ended
                    continue
                self.peaks[process] = max(self.peaks[process], pages * page)


def main() -> None:
    """Fit with different memory limits and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "dask_memory.md")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--limits", nargs="+", default=["8GB", "1.4GB"])
    options = parser.parse_args()

    import dask
    import dask.bag
    import torch
    from dask.utils import parse_bytes
    from distributed import Client, LocalCluster

    from skpatchcore import GreedyCoresetSampler, TorchFeatureExtractor, __version__
    from skpatchcore.dask import DaskPatchCoreDetector

    extractor = TorchFeatureExtractor("efficientnet_lite0", n_channels=1536, image_size=None, crop_size=None)
    cuts = range(0, options.images, 100)
    lines, banks = [], []
    for limit in options.limits:
        with (
            tempfile.TemporaryDirectory() as name,
            LocalCluster(
                n_workers=N_WORKERS, threads_per_worker=1, memory_limit=limit, dashboard_address=None,
                local_directory=name,
            ) as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            parts = [dask.delayed(made_up)(first, min(first + 100, options.images)) for first in cuts]
            detector = DaskPatchCoreDetector(
                extractor, sampler=GreedyCoresetSampler(RATIO), calibration=None, random_state=0, client=client
            )
            before = client.run(os.getpid)
            watch = Watch(list(before.values()))
            watch.start()
            start = time.perf_counter()
            detector.fit(dask.bag.from_delayed(parts))
            seconds = time.perf_counter() - start
            watch.is_done.set()
            watch.join(10)
            lost = len(set(before.values()) - set(client.run(os.getpid).values()))
        features = options.images * 784 * 1536 * 4
        banks.append(detector.memory_bank_)
        lines.append(
            f"| {limit} | {features / 1e9:.1f} GB, {features / N_WORKERS / parse_bytes(limit):.1f} | "
            + ", ".join(f"**{peak / 1e9:.2f} GB**" for peak in watch.peaks.values())
            + f" | {lost} | {seconds:.0f} | {'yes' if np.array_equal(banks[0], banks[-1]) else '**no**'} |"
        )
        print(lines[-1], flush=True)
    lines = [
        "# Memory of a fit on a Dask cluster",
        "",
        f"{options.images} synthetic images of 224×224 pixels, EfficientNet-Lite0, pooled to 1,536 channels, "
        f"{options.images * 784:,} patches, ratio {RATIO:g}, `calibration=None`. `LocalCluster` with "
        f"{N_WORKERS} workers "
        f"of one thread each, on a machine with {os.cpu_count()} cores, torch "
        f"{torch.__version__.split('+')[0]}, skpatchcore "
        f"{__version__}.",
        "",
        "| memory_limit of a worker | patch features in total, and per worker relative to the limit | "
        "**peak per worker** | workers that were stopped | seconds | same bank as in the first row |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
        "Made by `python benchmarks/dask_memory.py`.",
    ]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
