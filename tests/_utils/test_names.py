"""Tests of the conversion of names to text: escapes can be reversed, and file names are valid on every system."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skpatchcore._utils.names import escape_name, file_name, shown_name, unescape_name

# File names as a file system returns them: any bytes except zero and slash.
NAMES = st.one_of(
    st.binary(min_size=1, max_size=60).map(lambda b: os.fsdecode(b.replace(b"\0", b"\\").replace(b"/", b"x"))),
    st.lists(st.sampled_from(["\\", "x", "u", "e9", "5c", "0041", "\n", "\u202e", "%41", "é", "CON", "."]), min_size=1)
    .map("".join),
)  # fmt: skip


@given(NAMES)
def test_unescape_name_restores_escaped_and_shown_names(name):
    for escape in (escape_name, shown_name):
        escape(name).encode()  # must not raise
        assert unescape_name(escape(name)) == name


@given(NAMES)
def test_shown_name_returns_one_line(name):
    assert len(shown_name(name).splitlines()) == 1


@pytest.mark.parametrize("name", ["part.png", "C:\\parts\\1.png", "Größe 5 µm.png", "a 'b' \"c\".png", "部品.png"])
def test_usual_names_are_not_changed(name):
    assert escape_name(name) == shown_name(name) == name


def test_a_name_that_looks_escaped_differs_from_an_escaped_name():
    assert escape_name("ros\udce9") == "ros\\xe9"
    assert escape_name("ros\\xe9") == "ros\\x5cxe9"
    assert shown_name("a\nb\x85\u202ec") == "a\\x0ab\\u0085\\u202ec"


@given(NAMES, st.sampled_from([".png", ""]))
def test_file_name_is_valid_on_every_system(name, suffix):
    made = file_name(name, suffix)
    assert len(made.encode()) <= 140
    assert made.endswith(suffix)
    assert not set(made) & set('<>:"/\\|?*')
    assert made.isprintable() or all(ord(c) >= 0xA0 for c in made if not c.isprintable())
    assert made.split(".")[0].rstrip().upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT9"}
    assert suffix or made[-1] not in ". "


@given(st.lists(NAMES, min_size=2, max_size=8, unique=True))
def test_file_name_differs_for_different_names(names):
    assert len({file_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["x" * 300, "é" * 300, "😀" * 300, "\udce9" * 300])
def test_file_name_cuts_long_names_and_keeps_them_different(name):
    first, second = file_name(name + "1", ".png"), file_name(name + "2", ".png")
    assert first != second
    assert len(first.encode()) <= 140
