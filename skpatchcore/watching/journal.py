"""Journal: which versions of files were judged, and whether their lines are in the tables. A SQLite file.

The journal decides what happened: a file is judged at the moment at which its row is committed. The row holds the lines
of both tables and the places where they belong. After a kill, the lines of the last rows are therefore looked for at
these places, and written if they are missing.

The journal uses SQLite's write-ahead log. A process that is killed loses no committed row. If the power fails, the last
rows can be lost, unless the journal is durable: then each commit waits for the disk.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from skpatchcore._utils.files import partial_path
from skpatchcore.watching.candidates import Version
from skpatchcore.watching.storing import flush

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS judged (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB, size INTEGER, mtime_ns INTEGER, time REAL, is_written INTEGER,
    target BLOB, csv BLOB, csv_at INTEGER, csv_file TEXT, json BLOB, json_at INTEGER, json_file TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS versions ON judged (path, size, mtime_ns);
CREATE INDEX IF NOT EXISTS unwritten ON judged (id) WHERE NOT is_written;
CREATE INDEX IF NOT EXISTS unmoved ON judged (id) WHERE target IS NOT NULL;
CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, row INTEGER, path BLOB,
    body BLOB, n_tries INTEGER, due REAL);
CREATE INDEX IF NOT EXISTS messages_due ON messages (kind, due);
CREATE TABLE IF NOT EXISTS parts (id INTEGER PRIMARY KEY, time REAL, label INTEGER, p_value REAL, evidence REAL,
    card TEXT);
"""
_FORMAT = "1"
# Codes of SQLite for a file that cannot be opened, or not for writing.
_CLOSED = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)


class JournalError(ValueError):
    """Raised if a journal cannot be used: another process uses it, or it is damaged, or of another version."""


class Line(NamedTuple):
    """A line of a table, and where it belongs.

    Attributes
    ----------
    content : bytes
        The line with its end.
    at : int
        Position in the file, in bytes.
    file : str
        Identity of the file, as :meth:`~skpatchcore.watching.tables.Table.end` returns it.
    """

    content: bytes
    at: int
    file: str


class Row(NamedTuple):
    """A judged file.

    Attributes
    ----------
    number : int
        Number of the row, from 1.
    version : Version
        The file.
    time : float
        When it was judged, in seconds since 1970.
    target : str or None
        Where the file is to be moved; None if it stays.
    csv, json : Line or None
        Its lines. None if they are known to be in the tables.
    """

    number: int
    version: Version
    time: float
    target: str | None
    csv: Line | None
    json: Line | None


class Message(NamedTuple):
    """A result to be delivered.

    Attributes
    ----------
    number : int
        Number of the message, from 1.
    row : int
        Number of the judged file.
    path : str
        Where the file is after it was judged.
    body : bytes
        The result as JSON.
    n_tries : int
        How often the delivery failed.
    """

    number: int
    row: int
    path: str
    body: bytes
    n_tries: int


class Part(NamedTuple):
    """A judged part on the live page: time in seconds since 1970, label, p-value, ln of the evidence, and its card."""

    time: float
    label: int
    p_value: float
    evidence: float
    card: str | None


def _stored(mtime_ns: int) -> int | bytes:
    """Return a time as the journal stores it: as text if it is too large for SQLite, e.g. after the year 2262."""
    return mtime_ns if -(2**63) <= mtime_ns < 2**63 else b"%d" % mtime_ns


def _connected(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)


