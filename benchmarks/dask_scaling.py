"""Compare fits on a Dask cluster with 1, 2, 4 and 8 worker processes with a fit in one process.

    python benchmarks/dask_scaling.py PATH/TO/mtd -o benchmarks/results/dask_scaling.md

Every process uses one thread: the worker processes of a LocalCluster, and this process, in which the local fits run.

Fits from image files: for each number of workers, one fit reads the files and runs the network on the workers. Its
bank, thresholds and scores of test images are compared with those of a local fit from the same files.

Fits from features: the patch features of all images are extracted once in this process and stored in a file. For each
number of workers, ratio and seed, a fit on the cluster reads its part of the file on each worker. It is compared with a
local fit from the same file. The time of such a fit contains no network.

The overhead is measured from image files, in turns: a local fit with one thread, a local fit with all threads in a
process of its own, and a fit on two workers with one thread each. The start of the cluster is not included in any time.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are imported

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np
import torch

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, list_images
from skpatchcore.dask import DaskPatchCoreDetector

CHILD = "--child"
# Fitted attributes that must be equal, and attributes that must agree within 1e-6.
EQUAL = ("bank_image_indices_", "bank_positions_", "memory_bank_")
CLOSE = ("offset_", "pixel_offset_", "calibration_scores_", "calibration_peaks_")


def detector_of(options: argparse.Namespace, extractor: Any, ratio: float, seed: int) -> PatchCoreDetector:
    """Return an unfitted detector."""
    sampler = GreedyCoresetSampler(ratio)
    return PatchCoreDetector(extractor, sampler=sampler, calibration=options.calibration, random_state=seed)


def extractor_of(options: argparse.Namespace) -> TorchFeatureExtractor:
    """Return the extractor of all fits from image files."""
    return TorchFeatureExtractor(options.backbone, image_size=(options.size, options.size), crop_size=None)


def on_cluster(detector: PatchCoreDetector, client: Any) -> DaskPatchCoreDetector:
    """Return an unfitted detector for the cluster with the same parameters."""
    return DaskPatchCoreDetector(**detector.get_params(deep=False), client=client)


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    """Return the time of a call in seconds, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def block_of(file: str, start: int, stop: int) -> np.ndarray:
    """Read the features of some images. This function runs on a worker."""
    return np.array(np.load(file, mmap_mode="r")[start:stop])


def features_in(file: str, shape: tuple[int, ...], n_blocks: int) -> da.Array:
    """Return a dask array of the features in a file. The workers read their blocks."""
    cuts = np.linspace(0, shape[0], n_blocks + 1).astype(int).tolist()
    read = dask.delayed(block_of)
    blocks = [
        da.from_delayed(read(file, start, stop), (stop - start, *shape[1:]), np.float32)
        for start, stop in pairwise(cuts)
    ]
    return da.concatenate(blocks)


def cluster_of(n_workers: int, folder: str) -> distributed.LocalCluster:
    """Start worker processes with one thread each."""
    return distributed.LocalCluster(
        n_workers=n_workers, threads_per_worker=1, dashboard_address=":0", local_directory=folder
    )


