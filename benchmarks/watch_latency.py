"""Measure ``skpatchcore watch``: time from a complete file to its line, throughput, and memory over 100,000 files.

    python benchmarks/watch_latency.py MODEL IMAGES -o benchmarks/results/watch_latency.md

MODEL is a file of ``skpatchcore fit``, and IMAGES a folder of images.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import skpatchcore
from skpatchcore._utils.ahead import n_cores
from skpatchcore.detectors import ImageResult
from skpatchcore.reports import write_predictions
from skpatchcore.watching import WatchSettings, watch_folder

# Seconds between two files while the process is idle, and numbers of files after which the memory is read.
PAUSE = 0.15
MARKS = (1_000, 10_000, 100_000)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "watch_latency.md")
    parser.add_argument("--n-images", type=int, default=100, help="images for the latency and the throughput")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore", skpatchcore.AppearanceWarning)
    found = skpatchcore.list_images(options.images)
    paths = [found[i % len(found)] for i in range(options.n_images)]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        seconds = {
            "events": latencies(options.model, paths, place / "events", []),
            "events, `--fsync`": latencies(options.model, paths, place / "fsync", ["--fsync"]),
            "`--poll 0.1`": latencies(options.model, paths, place / "poll", ["--poll", "0.1"]),
        }
        alone, rates = throughput(options.model, paths, place, options.repeats)
        memory = memory_over_files(place)
    lines = [
        "# Watched folder",
        "",
        "## From a complete file to its line",
        "",
        f"{len(paths)} images were renamed into the folder of a running `skpatchcore watch --settle 0`, one every "
        f"{PAUSE:g} s. The time is from the end of the rename to the moment at which another process sees the line in "
        "`scores.csv`. The values are in milliseconds.",
        "",
        "| files are found by | median | 95th percentile | maximum |",
        "|---|---|---|---|",
        *(
            f"| {name} | {np.median(values):.0f} | {np.percentile(values, 95):.0f} | {max(values):.0f} |"
            for name, values in seconds.items()
        ),
        "",
        f"In one process, `iter_results` takes {alone['iter_results']:.0f} ms for one of these images (median, one "
        f"image per call). `write_predictions`, which `skpatchcore predict` calls, takes "
        f"{alone['write_predictions']:.0f} ms per image if it gets all images in one call.",
        "",
        "## Throughput",
        "",
        f"{len(paths)} images that are in the folder at the start, without the loading of the model, best of "
        f"{options.repeats} runs, in turns.",
        "",
        "| call | images/s |",
        "|---|---|",
        *(f"| {name} | {rate:.1f} |" for name, rate in rates.items()),
        "",
        "## Memory",
        "",
        "Resident memory of a process that watches a folder into which files of 75 bytes are written. The files stay "
        "in the folder. A detector without a network judges them, so that the numbers are those of the watching. The "
        "process also imports torch, and writes the files.",
        "",
        "| judged files | memory in MB | ms per file since the last row | journal in MB |",
        "|---|---|---|---|",
        *(f"| {n:,.0f} | {mb:.1f} | {ms:.2f} | {disk:.1f} |" for n, mb, ms, disk in memory),
        "",
        f"{n_cores()} cores, {os.environ.get('OMP_NUM_THREADS', 'default number of')} thread(s) of OpenMP, "
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, skpatchcore "
        f"{skpatchcore.__version__}.",
        "",
        "Made by `python benchmarks/watch_latency.py MODEL IMAGES`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def latencies(model: str, paths: list[str], place: Path, more: list[str]) -> list[float]:
    """Return the milliseconds from the rename of each file to its line."""
    folder, output = place / "in", place / "out"
    folder.mkdir(parents=True)
    words = ["watch", str(folder), model, "-o", str(output), "--settle", "0", "--quiet", *more]
    process = subprocess.Popen([sys.executable, "-m", "skpatchcore", *words], stderr=subprocess.DEVNULL)
    found = []
    try:
        for i, path in enumerate(paths[:1] + paths):  # the first file only shows that the process is ready
            name = f"{i:04d}{Path(path).suffix}"
            shutil.copyfile(path, folder / f"{name}.tmp")
            before = size_of(output / "scores.csv")
            os.rename(folder / f"{name}.tmp", folder / name)
            begin = time.perf_counter()
            while size_of(output / "scores.csv") <= before:
                if process.poll() is not None or time.perf_counter() - begin > 120:
                    raise RuntimeError("the process does not judge the file.")
                time.sleep(0.0005)
            if i:
                found.append(1000 * (time.perf_counter() - begin))
            time.sleep(PAUSE)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    return found


def size_of(path: Path) -> int:
    """Return the size of a file; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def throughput(model: str, paths: list[str], place: Path, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return milliseconds per image of calls without a watched folder, and images per second of all calls."""
    detector = skpatchcore.load(model)
    detector.score_samples(paths[:4])
    single = []
    for path in paths[:40]:
        begin = time.perf_counter()
        list(detector.iter_results([path]))
        single.append(1000 * (time.perf_counter() - begin))
    folder = place / "full"
    folder.mkdir()
    for i, path in enumerate(paths):
        shutil.copyfile(path, folder / f"{i:04d}{Path(path).suffix}")
    copies = skpatchcore.list_images(folder)
    (place / "model").touch()

    def watch(maps: str) -> None:
        settings = WatchSettings(once=True, settle=0, poll=1, maps=maps)
        with tempfile.TemporaryDirectory() as output:
            watch_folder(folder, place / "model", output, settings, load=lambda path: detector)

    def predict() -> None:
        with tempfile.TemporaryDirectory() as output:
            write_predictions(detector, copies, output)

    calls = {
        "`write_predictions` (a heat map of each image)": predict,
        '`watch_folder`, `maps="all"`': lambda: watch("all"),
        '`watch_folder`, `maps="anomalous"` (the default)': lambda: watch("anomalous"),
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begin)
    rates = {name: len(paths) / seconds for name, seconds in best.items()}
    first = 1000 / rates["`write_predictions` (a heat map of each image)"]
    return {"iter_results": float(np.median(single)), "write_predictions": first}, rates


class NoNetwork:
    """A detector whose score of an image is the number of bytes of its path."""

    runtime, offset_, pixel_offset_ = "none", -1e9, 1.0
    calibration_scores_ = np.zeros(1)

    def iter_results(self, X: Any, *, on_error: str = "raise") -> Any:
        """Yield the results."""
        for i, path in enumerate(X):
            yield ImageResult(i, path, -float(len(path)), 1.0, 1, 1.0, None, None)


def memory_over_files(place: Path) -> list[tuple[int, float, float, float]]:
    """Return rows of (judged files, MB of memory, ms per file, MB of the journal). Runs in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import watch_latency as w; w.watch_many()"
    words = [sys.executable, "-c", code, str(place / "many")]
    output = subprocess.run(words, check=True, capture_output=True, text=True, timeout=1800).stdout
    return [tuple(map(float, line.split())) for line in output.splitlines()]  # type: ignore[misc]


def watch_many() -> None:
    """Write files while a thread judges them, and print the memory."""
    place = Path(sys.argv[1])
    folder, output = place / "in", place / "out"
    folder.mkdir(parents=True)
    (place / "model").touch()
    stop, n_judged = threading.Event(), [0]

    def count(prediction: Any) -> None:
        n_judged[0] += 1

    settings = WatchSettings(settle=0)
    arguments = {"load": lambda path: NoNetwork(), "on_prediction": count, "stop": stop}
    thread = threading.Thread(target=watch_folder, args=(folder, place / "model", output, settings), kwargs=arguments)
    thread.start()
    content = b"P5 8 8 255\n" + bytes(64)
    n_written, begin, n_before = 0, time.perf_counter(), 0
    for mark in MARKS:
        while n_judged[0] < mark:
            while n_written < mark and n_written < n_judged[0] + 2_000:
                part = folder / f"{n_written // 1000:03d}"
                part.mkdir(exist_ok=True)
                (part / f"{n_written:06d}.pgm.tmp").write_bytes(content)
                os.rename(part / f"{n_written:06d}.pgm.tmp", part / f"{n_written:06d}.pgm")
                n_written += 1
            time.sleep(0.01)
        now = time.perf_counter()
        memory = psutil.Process().memory_info().rss / 1e6
        size = sum(file.stat().st_size for file in output.glob("journal.sqlite*")) / 1e6
        print(mark, memory, 1000 * (now - begin) / (mark - n_before), size, flush=True)
        begin, n_before = now, mark
    stop.set()
    thread.join()


if __name__ == "__main__":
    main()
