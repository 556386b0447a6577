"""A process that is killed, stopped or started again: every file is in the tables exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.watching.helpers import check_tables, heartbeat_of, names_of, run_once, wait_until
from tests.watching.light import image

ROOT = Path(__file__).parents[2]
FAST = {"settle": 0.02, "poll": 0.05, "patience": 0.1}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX systems")


def start(folder, output, seconds=0.0, **options):
    command = [
        sys.executable,
        "-m",
        "tests.watching.light",
        folder,
        output,
        str(seconds),
        json.dumps({**FAST, **options}),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def n_lines(output):
    try:
        return (output / "scores.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("has_moves", [False, True])
def test_kills_at_random_moments_lose_and_repeat_nothing(folder, output, tmp_path, has_moves):
    rng = random.Random(int(has_moves))
    moved = tmp_path / "moved"
    options = {"move": str(moved)} if has_moves else {}
    names = []
    for round_ in range(6):
        for i in range(60):
            names.append(f"{round_}-{i:02d}.pgm")
            (folder / f"{names[-1]}.tmp").write_bytes(image(255 * (i % 3 == 0)))
            os.rename(folder / f"{names[-1]}.tmp", folder / names[-1])
        process = start(folder, output, 0.001, **options)
        before = n_lines(output)
        wait_until(lambda p=process, n=before: n_lines(output) > n or p.poll() is not None)
        time.sleep(rng.uniform(0.0, 0.06))
        process.kill()
        process.wait(30)
        assert process.returncode == -signal.SIGKILL
    run_once(folder, output, **options)
    check_tables(output, names)
    if has_moves:
        assert sorted(path.name for path in moved.rglob("*") if path.is_file()) == sorted(names)
        assert not any(folder.iterdir())


def test_kill_between_all_steps_of_a_file(folder, output, tmp_path):
    """Kill the process after each call that changes a file, one after the other."""
    code = """
import os, sys, json
from tests.watching import light
n_left = int(sys.argv.pop())
def dying(function):
    def call(*arguments, **keywords):
        global n_left
        result = function(*arguments, **keywords)
        n_left -= 1
        if n_left == 0:
            os._exit(9)
        return result
    return call
from skpatchcore.watching import journal, moving, tables, recorder
journal.Journal.add = dying(journal.Journal.add)
journal.Journal.flush = dying(journal.Journal.flush)
tables.Table._write = dying(tables.Table._write)
tables.Table.end = dying(tables.Table.end)
moving.os.rename = dying(os.rename)
light.main()
"""
    options = json.dumps({**FAST, "settle": 0.0, "once": True, "move": str(tmp_path / "moved")})
    names = []
    n_steps, is_done = 1, False
    while not is_done:
        assert n_steps < 60
        names += [f"{n_steps}-a.pgm", f"{n_steps}-b.pgm"]
        for name in names[-2:]:
            (folder / name).write_bytes(image())
        command = [sys.executable, "-c", code, folder, output, "0", options, str(n_steps)]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, timeout=120, check=False)
        assert done.returncode in (0, 9), done.stderr.decode()
        is_done = done.returncode == 0
        n_steps += 1
    assert n_steps > 10
    run_once(folder, output, move=str(tmp_path / "moved"))
    check_tables(output, names)
    assert not any(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_process_after_the_batch_in_hand(folder, output, number):
    names = [f"{i:02d}.pgm" for i in range(40)]
    for name in names:
        (folder / name).write_bytes(image())
    process = start(folder, output, 0.05, batch=4)
    wait_until(lambda: n_lines(output) > 0)
    process.send_signal(number)
    assert process.wait(30) == 0
    n_judged = len(names_of(output))
    assert n_judged % 4 == 0
    assert n_judged < len(names)
    assert heartbeat_of(output)["state"] == "stopped"
    run_once(folder, output)
    check_tables(output, names)


def test_second_signal_ends_the_process_at_once(folder, output):
    for i in range(4):
        (folder / f"{i}.pgm").write_bytes(image())
    process = start(folder, output, 20.0)
    wait_until(lambda: heartbeat_of(output).get("state") in ("waiting", "judging", "starting"))
    time.sleep(0.3)
    begin = time.monotonic()
    for _ in range(200):
        process.send_signal(signal.SIGTERM)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.wait(30) != 0
    assert time.monotonic() - begin < 20.0  # an image takes 20 seconds
    run_once(folder, output)
    assert len(names_of(output)) == 4


def test_limit_of_the_file_size_loses_nothing(folder, output):
    resource = pytest.importorskip("resource")
    names = [f"{i:03d}.pgm" for i in range(200)]
    for name in names:
        (folder / name).write_bytes(image())
    command = [sys.executable, "-m", "tests.watching.light", folder, output, "0", json.dumps(FAST)]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=limit, stderr=subprocess.DEVNULL)
    wait_until(lambda: heartbeat_of(output).get("state") in ("disk full", "cannot write"))
    process.kill()
    process.wait(30)
    assert len(names_of(output)) < len(names)
    run_once(folder, output)
    check_tables(output, names)
