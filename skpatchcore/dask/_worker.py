"""run_task and Reports: run a function as a Dask task on a worker, and report its progress to the client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from distributed import get_worker

from skpatchcore.dask._partitions import Given, located, warnings_on_client
from skpatchcore.images.errors import ImageError

# Minimum number of seconds between two reports of a task's progress.
_REPORT = 0.5


def unpack(literal: Given) -> Any:
    """Return the value of a literal."""
    return literal.value


def run_task(*arguments: Any) -> Any:
    """Call the first argument with the others. An error names the worker, and warnings are issued on the client."""
    function, *values = (item.value if isinstance(item, Given) else item for item in arguments)
    try:
        with warnings_on_client():
            return function(*values)
    except ImageError as error:
        raise located(error) from error
    except Exception as error:
        error.add_note(f"This error was raised on the Dask worker {address()}.")
        raise


def address() -> str:
    """Return the address of the worker on which this code runs."""
    return str(get_worker().address)


class Reports:
    """Reports the progress of a task to the client.

    Parameters
    ----------
    topic : str
        Topic of the events on which the client listens.
    number : int
        Number of the task. A task that runs again after a worker has stopped has the same number.
    """

    def __init__(self, topic: str, number: int):
        self.topic, self.number = topic, number
        self._n_done, self._last = 0, 0.0

    def of(self, items: Any, count: Callable[[Any], int] = len) -> Iterator[Any]:
        """Yield items, and report the sum of their counts at most twice per second and at the end."""
        for item in items:
            yield item
            self._n_done += count(item)
            if time.monotonic() - self._last > _REPORT:
                self._send()
        self._send()

    def _send(self) -> None:
        self._last = time.monotonic()
        get_worker().log_event(self.topic, (self.number, self._n_done))
