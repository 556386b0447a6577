"""Progress bars with and without the package tqdm."""

from __future__ import annotations

import sys

import pytest

from skpatchcore._utils.progress import progress_bar, write_line


@pytest.mark.parametrize("verbose", [0, 1])
def test_without_tqdm_lines_are_printed_and_there_is_no_bar(monkeypatch, capsys, verbose):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress_bar(2, "scoring", "image", verbose) as bar:
        bar.update(1)
        bar.describe("still scoring")
        bar.write("a line")
        bar.update(1)
    write_line("another line", sys.stderr)
    assert bar.n == 2
    assert capsys.readouterr().err == "a line\nanother line\n"


def test_with_tqdm_a_line_is_written_between_the_states_of_the_bar(capsys):
    pytest.importorskip("tqdm", reason="the package tqdm is not installed")
    with progress_bar(2, "scoring", "image", 1) as bar:
        bar.update(2)
        bar.write("a line")
    text = capsys.readouterr().err
    assert "scoring: 100%" in text
    assert "a line\n" in text


def test_a_bar_that_is_not_shown_prints_nothing(capsys):
    with progress_bar(2, "scoring", "image", 0) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""
