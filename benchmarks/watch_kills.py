"""Kill ``skpatchcore watch`` at random moments under load, and check that each file is in both tables exactly once.

    python benchmarks/watch_kills.py --kills 100 -o benchmarks/results/watch_kills.md

A thread writes images into the folder faster than they are judged. The process is killed with SIGKILL and started
again. Half of the kills are made with ``--move``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import skpatchcore
from skpatchcore._utils.ahead import n_cores

SIDE = 96
# Files that wait: the thread writes new ones as soon as there are fewer.
BACKLOG = 60
# Seconds after the first new line within which the process is killed. Every fifth kill is within the start.
LATEST, LATEST_AT_START = 1.5, 5.0


def main() -> None:
    """Kill, check, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "watch_kills.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model = write_model(place)
        rows = []
        for mode in ("files stay", "`--move`"):
            rows.append(run(place / mode.strip("`- "), model, mode, options.kills // 2, options.seed))
            print(rows[-1], flush=True)
    columns = list(rows[0])
    lines = [
        "# Kills of a watched folder",
        "",
        f"`skpatchcore watch` was killed (SIGKILL) {2 * (options.kills // 2)} times at random moments and started "
        "again, while files arrived faster than they were judged. Four of five kills were within "
        f"{LATEST:g} s after the first new line, the others within {LATEST_AT_START:g} s after the start of the "
        "process. The last run was `--once`. Then both tables, the heat maps and the files were compared with the "
        "files that had been written into the folder.",
        "",
        f"| | {' | '.join(str(row['mode']) for row in rows)} |",
        f"|---|{'---|' * len(rows)}",
        *(f"| {column} | {' | '.join(str(row[column]) for row in rows)} |" for column in columns if column != "mode"),
        "",
        "A row without its line means that the process was killed between the commit to the journal and the end of the "
        "write to the table. The next start writes the line. A heat map without a row means that it was killed between "
        "the heat map and the commit. The next start removes the heat map, and judges the file again.",
        "",
        f"PatchCore with efficientnet_lite0, images of {SIDE} pixels, `--maps all`. {n_cores()} cores, "
        f"{os.environ.get('OMP_NUM_THREADS', 'default number of')} thread(s) of OpenMP, {platform.machine()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, skpatchcore {skpatchcore.__version__}.",
        "",
        f"Made by `python benchmarks/watch_kills.py --kills {options.kills}`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    if any(row["files judged twice"] or row["files not judged"] or row["half lines"] for row in rows):
        sys.exit(1)


def image(rng: np.random.Generator, is_defective: bool) -> Image.Image:
    """Return a grey noise image, with a dark square if it is defective."""
    pixels = rng.integers(110, 140, (SIDE, SIDE), dtype=np.uint8)
    if is_defective:
        pixels[30:60, 30:60] //= 4
    return Image.fromarray(pixels)


def write_model(place: Path) -> Path:
    """Fit a small model, and write it to a file."""
    rng = np.random.default_rng(0)
    good = [np.stack([np.asarray(image(rng, False))] * 3, axis=-1) for _ in range(20)]
    extractor = skpatchcore.TorchFeatureExtractor("efficientnet_lite0", image_size=None, crop_size=None)
    detector = skpatchcore.PatchCoreDetector(extractor, random_state=0).fit(np.stack(good))
    skpatchcore.save(detector, place / "parts.skops")
    return place / "parts.skops"


class Writer:
    """A thread that keeps files waiting in a folder."""

    def __init__(self, folder: Path, output: Path):
        self.names: list[str] = []
        self._folder, self._output, self._rng = folder, output, np.random.default_rng(1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            while len(self.names) < n_lines(self._output) + BACKLOG:
                name = f"{len(self.names):05d}.png"
                picture = image(self._rng, len(self.names) % 5 == 0)
                picture.save(self._folder / f"{name}.tmp", format="PNG")
                os.rename(self._folder / f"{name}.tmp", self._folder / name)
                self.names.append(name)
            self._stop.wait(0.02)


def run(place: Path, model: Path, mode: str, n_kills: int, seed: int) -> dict[str, object]:
    """Kill a process many times. Return what was found."""
    folder, output, moved = place / "in", place / "out", place / "moved"
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    more = ["--move", str(moved)] if "move" in mode else []
    writer, n_early, states = Writer(folder, output), 0, []
    for i in range(n_kills):
        process = start(folder, model, output, more)
        if i % 5 == 4:
            time.sleep(rng.uniform(0, LATEST_AT_START))
        else:
            before, end = n_lines(output), time.monotonic() + 120
            while n_lines(output) == before and process.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, LATEST))
        n_early += process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        states.append(state_of(output))
    writer.stop()
    last = start(folder, model, output, [*more, "--once"])
    assert last.wait(600) == 0
    return {
        "mode": mode,
        "kills": n_kills - n_early,
        "files": len(writer.names),
        "kills that left a row without its line": sum(state[0] for state in states),
        "kills that left a part of a line": sum(state[1] for state in states),
        "kills that left a heat map without a row": sum(state[2] for state in states),
        **check(folder, output, moved, writer.names, bool(more)),
    }


def start(folder: Path, model: Path, output: Path, more: list[str]) -> subprocess.Popen[bytes]:
    """Start the command."""
    words = ["watch", str(folder), str(model), "-o", str(output), "--settle", "0", "--maps", "all", "--quiet", *more]
    return subprocess.Popen([sys.executable, "-m", "skpatchcore", *words], stderr=subprocess.DEVNULL)


def n_lines(output: Path) -> int:
    """Return the number of lines of JSON."""
    try:
        return (output / "scores.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def state_of(output: Path) -> tuple[bool, bool, bool]:
    """Return whether a row has no line in a table, whether a line is not whole, and whether a map has no row."""
    if not (output / "journal.sqlite").exists():
        return False, False, False
    with tempfile.TemporaryDirectory() as copy:
        for file in output.glob("journal.sqlite*"):
            shutil.copy(file, copy)
        connection = sqlite3.connect(Path(copy) / "journal.sqlite")
        try:
            rows = connection.execute("SELECT csv, json FROM judged WHERE NOT is_written").fetchall()
            (last,) = connection.execute("SELECT MAX(seq) FROM sqlite_sequence WHERE name = 'judged'").fetchone()
        except sqlite3.OperationalError:  # killed before the tables of the journal were made
            rows, last = [], None
        connection.close()
    contents = [
        (output / name).read_bytes() if (output / name).exists() else b"" for name in ("scores.csv", "scores.jsonl")
    ]
    is_missing = any(not content.endswith(line) for row in rows for content, line in zip(contents, row, strict=True))
    numbers = [int(path.stem.rsplit("-")[-1]) for path in output.glob("maps/[!.]*.png")]
    is_half = any(content and not content.endswith(b"\n") for content in contents)
    return is_missing, is_half, any(number > (last or 0) for number in numbers)


def check(folder: Path, output: Path, moved: Path, names: list[str], is_moved: bool) -> dict[str, object]:
    """Compare the tables, the maps and the files with the names that were written."""
    with (output / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    width, rows = len(rows[0]), rows[1:]
    counts = Counter(os.path.basename(row[0]) for row in rows)
    objects, n_half = [], sum(len(row) != width for row in rows)
    for line in (output / "scores.jsonl").read_bytes().split(b"\n")[:-1]:
        try:
            objects.append(json.loads(line))
        except ValueError:
            n_half += 1
    of_json = Counter(os.path.basename(line["path"]) for line in objects)
    maps = {line["map"] for line in objects if line["map"]}
    there = {f"maps/{path.name}" for path in (output / "maps").iterdir()}
    left = {path.name for path in folder.iterdir()}
    arrived = Counter(path.name for path in moved.rglob("*") if path.is_file()) if is_moved else Counter()
    is_right = not left and arrived == Counter(names) if is_moved else left == set(names)
    return {
        "rows of scores.csv": len(rows),
        "lines of scores.jsonl": len(objects),
        "files not judged": sum(name not in counts or name not in of_json for name in names),
        "files judged twice": sum(n > 1 for n in (counts | of_json).values()),
        "half lines": n_half,
        "heat maps that are missing": len(maps - there),
        "heat maps without a line": len(there - maps),
        "files at their place": "all" if is_right else "not all",
    }


if __name__ == "__main__":
    main()
