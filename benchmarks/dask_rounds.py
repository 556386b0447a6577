"""Count the rounds, rows and bytes of the distributed selection, and extrapolate them to large data.

    python benchmarks/dask_rounds.py PATH/TO/mtd -o benchmarks/results/dask_rounds.md

The shards are in one process (`InProcessGroup`), because the counts do not depend on where the shards are. k is the
number of selected rows, m the number of shards, and b the number of rows that a shard sends per round. A power law is
fitted to the rounds and to the rows sent, and extrapolated. The table of times is computed from formulae with constants
that are measured on this machine: the time of the network for one image, and the rate of the selection.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # the constants are those of one core

import argparse
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import skpatchcore
from skpatchcore import GreedyCoresetSampler, TorchFeatureExtractor, list_images
from skpatchcore.coreset.distributed import InProcessGroup, ProjectedRows, Request, select_exactly, select_merged

N_PATCHES, N_COLUMNS = 784, 128
NOTHING = [np.zeros(0, np.int64)]


def shards_of(values: np.ndarray, images: np.ndarray, m: int, n_features: int) -> list[ProjectedRows]:
    """Divide rows into m shards of whole images."""
    cuts = np.searchsorted(images, np.linspace(0, images[-1] + 1, m + 1)[1:-1].round())
    pairs = zip(np.split(values, cuts), np.split(images, cuts), strict=True)
    return [ProjectedRows(rows, numbers, n_features) for rows, numbers in pairs]


def power_law(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, float]:
    """Fit ``name = c * k**p * m**q * b**r``; return (log c, p, q, r) and the largest relative error."""
    X = np.array([[1, np.log(row["k"]), np.log(row["m"]), np.log(row["b"])] for row in rows])
    y = np.log([row[name] for row in rows])
    found = np.linalg.lstsq(X, y, rcond=None)[0]
    return found, float(np.max(np.abs(np.exp(X @ found - y) - 1)))


def evaluate(laws: dict[str, np.ndarray], name: str, k: float, m: float, b: float) -> float:
    """Return the value of a power law, but at least what k picks need: each is sent once, and m * b in one round."""
    value = float(np.exp(laws[name] @ [1, np.log(k), np.log(m), np.log(b)]))
    return max(value, k if name == "rows" else k / (m * b))


def size(n_bytes: float) -> str:
    """Return a number of bytes as text."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """Return a time as text."""
    for unit, factor in (("years", 3.15e7), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds:.2g} s"


def count_exact(options: argparse.Namespace, values: np.ndarray, images: np.ndarray, direction: np.ndarray) -> Any:
    """Run the selection in exact mode for all k, m and b; return the lines of the table and the counts."""
    lines, counted = [], []
    picked: dict[int, int] = {}  # digest of the picks for each k
    for k, m, b in product(options.k, options.m, options.b):
        request = Request(direction, 0, lambda n, k=k: min(k, n), NOTHING)
        start = time.perf_counter()
        found, report, _ = select_exactly(InProcessGroup(), shards_of(values, images, m, N_COLUMNS), request, b)
        seconds = time.perf_counter() - start
        digest = hash(found[0].order.tobytes())
        assert picked.setdefault(k, digest) == digest  # the picks depend neither on m nor on b
        counted.append(
            {"k": k, "m": m, "b": b, "rounds": report.n_rounds, "rows": report.n_rows_sent, "seconds": seconds,
             "bytes": report.n_bytes_sent}
        )  # fmt: skip
        lines.append(
            f"| {k} | {m} | {b} | {report.n_rounds} | {k / report.n_rounds:.0f} | {report.n_rows_sent} "
            f"| {report.n_rows_sent / k:.2f} | {size(report.n_bytes_sent)} | {seconds:.1f} |"
        )
        print(lines[-1], flush=True)
    return lines, counted


def count_merged(options: argparse.Namespace, values: np.ndarray, images: np.ndarray, direction: np.ndarray) -> Any:
    """Run the selection in merge mode; return the lines of the table."""
    lines = []
    for k in options.k:
        request = Request(direction, 0, lambda n, k=k: min(k, n), NOTHING)
        exact = select_exactly(InProcessGroup(), shards_of(values, images, 1, N_COLUMNS), request)[1].covering_radius
        for m, oversampling in product([m for m in options.m if m > 1], (1.0, 2.0, 4.0)):
            shards = shards_of(values, images, m, N_COLUMNS)
            report = select_merged(InProcessGroup(), shards, request, oversampling)[1]
            lines.append(
                f"| {k} | {m} | {oversampling:g} | {report.covering_radius:.4f} "
                f"| {report.covering_radius / exact:.3f}× "
                f"| {report.approximation_factor:.3f} | {report.n_rows_sent} | {size(report.n_bytes_sent)} |"
            )
            print(lines[-1], flush=True)
    return lines


def times_of(n: float, k: float, w: int, t_1: float, rate: float, B: float, laws: Any, b: int, C: int) -> list[float]:
    """Return the times of the network, of the selection (upper bound) and of the transfer in seconds."""
    rows_sent = evaluate(laws, "rows", k, w, b)
    moved = rows_sent * (4 * N_COLUMNS + 16) + k * (4 * N_COLUMNS + 8) * w + 4 * k * C
    return [n * t_1 / w, 2 * n * N_PATCHES * k * N_COLUMNS / (w * rate), moved / B]


def main() -> None:
    """Count, fit the model, extrapolate, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "dask_rounds.md")
    parser.add_argument("--backbone", default="efficientnet_lite2")
    parser.add_argument("--images", type=int, default=209)
    parser.add_argument("-k", type=int, nargs="+", default=[164, 1639, 16386])
    parser.add_argument("-m", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("-b", type=int, nargs="+", default=[32, 128, 512, 2048])
    parser.add_argument("--workers", type=int, default=64, help="workers of the extrapolation")
    parser.add_argument("--bandwidth", type=float, default=1e9, help="bytes per second of one machine")
    options = parser.parse_args()
    paths = list_images(options.root / "train" / "good")
    chosen = np.random.default_rng(0).permutation(len(paths))[: options.images]
    extractor = TorchFeatureExtractor(options.backbone, image_size=(224, 224), crop_size=None)
    extractor.transform([paths[i] for i in chosen[:4]])
    start = time.perf_counter()
    features = extractor.transform([paths[i] for i in chosen])
    t_1 = (time.perf_counter() - start) / len(chosen)
    rows = features.reshape(-1, features.shape[-1])
    images = np.repeat(np.arange(len(chosen)), N_PATCHES)
    projected = GreedyCoresetSampler(0.01, random_state=0).project_batches([rows], [images])
    direction = np.random.RandomState(0).standard_normal(projected.values.shape[1])
    exact, counted = count_exact(options, projected.values, images, direction)
    merged = count_merged(options, projected.values, images, direction)
    laws, errors = {}, {}
    several = [row for row in counted if row["m"] > 1]
    for name in ("rounds", "rows"):
        laws[name], errors[name] = power_law(several, name)
    largest = max((row for row in counted if row["m"] == min(options.m)), key=lambda row: row["k"])
    rate = 2 * len(rows) * largest["k"] * N_COLUMNS / largest["seconds"]
    w, b, C = options.workers, max(options.b), rows.shape[1]
    lines = [
        "# Rounds of the distributed selection",
        "",
        f"Projected patch features ({N_COLUMNS} columns) of {len(chosen)} images of Magnetic Tile Defects at 224×224 "
        f"pixels, {len(rows)} rows, backbone {options.backbone}, skpatchcore {skpatchcore.__version__}. The shards "
        "are in one process. *k*: selected rows. *m*: shards. *b*: rows that a shard sends per round at most. Bytes "
        "include the picks that are sent to all shards. The selected rows were the same for all *m* and *b*.",
        "",
        "| k | m | b | rounds | picks per round | rows sent | rows sent / k | bytes | seconds in one process |",
        "|---|---|---|---|---|---|---|---|---|",
        *exact,
        "",
        "## Merge mode",
        "",
        "*Radius*: measured covering radius over all rows. *Certificate*: the radius is at most this factor times the "
        "smallest possible radius of *k* rows.",
        "",
        "| k | m | oversampling | radius | relative to exact | certificate | rows sent | bytes |",
        "|---|---|---|---|---|---|---|---|",
        *merged,
        "",
        "## A model, and what it says of large data",
        "",
        "Power laws fitted to the rows of the first table with m > 1. The error is the largest relative error on these "
        "rows. An extrapolated value is at least k rows and k / (m b) rounds, which any selection needs.",
        "",
        "| quantity | law | largest error |",
        "|---|---|---|",
        *(
            f"| {title} | {np.exp(laws[name][0]):.3g} · k^{laws[name][1]:.2f} · m^{laws[name][2]:.2f} "
            f"· b^{laws[name][3]:.2f} | {errors[name]:.0%} |"
            for name, title in (("rounds", "rounds"), ("rows", "rows sent"))
        ),
        "",
        *extrapolated(w, b, C, t_1, rate, options.bandwidth, laws),
        "",
        "## What dominates",
        "",
        f"*t_1* = {t_1:.3f} s (network, one image, one core) and *F* = {rate / 1e9:.1f}·10⁹ operations per second "
        f"(whole selection of k = {largest['k']}, one core, with skipped rows counted as computed) are measured. "
        f"{w} workers, *B* = {options.bandwidth / 1e9:g} GB per second and *b* = {b} are assumed.",
        "",
        "| images | rows of the bank | network | selection | transfer |",
        "|---|---|---|---|---|",
    ]
    for n in (1e4, 1e5, 1e6, 1e7):
        for name, k in (("1 %", 0.01 * n * N_PATCHES), ("fixed", 50_000)):
            found = times_of(n, k, w, t_1, rate, options.bandwidth, laws, b, C)
            lines.append(f"| {n:.0e} | {k:,.0f} ({name}) | {' | '.join(map(duration, found))} |")
    lines += ["", "Made by `python benchmarks/dask_rounds.py PATH/TO/mtd`.", ""]
    options.output.write_text("\n".join(lines), encoding="utf-8")


def extrapolated(w: int, b: int, C: int, t_1: float, rate: float, B: float, laws: Any) -> list[str]:
    """Return the text on a million images at a ratio of 1 %."""
    n = 1e6
    k = 0.01 * n * N_PATCHES
    network, selection, transfer = times_of(n, k, w, t_1, rate, B, laws, b, C)
    return [
        f"Extrapolation to 10⁶ images of {N_PATCHES} patches at a ratio of 1 %, m = {w} shards and b = {b}. "
        f"k = {k:,.0f} is far outside the measured range, so the counts are orders of magnitude only:",
        "",
        f"- {evaluate(laws, 'rounds', k, w, b):,.0f} rounds, {evaluate(laws, 'rows', k, w, b):.3g} rows sent.",
        f"- Projected rows: {size(n * N_PATCHES * N_COLUMNS * 4)} in all, {size(n * N_PATCHES * N_COLUMNS * 4 / w)} on "
        "each worker.",
        f"- Patch features: {size(n * N_PATCHES * C * 4)} in all, if they were kept. The bank: {size(k * C * 4)}.",
        f"- On each of {w} cores: network {duration(network)}, selection {duration(selection)} (upper bound). "
        f"Transfer: {duration(transfer)}.",
        f"- The selection takes as long as the network if k = {t_1 * rate / (2 * N_PATCHES * N_COLUMNS):,.0f} rows.",
    ]


if __name__ == "__main__":
    main()
