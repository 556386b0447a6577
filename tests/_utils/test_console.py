"""Consoles that can't show a text, and consoles that are gone."""

from __future__ import annotations

import io
import os
import sys

import pytest

from skpatchcore._utils.console import TolerantStream, tolerant_output
from skpatchcore._utils.progress import progress_bar


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16"])
def test_text_that_an_encoding_lacks_is_written_escaped(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    TolerantStream(stream).write("ros\udce9 部品 µ\n")
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert text.startswith("ros")
    assert "\\udce9" in text


@pytest.mark.parametrize("make", [Broken, lambda: None, lambda: closed()])
def test_streams_that_are_gone_raise_nothing(make, monkeypatch):
    monkeypatch.setattr(sys, "stdout", make())
    monkeypatch.setattr(sys, "stderr", make())
    with progress_bar(3, "working", "step", 1) as bar:  # the library's own, without the command line
        bar.write("a line")
        bar.update(3)
    with tolerant_output():
        print("text", flush=True)
        print("text", file=sys.stderr, flush=True)
    assert bar.n == 3


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def test_a_broken_pipe_is_let_go_so_that_the_exit_is_clean():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        before, sys.stdout = sys.stdout, stream
        try:
            with tolerant_output():
                print("x" * 100_000)
        finally:
            sys.stdout = before
        stream.write("y" * 100_000)  # closing it flushes what is left: nothing is raised
