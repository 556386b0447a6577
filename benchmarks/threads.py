"""Measure the throughput of detectors in several threads and processes, for some settings of torch's threads.

    python benchmarks/threads.py PATH/TO/mtd -o benchmarks/results/threads.md

Each worker has a detector of its own and scores images of Magnetic Tile Defects one by one, from files, with score and
anomaly map. All workers of a setting start at the same moment and run for the same time. The settings are measured in
turn, in several rounds. The reference is one worker with one torch thread, while the other cores are idle.
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

import numpy as np
import torch

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, load_image_folder

WORK = """
import json, sys, threading, time, warnings
warnings.simplefilter("ignore")
import skpatchcore
path, n_threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
images = json.loads(sys.argv[4])
detectors = [skpatchcore.load(path) for _ in range(n_threads)]
for detector in detectors:
    for image in images[:3]:
        detector.score_and_segment([image])
counts = [0] * n_threads
print("ready", flush=True)
sys.stdin.readline()
end = time.perf_counter() + seconds
def work(i):
    while time.perf_counter() < end:
        detectors[i].score_and_segment([images[counts[i] % len(images)]])
        counts[i] += 1
threads = [threading.Thread(target=work, args=(i,)) for i in range(n_threads)]
begin = time.perf_counter()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(600)
print(sum(counts) / (time.perf_counter() - begin))
"""
# Name, number of processes, Python threads per process, environment. None means one per core.
KEPT = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
SETTINGS = (
    ("1 process, 1 thread, `OMP_NUM_THREADS=1`", 1, 1, {"OMP_NUM_THREADS": "1"}),
    ("1 process, 1 thread, `OMP_NUM_THREADS=1`, memory kept", 1, 1, {"OMP_NUM_THREADS": "1", **KEPT}),
    ("1 process, 1 thread, default", 1, 1, {}),
    ("1 process, 1 thread per core, `OMP_NUM_THREADS=1`", 1, None, {"OMP_NUM_THREADS": "1"}),
    ("1 process, 1 thread per core, default", 1, None, {}),
    ("1 process, 1 thread per core, `OMP_NUM_THREADS=1`, memory kept", 1, None, {"OMP_NUM_THREADS": "1", **KEPT}),
    ("1 process per core, `OMP_NUM_THREADS=1`", None, 1, {"OMP_NUM_THREADS": "1"}),
    ("1 process per core, `OMP_NUM_THREADS=1`, memory kept", None, 1, {"OMP_NUM_THREADS": "1", **KEPT}),
    ("1 process per core, default", None, 1, {}),
    ("1 process per core, `OMP_WAIT_POLICY=passive`", None, 1, {"OMP_WAIT_POLICY": "passive"}),
)
# Backbone, keywords of the extractor, ratio.
CASES = (
    ("efficientnet_lite2", {}, 0.01),
    ("wide_resnet50_2, random weights", {"weights": None}, 0.1),
)


def throughput(model: Path, images: list[str], n_processes: int, n_threads: int, extra: dict, seconds: float) -> float:
    """Return the images per second of all workers together."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    command = [sys.executable, "-c", WORK, str(model), str(n_threads), str(seconds), json.dumps(images)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**env, **extra})
        for _ in range(n_processes)
    ]
    try:
        for worker in workers:
            if worker.stdout.readline() != "ready\n":
                raise RuntimeError("a worker failed.")
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return sum(float(worker.communicate(timeout=seconds + 600)[0]) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()


def main() -> None:
    """Measure all settings and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "threads.md")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder, n_cores = load_image_folder(options.root), os.cpu_count() or 1
    train = [str(path) for path in np.random.default_rng(0).choice(folder.train_paths, 60, replace=False)]
    test = [str(path) for path in np.random.default_rng(0).choice(folder.test_paths, 16, replace=False)]
    lines = [
        "# Threads and processes",
        "",
        "Images per second of one detector per worker, from files to scores and anomaly maps, one image per call, at "
        f"224×224 pixels. The number in brackets is the throughput relative to {n_cores} times that of one worker with "
        "one torch thread. The memory banks are made from 60 images of Magnetic Tile Defects, with the ratio of the "
        f"heading. *Memory kept* means the variables "
        f"`{' '.join(f'{name}={value}' for name, value in KEPT.items())}`. Medians of {options.rounds} rounds.",
        "",
        "| setting | " + " | ".join(f"{name}, ratio {ratio:.0%}" for name, _, ratio in CASES) + " |",
        "|---|" + "---|" * len(CASES),
    ]
    cells: dict[str, list[str]] = {name: [] for name, *_ in SETTINGS}
    for backbone, keywords, ratio in CASES:
        extractor = TorchFeatureExtractor(backbone.split(",")[0], image_size=(224, 224), crop_size=None, **keywords)
        detector = PatchCoreDetector(
            extractor, sampler=GreedyCoresetSampler(ratio), calibration=None, reserve=False, random_state=0
        )
        found: dict[str, list[float]] = {name: [] for name, *_ in SETTINGS}
        with tempfile.TemporaryDirectory() as place:
            model = Path(place) / "model.skops"
            skpatchcore.save(detector.fit(train), model)
            for _ in range(options.rounds):
                for name, n_processes, n_threads, extra in SETTINGS:
                    shape = n_processes or n_cores, n_threads or n_cores
                    found[name].append(throughput(model, test, *shape, extra, options.seconds))
                    print(backbone, name, f"{found[name][-1]:.2f}", flush=True)
        whole = n_cores * median(found[SETTINGS[0][0]])
        for name, rates in found.items():
            cells[name].append(f"{median(rates):.1f} ({median(rates) / whole:.2f})")
    lines += [f"| {name} | " + " | ".join(row) + " |" for name, row in cells.items()]
    lines += [
        "",
        f"{n_cores} CPU cores ({platform.machine()}), torch {torch.__version__.split('+')[0]}, skpatchcore "
        f"{skpatchcore.__version__}.",
        "",
        "Made by `python benchmarks/threads.py PATH/TO/mtd`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
