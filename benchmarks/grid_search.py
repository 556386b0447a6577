"""Time a grid search over patch size, ratio and number of neighbours, with and without caches.

    python benchmarks/grid_search.py PATH/TO/mtd -o benchmarks/results/grid_search.md

The data are 120 images of Magnetic Tile Defects (80 good, 40 defective). The backbone is WideResNet50-2 with random
weights, so the results are valid for time and counts only, not for accuracy. The times are compared with the time of
one fit with scores, which is measured several times, because other programs may use the processor. The table also
states the CPU time of all processes together, which depends less on other programs. The search without caches is timed
on some of its settings, and the time is scaled to the full search, because each fit costs the same network time. The
scores of each image are compared to the bit.

Run with OMP_NUM_THREADS=1 on a busy machine: threads that wait for each other take CPU time.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import sklearn
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV

import skpatchcore
from skpatchcore import GreedyCoresetSampler, OneClassSplit, PatchCoreDetector, TorchFeatureExtractor, load_image_folder
from skpatchcore.features import _backbones as backbones

GRID = {"extractor__patch_size": [1, 3, 5], "sampler__ratio": [0.01, 0.05, 0.1], "n_neighbors": [1, 9]}
N_FOLDS = 3
EMPTY, FILLED, LAYERS = (
    "search with an empty cache",
    "search with the filled cache",
    "search with the cached layer maps only",
)
IN_TWO = "`transform(X)` with an empty cache, then the search in two processes"
SHORT = {EMPTY: "empty cache", FILLED: "filled cache", LAYERS: "layer maps only", IN_TWO: "two processes"}


def make_detector(memory: str | None) -> PatchCoreDetector:
    """Return the detector whose parameters are searched, with `memory` as the cache of extractor and sampler."""
    return PatchCoreDetector(
        TorchFeatureExtractor("wide_resnet50_2", weights=None, crop_size=224, memory=memory),
        sampler=GreedyCoresetSampler(memory=memory),
        calibration=None,
        random_state=0,
    )


class Recorder:
    """Scorer that keeps the scores of all images, by setting and fold."""

    def __init__(self) -> None:
        self.scores: dict[tuple, np.ndarray] = {}

    def __call__(self, detector: PatchCoreDetector, X: list[str], y: np.ndarray) -> float:
        """Return the AUROC of the images, and keep their scores."""
        scores = detector.score_samples(X)
        setting = detector.extractor.patch_size, detector.sampler.ratio, detector.n_neighbors
        self.scores[(*setting, *X)] = scores
        return float(roc_auc_score(y, scores))


def search(
    memory: str | None, grid: dict, X: list[str], y: np.ndarray, n_jobs: int | None = None
) -> tuple[float, dict[tuple, np.ndarray], np.ndarray]:
    """Run a grid search; return its duration in seconds, the scores of all images, and the AUROC of each setting.

    Several processes do not return the scores of the images.
    """
    recorder = Recorder()
    searched = GridSearchCV(
        make_detector(memory), grid, scoring=recorder, cv=OneClassSplit(N_FOLDS), refit=False, n_jobs=n_jobs
    )
    begin = time.perf_counter()
    searched.fit(X, y)
    return time.perf_counter() - begin, recorder.scores, searched.cv_results_["mean_test_score"]


def cpu_seconds() -> float:
    """Return the CPU time of this process and its workers."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(some.user + some.system for some in times)


def same(some: dict[tuple, np.ndarray], others: dict[tuple, np.ndarray]) -> bool:
    """Return whether all scores of the first search are those of the second search, to the bit."""
    return all(np.array_equal(scores, others[key]) for key, scores in some.items())


def n_bytes(folder: str, pattern: str) -> int:
    """Return the size of all files of a cache that match a pattern."""
    return sum(path.stat().st_size for path in Path(folder).glob(pattern) if path.is_file())


class Counter:
    """Counter of the images that pass through the network."""

    def __init__(self) -> None:
        self.n_images = 0
        network = backbones.load_network("wide_resnet50_2", None, None, torch.device("cpu"))
        network.module.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, arguments: tuple) -> None:
        self.n_images += len(arguments[0])

    def since(self) -> int:
        """Return the number of images since the last call."""
        n, self.n_images = self.n_images, 0
        return n


