"""Seconds of greedy coreset selection, side by side in one run, on patch features of real images.

    python benchmarks/selection.py PATH/TO/mtd -o benchmarks/results/selection.md

Against the textbook loop, against a loop with one temporary of the data's size for each pick (as anomalib 2.7 has it),
and against nothing but the matrix product of all rows with all picks. A loop costs the same for each pick: its first
picks are timed and scaled. Every figure is the best of a few repetitions, in the space that selection works in.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import skpatchcore
from skpatchcore import TorchFeatureExtractor, list_images
from skpatchcore.coreset.projection import gaussian_projection
from skpatchcore.coreset.selection import k_center_greedy

LOOP_PICKS = 100


def textbook(X: torch.Tensor, n_selected: int) -> None:
    """Algorithm 1: one matrix-vector product and one minimum over all rows for each pick."""
    norms = (X * X).sum(1)
    nearest = torch.full_like(norms, torch.inf)
    pick = 0
    for _ in range(n_selected):
        torch.minimum(nearest, norms - 2 * (X @ X[pick]) + norms[pick], out=nearest)
        pick = int(nearest.argmax())


def with_temporaries(X: torch.Tensor, n_selected: int) -> None:
    """Run the same with the differences of all rows from the pick written out."""
    nearest = torch.full((len(X),), torch.inf, dtype=X.dtype)
    pick = 0
    for _ in range(n_selected):
        nearest = torch.minimum(nearest, torch.linalg.norm(X - X[pick], dim=1))
        pick = int(nearest.argmax())


def matrix_product(X: torch.Tensor, n_selected: int) -> None:
    """Multiply all rows with all picks, in blocks that stay in the cache, and look at nothing."""
    for columns in X[:n_selected].split(512):
        right = columns.T.contiguous()
        out = X.new_empty(1024, right.shape[1])
        for rows in X.split(1024):
            torch.mm(rows, right, out=out[: len(rows)])


def best_of(repetitions: int, function: Callable[[], object]) -> float:
    """Return the shortest time in seconds."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def compare(X: torch.Tensor, ratio: float) -> dict[str, float]:
    """Time all four at one ratio."""
    n_selected = int(np.ceil(len(X) * ratio))
    n_loop = min(LOOP_PICKS, n_selected)
    loops = {
        name: best_of(2, lambda loop=loop: loop(X, n_loop)) * n_selected / n_loop
        for name, loop in (("textbook", textbook), ("anomalib", with_temporaries))
    }
    repetitions = 3 if ratio < 0.1 else 2
    ours, product = [], []
    for _ in range(repetitions):  # in turn, so that both see the same weather
        ours.append(best_of(1, lambda: k_center_greedy(X, n_selected, 0)))
        product.append(best_of(1, lambda: matrix_product(X, n_selected)))
    return {"picks": n_selected, "ours": min(ours), "product": min(product), **loops}


def main() -> None:
    """Extract features, time, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "selection.md")
    parser.add_argument("--backbone", default="efficientnet_lite2")
    parser.add_argument("--images", type=int, default=209)
    options = parser.parse_args()
    paths = list_images(options.root / "train" / "good")
    chosen = np.random.default_rng(0).permutation(len(paths))[: options.images]
    extractor = TorchFeatureExtractor(options.backbone, image_size=(224, 224), crop_size=None, verbose=1)
    features = extractor.transform([paths[i] for i in chosen])
    rows = torch.from_numpy(features.reshape(-1, features.shape[-1]))
    matrix = torch.from_numpy(gaussian_projection(rows.shape[1], 128, np.random.RandomState(0))).to(rows)
    lines = [
        "# Greedy coreset selection",
        "",
        f"Patch features of {len(chosen)} images of Magnetic Tile Defects at 224×224, backbone {options.backbone}; "
        f"{os.cpu_count()} CPU cores, torch {torch.__version__.split('+')[0]}, float32, skpatchcore "
        f"{skpatchcore.__version__}. Loops are scaled from their first {LOOP_PICKS} picks.",
        "",
        "| rows × columns | ratio | picks | skpatchcore s | bare matrix product s | textbook loop s "
        "| loop with temporaries s | against the product | against the textbook | against temporaries |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for X in (rows @ matrix, rows):
        for ratio in (0.001, 0.01, 0.1):
            t = compare(X, ratio)
            lines.append(
                f"| {len(X)} × {X.shape[1]} | {ratio:g} | {t['picks']} | {t['ours']:.2f} | {t['product']:.2f} "
                f"| {t['textbook']:.1f} | {t['anomalib']:.1f} | {t['ours'] / t['product']:.2f}× "
                f"| 1/{t['textbook'] / t['ours']:.0f} | 1/{t['anomalib'] / t['ours']:.0f} |"
            )
            print(lines[-1], flush=True)
    lines += ["", "As the number of rows grows (128 columns, ratio 0.01):", "", "| rows | picks | s |", "|---|---|---|"]
    for n in (len(rows) // 100, len(rows) // 10, len(rows)):
        X = (rows @ matrix)[torch.from_numpy(np.random.default_rng(0).permutation(len(rows))[:n])]
        n_selected = int(np.ceil(n * 0.01))
        lines.append(f"| {n} | {n_selected} | {best_of(3, lambda X=X, k=n_selected: k_center_greedy(X, k, 0)):.3f} |")
    lines += ["", "Made by `python benchmarks/selection.py PATH/TO/mtd`.", ""]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
