"""Outbox: the bounded queue of results that are to be delivered, in the journal."""

from __future__ import annotations

import os
from contextlib import closing

from skpatchcore.watching.journal import Journal, Message


class Outbox:
    """The messages of one kind. Any thread may call the methods.

    Parameters
    ----------
    journal : Journal
        The journal of the output folder.
    kind : {"webhook", "exec"}
        Kind of the messages.
    limit : int
        Maximum number of messages.

    Attributes
    ----------
    n_queued : int
        Number of messages in the queue.
    n_dropped : int
        Number of messages that were removed since the start, because the queue was full.
    """

    def __init__(self, journal: Journal, kind: str, limit: int):
        self._journal, self.kind, self._limit = journal, kind, limit
        self.n_dropped = 0
        with journal.transaction() as connection:  # the times are those of the clock of an earlier process
            connection.execute("UPDATE messages SET due = 0 WHERE kind = ?", (kind,))
            found = connection.execute("SELECT COUNT(*) FROM messages WHERE kind = ?", (kind,)).fetchone()
        self.n_queued: int = found[0]

    def added(self) -> int:
        """Take notice of a message that was added with a row. Return how many of the oldest messages were dropped."""
        with self._journal.lock:
            n_dropped = max(0, self.n_queued + 1 - self._limit)
            if n_dropped:
                with self._journal.transaction() as connection:
                    connection.execute(
                        "DELETE FROM messages WHERE id IN (SELECT id FROM messages WHERE kind = ? ORDER BY id LIMIT ?)",
                        (self.kind, n_dropped),
                    )
                self.n_dropped += n_dropped
            self.n_queued += 1 - n_dropped  # only now, because the call is repeated if the disk is full
            return n_dropped

    def next(self, last_row: int, now: float) -> Message | None:
        """Return the next message that is due, of the rows up to `last_row`; None if there is none."""
        query = (
            "SELECT id, row, path, body, n_tries FROM messages WHERE kind = ? AND due <= ? AND row <= ? "
            "ORDER BY due, id LIMIT 1"
        )
        with self._journal.lock, closing(self._journal.connection.execute(query, (self.kind, now, last_row))) as found:
            for number, row, path, body, n_tries in found:
                return Message(number, row, os.fsdecode(path), body, n_tries)
        return None

    def next_due(self) -> float | None:
        """Return when the next message is due; None without messages."""
        with self._journal.lock:
            query = "SELECT MIN(due) FROM messages WHERE kind = ?"
            found = self._journal.connection.execute(query, (self.kind,)).fetchone()
            return None if found[0] is None else float(found[0])

    def remove(self, message: Message) -> None:
        """Remove a message that was delivered, or that nobody wants."""
        with self._journal.lock:
            with self._journal.transaction() as connection:
                n_removed = connection.execute("DELETE FROM messages WHERE id = ?", (message.number,)).rowcount
            self.n_queued -= n_removed  # 0 if the message was dropped meanwhile

    def postpone(self, message: Message, due: float) -> None:
        """Let a message wait whose delivery failed."""
        with self._journal.transaction() as connection:
            connection.execute("UPDATE messages SET n_tries = n_tries + 1, due = ? WHERE id = ?", (due, message.number))
