"""Time small tasks on a machine that other programs keep busy, with one torch thread and with one thread per core.

    python benchmarks/busy_machine.py -o benchmarks/results/busy_machine.md [OTHER_CHECKOUT]

On the busy machine, one busy loop runs per core. The tasks are timed in a separate process for each number of threads,
on the idle and on the busy machine. All measurements are repeated in several rounds. If OTHER_CHECKOUT is given, e.g. a
checkout of the previous version, the tasks are timed with both versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

import skpatchcore

WORK = """
import json, sys, time, warnings
sys.path.insert(0, sys.argv[1])
import numpy as np
from skpatchcore import ExactIndex, GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor
warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
images = rng.random((8, 64, 64, 3)).astype(np.float32)
rows = rng.normal(size=(2560, 64)).astype(np.float32)
extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None)
index = ExactIndex().fit(rows[:256])
detector = PatchCoreDetector(extractor, random_state=0).fit(images)
work = {
    "features of 8 images, 64×64": lambda: extractor.transform(images),
    "selection, 256 of 2,560 × 64": lambda: GreedyCoresetSampler(256, random_state=0).fit(rows),
    "search, 64 in 256 × 64": lambda: index.kneighbors(rows[:64], 9),
    "fit, 8 images": lambda: PatchCoreDetector(extractor, random_state=0).fit(images),
    "score, 1 image": lambda: detector.score_samples(images[:1]),
}
found = {}
for name, run in work.items():
    run()
    times, end = [], time.perf_counter() + 3
    while len(times) < 3 or (len(times) < 20 and time.perf_counter() < end):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    found[name] = sorted(times)[len(times) // 2]
print(json.dumps(found))
"""
# A busy loop ends after 600 s even if it is not killed.
LOOP = "import time; end = time.time() + 600\nwhile time.time() < end: pass"


def timed(checkout: Path, n_threads: int, n_loops: int) -> dict[str, float]:
    """Run the tasks in a separate process beside `n_loops` busy loops; return the median seconds of each task."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(n_loops)]
    try:
        with tempfile.TemporaryDirectory() as elsewhere:
            text = subprocess.run(
                [sys.executable, "-c", WORK, str(checkout.resolve())],
                capture_output=True, text=True, check=True, cwd=elsewhere, timeout=1200,
                env={**os.environ, "OMP_NUM_THREADS": str(n_threads)},
            ).stdout  # fmt: skip
    finally:
        for loop in loops:
            loop.kill()
            loop.wait(60)
    found: dict[str, float] = json.loads(text)
    return found


def main() -> None:
    """Time all combinations of version, threads and load, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/busy_machine.md"))
    options = parser.parse_args()
    n_cores = os.cpu_count() or 1
    checkouts = {"this version": Path(skpatchcore.__file__).parents[1]}
    if options.other is not None:
        checkouts["before"] = options.other
    cases = [(name, n, loops) for name in checkouts for n in sorted({1, n_cores}) for loops in (0, n_cores)]
    rounds = []
    for i in range(options.rounds):
        rounds.append({case: timed(checkouts[case[0]], *case[1:]) for case in cases})
        print(f"round {i + 1} of {options.rounds}", flush=True)
    seconds = {case: {work: median(r[case][work] for r in rounds) for work in rounds[0][case]} for case in cases}
    reference = seconds["this version", 1, 0]
    lines = [
        "# Small tasks on a busy machine",
        "",
        "The first column of numbers is the time with one thread on the idle machine. The other columns are times "
        "relative to the first column. The backbone is ResNet-18 with random weights. On the busy machine, "
        f"{n_cores} busy loops run on {n_cores} cores.",
        "",
        "| task | this version: 1 thread, idle, ms | " + " | ".join(
            f"{name}: {n} thread{'s' * (n > 1)}, {'busy' if loops else 'idle'}" for name, n, loops in cases[1:]
        ) + " |",
        "|---" * (len(cases) + 1) + "|",
    ]  # fmt: skip
    for work, unit in reference.items():
        ratios = " | ".join(f"{seconds[case][work] / unit:.2g}" for case in cases[1:])
        lines.append(f"| {work} | {unit * 1e3:.1f} | {ratios} |")
    lines += [
        "",
        f"All times are medians of {options.rounds} rounds. {n_cores} CPU cores ({platform.machine()}), torch "
        f"{torch.__version__.split('+')[0]}, skpatchcore {skpatchcore.__version__}.",
        "",
        "Made by `python benchmarks/busy_machine.py`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
