"""Helpers of the tests of watched folders: run a watch in this process, and read what it wrote."""

from __future__ import annotations

import csv
import json
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from skpatchcore.watching import WatchSettings, watch_folder
from tests.watching.light import LightDetector, model_file

# Options that make tests fast. The times are small, and no test depends on how small.
FAST = {"settle": 0.05, "patience": 0.1, "poll": 0.05}
# Seconds after which a condition that should become true is given up.
LONGEST = 30.0


def wait_until(is_true, text="the condition"):
    """Wait until a function returns True. Fail after a long time."""
    end = time.monotonic() + LONGEST
    while not is_true():
        assert time.monotonic() < end, f"{text} did not become true"
        time.sleep(0.01)


def run_once(folder, output, detector=None, **options):
    """Judge all files of a folder, and return the predictions."""
    found = []
    detector = detector or LightDetector()
    settings = WatchSettings(**{**FAST, "once": True, **options})
    watch_folder(
        folder, model_file(Path(output)), output, settings, load=lambda path: detector, on_prediction=found.append
    )
    return found


@contextmanager
def watching(folder, output, detector=None, load=None, **options):
    """Watch a folder in a thread during the block. Errors of the thread are raised at the end of the block."""
    detector = detector or LightDetector()
    stop, errors = threading.Event(), []

    def work():
        try:
            settings = WatchSettings(**{**FAST, **options})
            watch_folder(
                folder, model_file(Path(output)), output, settings, load=load or (lambda path: detector), stop=stop
            )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(LONGEST)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def rows_of(output):
    """Return the rows of the table as dicts; an empty list without a table."""
    try:
        with open(Path(output) / "scores.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def names_of(output):
    """Return the file names in the table."""
    return [os.path.basename(row["path"]) for row in rows_of(output)]


def lines_of(output):
    """Return the objects in the lines of JSON."""
    return [json.loads(line) for line in (Path(output) / "scores.jsonl").read_bytes().splitlines()]


def heartbeat_of(output):
    """Return the heartbeat; an empty dict if there is none."""
    try:
        return json.loads((Path(output) / "heartbeat.json").read_text())
    except FileNotFoundError:
        return {}


def check_tables(output, names):
    """Check that both tables have one whole line per file name."""
    assert sorted(names_of(output)) == sorted(names)
    assert sorted(os.path.basename(line["path"]) for line in lines_of(output)) == sorted(names)
    assert [row["path"] for row in rows_of(output)] == [line["path"] for line in lines_of(output)]
    assert len({line["id"] for line in lines_of(output)}) == len(names)
