"""Time the greedy coreset selection on patch features of real images, compared with three other programs.

    python benchmarks/selection.py PATH/TO/mtd -o benchmarks/results/selection.md

The first program is the textbook loop. The second is a loop that makes a temporary array of the size of the data for
each selected row, as anomalib 2.7 does. The third computes only the matrix products that the selection needs: the
projection, and the product of all rows with all selected rows. A loop takes the same time for each selected row.
Therefore only the first rows are timed, without the projection, and the time is scaled. Every time is the best of
several repetitions. The script also draws a figure beside the table.
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
from skpatchcore.coreset._k_center import k_center_greedy
from skpatchcore.coreset._projection import gaussian_projection
from skpatchcore.coreset._rows import RowBuffer, Rows

LOOP_PICKS = 100


def textbook(X: torch.Tensor, n_selected: int) -> None:
    """Run Algorithm 1 of the paper: one matrix-vector product and one minimum over all rows per selected row."""
    norms = (X * X).sum(1)
    nearest = torch.full_like(norms, torch.inf)
    pick = 0
    for _ in range(n_selected):
        torch.minimum(nearest, norms - 2 * (X @ X[pick]) + norms[pick], out=nearest)
        pick = int(nearest.argmax())


def with_temporaries(X: torch.Tensor, n_selected: int) -> None:
    """Run Algorithm 1 with a temporary array of the differences between all rows and the selected row."""
    nearest = torch.full((len(X),), torch.inf, dtype=X.dtype)
    pick = 0
    for _ in range(n_selected):
        nearest = torch.minimum(nearest, torch.linalg.norm(X - X[pick], dim=1))
        pick = int(nearest.argmax())


def ours(rows: np.ndarray, matrix: np.ndarray | None, n_selected: int) -> None:
    """Project, collect and select rows, as `GreedyCoresetSampler` does."""
    buffer = RowBuffer(matrix, rows.shape[1], torch.float32, torch.device("cpu"))
    buffer.reserve(len(rows))
    buffer.extend(rows)
    k_center_greedy(Rows(buffer.take()[0]), n_selected, 0)


def matrix_product(X: torch.Tensor, n_selected: int, matrix: torch.Tensor | None = None) -> None:
    """Project, and multiply all rows with all selected rows in blocks that fit in the CPU cache."""
    X = X if matrix is None else X @ matrix
    for columns in X[:n_selected].split(512):
        right = columns.T.contiguous()
        out = X.new_empty(1024, right.shape[1])
        for rows in X.split(1024):
            torch.mm(rows, right, out=out[: len(rows)])


def best_of(repetitions: int, function: Callable[[], object]) -> float:
    """Return the shortest time of several calls in seconds."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def compare(rows: np.ndarray, matrix: np.ndarray | None, ratio: float) -> dict[str, float]:
    """Time all four programs at one ratio; return seconds and the number of selected rows."""
    raw = torch.from_numpy(rows)
    P = None if matrix is None else torch.from_numpy(matrix).to(raw)
    X = raw if P is None else raw @ P
    n_selected = int(np.ceil(len(X) * ratio))
    n_loop = min(LOOP_PICKS, n_selected)
    loops = {
        name: best_of(2, lambda loop=loop: loop(X, n_loop)) * n_selected / n_loop
        for name, loop in (("textbook", textbook), ("anomalib", with_temporaries))
    }
    seconds, product = [], []
    for _ in range(7 if ratio < 0.1 else 2):  # alternate, so that the load of the machine affects both
        seconds.append(best_of(1, lambda: ours(rows, matrix, n_selected)))
        product.append(best_of(1, lambda: matrix_product(raw, n_selected, P)))
    return {"picks": n_selected, "ours": min(seconds), "product": min(product), **loops}


