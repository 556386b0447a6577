"""FitProgress: one progress bar for a fit on a cluster, from the reports of its tasks."""

from __future__ import annotations

from typing import Any

from distributed import Client

from skpatchcore._utils.progress import Progress


class FitProgress:
    """Context manager that shows the progress of a fit on one bar.

    The fit has stages, and each stage fills a part of the bar. Tasks report how many images they have finished. A
    report of a task that runs again, because a worker has stopped, does not count twice.

    Parameters
    ----------
    client : Client
        Client of the cluster.
    topic : str
        Topic of the reports (see :class:`~skpatchcore.dask._worker.Reports`).
    bar : Progress
        The bar. Its unit is one image.
    """

    def __init__(self, client: Client, topic: str, bar: Progress):
        self.client, self.topic, self.bar = client, topic, bar
        self._done: dict[int, int] = {}
        self._before, self._n_units, self._n_work = 0, 0, 1

    def __enter__(self) -> FitProgress:
        self.client.subscribe_topic(self.topic, self._receive)
        return self

    def __exit__(self, *error: Any) -> None:
        self.client.unsubscribe_topic(self.topic)

    def begin(self, description: str, n_units: int = 0, n_work: int = 1) -> None:
        """Begin a stage that fills `n_units` of the bar, in which the tasks report `n_work` images in total."""
        self.finish()
        self._before, self._n_units, self._n_work = self.bar.n, n_units, max(1, n_work)
        self._done = {}
        self.bar.describe(description)

    def finish(self) -> None:
        """Fill the part of the current stage."""
        self._advance_to(self._before + self._n_units)

    def poll(self) -> None:
        """Show the reports that have arrived. Called in the thread of the fit."""
        n_done = sum(list(self._done.values()))
        self._advance_to(self._before + min(self._n_units, self._n_units * n_done // self._n_work))

    def _advance_to(self, n: int) -> None:
        if n > self.bar.n:
            self.bar.update(n - self.bar.n)

    def _receive(self, event: Any) -> None:
        """Record a report. Called in the thread of the client's event loop."""
        _, (number, n_done) = event
        self._done[number] = max(n_done, self._done.get(number, 0))