def main() -> None:
    """Time one fit and the search with and without caches, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "grid_search.md")
    options = parser.parse_args()
    folder = load_image_folder(options.root)
    rng = np.random.default_rng(0)
    bad = folder.test_paths[folder.test_labels == -1]
    X = [*rng.choice(folder.train_paths, 80, replace=False), *rng.choice(bad, 40, replace=False)]
    y = np.array([1] * 80 + [-1] * 40)
    counter = Counter()
    rows = []
    cpu = [cpu_seconds()]

    def add(name: str, seconds: float, n_fits: int) -> None:
        before, cpu[0] = cpu[0], cpu_seconds()
        rows.append((name, seconds, cpu[0] - before, n_fits, counter.since()))
        print(rows[-1], flush=True)

    def one_fit() -> None:
        begin = time.perf_counter()
        make_detector(None).fit(X, y).score_samples(X)
        add("one fit and scores of all images, no cache", time.perf_counter() - begin, 1)

    make_detector(None).fit(X[:8]).score_samples(X[:8])  # warm up: load and compile everything
    counter.since()
    cpu[0] = cpu_seconds()
    n_fits = int(np.prod([len(values) for values in GRID.values()])) * N_FOLDS
    one_fit()
    memory = tempfile.mkdtemp()
    cold, first, aurocs = search(memory, GRID, X, y)
    add(EMPTY, cold, n_fits)
    warm, second, _ = search(memory, GRID, X, y)
    add(FILLED, warm, n_fits)
    sizes = {
        "layer maps": n_bytes(memory, "skpatchcore-layers/*/*"),
        "patch features": n_bytes(memory, "skpatchcore-grids/*/*"),
        "projected rows": n_bytes(memory, "skpatchcore-rows/*/*"),
        "orders and searches": n_bytes(memory, "skpatchcore-orders/*") + n_bytes(memory, "skpatchcore-searches/*/*"),
    }
    for name in ("grids", "rows", "orders", "searches"):
        shutil.rmtree(Path(memory) / f"skpatchcore-{name}")
    layers, third, _ = search(memory, GRID, X, y)
    add(LAYERS, layers, n_fits)
    shutil.rmtree(memory)
    one_fit()

    memory = tempfile.mkdtemp()
    begin = time.perf_counter()
    make_detector(memory).extractor.transform(X)
    _, _, in_two = search(memory, GRID, X, y, n_jobs=2)
    parallel = time.perf_counter() - begin
    add(IN_TWO, parallel, n_fits)
    warm_parallel, _, again_in_two = search(memory, GRID, X, y, n_jobs=2)
    add("search in two processes with the filled cache", warm_parallel, n_fits)
    shutil.rmtree(memory)
    part = {"extractor__patch_size": [3], "n_neighbors": [9], "sampler__ratio": [0.05]}
    seconds, plain, _ = search(None, part, X, y)
    add("part of the search, no cache", seconds, N_FOLDS)
    without = seconds * n_fits / N_FOLDS
    one_fit()
    one = float(np.median([seconds for _, seconds, _, n, _ in rows if n == 1]))
    cpu_of_one = float(np.median([seconds for _, _, seconds, n, _ in rows if n == 1]))
    cpu_of = {name: seconds / cpu_of_one for name, _, seconds, _, _ in rows}
    is_same = same(first, second) and same(first, third) and same(plain, first)
    is_same_in_two = np.array_equal(aurocs, in_two) and np.array_equal(aurocs, again_in_two)
    lines = [
        "# A grid search and its caches",
        "",
        "The data are 120 images of 224×224 pixels. The backbone is wide_resnet50_2 with random weights, and "
        f"calibration=None. The search tries {len(GRID['extractor__patch_size'])} patch sizes × "
        f"{len(GRID['sampler__ratio'])} ratios × {len(GRID['n_neighbors'])} numbers of neighbours × {N_FOLDS} folds = "
        f"{n_fits} fits, and scores each fit.",
        "",
        "| run | seconds | CPU seconds | fits | images through the network |",
        "|---|---|---|---|---|",
        *(f"| {name} | {seconds:.1f} | {cpu:.1f} | {fits} | {images} |" for name, seconds, cpu, fits, images in rows),
        f"| full search, no cache (scaled from the part) | {without:.0f} | | {n_fits} | {rows[-2][-1] * n_fits // 3} |",
        "",
        f"- With an empty cache, the search takes {cold / one:.1f} times as long as one fit with scores. With the "
        f"filled cache, it takes {warm / one:.2f} times as long. If only the layer maps are cached, it takes "
        f"{layers / one:.1f} times as long.",
        f"- In two processes, including the time to fill the cache, the search takes {parallel / one:.1f} times as "
        f"long as one fit with scores, and {parallel / cold:.2f} times as long as the search with an empty cache in "
        "one process.",
        "- In CPU time, these ratios are "
        + ", ".join(f"{cpu_of[run]:.1f} ({what})" for run, what in SHORT.items())
        + ".",
        f"- Without caches, the search would take {without / cold:.1f} times as long as with an empty cache, and "
        f"{without / warm:.0f} times as long as with the filled cache.",
        f"- The scores of all images in the three searches in one process, and in the part without a cache, are "
        f"{'the same to the bit' if is_same else 'DIFFERENT'}. The AUROCs of the searches in two processes are "
        f"{'the same' if is_same_in_two else 'DIFFERENT'}.",
        "- On disk, the caches take "
        + ", ".join(f"{size / 1e6:.0f} MB ({name})" for name, size in sizes.items())
        + ".",
        "",
        f"{os.cpu_count()} CPU cores ({platform.machine()}), threads per process: {torch.get_num_threads()}, load of "
        f"the machine at the end, with other programs: {os.getloadavg()[0]:.0f}, torch "
        f"{torch.__version__.split('+')[0]}, scikit-learn {sklearn.__version__}, skpatchcore "
        f"{skpatchcore.__version__}.",
        "",
        "Made by `python benchmarks/grid_search.py PATH/TO/mtd`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