class Journal:
    """The journal of an output folder. Any thread may call its methods.

    Parameters
    ----------
    file : path
        The SQLite file.
    durable : bool
        Whether each commit waits for the disk.

    Attributes
    ----------
    id : str
        Random identity of the journal, of 32 hexadecimal digits.
    last : int
        Number of the last row; 0 without rows.

    Raises
    ------
    JournalError
        If another process uses the journal, or if the file is no journal.
    """

    def __init__(self, file: Path, durable: bool = False):
        self.lock = threading.RLock()
        try:
            self.connection = _connected(file)
            try:
                self._open(durable)
            except BaseException:
                self.connection.close()
                raise
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise JournalError(
                    f"another process watches with the output folder {str(file.parent)!r}. Stop it, or choose another "
                    "folder."
                ) from error
            if error.sqlite_errorcode & 0xFF in _CLOSED:
                raise JournalError(f"the journal {str(file)!r} cannot be opened for writing: {error}.") from error
            raise
        except sqlite3.DatabaseError as error:
            raise JournalError(
                f"{str(file)!r} is no journal, or is damaged: {error}. Move it away. Then all files in the watched "
                "folder are judged again."
            ) from error
        self._file, self._durable, self._identity = file, durable, os.stat(file)
        self._written: list[int] = []
        self._moved: list[int] = []
        self._kept: list[int] = []

    def _open(self, durable: bool) -> None:
        run = self.connection.execute
        # The lock is held until the process ends, however it ends. No other process can open the journal meanwhile.
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        run("BEGIN EXCLUSIVE")
        run("COMMIT")
        self.connection.executescript(_SCHEMA)
        run("INSERT OR IGNORE INTO facts VALUES ('id', ?), ('format', ?)", (uuid.uuid4().hex, _FORMAT))
        facts = dict(run("SELECT name, value FROM facts").fetchall())
        if facts["format"] != _FORMAT:
            raise JournalError(f"the journal has format {facts['format']}, but this version reads format {_FORMAT}.")
        self.id: str = facts["id"]
        found = run("SELECT seq FROM sqlite_sequence WHERE name = 'judged'").fetchone()
        self.last: int = found[0] if found else 0

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit everything that the block executes, or nothing."""
        with self.lock:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite ends it itself after some errors
                    self.connection.execute("ROLLBACK")
                raise

    def add(
        self, row: Row, messages: Sequence[str] = (), part: Part | None = None, n_parts: tuple[int, int] = (0, 0)
    ) -> None:
        """Commit a judged file, with its messages and its part of the live page.

        Parameters
        ----------
        row : Row
            The file. Its number is ``last + 1``.
        messages : sequence of str
            Kinds of messages about the file. Their body is the JSON line.
        part : Part or None
            Its part of the live page.
        n_parts : (int, int)
            Number of the last parts that are kept, and number of the last cards that are kept.
        """
        assert row.csv is not None
        assert row.json is not None
        path, target = os.fsencode(row.version.path), None if row.target is None else os.fsencode(row.target)
        with self.transaction() as connection:
            self._mark(connection)
            connection.execute(
                "INSERT INTO judged VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?)",
                (
                    row.number,
                    path,
                    row.version.size,
                    _stored(row.version.mtime_ns),
                    row.time,
                    target,
                    *row.csv,
                    *row.json,
                ),
            )
            connection.executemany(
                "INSERT INTO messages (kind, row, path, body, n_tries, due) VALUES (?, ?, ?, ?, 0, 0)",
                [(kind, row.number, path if target is None else target, row.json.content) for kind in messages],
            )
            if part is not None:
                connection.execute("INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?)", (row.number, *part))
                connection.execute("DELETE FROM parts WHERE id <= ?", (row.number - n_parts[0],))
                connection.execute(
                    "UPDATE parts SET card = NULL WHERE card IS NOT NULL AND id <= "
                    "(SELECT id FROM parts WHERE card IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    (n_parts[1],),
                )
        self._forget_notes()
        self.last = row.number

    def mark_written(self, number: int) -> None:
        """Note that the lines of a row are in the tables. The next transaction stores this."""
        self._written.append(number)

    def mark_moved(self, number: int) -> None:
        """Note that the file of a row was moved. The next transaction removes the row."""
        self._moved.append(number)

    def mark_kept(self, number: int) -> None:
        """Note that the file of a row is not there to be moved. The next transaction stores this; the row stays."""
        self._kept.append(number)

    def flush(self) -> None:
        """Store the notes of `mark_written`, `mark_moved` and `mark_kept`."""
        if self._written or self._moved or self._kept:
            with self.transaction() as connection:
                self._mark(connection)
            self._forget_notes()

    def unwritten(self) -> list[Row]:
        """Return the rows whose lines may be missing in the tables, the oldest first."""
        return self._rows("NOT is_written")

    def unmoved(self, limit: int = -1, after: int = 0) -> list[Row]:
        """Return the rows after a row whose files may still have to be moved, the oldest first."""
        moved = {*self._moved, *self._kept}
        found = self._rows(f"target IS NOT NULL AND id > {int(after)}", limit)
        return [row for row in found if row.number not in moved]

    def n_unmoved(self) -> int:
        """Return the number of files that still have to be moved."""
        with self.lock:
            found = self.connection.execute("SELECT COUNT(*) FROM judged WHERE target IS NOT NULL").fetchone()
        return int(found[0])

    def versions(self) -> Iterator[Version]:
        """Yield all judged versions. Do not call other methods meanwhile."""
        with self.lock:
            for path, size, mtime_ns in self.connection.execute("SELECT path, size, mtime_ns FROM judged"):
                yield Version(os.fsdecode(path), size, int(mtime_ns))

    def parts(self) -> list[Part]:
        """Return the parts of the live page, the oldest first."""
        with self.lock:
            found = self.connection.execute("SELECT time, label, p_value, evidence, card FROM parts ORDER BY id")
            nan = float("nan")
            return [Part(a, b, nan if c is None else c, nan if d is None else d, e) for a, b, c, d, e in found]

    def is_removed(self) -> bool:
        """Return whether the file was removed or replaced, so that the next process would not find these rows."""
        try:
            return not os.path.samestat(os.stat(self._file), self._identity)
        except FileNotFoundError:
            return True
        except OSError:  # the disk does not answer, which the next write says
            return False

    def restore(self) -> None:
        """Write a removed file again, with all rows. The call can be repeated after an error of the disk.

        Raises
        ------
        JournalError
            If there is another file in its place.
        """
        with self.lock:
            if self.is_removed():
                self._write_again()
            self._open(self._durable)

    def close(self) -> None:
        """Store the notes, if this is possible, and let other processes use the journal."""
        with self.lock:
            try:
                self.flush()
            except sqlite3.Error:  # the lines are found in the tables at the next start
                pass
            self.connection.close()

    def _write_again(self) -> None:
        self.flush()
        copy = partial_path(self._file)
        try:
            with closing(sqlite3.connect(copy)) as target:
                self.connection.backup(target)
            if self._durable:
                flush(copy)
            if os.path.lexists(self._file):
                raise JournalError(f"the journal {str(self._file)!r} was replaced while it was used.")
            os.rename(copy, self._file)
        finally:
            copy.unlink(missing_ok=True)
        self.connection.close()  # removes the log of the old file, before the new one has a log
        self.connection = _connected(self._file)
        self._identity = os.stat(self._file)

    def _forget_notes(self) -> None:
        for notes in (self._written, self._moved, self._kept):
            notes.clear()

    def _mark(self, connection: sqlite3.Connection) -> None:
        connection.executemany(
            "UPDATE judged SET is_written = 1, csv = NULL, json = NULL WHERE id = ?", [(n,) for n in self._written]
        )
        connection.executemany("DELETE FROM judged WHERE id = ?", [(n,) for n in self._moved])
        connection.executemany("UPDATE judged SET target = NULL WHERE id = ?", [(n,) for n in self._kept])

    def _rows(self, condition: str, limit: int = -1) -> list[Row]:
        columns = "id, path, size, mtime_ns, time, target, csv, csv_at, csv_file, json, json_at, json_file"
        query = f"SELECT {columns} FROM judged WHERE {condition} ORDER BY id LIMIT ?"
        with self.lock:
            found = self.connection.execute(query, (limit,)).fetchall()
        return [
            Row(
                number,
                Version(os.fsdecode(path), size, int(mtime_ns)),
                time,
                None if target is None else os.fsdecode(target),
                None if rest[0] is None else Line(*rest[:3]),
                None if rest[3] is None else Line(*rest[3:]),
            )
            for number, path, size, mtime_ns, time, target, *rest in found
        ]
