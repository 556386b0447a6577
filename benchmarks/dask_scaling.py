"""Compare fits on Dask clusters of 1, 2, 4 and 8 workers with fits in one process: results and times.

    python benchmarks/dask_scaling.py PATH/TO/mtd -o benchmarks/results/dask_scaling.md

The training images are the good training images of Magnetic Tile Defects. All workers run on this machine, with one
thread each, so that the times are limited by the cores of the machine. The local fits run in a process of their own
with the given number of threads. The first table has fits from image files. The second table has fits from patch
features that are extracted once and stored in one file per partition, so that many settings can be compared: reading
features takes little time, but everything else is the same as for images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BACKBONE, SIZE, N_PARTITIONS = "efficientnet_lite2", 128, 24
WORKERS = (1, 2, 4, 8)
# Ratio, seed and calibration of the fits from features. Folds repeat the selection up to 43 times.
SETTINGS = (
    (0.001, 0, "auto"),
    (0.001, 1, "leave-one-out"),
    (0.01, 0, "auto"),
    (0.01, 1, "leave-one-out"),
    (0.1, 0, "leave-one-out"),
    (0.1, 1, "leave-one-out"),
)
RESULTS = ("memory_bank_", "bank_image_indices_", "bank_positions_", "calibration_scores_", "offset_", "pixel_offset_")


def parameters(ratio: float, seed: int, calibration: Any, extractor: Any = None) -> dict[str, Any]:
    """Return the parameters of a detector."""
    from skpatchcore import GreedyCoresetSampler, TorchFeatureExtractor

    extractor = extractor or TorchFeatureExtractor(BACKBONE, image_size=SIZE)
    return {
        "extractor": extractor,
        "sampler": GreedyCoresetSampler(ratio),
        "calibration": calibration,
        "random_state": seed,
        "max_memory": None,
    }


def load_grids(file: str) -> list[np.ndarray]:
    """Return the grids of patch features in a file."""
    with np.load(file) as arrays:
        return [arrays[name] for name in arrays]


def fit_locally(job: str) -> None:
    """Fit in this process as described in a JSON file, and save the results."""
    from skpatchcore import PatchCoreDetector, list_images

    description = json.loads(Path(job).read_text(encoding="utf-8"))
    if "files" in description:
        X = [grid for file in description["files"] for grid in load_grids(file)]
        detector = PatchCoreDetector(**parameters(*description["setting"], extractor="precomputed"))
    else:
        X = list_images(Path(description["folder"]))
        detector = PatchCoreDetector(**parameters(*description["setting"]))
        detector.extractor.fit(X).transform(X[:4])  # loads the network before the time is measured
    start = time.perf_counter()
    detector.fit(X)
    seconds = time.perf_counter() - start
    np.savez(description["output"], seconds=seconds, **{name: getattr(detector, name) for name in RESULTS})


def local_fit(folder: Path, description: dict[str, Any], n_threads: int) -> dict[str, np.ndarray]:
    """Fit in a new process with a number of threads; return the results and the seconds."""
    job, output = folder / "job.json", folder / "result.npz"
    job.write_text(json.dumps({**description, "output": str(output)}), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads), "MKL_NUM_THREADS": str(n_threads)}
    subprocess.run([sys.executable, __file__, "--local", str(job)], env=environment, check=True)
    with np.load(output) as found:
        return dict(found)


def differences(detector: Any, local: dict[str, np.ndarray]) -> tuple[bool, float]:
    """Return whether the banks are identical, and the largest difference of calibration scores and thresholds."""
    same = all(np.array_equal(getattr(detector, name), local[name]) for name in RESULTS[:3])
    return same, max(float(np.abs(getattr(detector, name) - local[name]).max()) for name in RESULTS[3:])


def main() -> None:
    """Run all fits and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "dask_scaling.md")
    options = parser.parse_args()

    import dask
    import dask.bag
    import torch
    from distributed import Client, LocalCluster

    from skpatchcore import TorchFeatureExtractor, __version__, list_images
    from skpatchcore.dask import DaskPatchCoreDetector

    folder = options.root / "train" / "good"
    paths = list_images(folder)
    from_files: list[str] = []
    from_features: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        setting = (0.01, 0, "auto")
        description = {"folder": str(folder), "setting": setting}
        known = {n: local_fit(place, description, n) for n in (1, 2)}
        for n, local in known.items():
            from_files.append(f"| local, {n} thread{'s' * (n > 1)} | {float(local['seconds']):.0f} | | | |")
            print(from_files[-1], flush=True)
        files = [str(place / f"{i}.npz") for i in range(N_PARTITIONS)]
        extractor = TorchFeatureExtractor(BACKBONE, image_size=SIZE).fit(paths)
        for file, some in zip(files, np.array_split(np.array(paths), N_PARTITIONS), strict=True):
            np.savez(file, *extractor.transform(some.tolist()))
        shapes = [grid.shape for file in files for grid in load_grids(file)]
        local_fits = {own: local_fit(place, {"files": files, "setting": own}, 1) for own in SETTINGS}
        for n_workers in WORKERS:
            with (
                LocalCluster(
                    n_workers=n_workers, threads_per_worker=1, memory_limit=None, dashboard_address=None,
                    local_directory=name,
                ) as cluster,
                Client(cluster) as client,
            ):  # fmt: skip
                detector = DaskPatchCoreDetector(**parameters(*setting), client=client)
                client.run(_warm, detector.extractor, paths[:4])
                start = time.perf_counter()
                detector.fit(paths)
                seconds = time.perf_counter() - start
                same, largest = differences(detector, known[1])
                report = detector.selection_report_
                from_files.append(
                    f"| {n_workers} worker{'s' * (n_workers > 1)} | {seconds:.0f} | {'yes' if same else '**no**'} | "
                    f"{largest:.1g} | {report.n_shards}, {report.n_rounds}, {report.n_bytes_sent / 1e6:.0f} MB |"
                )
                print(from_files[-1], flush=True)
                for own in SETTINGS:
                    bag = dask.bag.from_delayed([dask.delayed(load_grids)(file) for file in files])
                    detector = DaskPatchCoreDetector(**parameters(*own, extractor="precomputed"), client=client)
                    start = time.perf_counter()
                    detector.fit(bag)
                    seconds = time.perf_counter() - start
                    same, largest = differences(detector, local_fits[own])
                    report, ratio = detector.selection_report_, f"{own[0]:g} | {own[1]} | {own[2]}"
                    from_features.append(
                        f"| {ratio} | {len(detector.memory_bank_):,} | {n_workers} | {'yes' if same else '**no**'} | "
                        f"{largest:.1g} | {report.n_rounds} | {report.n_bytes_sent / 1e6:.0f} MB | {seconds:.0f} | "
                        f"{float(local_fits[own]['seconds']):.0f} |"
                    )
                    print(from_features[-1], flush=True)
    n_patches = sum(height * width for height, width, _ in shapes)
    lines = [
        "# Fits on a Dask cluster",
        "",
        f"{len(paths)} training images of Magnetic Tile Defects, {BACKBONE} at {SIZE} pixels, {n_patches:,} patches of "
        f"{shapes[0][2]} channels. `LocalCluster` with one thread per worker on a machine with {os.cpu_count()} cores, "
        f'torch {torch.__version__.split("+")[0]}, skpatchcore {__version__}. "Same bank" compares the rows of the '
        "memory bank, their images and their positions, bit by bit, with a local fit with one thread. The difference "
        "is the largest one of calibration scores, image threshold and pixel threshold.",
        "",
        'From image files, ratio 0.01, `calibration="auto"`. The network is loaded before the time is measured.',
        "",
        "| fit | seconds | same bank | largest difference | shards, rounds, bytes moved |",
        "|---|---|---|---|---|",
        *from_files,
        "",
        f"From stored patch features in {N_PARTITIONS} partitions, which are the shards. Folds repeat the selection "
        "up to 43 times. Therefore some fits use leave-one-out.",
        "",
        "| ratio | seed | calibration | bank | workers | same bank | largest difference | rounds | bytes moved | "
        "seconds | local, 1 thread |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *sorted(from_features, key=lambda line: line.split("|")[1:4]),
        "",
        "Made by `python benchmarks/dask_scaling.py PATH/TO/mtd`.",
    ]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _warm(extractor: Any, paths: list[str]) -> None:
    """Load the network in a worker."""
    extractor.fit(paths).transform(paths)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--local"]:
        fit_locally(sys.argv[2])
    else:
        main()
