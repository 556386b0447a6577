"""Measure ``skpatchcore predict``: images a second, beside ``score_and_segment``, and the start of a new process.

python benchmarks/command_line.py MODEL IMAGES -o benchmarks/results/command_line.md

MODEL is a file of ``skpatchcore fit``, and IMAGES a folder of images.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

import skpatchcore
from skpatchcore._utils.ahead import n_cores
from skpatchcore.reports import write_predictions

BASE = "import torch, torchvision"
# Marks the processes that are timed without the exit of the interpreter.
_NO_EXIT = " *"


def main() -> None:
    """Measure all ways in turns, take the best time of each, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "command_line.md")
    parser.add_argument("--n-images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore", skpatchcore.AppearanceWarning)
    paths = skpatchcore.list_images(options.images)[: options.n_images]
    with tempfile.TemporaryDirectory() as folder:
        rates = throughput(options.model, paths, folder, options.repeats)
        starts = cold_starts(options.model, paths[0], folder, options.repeats)
    plain = rates["score_and_segment"]
    lines = [
        "# Command line",
        "",
        "## Images per second",
        "",
        f"{len(paths)} images in one process, best of {options.repeats} runs, in turns. `write_predictions` is the "
        "function behind `skpatchcore predict`: it also writes the table and a heat map of each image.",
        "",
        "| call | images/s | relative to `score_and_segment` |",
        "|---|---|---|",
        *(f"| `{name}` | {rate:.1f} | {rate / plain:.2f}× |" for name, rate in rates.items()),
        "",
        "## First score of a new process",
        "",
        f"Best of {options.repeats} fresh processes, in turns.",
        "",
        f"| process | s | relative to `{BASE}` |",
        "|---|---|---|",
        *(
            f"| `{name}` | {seconds:.2f} | {seconds / starts[BASE + _NO_EXIT * name.endswith(_NO_EXIT)]:.2f}× |"
            for name, seconds in starts.items()
        ),
        "",
        "\\* without the exit of the interpreter: until the statements are executed.",
        "",
        f"{n_cores()} cores, {os.environ.get('OMP_NUM_THREADS', 'default number of')} thread(s) of OpenMP, "
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, skpatchcore "
        f"{skpatchcore.__version__}.",
        "",
        "Made by `python benchmarks/command_line.py MODEL IMAGES`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def throughput(model: str, paths: list[str], folder: str, repeats: int) -> dict[str, float]:
    """Return the images per second of each call."""
    detector = skpatchcore.load(model)
    detector.score_samples(paths[:4])
    calls = {
        "score_and_segment": lambda: detector.score_and_segment(paths),
        "write_predictions": lambda: write_predictions(detector, paths, folder),
        "write_predictions(layers=True)": lambda: write_predictions(detector, paths, folder, layers=True),
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begin)
    return {name: len(paths) / seconds for name, seconds in best.items()}


def cold_starts(model: str, image: str, folder: str, repeats: int) -> dict[str, float]:
    """Return the seconds of each process."""
    code = f"import skpatchcore; skpatchcore.load({model!r}).score_samples([{image!r}])"
    # the exit of an interpreter, which visits all objects, is not part of the way to the first score
    leave = "; import os; os._exit(0)"
    commands = {
        BASE: ["-c", BASE],
        "skpatchcore predict": ["-m", "skpatchcore", "predict", model, image, "-o", folder, "--quiet"],
        f"{BASE}{_NO_EXIT}": ["-c", BASE + leave],
        f"load(model).score_samples([image]){_NO_EXIT}": ["-W", "ignore", "-c", code + leave],
    }
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(repeats):
        for name, command in commands.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, timeout=600, stderr=subprocess.DEVNULL)
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


if __name__ == "__main__":
    main()
