"""The journal: commits, marks, the queue of messages, and one process per folder."""

from __future__ import annotations

import math
import sqlite3

import pytest

from skpatchcore.watching.candidates import Version
from skpatchcore.watching.journal import Journal, JournalError, Line, Part, Row
from skpatchcore.watching.outbox import Outbox


@pytest.fixture
def journal(tmp_path):
    found = Journal(tmp_path / "journal.sqlite")
    yield found
    found.close()


def row_of(number, name="a.png", target=None):
    line = Line(b"line\n", 7, "1-2")
    return Row(number, Version(name, 3, 5), 9.0, target, line, line)


def test_rows_come_back_as_they_were(journal):
    name = "x/\udce9\n,.png"
    journal.add(row_of(1, name, "/moved/\udce9.png"))
    assert journal.unwritten() == [row_of(1, name, "/moved/\udce9.png")]
    assert list(journal.versions()) == [Version(name, 3, 5)]


def test_row_is_unwritten_until_the_next_transaction(journal):
    journal.add(row_of(1))
    journal.mark_written(1)
    assert [row.number for row in journal.unwritten()] == [1]
    journal.add(row_of(2, "b.png"))
    assert [row.number for row in journal.unwritten()] == [2]
    journal.mark_written(2)
    journal.flush()
    assert journal.unwritten() == []
    assert [version.path for version in journal.versions()] == ["a.png", "b.png"]


def test_row_of_a_moved_file_is_removed_and_its_number_is_not_used_again(tmp_path, journal):
    journal.add(row_of(1, target="/moved/a.png"))
    journal.mark_written(1)
    assert [row.number for row in journal.unmoved()] == [1]
    journal.mark_moved(1)
    assert journal.unmoved() == []
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert (list(again.versions()), again.last, again.id) == ([], 1, journal.id)
    again.close()


def test_same_version_is_never_judged_twice(journal):
    journal.add(row_of(1))
    with pytest.raises(sqlite3.IntegrityError):
        journal.add(row_of(2))
    assert journal.last == 1


def test_second_process_is_refused_while_the_journal_is_open(tmp_path, journal):
    with pytest.raises(JournalError, match="another process"):
        Journal(tmp_path / "journal.sqlite")
    journal.close()
    Journal(tmp_path / "journal.sqlite").close()


def test_file_that_is_no_journal_raises_an_error_that_names_it(tmp_path):
    (tmp_path / "other.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(JournalError, match=r"other\.sqlite"):
        Journal(tmp_path / "other.sqlite")


def test_file_that_cannot_be_opened_raises_an_error_that_names_it(tmp_path):
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(JournalError, match=r"folder\.sqlite.*cannot be opened"):
        Journal(tmp_path / "folder.sqlite")


@pytest.mark.parametrize(("durable", "level"), [(False, 1), (True, 2)])
def test_durable_journal_waits_for_the_disk_at_each_commit(tmp_path, durable, level):
    journal = Journal(tmp_path / "other.sqlite", durable)
    assert journal.connection.execute("PRAGMA synchronous").fetchone() == (level,)
    assert journal.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    journal.close()


def test_parts_and_cards_are_bounded(journal):
    for i in range(1, 8):
        card = None if i == 6 else f"card {i}"
        journal.add(row_of(i, f"{i}.png"), part=Part(float(i), 1, math.nan, -1.5, card), n_parts=(5, 2))
    parts = journal.parts()
    assert [part.time for part in parts] == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert [part.card for part in parts] == [None, None, "card 5", None, "card 7"]
    assert math.isnan(parts[0].p_value)
    assert parts[0].evidence == -1.5


def test_queue_drops_the_oldest_messages(journal):
    outbox = Outbox(journal, "webhook", 3)
    dropped = []
    for i in range(1, 6):
        journal.add(row_of(i, f"{i}.png"), ["webhook", "exec"])
        dropped.append(outbox.added())
    assert dropped == [0, 0, 0, 1, 1]
    assert (outbox.n_queued, outbox.n_dropped) == (3, 2)
    assert outbox.next(5, 0.0).row == 3
    assert Outbox(journal, "exec", 3).n_queued == 5  # another queue


def test_messages_wait_for_their_row_and_their_time(journal):
    outbox = Outbox(journal, "webhook", 10)
    for i in (1, 2):
        journal.add(row_of(i, f"{i}.png"), ["webhook"])
        outbox.added()
    assert outbox.next(0, 0.0) is None
    first = outbox.next(2, 0.0)
    assert (first.row, first.path, first.body) == (1, "1.png", b"line\n")
    outbox.postpone(first, 50.0)
    assert outbox.next(2, 10.0).row == 2
    outbox.remove(outbox.next(2, 10.0))
    assert outbox.next(2, 10.0) is None
    assert outbox.next_due() == 50.0
    assert outbox.next(2, 50.0).n_tries == 1
    assert Outbox(journal, "webhook", 10).next(2, 0.0).row == 1  # a new process has another clock


def test_full_disk_while_the_queue_is_full_drops_one_message_only(journal, monkeypatch):
    def full():
        raise sqlite3.OperationalError("database or disk is full")

    outbox = Outbox(journal, "webhook", 2)
    for i in range(1, 4):
        journal.add(row_of(i, f"{i}.png"), ["webhook"])
        if i < 3:
            outbox.added()
    monkeypatch.setattr(journal, "transaction", full)
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError):
            outbox.added()
    monkeypatch.undo()
    assert outbox.added() == 1
    assert (outbox.n_queued, outbox.n_dropped) == (2, 1)
    assert outbox.next(3, 0.0).row == 2
