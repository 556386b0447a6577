"""Measure time and memory of the exact AUPRO, compared with anomalib's AUPRO and with a grid of 200 thresholds.

    python benchmarks/metrics.py -o benchmarks/results/metrics.md

The anomaly maps are smooth noise with raised defects. One map in three has defects. anomalib is measured only if it is
installed. Each method runs in a separate process, which reports its peak memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import queue
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, label

import skpatchcore
from skpatchcore.metrics import aupimo_scores, aupro_score, pixel_metrics, pixel_roc_auc_score

# A method that takes longer is stopped.
SECONDS = 4 * 3600


def make_case(n_images: int, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return bool masks and float32 anomaly maps of shape (size, size)."""
    rng = np.random.default_rng(0)
    masks, maps = [], []
    for i in range(n_images):
        noise = gaussian_filter(rng.normal(size=(size // 8, size // 8)).astype(np.float32), 2)
        scored = np.kron(noise / noise.std(), np.ones((8, 8), np.float32)) + rng.normal(0, 0.1, (size, size))
        mask = np.zeros((size, size), bool)
        if i % 3 == 0:
            for _ in range(rng.integers(1, 4)):
                y, x = rng.integers(0, size - size // 8, 2)
                height, width = rng.integers(size // 50, size // 8, 2)
                mask[y : y + height, x : x + width] = True
            scored += 1.5 * mask
        masks.append(mask)
        maps.append(scored.astype(np.float32))
    return masks, maps


def grid_of_200(masks: list[np.ndarray], maps: list[np.ndarray]) -> float:
    """Compute an approximate AUPRO at 200 thresholds between the lowest and the highest score, as some libraries do."""
    regions = [label(mask, np.ones((3, 3))) for mask in masks]
    n_good = sum((~mask).sum() for mask in masks)
    lowest, highest = min(m.min() for m in maps), max(m.max() for m in maps)
    fprs, pros = [0.0], [0.0]
    for threshold in np.linspace(highest, lowest, 200):
        false, overlaps = 0, []
        for mask, scored, (numbers, n_regions) in zip(masks, maps, regions, strict=True):
            above = scored >= threshold
            false += np.count_nonzero(above & ~mask)
            if n_regions:
                found = np.bincount(numbers[above], minlength=n_regions + 1)[1:]
                overlaps.append(found / np.bincount(numbers.ravel(), minlength=n_regions + 1)[1:])
        fprs.append(false / n_good)
        pros.append(np.concatenate(overlaps).mean())
    x, y = np.array(fprs), np.array(pros)
    inside = x <= 0.3
    at_limit = np.interp(0.3, x, y)
    return float(np.trapezoid(np.append(y[inside], at_limit), np.append(x[inside], 0.3)) / 0.3)


def anomalib_aupro(masks: list[np.ndarray], maps: list[np.ndarray]) -> float:
    """Compute the AUPRO with anomalib, which needs maps of equal size."""
    import torch
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO(fpr_limit=0.3)
    for mask, scored in zip(masks, maps, strict=True):
        metric.update(torch.from_numpy(scored)[None], torch.from_numpy(mask)[None].int())
    return float(metric.compute())


METHODS = {
    "skpatchcore aupro_score": aupro_score,
    "grid of 200 thresholds": grid_of_200,
    "anomalib AUPRO": anomalib_aupro,
    "skpatchcore pixel_metrics (five metrics in one call; value: AUPRO)": lambda masks, maps: float(
        pixel_metrics(masks, maps)[0]["aupro"]
    ),
    "skpatchcore pixel_roc_auc_score": pixel_roc_auc_score,
    "skpatchcore aupimo_scores (value: mean)": lambda masks, maps: float(np.nanmean(aupimo_scores(masks, maps))),
}


def measure(name: str, n_images: int, size: int, answer: multiprocessing.Queue) -> None:
    """Put value, seconds, extra peak memory and total peak memory into the queue, or an error message."""
    case = make_case(n_images, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    try:
        value = METHODS[name](*case)
    except Exception as error:  # e.g., anomalib is not installed or runs out of memory
        answer.put(f"{type(error).__name__}: {error}".splitlines()[0][:80])
        return
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.put((value, seconds, (peak - before) / 1e6, peak / 1e6))


def answer_of(process: multiprocessing.process.BaseProcess, answer: multiprocessing.Queue) -> Any:
    """Return what the process puts into the queue, or a message if it ends without an answer or takes too long.

    The kernel kills a process that uses too much memory.
    """
    for _ in range(SECONDS):
        try:
            found = answer.get(timeout=1)
        except queue.Empty:
            if process.is_alive():
                continue
            return f"ended with exit code {process.exitcode}"
        process.join(60)
        return found
    process.kill()
    return f"took more than {SECONDS} s"


def main() -> None:
    """Measure all methods and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "metrics.md")
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--size", type=int, default=1024)
    options = parser.parse_args()
    lines = [
        "# Metrics",
        "",
        f"{options.images} float32 anomaly maps of {options.size}×{options.size} pixels, a third of them with defects. "
        "The AUPRO is integrated up to a false-positive rate of 0.3. Extra memory is the peak memory above the memory "
        "before the call, which holds maps and masks.",
        "",
        "| method | value | seconds | extra memory, GB | total memory, GB |",
        "|---|---|---|---|---|",
    ]
    context = multiprocessing.get_context("spawn")
    for name in METHODS:
        answer = context.Queue()
        process = context.Process(target=measure, args=(name, options.images, options.size, answer))
        process.start()
        found = answer_of(process, answer)
        if isinstance(found, str):
            lines.append(f"| {name} | {found} | | | |")
        else:
            lines.append(f"| {name} | {found[0]:.6f} | {found[1]:.1f} | {found[2]:.1f} | {found[3]:.1f} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"{os.cpu_count()} CPU cores ({platform.machine()}), numpy {np.__version__}, skpatchcore "
        f"{skpatchcore.__version__}.",
        "",
        "Made by `python benchmarks/metrics.py`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
