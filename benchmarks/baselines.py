"""Compare PatchCore with all baselines of the package on real defects, with intervals and tests.

    python benchmarks/baselines.py PATH/TO/mtd PATH/TO/hazelnut_toy --cache CACHE -o benchmarks/results/baselines.md

The data sets are those of ``evaluation.py``: Magnetic Tile Defects, split at random and by tile, and a small set of
hazelnuts. Each method promises to flag at most 5 % of good images. Results are stored in the folder CACHE, so that an
interrupted run continues where it stopped. The trained methods take an hour or more on two cores.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn
import torch
from evaluation import read_data

import skpatchcore
from skpatchcore.evaluation import CategoryResult, DetectorComparison, compare_detectors
from skpatchcore.evaluation.presets import METHODS, make_detector
from skpatchcore.evaluation.storage import Results, provenance_of, settings_of
from skpatchcore.evaluation.studies import plain_runs, run_quietly

RATE = 0.05
# The random split of Magnetic Tile Defects, as in the paper.
_SAME_DATA = "mtd, random"
# Published results in percent (Roth et al., CVPR 2022, sections 4.2 and 4.4), and the method here. MVTec AD, means over
# 15 categories: image AUROC, pixel AUROC, PRO. Magnetic Tile Defects: image AUROC.
PUBLISHED = {
    "PatchCore, 1 %; 10 % for the published MTD": ("patchcore", 99.0, 98.0, 93.1, 97.9),
    "PaDiM": ("padim", 95.3, 97.5, 92.1, None),
    "Mahalanobis AD": ("mahalanobis", 95.8, None, None, None),
    "SPADE": ("spade", 85.5, 96.0, 91.7, None),
    "DN2; 1-NN of image features for MTD": ("dn2", None, None, None, 80.0),
    "Autoencoder": ("autoencoder", None, None, None, None),
    "GAN; GANomaly for MTD": ("gan", None, None, None, 76.6),
    "DifferNet": (None, 94.9, None, None, 97.7),
    "PatchSVDD": (None, 92.1, 95.7, None, None),
}


def results_of(method: str, data: dict, cache: Path, seed: int) -> Iterator[CategoryResult]:
    """Yield the result of a method on each data set; stored results are loaded."""
    store = Results(cache / method)
    ratio = 0.01 if method == "patchcore" else None
    for run in plain_runs(make_detector("offline", method, ratio=ratio, contamination=RATE, random_state=seed), data):
        settings = settings_of(run, "own")
        stored = store.load(run, settings)
        if stored is None:
            result, fitted = run_quietly(run, "own")
            store.keep(run, settings, result, provenance_of(fitted, run.dataset))
            stored = result, {}
        row = stored[0].row
        print(method, run.category, f"AUROC {row['image_auroc']:.3f}, fit {row['fit_seconds']:.0f} s", flush=True)
        yield stored[0]


def groups_of(data: dict, mtd: Path) -> dict[str, np.ndarray]:
    """Return the groups of the test images: the tile of a good image of mtd; any other image is a group of its own."""
    table = pd.read_csv(mtd / "tiles.csv")
    tiles = dict(zip(table["file"], table["tile"].astype(str), strict=True))
    return {
        name: np.array([tiles.get(Path(path).name, Path(path).as_posix()) for path in dataset.test_paths])
        for name, dataset in data.items()
    }


def lines_of(comparison: DetectorComparison, results: dict[str, list[CategoryResult]]) -> Iterator[str]:
    """Yield the lines of the table: one row per data set and method."""
    yield "| data | method | image AUROC | AUPRO | defects found at 5 % | good images flagged | fit, s | test, s |"
    yield "|---|---|---|---|---|---|---|---|"
    known = comparison.metrics.set_index(["category", "detector", "metric"])
    for k, first in enumerate(results["patchcore"]):
        for method, own in results.items():
            row = own[k].row
            cells = [first.category, method]
            for metric in ("image_auroc", "aupro", "found_at_05"):
                value, low, high = known.loc[(first.category, method, metric)]
                cells.append("" if np.isnan(value) else f"{value:.3f} ({low:.3f}-{high:.3f})")
            flagged = row["flagged_at_05"]
            cells.append("" if np.isnan(flagged) else f"{round(flagged * row['n_good'])} of {row['n_good']}")
            yield "| " + " | ".join([*cells, f"{row['fit_seconds']:.0f}", f"{row['test_seconds']:.0f}"]) + " |"


def paper_table(comparison: DetectorComparison) -> Iterator[str]:
    """Yield the lines of the table that has published results beside those of this run."""
    yield (
        "| method | published: MVTec AD image AUROC | published: pixel AUROC | published: PRO | published: MTD image "
        "AUROC | **here**: MTD image AUROC | **here**: MTD AUPRO |"
    )
    yield "|---|---|---|---|---|---|---|"
    known = comparison.metrics.set_index(["category", "detector", "metric"])
    for name, (method, *published) in PUBLISHED.items():
        cells = ["" if value is None else f"{value}" for value in published]
        for metric in ("image_auroc", "aupro"):
            place = (_SAME_DATA, method, metric)
            if method is None:
                cells.append("not built")
            elif place not in known.index or np.isnan(known.loc[place, "value"]):
                cells.append("")
            else:
                value, low, high = (100 * known.loc[place, end] for end in ("value", "low", "high"))
                cells.append(f"**{value:.1f}** ({low:.1f}-{high:.1f})")
        yield "| " + " | ".join([name, *cells]) + " |"


def differences_of(comparison: DetectorComparison) -> Iterator[str]:
    """Yield the lines of the table of differences from PatchCore."""
    yield "| data | other method | image AUROC: difference | p-value (DeLong, Holm) | AUPRO: difference |"
    yield "|---|---|---|---|---|"
    rows = comparison.differences
    rows = rows[rows["first"] == "patchcore"].set_index(["category", "second", "metric"])
    for category, method in dict.fromkeys(zip(*(rows.index.get_level_values(i) for i in (0, 1)), strict=True)):
        image = rows.loc[(category, method, "image_auroc")]
        pixel = rows.loc[(category, method, "aupro")] if (category, method, "aupro") in rows.index else None
        shown = "" if pixel is None or np.isnan(pixel["difference"]) else shown_difference(pixel)
        yield f"| {category} | {method} | {shown_difference(image)} | {image['p_holm']:.2g} | {shown} |"


def shown_difference(row: pd.Series) -> str:
    """Return a difference with its interval."""
    value, low, high = (round(row[end], 3) + 0.0 for end in ("difference", "low", "high"))  # no -0.000
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    """Evaluate all methods, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mtd", type=Path)
    parser.add_argument("hazelnut", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "baselines.md")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the results")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = read_data(options.mtd, options.hazelnut)
    results = {method: list(results_of(method, data, options.cache, options.seed)) for method in options.methods}
    comparison = compare_detectors(results, groups=groups_of(data, options.mtd))
    lines = [
        "# PatchCore and the baselines",
        "",
        "PatchCore, SPADE, PaDiM, Mahalanobis and DN2 use the same features: the preset `offline` with "
        "efficientnet_lite2 (ImageNet weights from the package index) on images of 224×224 pixels. PatchCore "
        "keeps 1 % of the patches. The autoencoder and the GAN are trained on images of 128×128 pixels, without "
        "a pretrained network. `found at 5 %` is the fraction of the defective images that are flagged by a "
        "threshold that promises to flag at most 5 % of good images. Numbers in brackets are 95 % intervals of "
        "the bootstrap over test images. Good test images of mtd that show one tile are drawn together. The tiles of "
        "defective images are not known. Methods without anomaly maps have no AUPRO. An "
        "empty cell of the last columns means that there are too few calibration images to promise 5 %.",
        "",
        *lines_of(comparison, results),
        "",
        "## Differences from PatchCore",
        "",
        "PatchCore minus the other method. Paired intervals, and p-values of DeLong's test, adjusted for all pairs and "
        "data sets by Holm's method.",
        "",
        *differences_of(comparison),
        "",
        "## Table 1 of the paper, here",
        "",
        "Published results are those of the PatchCore paper and of the works it cites, in percent, with WideResNet-50 "
        "or the networks of the original works. They were **not measured by us**. The columns *here* are our results "
        "on Magnetic Tile Defects (MTD), split at random as in the paper, with efficientnet_lite2 and images of "
        "224×224 pixels (autoencoder and GAN: 128×128). The paper does not list the images of its split, so that small "
        "differences have no meaning. DifferNet (normalizing flows) and PatchSVDD (its own encoder of patches) need "
        "other training loops, and are cited only.",
        "",
        *paper_table(comparison),
        "",
        f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__.split('+')[0]}, scikit-learn "
        f"{sklearn.__version__}, skpatchcore {skpatchcore.__version__}.",
        "",
        "Made by `python benchmarks/baselines.py PATH/TO/mtd PATH/TO/hazelnut_toy --cache CACHE`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
