"""The cost of calibration in a search that does not use thresholds.

    python benchmarks/search_calibration.py PATH/TO/mtd -o benchmarks/results/search_calibration.md

60 images of Magnetic Tile Defects (40 good, 20 defective) and efficientnet_lite0. The outputs of the network are in a
cache before the searches start. The searches with and without calibration alternate, and the page states the median
of their ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.model_selection import GridSearchCV

import skpatchcore
from skpatchcore import GreedyCoresetSampler, OneClassSplit, PatchCoreDetector, TorchFeatureExtractor, load_image_folder

GRID = {"sampler__ratio": [0.01, 0.1], "n_neighbors": [1, 9]}
N_FOLDS, N_ROUNDS = 3, 3


def search(memory: str, calibration: str | None, X: list[str], y: np.ndarray) -> tuple[float, np.ndarray]:
    """Run a grid search; return its duration in seconds, and the mean test scores."""
    detector = PatchCoreDetector(
        TorchFeatureExtractor("efficientnet_lite0", image_size=256, crop_size=None, memory=memory),
        sampler=GreedyCoresetSampler(memory=memory),
        calibration=calibration,
        random_state=0,
    )
    searched = GridSearchCV(detector, GRID, scoring="roc_auc", cv=OneClassSplit(N_FOLDS), refit=False)
    begin = time.perf_counter()
    searched.fit(X, y)
    return time.perf_counter() - begin, searched.cv_results_["mean_test_score"]


def main() -> None:
    """Time the searches, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(__file__).parent / "results" / "search_calibration.md"
    )
    options = parser.parse_args()
    folder = load_image_folder(options.root)
    rng = np.random.default_rng(0)
    bad = folder.test_paths[folder.test_labels == -1]
    X = [*rng.choice(folder.train_paths, 40, replace=False), *rng.choice(bad, 20, replace=False)]
    y = np.array([1] * 40 + [-1] * 20)
    with tempfile.TemporaryDirectory() as memory:
        search(memory, None, X, y)  # fills the cache
        rows, same = [], True
        for _ in range(N_ROUNDS):
            without, scores = search(memory, None, X, y)
            calibrated, scores_calibrated = search(memory, "auto", X, y)
            same &= np.array_equal(scores, scores_calibrated)
            rows.append((without, calibrated, calibrated / without))
            print(rows[-1], flush=True)
    n_fits = N_FOLDS * int(np.prod([len(values) for values in GRID.values()]))
    lines = [
        "# The cost of calibration in a search",
        "",
        f'The search has {n_fits} fits, uses `scoring="roc_auc"`, and needs no thresholds. The data are '
        f"{len(X)} images of Magnetic Tile Defects, resized to 256 pixels without a crop. The backbone is "
        "efficientnet_lite0, and the outputs of the network are in a cache.",
        "",
        "| round | calibration=None, s | auto (default), s | ratio |",
        "|---|---|---|---|",
        *(f"| {i} | {a:.1f} | {b:.1f} | {ratio:.2f} |" for i, (a, b, ratio) in enumerate(rows, start=1)),
        "",
        f"With calibration, the search takes {np.median([row[2] for row in rows]):.2f} times as long (median of the "
        f"rounds). The test scores of all searches are {'identical' if same else 'DIFFERENT'}.",
        "",
        f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__.split('+')[0]}, scikit-learn "
        f"{sklearn.__version__}, skpatchcore {skpatchcore.__version__}.",
        "",
        "Made by `python benchmarks/search_calibration.py PATH/TO/mtd`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