def compare(found: Any, local: PatchCoreDetector, scores: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Return whether the banks are identical, and the largest differences of thresholds and of scores."""
    thresholds = [np.max(np.abs(np.asarray(getattr(found, n)) - getattr(local, n)), initial=0) for n in CLOSE]
    return {
        "identical": all(np.array_equal(getattr(found, name), getattr(local, name)) for name in EQUAL),
        "thresholds": float(max(thresholds)),
        "scores": float(np.max(np.abs(scores - expected))),
        "rounds": found.selection_report_.n_rounds,
        "rows": len(local.memory_bank_),
        "shards": len(found.shard_sizes_),
    }


def line_of(n_workers: int, source: str, ratio: float, seed: int, r: dict[str, Any]) -> str:
    """Return a line of the table of fits."""
    return (
        f"| {n_workers} | {source} | {ratio:g} | {seed} | {r['rows']} | {'yes' if r['identical'] else '**NO**'} "
        f"| {r['thresholds']:.1e} | {r['scores']:.1e} | {r['shards']} | {r['rounds']} | {r['local']:.1f} "
        f"| {r['cluster']:.1f} |"
    )


def compare_fits(options: argparse.Namespace, train: list[str], test: list[str], folder: Path) -> list[str]:
    """Run all fits, and return the lines of the table."""
    extractor = extractor_of(options)
    files = {name: str(folder / f"{name}.npy") for name in ("train", "test")}
    for name, paths in (("train", train), ("test", test)):
        np.save(files[name], extractor.transform(paths))
    features, new = (np.load(files[name], mmap_mode="r") for name in ("train", "test"))

    def local_fit(of: Any, ratio: float, seed: int, X: Any, X_new: Any) -> tuple[float, PatchCoreDetector, np.ndarray]:
        seconds, fitted = timed(detector_of(options, of, ratio, seed).fit, X)
        return seconds, fitted, fitted.score_samples(X_new)

    settings = [(ratio, seed) for ratio in options.ratios for seed in options.seeds]
    first = (options.ratios[min(1, len(options.ratios) - 1)], options.seeds[0])
    from_files = local_fit(extractor, *first, train, test)
    from_features = {s: local_fit("precomputed", *s, np.array(features), np.array(new)) for s in settings}
    runs = [("files", extractor, first), *(("features", "precomputed", setting) for setting in settings)]
    lines = []
    for n_workers in options.workers:
        with cluster_of(n_workers, str(folder)) as cluster, distributed.Client(cluster) as client:
            client.wait_for_workers(n_workers, timeout=300)
            for source, of, setting in runs:
                seconds, local, expected = from_files if source == "files" else from_features[setting]
                X: Any = train if source == "files" else features_in(files["train"], features.shape, 2 * n_workers)
                fitting = on_cluster(detector_of(options, of, *setting), client)
                spent, fitted = timed(fitting.fit, X)
                X_new: Any = test if source == "files" else features_in(files["test"], new.shape, 2 * n_workers)
                result = compare(fitted, local, fitted.score_samples(X_new).compute(), expected)
                lines.append(line_of(n_workers, source, *setting, {**result, "local": seconds, "cluster": spent}))
                print(lines[-1], flush=True)
    return lines


def overhead(options: argparse.Namespace, train: list[str], folder: Path) -> list[str]:
    """Time fits from image files in turns, and return the lines of the table."""
    ratio, seed = options.ratios[min(1, len(options.ratios) - 1)], options.seeds[0]
    times: dict[str, list[float]] = {"one thread": [], "all threads": [], "two workers": []}
    with cluster_of(2, str(folder)) as cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(2, timeout=300)
        for _ in range(options.repetitions):
            times["one thread"].append(timed(detector_of(options, extractor_of(options), ratio, seed).fit, train)[0])
            times["all threads"].append(in_a_process(options, ratio, seed))
            fitting = on_cluster(detector_of(options, extractor_of(options), ratio, seed), client)
            times["two workers"].append(timed(fitting.fit, train)[0])
    best = {name: min(seconds) for name, seconds in times.items()}
    lines = [
        "| fit | seconds, best | seconds, all | relative to one thread |",
        "|---|---|---|---|",
        *(
            f"| {name} | {best[name]:.1f} | {', '.join(f'{s:.1f}' for s in times[name])} "
            f"| {best[name] / best['one thread']:.2f}× |"
            for name in times
        ),
    ]
    print("\n".join(lines), flush=True)
    return lines


def in_a_process(options: argparse.Namespace, ratio: float, seed: int) -> float:
    """Return the time of a local fit with all threads, in a fresh process that has loaded the network before."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    arguments = {**vars(options), "root": str(options.root), "output": None, "ratio": ratio, "seed": seed}
    command = [sys.executable, __file__, CHILD, json.dumps(arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=7200, env=environment)
    return float(done.stdout.splitlines()[-1])


def child(arguments: dict[str, Any]) -> None:
    """Fit in this process, and print the time."""
    torch.set_num_threads(os.cpu_count() or 1)
    options = argparse.Namespace(**arguments)
    train = list_images(Path(options.root) / "train" / "good")[: options.images]
    extractor_of(options).transform(train[:4])
    print(timed(detector_of(options, extractor_of(options), options.ratio, options.seed).fit, train)[0])


def main() -> None:
    """Run all fits, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "dask_scaling.md")
    parser.add_argument("--backbone", default="efficientnet_lite2")
    parser.add_argument("--size", type=int, default=224, help="height and width of the network's input")
    parser.add_argument("--images", type=int, default=None, help="number of training images (default: all)")
    parser.add_argument("--test-images", type=int, default=60, help="number of test images of each kind")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.001, 0.01, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--calibration", type=int, default=5, help="number of folds")
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args()
    train = list_images(options.root / "train" / "good")[: options.images]
    kinds = sorted(folder for folder in (options.root / "test").iterdir() if folder.is_dir())
    test = [path for kind in kinds for path in list_images(kind)[: options.test_images]]
    with tempfile.TemporaryDirectory() as folder:
        table = compare_fits(options, train, test, Path(folder))
        turns = overhead(options, train, Path(folder))
    size = f"{options.size}×{options.size}"
    lines = [
        "# Fits on a Dask cluster",
        "",
        f"{len(train)} training images and {len(test)} test images of Magnetic Tile Defects at {size} pixels, backbone "
        f"{options.backbone}, calibration with {options.calibration} folds. LocalCluster with worker processes of one "
        f"thread each on {os.cpu_count()} CPU cores: more workers than cores test the result, not the speed. torch "
        f"{torch.__version__.split('+')[0]}, distributed {distributed.__version__}, skpatchcore "
        f"{skpatchcore.__version__}.",
        "",
        "Every fit on the cluster is compared with a local fit in one process with one thread. *Identical*: the "
        "rows of the bank, their images and their positions are equal bit for bit and in the same order. "
        "*Thresholds*: largest absolute difference of the image threshold, the pixel threshold, the calibration "
        "scores and the calibration peaks. *Scores*: largest absolute difference of the scores of the test images. "
        "*Files*: the workers read the images and run the network. *Features*: the patch features were extracted "
        "once, and the workers read them from a file; these times contain no network.",
        "",
        "| workers | from | ratio | seed | rows of the bank | identical | thresholds | scores | parts | rounds "
        "| local, s | cluster, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *table,
        "",
        f"## Overhead on {len(train)} images",
        "",
        f"Fits from image files in turns, {options.repetitions} times each, without the start of the processes. *One "
        "thread* and *all threads*: a fit in one process. *Two workers*: two processes with one thread each.",
        "",
        *turns,
        "",
        "Made by `python benchmarks/dask_scaling.py PATH/TO/mtd`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if CHILD in sys.argv:
        child(json.loads(sys.argv[-1]))
    else:
        main()
