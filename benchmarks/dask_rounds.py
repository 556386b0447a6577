"""Count rounds, rows and bytes of distributed selections, and extrapolate them to a million images.

    python benchmarks/dask_rounds.py PATH/TO/mtd -o benchmarks/results/dask_rounds.md

The shards are in this process: the numbers of rounds, rows and bytes are those of a cluster, the times are not. Each
number of a table comes from one selection. A power law is fitted to the counts of the exact mode. The last table
computes the times of a fit from the formulas of the page "Many machines: Dask". Run it with ``OMP_NUM_THREADS=1``, so
that the constants are those of one core.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from skpatchcore import GreedyCoresetSampler, TorchFeatureExtractor, __version__, list_images
from skpatchcore.coreset import distributed
from skpatchcore.coreset.distributed import InProcessGroup, SelectionReport

# Columns after the projection.
D = 128
PICKS, SHARDS, CANDIDATES = (100, 400, 1600, 6400), (2, 8, 32), (64, 256, 1024)
# Constants of the last table: patches per image, channels, bytes per second of one connection, and workers.
PATCHES, CHANNELS, BANDWIDTH, WORKERS = 784, 1536, 1e9, 64


def selected(
    rows: np.ndarray, images: np.ndarray, k: int, m: int, b: int, mode: str = "exact", oversampling: float = 2.0
) -> tuple[SelectionReport, np.ndarray]:
    """Select k rows from m shards, and return the report and the picks. Each shard sends b rows per round."""
    sampler = GreedyCoresetSampler(k, random_state=0)
    starts = np.searchsorted(images, np.linspace(0, images[-1] + 1, m + 1).astype(int))
    parts = [slice(*pair) for pair in itertools.pairwise(starts)]
    projected = [sampler.project_batches([rows[part]], [images[part]]) for part in parts]
    distributed._N_CANDIDATES, distributed._FEWEST = b * m, 1
    report, _ = sampler.fit_shards(InProcessGroup(), projected, mode=mode, oversampling=oversampling)
    return report, sampler.component_indices_


def power_law(logs: list[tuple[float, ...]], counts: list[float]) -> np.ndarray:
    """Return the coefficients of ``log(count) = c[0] + c[1] log k + c[2] log m + c[3] log b`` (least squares)."""
    matrix = np.column_stack([np.ones(len(logs)), np.log(logs)])
    return np.linalg.lstsq(matrix, np.log(counts), rcond=None)[0]


def predicted(coefficients: np.ndarray, k: float, m: float, b: float) -> float:
    """Return the count of :func:`power_law`."""
    return float(np.exp(coefficients @ [1, math.log(k), math.log(m), math.log(b)]))


def described(coefficients: np.ndarray) -> str:
    """Return a power law as text."""
    return (
        f"{np.exp(coefficients[0]):.3g} · k^{coefficients[1]:.2f} · m^{coefficients[2]:.2f} · b^{coefficients[3]:.2f}"
    )


def quantity(value: float, units: tuple[str, ...], step: float) -> str:
    """Return a number with the largest unit that keeps it above 1."""
    for unit in units[:-1]:
        if value < step:
            return f"{value:.3g} {unit}"
        value /= step
    return f"{value:.3g} {units[-1]}"


def seconds(value: float) -> str:
    """Return seconds as text."""
    return f"{value:.3g} s" if value < 120 else quantity(value / 60, ("min", "h"), 60)


def size(value: float) -> str:
    """Return bytes as text."""
    return quantity(value, ("B", "kB", "MB", "GB", "TB", "PB"), 1000)


def seconds_per_image(paths: list[str], backbone: str) -> float:
    """Return the shortest time per image of a batch at 224 pixels, of reading and network, in this process."""
    extractor = TorchFeatureExtractor(backbone, image_size=(224, 224)).fit(paths)
    extractor.transform(paths[:4])  # loads the network
    return min(_seconds(lambda i=i: extractor.transform(paths[i : i + 8])) for i in range(0, 80, 8)) / 8


def operations_per_second() -> float:
    """Return the operations per second of the matrix products of the selection, in this process."""
    left, right = torch.rand(1024, D + 1), torch.rand(D + 1, 512)
    return 2 * 1024 * 512 * D / min(_seconds(lambda: torch.mm(left, right)) for _ in range(200))


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def times(
    n: float, k: float, rounds: float, sent: float, b: float, t_network: float, rate: float
) -> tuple[float, float, float]:
    """Return the seconds of network, selection and transfer; all three as on the page "Many machines: Dask"."""
    network = n * t_network / WORKERS
    selection = 2 * n * PATCHES * k * D / (WORKERS * rate)
    moved = 4 * k * (D * WORKERS + CHANNELS) + sent * 4 * D + rounds * WORKERS * b * 16
    return network, selection, moved / BANDWIDTH


def main() -> None:
    """Extract features, count, fit the power laws and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "dask_rounds.md")
    parser.add_argument("--backbone", default="efficientnet_lite2")
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    paths = list_images(options.root / "train" / "good")[: options.images]
    grids = TorchFeatureExtractor(options.backbone, image_size=128).fit(paths).transform(paths)
    rows = np.concatenate([grid.reshape(-1, grid.shape[-1]) for grid in grids])
    images = np.repeat(np.arange(len(grids)), [grid.shape[0] * grid.shape[1] for grid in grids])

    lines = [
        "# Rounds and bytes of a distributed selection",
        "",
        f"{len(paths)} images of Magnetic Tile Defects, {options.backbone} at 128 pixels, {len(rows):,} rows of {D} "
        f"columns after the projection, skpatchcore {__version__}. *k* is the number of selected rows, *m* the number "
        "of shards, and *b* the number of rows that a shard sends per round. In the exact mode, all selections of the "
        "same *k* have the same rows in the same order (checked).",
        "",
        "| k | m | b | rounds | rows sent, without repetitions | bytes moved |",
        "|---|---|---|---|---|---|",
    ]
    settings, rounds, sent = [], [], []
    for k in PICKS:
        expected = None
        for m, b in itertools.product(SHARDS, CANDIDATES):
            report, picks = selected(rows, images, k, m, b)
            assert expected is None or (picks == expected).all(), (k, m, b)
            expected = picks
            settings.append((k, m, b))
            rounds.append(report.n_rounds)
            sent.append(report.n_rows_sent)
            lines.append(
                f"| {k} | {m} | {b} | {report.n_rounds} | {report.n_rows_sent:,} | {size(report.n_bytes_sent)} |"
            )
            print(lines[-1], flush=True)
    # At least the picks are sent, so that the law is fitted to the other rows.
    others = [n - k for n, (k, _, _) in zip(sent, settings, strict=True)]
    of_rounds, of_others = power_law(settings, rounds), power_law(settings, others)
    errors = [
        np.exp(np.std([math.log(predicted(law, *own) / count) for own, count in zip(settings, counts, strict=True)]))
        for law, counts in ((of_rounds, rounds), (of_others, others))
    ]
    lines += [
        "",
        f"Power laws, by least squares of the logarithms: **rounds = {described(of_rounds)}** (typical error: a "
        f"factor of {errors[0]:.2f}), **rows sent = k + {described(of_others)}** (a factor of {errors[1]:.2f}). Bytes "
        f"moved = rows sent · (4 · {D} + 8) + rounds · m · b · 16 + k · m · (4 · {D} + 8).",
        "",
        "## Merge mode",
        "",
        "Each shard selects *c* · *k* / *m* rows. The factor bounds the covering radius relative to the smallest "
        "possible one. The exact mode has the factor 2.",
        "",
        "| k | m | c | rows sent | bytes moved | covering radius | of exact mode | factor (certificate) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    tree_rows = None
    for k, m, c in itertools.product(PICKS[1:], SHARDS, (1.0, 2.0, 4.0)):
        report, picks = selected(rows, images, k, m, 64, "merge", c)
        exact, _ = selected(rows, images, k, 2, 1024)
        if tree_rows is None:  # the measured radius is checked once against another program, in the projected space
            sampler = GreedyCoresetSampler(k, random_state=0)
            tree_rows = sampler.project_batches([rows], [images]).values
            nearest = cKDTree(tree_rows[picks]).query(tree_rows)[0].max()
            assert abs(nearest / report.covering_radius - 1) < 1e-4
        lines.append(
            f"| {k} | {m} | {c:g} | {report.n_rows_sent:,} | {size(report.n_bytes_sent)} | "
            f"{report.covering_radius:.2f} | {report.covering_radius / exact.covering_radius:.2f} | "
            f"{report.approximation_factor:.2f} |"
        )
        print(lines[-1], flush=True)
    n, k, m, b = 1e6, 1e6 * PATCHES * 0.01, 512, 128
    R, S = predicted(of_rounds, k, m, b), k + predicted(of_others, k, m, b)
    moved = S * (4 * D + 8) + R * m * b * 16 + k * m * (4 * D + 8)
    t_network, rate = seconds_per_image(paths, options.backbone), operations_per_second()
    _, selection, _ = times(n, k, R, S, b, t_network, rate)
    lines += [
        "",
        "## A million images",
        "",
        f"Extrapolation of the power laws to 10⁶ images of {PATCHES} patches at a ratio of 1 %: {n * PATCHES:.3g} "
        f"rows, k = {k:.3g}, far outside of the measured range. With m = {m} shards and b = {b}: about {R:,.0f} "
        f"rounds, {S:.3g} rows sent ({size(S * (4 * D + 8))}), {size(k * m * (4 * D + 8))} of selected rows to "
        f"all shards, {size(moved)} in total. It would need:",
        "",
        f"- {size(n * PATCHES * (4 * D + 4 + 24))} of memory for the projected rows and the bounds, i.e. "
        f"{size(n * PATCHES * (4 * D + 4 + 24) / m)} per shard, and {size(k * 4 * D)} on each shard for the "
        "selected rows;",
        f"- {size(k * 4 * CHANNELS)} for a bank of {CHANNELS} channels, on one machine;",
        f"- {size(S * 4 * D)} on the machine that runs the program for the rows that were sent;",
        f"- up to {2 * n * PATCHES * k * D:.2g} operations for the selection without skipped rows: "
        f"{seconds(selection * WORKERS)} of one core at {rate:.1e} per second, and several times as much with "
        "calibration folds.",
        "",
        "A fixed number of rows, e.g. `GreedyCoresetSampler(50_000)`, is the practical choice for so many images:",
        "",
        "## What dominates",
        "",
        f"Measured on one core: t_1 = {t_network:.3f} s per image ({options.backbone}, 224 pixels, with reading), and "
        f"F = {rate:.1e} operations per second in the matrix products. The network and the selection without skipped "
        f"rows take the same time at k = {t_network * rate / (2 * PATCHES * D):,.0f} rows. The table is computed, "
        f"not measured: {WORKERS} workers of one core, B = {BANDWIDTH:.0e} bytes per second, {PATCHES} patches per "
        f"image, {CHANNELS} channels, without calibration.",
        "",
        "| images | rows of the bank | network | selection, at most | transfer |",
        "|---|---|---|---|---|",
    ]
    for n in (1e4, 1e5, 1e6, 1e7):
        for k in (0.01 * n * PATCHES, 50_000):
            R, S = predicted(of_rounds, k, WORKERS, 128), k + predicted(of_others, k, WORKERS, 128)
            network, selection, transfer = times(n, k, R, S, 128, t_network, rate)
            lines.append(f"| {n:,.0f} | {k:,.0f} | {seconds(network)} | {seconds(selection)} | {seconds(transfer)} |")
    lines += ["", "Made by `python benchmarks/dask_rounds.py PATH/TO/mtd`."]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
