"""Test a detector under load: sixteen threads score images with one detector while other calls pickle the detector.

    python benchmarks/soak.py --minutes 10 -o benchmarks/results/soak.md

The images are scikit-image's brick texture, and the backbone is EfficientNet-Lite 0. Every score is compared with the
score that one thread computed before. Resident memory, threads and open files are recorded.
"""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch

import skpatchcore
from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

N_THREADS, N_EACH = 16, 200


def main() -> None:
    """Fit a detector, run the threads in rounds, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "soak.md")
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    task = make_textures("brick", random_state=0)
    extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None, crop_size=None)
    detector = PatchCoreDetector(extractor, random_state=0).fit(task.train_images)
    images = list(task.test_images)
    expected, maps = detector.score_and_segment(images)
    process, deviation, n_done = psutil.Process(), [0.0, 0.0], 0
    lock = threading.Lock()

    def judge(thread: int) -> None:
        nonlocal n_done
        for n in range(N_EACH):
            i = (thread * 7 + n) % len(images)
            if n % 50 == 49:
                found = pickle.loads(pickle.dumps(detector)).score_samples(images[i : i + 1])
                found_map = maps[i]
            else:
                found, (found_map,) = detector.score_and_segment(images[i : i + 1])
            with lock:
                n_done += 1
                deviation[0] = max(deviation[0], float(abs(found[0] / expected[i] - 1)))
                deviation[1] = max(deviation[1], float(np.abs(found_map - maps[i]).max()))

    lines, begin, rounds = [], time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - begin < options.minutes * 60:
        with ThreadPoolExecutor(N_THREADS) as pool:
            for future in [pool.submit(judge, thread) for thread in range(N_THREADS)]:
                future.result()
        gc.collect()
        rounds += 1
        seconds = time.perf_counter() - begin
        rss = process.memory_info().rss / 1e6
        lines.append((n_done, seconds, rss, threading.active_count(), process.num_fds()))
        print(f"{n_done} predictions, {seconds:.0f} s, {rss:.0f} MB, {deviation}", flush=True)
    shown = [lines[i] for i in sorted({0, 1, len(lines) // 4, len(lines) // 2, 3 * len(lines) // 4, len(lines) - 1})]
    text = [
        "# A detector under load",
        "",
        f"{N_THREADS} threads use one detector (efficientnet_lite0). The data are {len(images)} textures of "
        f"{images[0].shape[0]}×{images[0].shape[1]} pixels. Each call computes score and map of one image. Every "
        "fiftieth call of a thread pickles the detector and scores the image with the copy. The table shows the state "
        f"after some of the rounds of {N_THREADS} × {N_EACH} predictions.",
        "",
        "| predictions | seconds | resident memory, MB | threads | open files |",
        "|---|---|---|---|---|",
        *(f"| {n} | {s:.0f} | {r:.0f} | {t} | {f} |" for n, s, r, t, f in shown),
        "",
        f"The largest deviation from the results of a single thread is {deviation[0]:.1e} for scores (relative) and "
        f"{deviation[1]:.1e} for map values (absolute; the largest value is {np.max(maps):.0f}). No call raised an "
        "error.",
        "",
        f"{os.cpu_count()} CPU cores, torch {torch.__version__.split('+')[0]}, skpatchcore {skpatchcore.__version__}.",
        "",
        f"Made by `python benchmarks/soak.py --minutes {options.minutes:g}`.",
        "",
    ]
    options.output.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
