"""Tests of console output: encodings that lack characters, and broken, missing or closed streams."""

from __future__ import annotations

import io
import os
import sys

import pytest

from skpatchcore._utils.console import TolerantStream, tolerant_output
from skpatchcore._utils.progress import progress_bar


class Broken(io.StringIO):
    """A stream that raises BrokenPipeError, as a pipe without a reader does."""

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16"])
def test_tolerant_stream_escapes_characters_that_the_encoding_lacks(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    TolerantStream(stream).write("ros\udce9 部品 µ\n")
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert text.startswith("ros")
    assert "\\udce9" in text


@pytest.mark.parametrize("make", [Broken, lambda: None, lambda: closed()])
def test_output_to_broken_missing_or_closed_streams_raises_nothing(make, monkeypatch):
    monkeypatch.setattr(sys, "stdout", make())
    monkeypatch.setattr(sys, "stderr", make())
    with progress_bar(3, "working", "step", 1) as bar:  # tolerant also without tolerant_output
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


def test_tolerant_output_redirects_a_broken_pipe_to_the_null_device():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        before, sys.stdout = sys.stdout, stream
        try:
            with tolerant_output():
                print("x" * 100_000)
        finally:
            sys.stdout = before
        stream.write("y" * 100_000)  # closing the stream flushes this text and must not raise
