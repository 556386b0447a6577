"""A watched folder after accidents: odd times of files, a journal that is removed, drives that come and go."""

from __future__ import annotations

import math
import os

import pytest

from skpatchcore.detectors import ImageResult
from tests.watching.helpers import check_tables, lines_of, run_once
from tests.watching.light import LightDetector, image


class Undecided(LightDetector):
    """A detector without a threshold."""

    def __init__(self):
        super().__init__(offset=math.nan)

    def iter_results(self, X, *, on_error="raise"):
        for result in super().iter_results(X, on_error=on_error):
            if result.error is not None:
                yield result
            else:
                yield ImageResult(result.index, result.image, result.score, math.nan, None, math.nan, None, None)


def test_parts_are_undecided_without_a_threshold(folder, output, tmp_path, capsys):
    (folder / "a.pgm").write_bytes(image(255))
    (folder / "b.pgm").write_bytes(b"")
    run_once(folder, output, Undecided(), move=str(tmp_path / "moved"))
    verdicts = {os.path.basename(line["path"]): line["verdict"] for line in lines_of(output)}
    assert verdicts == {"a.pgm": "undecided", "b.pgm": "unreadable"}
    assert sorted(os.listdir(tmp_path / "moved")) == ["undecided", "unreadable"]
    assert capsys.readouterr().err.count("has no threshold") == 1


def test_file_of_a_far_future_is_judged_once(folder, output):
    path = folder / "a.pgm"
    path.write_bytes(image())
    os.utime(path, ns=(13 * 10**18, 13 * 10**18))
    if os.stat(path).st_mtime_ns < 2**63:
        pytest.skip("this file system has no such times")
    run_once(folder, output)
    assert run_once(folder, output) == []
    check_tables(output, ["a.pgm"])
    assert lines_of(output)[0]["mtime"].startswith("2381-")
