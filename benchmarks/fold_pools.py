"""Compare calibration folds that are selected from a pool of patches with folds that are selected from all patches.

    python benchmarks/fold_pools.py PATH/TO/mtd PATH/TO/hazelnut -o benchmarks/results/fold_pools.md

The scores are the distances of the most anomalous patches (Eq. 6) of the images of each fold from the bank of the fold.
As a measure of chance, the folds are selected from all patches once more, with another first patch.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import KFold

import skpatchcore
from skpatchcore import ExactIndex, GreedyCoresetSampler, TorchFeatureExtractor, list_images

N_PATCHES = 784
# Name, backbone, keywords of the extractor, data set (0 or 1), images, ratio, folds, folds that are measured.
CASES = (
    ("efficientnet_lite2, Magnetic Tile Defects", "efficientnet_lite2", {}, 0, 209, 0.01, 12, 12),
    ("efficientnet_lite2, Magnetic Tile Defects", "efficientnet_lite2", {}, 0, 100, 0.1, 5, 5),
    ("efficientnet_lite2, hazelnuts", "efficientnet_lite2", {}, 1, 28, 0.01, 28, 28),
    ("efficientnet_lite2, hazelnuts", "efficientnet_lite2", {}, 1, 28, 0.1, 12, 12),
    (
        "wide_resnet50_2 with random weights, Magnetic Tile Defects",
        "wide_resnet50_2",
        {"weights": None},
        0,
        60,
        0.01,
        20,
        20,
    ),
)


def fold_scores(X: np.ndarray, picks: list[np.ndarray], folds: list[np.ndarray]) -> np.ndarray:
    """Return the distance of the most anomalous patch of each image from the bank of its fold."""
    found = []
    for picked, images in zip(picks, folds, strict=True):
        queries = np.concatenate([X[i * N_PATCHES : (i + 1) * N_PATCHES] for i in images])
        found.append(ExactIndex().fit(X[picked]).farthest(queries, np.arange(0, len(queries) + 1, N_PATCHES))[1])
    return np.concatenate(found)


def covering_radius(X: np.ndarray, picked: np.ndarray, left_out: np.ndarray) -> float:
    """Return the largest distance of a row that is not left out from the picked rows."""
    rest = np.delete(X, left_out, axis=0)
    return float(ExactIndex().fit(X[picked]).farthest(rest, np.array([0, len(rest)]))[1][0])


def measure(X: np.ndarray, ratio: float, n_folds: int, n_measured: int) -> list[str]:
    """Return the cells of a row of the table."""
    n_images = len(X) // N_PATCHES
    images = np.repeat(np.arange(n_images), N_PATCHES)
    folds = [test for _, test in KFold(n_folds, shuffle=True, random_state=0).split(np.arange(n_images))][:n_measured]
    left_out = [np.flatnonzero(np.isin(images, fold)) for fold in folds]

    def select(seed: int, given: bool) -> tuple[list[np.ndarray], float]:
        """Return the selections of the folds, and their seconds."""
        sampler, seconds = GreedyCoresetSampler(ratio, start=seed, random_state=0), []
        for parts in ([], left_out):  # the first fit selects for no fold
            begin = time.perf_counter()
            picks = sampler.fit_folds([X], len(X), parts, images=iter([images]) if given else None)
            seconds.append(time.perf_counter() - begin)
        return picks, seconds[1] - seconds[0]

    (exact, slow), (pooled, fast), (other, _) = select(0, False), select(0, True), select(1234, False)
    scores, of_pool, of_other = (fold_scores(X, picks, folds) for picks in (exact, pooled, other))
    radii = [
        covering_radius(X, b, some) / covering_radius(X, a, some)
        for a, b, some in list(zip(exact, pooled, left_out, strict=True))[:3]
    ]
    cells = [str(n_images), f"{ratio:.0%}", f"{n_measured} of {n_folds}", f"{slow:.2f}", f"{fast:.2f}"]
    for found in (of_pool, of_other):
        change = np.log(found / scores)
        cells.append(f"{change.mean():+.1%} ± {change.std() / np.sqrt(len(change)):.1%}")
    return [*cells, f"{np.log(of_pool / scores).std():.1%}", f"{np.mean(radii):.2f}"]


def main() -> None:
    """Measure all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mtd", type=Path)
    parser.add_argument("hazelnut", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "fold_pools.md")
    options = parser.parse_args()
    lines = [
        "# Calibration folds from a pool of patches",
        "",
        "The banks of calibration folds are selected from a pool: patches of each image that cover all its patches "
        "with 0.8 times the covering radius of the memory bank. *Seconds* are the selections of all measured folds, "
        "from all patches and from the pool. *Mean change* is the mean change of the scores of the folds' images, "
        "with its standard error, in comparison with selections from all patches. *Spread* is the standard deviation "
        "of the change of single scores. *Radius* is the covering radius of a fold's bank, relative to a selection "
        "from all patches, for the original patch features (mean over 3 folds).",
        "",
        "| network, data | images | ratio | folds | seconds, all patches | seconds, pool | mean change, pool "
        "| mean change, all patches with another first patch | spread, pool | radius |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, backbone, keywords, place, n_images, ratio, n_folds, n_measured in CASES:
        paths = list_images((options.mtd, options.hazelnut)[place] / "train" / "good")
        chosen = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))[:n_images]]
        extractor = TorchFeatureExtractor(backbone, image_size=(224, 224), crop_size=None, **keywords)
        X = extractor.transform(chosen).reshape(len(chosen) * N_PATCHES, -1)
        lines.append(f"| {name} | " + " | ".join(measure(X, ratio, n_folds, n_measured)) + " |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__.split('+')[0]}, skpatchcore "
        f"{skpatchcore.__version__}.",
        "",
        "Made by `python benchmarks/fold_pools.py PATH/TO/mtd PATH/TO/hazelnut`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
