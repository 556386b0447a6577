"""Delivery: a thread that delivers the messages of an outbox, with back-off after failures."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable

from skpatchcore.watching.journal import Message
from skpatchcore.watching.notices import Notices
from skpatchcore.watching.outbox import Outbox

# Longest pause after failures, and time between two looks at an empty queue, in seconds.
_LONGEST_PAUSE, _LONGEST_WAIT = 300.0, 5.0


class DeliveryFailed(Exception):
    """A delivery failed, and is tried again. The text contains no password."""


class DeliveryRefused(Exception):
    """A delivery failed, and another try is useless. The text contains no password."""


class DeliveryStopped(Exception):
    """A delivery was interrupted because the process ends. The message stays in the queue."""


class Delivery:
    """Deliver the messages of an outbox in a thread. A message is delivered at least once, and rarely twice.

    Parameters
    ----------
    outbox : Outbox
        The queue.
    send : callable
        Function of a message that delivers it. It raises DeliveryFailed, DeliveryRefused or DeliveryStopped.
    notices : Notices
        Where failures are said.
    name : str
        What delivers, without passwords, e.g. ``"the webhook https://host"``.
    most_tries : int or None, default=None
        Number of failures after which a message is given up. None tries until the queue is full.

    Attributes
    ----------
    n_delivered, n_refused : int
        Numbers of messages that were delivered, and that were given up, since the start.
    is_failing : bool
        Whether the last delivery failed.
    """

    def __init__(
        self,
        outbox: Outbox,
        send: Callable[[Message], None],
        notices: Notices,
        name: str,
        most_tries: int | None = None,
        first_pause: float = 1.0,
    ):
        self.outbox, self.name = outbox, name
        self._send, self._notices, self._most_tries, self._first_pause = send, notices, most_tries, first_pause
        self.n_delivered = self.n_refused = 0
        self.is_failing = False
        self._last_row = 0
        self._over: set[int] = set()  # messages that could not be removed, because the disk was full
        self._random = random.Random()
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"skpatchcore-{outbox.kind}", daemon=True)

    def start(self, last_row: int) -> None:
        """Start the thread. Messages of the rows up to `last_row` may be delivered."""
        self._last_row = last_row
        self._thread.start()

    def allow(self, row: int) -> None:
        """Deliver the messages of the rows up to `row`, because their files are at their places."""
        self._last_row = row
        self._wake.set()

    @property
    def is_stopped(self) -> bool:
        """Whether the process ends."""
        return self._stop.is_set()

    def drain(self, seconds: float, is_ending: Callable[[], bool]) -> None:
        """Wait until the queue is empty, or a delivery fails, or the time is over, or the process is asked to end."""
        end = time.monotonic() + seconds
        while self.outbox.n_queued and not self.is_failing and self._thread.is_alive() and not is_ending():
            if time.monotonic() >= end:
                return
            time.sleep(0.02)

    def stop(self, seconds: float = 12.0) -> None:
        """End the thread. Messages that are not delivered stay in the queue."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        n_failures = 0
        while not self._stop.is_set():
            self._wake.clear()
            try:
                pause = self._deliver_next(n_failures)
            except sqlite3.Error:  # e.g. a full disk, which the judging thread says
                pause = _LONGEST_WAIT
            except DeliveryStopped:
                return
            n_failures = n_failures + 1 if self.is_failing else 0
            if self.is_failing:
                self._stop.wait(pause)
            elif pause:
                self._wake.wait(pause)

    def _deliver_next(self, n_failures: int) -> float:
        """Deliver a message, if one is due. Return the pause in seconds."""
        now = time.monotonic()
        message = self.outbox.next(self._last_row, now)
        if message is None:
            due = self.outbox.next_due()
            return _LONGEST_WAIT if not due else min(max(due - now, 0.01), _LONGEST_WAIT)
        if message.number not in self._over:
            try:
                self._send(message)
            except DeliveryFailed as error:
                return self._failed(message, str(error), n_failures)
            except DeliveryRefused as error:
                self._give_up(str(error))
            else:
                self.n_delivered += 1
            if self.is_failing:
                self._notices.forget(self.name)
                self._notices.say(f"{self.name} works again.")
            self.is_failing = False
        self._over.add(message.number)
        self.outbox.remove(message)
        self._over.discard(message.number)
        return 0.0

    def _failed(self, message: Message, reason: str, n_failures: int) -> float:
        self.is_failing = True
        if self._most_tries is not None and message.n_tries + 1 >= self._most_tries:
            self._give_up(f"{reason}; tried {message.n_tries + 1} times")
            self.outbox.remove(message)
            self.is_failing = False
            return 0.0
        self._notices.say_once(f"{self.name} failed: {reason}. It is tried again.", self.name)
        self.outbox.postpone(message, time.monotonic() + self._pause(message.n_tries))
        return self._pause(n_failures)

    def _pause(self, n_failures: int) -> float:
        """Return the pause after failures: twice as long after each, with a random part, so senders spread out."""
        longest = min(_LONGEST_PAUSE, self._first_pause * 2.0 ** min(n_failures, 20))
        return longest * (0.5 + 0.5 * self._random.random())

    def _give_up(self, reason: str) -> None:
        self.n_refused += 1
        self._notices.say(f"{self.name} failed for one result, which is given up: {reason}.")