def growth(rows: np.ndarray, matrix: np.ndarray) -> list[tuple[int, float, int, float, float]]:
    """Time the selection for several numbers of rows and ratios.

    Return tuples of number of rows, ratio, number of selected rows, seconds, and seconds of the textbook loop.
    """
    found = []
    shuffled = rows[np.random.default_rng(0).permutation(len(rows))]
    for n in (len(rows) // 100, len(rows) // 10, len(rows)):
        X = torch.from_numpy(shuffled[:n]) @ torch.from_numpy(matrix).to(torch.float32)
        for ratio in (0.001, 0.01, 0.1):
            k = int(np.ceil(n * ratio))
            loop = best_of(2, lambda X=X, k=k: textbook(X, min(k, LOOP_PICKS))) * max(1, k / LOOP_PICKS)
            found.append((n, ratio, k, best_of(2, lambda n=n, k=k: ours(shuffled[:n], matrix, k)), loop))
    return found


def plot(found: list[tuple[int, float, int, float, float]], path: Path) -> None:
    """Draw seconds over the number of rows, with one line per ratio and program."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for color, ratio in zip(("C0", "C1", "C2"), sorted({row[1] for row in found}), strict=True):
        chosen = [row for row in found if row[1] == ratio]
        n = [row[0] for row in chosen]
        axes.loglog(n, [row[3] for row in chosen], "o-", color=color, label=f"skpatchcore, ratio {ratio:g}")
        axes.loglog(
            n, [row[4] for row in chosen], "o:", color=color, alpha=0.6, label=f"textbook loop, ratio {ratio:g}"
        )
    axes.set(xlabel="number of patches", ylabel="seconds")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Extract features, time the selections, and write the tables and the figure."""
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
    rows = features.reshape(-1, features.shape[-1])
    matrix = gaussian_projection(rows.shape[1], 128, np.random.RandomState(0))
    lines = [
        "# Greedy coreset selection",
        "",
        f"The rows are float32 patch features of {len(chosen)} images of Magnetic Tile Defects at 224×224 pixels. The "
        f"backbone is {options.backbone}. {os.cpu_count()} CPU cores, torch {torch.__version__.split('+')[0]}, "
        f"skpatchcore {skpatchcore.__version__}. The times of the loops are scaled from their first {LOOP_PICKS} "
        "selected rows. The last three columns are the time of skpatchcore relative to the other programs.",
        "",
        "| rows × columns | ratio | selected rows | skpatchcore, s | matrix products only, s | textbook loop, s "
        "| loop with temporaries, s | relative to products | relative to textbook | relative to temporaries |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for projection in (matrix, None):
        columns = f"{rows.shape[1]}" if projection is None else f"{rows.shape[1]} → {projection.shape[1]}"
        for ratio in (0.001, 0.01, 0.1):
            t = compare(rows, projection, ratio)
            lines.append(
                f"| {len(rows)} × {columns} | {ratio:g} | {t['picks']} | {t['ours']:.2f} | {t['product']:.2f} "
                f"| {t['textbook']:.1f} | {t['anomalib']:.1f} | {t['ours'] / t['product']:.2f}× "
                f"| 1/{t['textbook'] / t['ours']:.0f} | 1/{t['anomalib'] / t['ours']:.0f} |"
            )
            print(lines[-1], flush=True)
    lines += ["", f"For several numbers of rows and ratios ({rows.shape[1]} → {matrix.shape[1]} columns):", ""]
    lines += ["| rows | ratio | selected rows | skpatchcore, s | textbook loop, s |", "|---|---|---|---|---|"]
    found = growth(rows, matrix)
    lines += [f"| {n} | {ratio:g} | {k} | {own:.3f} | {loop:.3f} |" for n, ratio, k, own, loop in found]
    picture = options.output.with_suffix(".png")
    plot(found, picture)
    lines += ["", f"![Seconds over the number of patches]({picture.name})"]
    lines += ["", "Made by `python benchmarks/selection.py PATH/TO/mtd`.", ""]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
