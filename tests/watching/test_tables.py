"""Lines of a table appear once and whole, also after a kill at any byte, a rotation or a full disk."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore.watching.journal import Line
from skpatchcore.watching.tables import Table

HEADER = b"path,score\r\n"


def table_of(tmp_path, header=HEADER):
    return Table(tmp_path / "scores.csv", header)


def append(table, content):
    line = Line(content, *table.end())
    table.append(line)
    return line


def content_of(tmp_path):
    return (tmp_path / "scores.csv").read_bytes()


def test_new_table_starts_with_the_header(tmp_path):
    table = table_of(tmp_path)
    append(table, b"a,1\r\n")
    append(table, b"b,2\r\n")
    assert content_of(tmp_path) == HEADER + b"a,1\r\nb,2\r\n"


def test_line_that_is_there_is_not_written_again(tmp_path):
    table = table_of(tmp_path)
    line = append(table, b"a,1\r\n")
    append(table, b"b,2\r\n")
    table.append(line)
    table_of(tmp_path).append(line)
    assert content_of(tmp_path) == HEADER + b"a,1\r\nb,2\r\n"


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 12), content=st.sampled_from([b"part,1.25\r\n", b'"a\nb",1.2\r\n']))
def test_part_of_a_line_is_completed(tmp_path_factory, n, content):
    tmp_path = tmp_path_factory.mktemp("table")
    table = table_of(tmp_path)
    append(table, b"first,0\r\n")
    line = Line(content, *table.end())
    with (tmp_path / "scores.csv").open("ab") as file:
        file.write(content[:n])
    table_of(tmp_path).append(line)
    assert content_of(tmp_path) == HEADER + b"first,0\r\n" + content


@pytest.mark.parametrize("n", range(len(HEADER)))
def test_part_of_a_header_is_completed(tmp_path, n):
    (tmp_path / "scores.csv").write_bytes(HEADER[:n])
    append(table_of(tmp_path), b"a,1\r\n")
    assert content_of(tmp_path) == HEADER + b"a,1\r\n"


@pytest.mark.parametrize("is_open", [True, False])
def test_rotated_table_begins_anew(tmp_path, is_open):
    table = table_of(tmp_path)
    append(table, b"a,1\r\n")
    if not is_open:
        table.close()
    os.rename(tmp_path / "scores.csv", tmp_path / "scores.csv.1")
    append(table, b"b,2\r\n")
    assert content_of(tmp_path) == HEADER + b"b,2\r\n"
    assert (tmp_path / "scores.csv.1").read_bytes() == HEADER + b"a,1\r\n"


def test_removed_and_emptied_tables_begin_anew(tmp_path):
    table = table_of(tmp_path)
    append(table, b"a,1\r\n")
    (tmp_path / "scores.csv").unlink()
    append(table, b"b,2\r\n")
    assert content_of(tmp_path) == HEADER + b"b,2\r\n"
    os.truncate(tmp_path / "scores.csv", 0)
    append(table, b"c,3\r\n")
    assert content_of(tmp_path) == HEADER + b"c,3\r\n"


def test_line_in_a_rotated_table_is_not_written_again(tmp_path):
    table = table_of(tmp_path)
    line = append(table, b"a,1\r\n")
    os.rename(tmp_path / "scores.csv", tmp_path / "scores.csv.1")
    table_of(tmp_path).append(line)
    assert content_of(tmp_path) == HEADER


def test_part_of_a_line_in_a_rotated_table_is_written_to_the_new_one(tmp_path):
    table = table_of(tmp_path)
    line = Line(b"a,1\r\n", *table.end())
    with (tmp_path / "scores.csv").open("ab") as file:
        file.write(b"a,")
    os.rename(tmp_path / "scores.csv", tmp_path / "scores.csv.1")
    table.append(line)
    assert content_of(tmp_path) == HEADER + b"a,1\r\n"
    assert (tmp_path / "scores.csv.1").read_bytes() == HEADER


def test_line_after_a_copy_and_truncation_is_appended(tmp_path):
    table = table_of(tmp_path)
    append(table, b"a,1\r\n")
    line = Line(b"b,2\r\n", *table.end())
    shutil.copy(tmp_path / "scores.csv", tmp_path / "old.csv")
    os.truncate(tmp_path / "scores.csv", 0)
    table.append(line)
    assert content_of(tmp_path) == HEADER + b"b,2\r\n"


def test_table_with_other_columns_is_kept_under_another_name(tmp_path):
    for old in (b"path,map\r\nx,y\r\n", b"another\r\n"):
        (tmp_path / "scores.csv").write_bytes(old)
        append(table_of(tmp_path), b"a,1\r\n")
        assert content_of(tmp_path) == HEADER + b"a,1\r\n"
    assert (tmp_path / "scores-1.csv").read_bytes().startswith(b"path,map")
    assert (tmp_path / "scores-2.csv").read_bytes() == b"another\r\n"


def test_line_without_an_end_of_another_program_is_ended(tmp_path):
    (tmp_path / "scores.csv").write_bytes(HEADER + b"a,1")
    append(table_of(tmp_path), b"b,2\r\n")
    assert content_of(tmp_path) == HEADER + b"a,1\nb,2\r\n"


@pytest.mark.parametrize("n_written", [0, 3])
def test_full_disk_leaves_no_part_of_a_line_and_the_line_can_be_written_later(tmp_path, monkeypatch, n_written):
    table = table_of(tmp_path)
    line = Line(b"a,1\r\n", *table.end())
    write = os.write

    def full(descriptor, content):
        if not n_written:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[:n_written])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space") as caught:
        table.append(line)
    assert caught.value.errno == errno.ENOSPC
    assert content_of(tmp_path) == HEADER
    monkeypatch.undo()
    table.append(line)
    assert content_of(tmp_path) == HEADER + b"a,1\r\n"


def test_durable_table_waits_for_the_disk(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(descriptor) or fsync(descriptor))
    table = Table(tmp_path / "scores.csv", HEADER, durable=True)
    table.end()
    before = len(flushed)
    append(table, b"a,1\r\n")
    assert len(flushed) == before + 1
    assert before >= 2  # the folder, and the header


def test_line_is_found_if_the_device_has_another_number(tmp_path):
    line = append(table_of(tmp_path), b"a,1\r\n")
    device, inode = line.file.split("-")
    again = line._replace(file=f"{int(device) + 1}-{inode}")
    table_of(tmp_path).append(again)
    assert content_of(tmp_path) == HEADER + b"a,1\r\n"
    os.rename(tmp_path / "scores.csv", tmp_path / "scores.csv.1")
    table_of(tmp_path).append(again)
    assert content_of(tmp_path) == HEADER


def test_table_with_other_columns_is_said(tmp_path):
    (tmp_path / "scores.csv").write_bytes(HEADER.replace(b",", b";") + b"a;1\r\n")
    said = []
    append(Table(tmp_path / "scores.csv", HEADER, on_aside=said.append), b"b,2\r\n")
    assert said == [tmp_path / "scores-1.csv"]
