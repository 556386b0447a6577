"""Time a grid search over patch size, ratio and number of neighbours, with and without caches.

    python benchmarks/grid_search.py PATH/TO/mtd -o benchmarks/results/grid_search.md

The data are 120 images of Magnetic Tile Defects (80 good, 40 defective). The backbone is WideResNet50-2 with random
weights, so the results are valid for time and counts only, not for accuracy. The times are compared with the time of
one fit. The search without caches is timed on some of its settings, and the time is scaled to the full search, because
each fit costs the same network time.
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
import sklearn
import torch
from sklearn.model_selection import GridSearchCV

import skpatchcore
from skpatchcore import GreedyCoresetSampler, OneClassSplit, PatchCoreDetector, TorchFeatureExtractor, load_image_folder
from skpatchcore.features import _backbones as backbones
from skpatchcore.model_selection import image_roc_auc_scorer

GRID = {"extractor__patch_size": [1, 3, 5], "sampler__ratio": [0.01, 0.05, 0.1], "n_neighbors": [1, 9]}
N_FOLDS = 3


def make_detector(memory: str | None) -> PatchCoreDetector:
    """Return the detector whose parameters are searched, with `memory` as the cache of extractor and sampler."""
    return PatchCoreDetector(
        TorchFeatureExtractor("wide_resnet50_2", weights=None, crop_size=224, memory=memory),
        sampler=GreedyCoresetSampler(memory=memory),
        calibration=None,
        random_state=0,
    )


def search(
    memory: str | None, grid: dict, X: list[str], y: np.ndarray, n_jobs: int | None = None
) -> tuple[float, GridSearchCV]:
    """Run a grid search; return its duration in seconds, and the fitted search."""
    searched = GridSearchCV(
        make_detector(memory), grid, scoring=image_roc_auc_scorer, cv=OneClassSplit(N_FOLDS), refit=False, n_jobs=n_jobs
    )
    begin = time.perf_counter()
    searched.fit(X, y)
    return time.perf_counter() - begin, searched


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

    def add(name: str, seconds: float, n_fits: int) -> None:
        rows.append((name, seconds, n_fits, counter.since()))
        print(rows[-1], flush=True)

    make_detector(None).fit(X[:8]).score_samples(X[:8])  # warm up: load and compile everything
    counter.since()
    begin = time.perf_counter()
    make_detector(None).fit(X, y).score_samples(X)
    add("one fit and scores of all images, no cache", time.perf_counter() - begin, 1)

    memory = tempfile.mkdtemp()
    n_fits = int(np.prod([len(values) for values in GRID.values()])) * N_FOLDS
    cold, first = search(memory, GRID, X, y)
    add("search with an empty cache", cold, n_fits)
    n_bytes = sum(path.stat().st_size for path in Path(memory).rglob("*") if path.is_file())
    warm, second = search(memory, GRID, X, y)
    add("search with the filled cache", warm, n_fits)
    shutil.rmtree(memory)
    memory = tempfile.mkdtemp()
    begin = time.perf_counter()
    make_detector(memory).extractor.transform(X)
    parallel = time.perf_counter() - begin + search(memory, GRID, X, y, n_jobs=2)[0]
    add("`transform(X)` with an empty cache, then the search in two processes", parallel, n_fits)
    shutil.rmtree(memory)
    part = {**GRID, "n_neighbors": [9], "sampler__ratio": [0.05]}
    seconds, plain = search(None, part, X, y)
    add("part of the search, no cache", seconds, 3 * N_FOLDS)
    without = seconds * n_fits / (3 * N_FOLDS)

    same = np.array_equal(first.cv_results_["mean_test_score"], second.cv_results_["mean_test_score"])
    chosen = [
        i for i, p in enumerate(first.cv_results_["params"]) if p["n_neighbors"] == 9 and p["sampler__ratio"] == 0.05
    ]
    differ = np.abs(first.cv_results_["mean_test_score"][chosen] - plain.cv_results_["mean_test_score"]).max()
    one = rows[0][1]
    lines = [
        "# A grid search and its caches",
        "",
        "The data are 120 images of 224×224 pixels. The backbone is wide_resnet50_2 with random weights, and "
        f"calibration=None. The search tries {len(GRID['extractor__patch_size'])} patch sizes × "
        f"{len(GRID['sampler__ratio'])} ratios × {len(GRID['n_neighbors'])} numbers of neighbours × {N_FOLDS} folds = "
        f"{n_fits} fits, and scores each fit.",
        "",
        "| run | seconds | fits | images through the network |",
        "|---|---|---|---|",
        *(f"| {name} | {seconds:.1f} | {fits} | {images} |" for name, seconds, fits, images in rows),
        f"| full search, no cache (scaled from the part) | {without:.0f} | {n_fits} | {rows[-1][3] * n_fits // 9} |",
        "",
        f"- With an empty cache, the search takes {cold / one:.1f} times as long as one fit with scores. With the "
        f"filled cache, it takes {warm / one:.1f} times as long. In two processes, including the time to fill the "
        f"cache, it takes {parallel / one:.1f} times as long.",
        f"- Without caches, the search would take {without / cold:.1f} times as long as with an empty cache, and "
        f"{without / warm:.1f} times as long as with the filled cache.",
        f"- Both cached searches give {'bit-identical scores' if same else 'DIFFERENT scores'}. The AUROCs of the part "
        f"without a cache differ from the AUROCs with a cache by at most {differ:.1g}.",
        f"- The caches take {n_bytes / 1e6:.0f} MB on disk.",
        "",
        f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__.split('+')[0]}, scikit-learn "
        f"{sklearn.__version__}, skpatchcore {skpatchcore.__version__}.",
        "",
        "Made by `python benchmarks/grid_search.py PATH/TO/mtd`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
