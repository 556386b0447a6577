"""DaskGroup: run one function for each shard as named Dask tasks, and wait for the results without hanging.

All tasks are pure: their inputs are literals or the results of other tasks, and they change none of them. If a worker
dies, the scheduler runs the tasks whose results are lost again on other workers.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Client, Future

from skpatchcore.dask._partitions import Given, large_graphs
from skpatchcore.dask._tasks import run_task, unpack

# Seconds between two looks at the progress, and between two looks at the workers, while results are awaited.
_POLL, _LOOK = 0.1, 2.0
# Seconds after which a fit without any running worker fails, unless the configuration of Dask sets another time.
_PATIENCE = 60.0


class DaskGroup:
    """Group of shards on a Dask cluster, a :class:`~skpatchcore.coreset.distributed.ShardGroup`.

    Handles are futures. A result is kept on the cluster as long as a handle refers to it.

    Parameters
    ----------
    client : Client
        Client of the cluster.
    on_poll : callable or None, default=None
        Function that is called about ten times per second while results are awaited.
    """

    def __init__(self, client: Client, on_poll: Callable[[], Any] | None = None):
        self.client, self.on_poll = client, on_poll
        self.token = uuid.uuid4().hex
        self._n_calls = 0
        configured = dask.config.get("distributed.scheduler.no-workers-timeout", None)
        self.patience = _PATIENCE if configured is None else float(parse_timedelta(configured))

    def map(
        self, name: str, function: Callable[..., Any], *held: Sequence[Any], common: Sequence[Any] = ()
    ) -> list[Any]:
        """Run ``function(held[0][i], held[1][i], ..., *common)`` for each shard `i`, and return a handle per shard.

        Parameters
        ----------
        name : str
            Name of the tasks on Dask's dashboard.
        function : callable
            Pure function.
        *held : sequences
            Handles or other objects, one per shard.
        common : sequence
            Handles or other objects that are the same for all shards.
        """
        n_shards = len(held[0])
        columns = [[_literal(item) for item in column] for column in held]
        columns += [[shared] * n_shards for shared in map(_literal, common)]
        keys = [f"{self._prefix(name)}-{i}" for i in range(n_shards)]
        with large_graphs():
            futures: list[Any] = self.client.map(run_task, [Given(function)] * n_shards, *columns, key=keys)
        return futures

    def share(self, name: str, value: Any) -> Any:
        """Return a handle of a value. The value can be computed again, because it is part of the task."""
        with large_graphs():
            return self.client.submit(unpack, Given(value), key=self._prefix(name))

    def joined(self, name: str, function: Callable[..., Any], handles: Sequence[Any], *others: Any) -> Any:
        """Return the handle of ``function([value of each handle], *others)``, which runs as one task."""
        arguments = (Given(function), list(handles), *map(_literal, others))
        return self.client.submit(run_task, *arguments, key=self._prefix(name))

    def compute(self, delayed: Sequence[Any]) -> list[Any]:
        """Return the handles of partitions of Dask collections."""
        futures: list[Any] = self.client.compute(list(delayed), optimize_graph=False)
        return futures

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Return the values of handles.

        Raises
        ------
        RuntimeError
            If no worker is running for 60 seconds, or for the time ``distributed.scheduler.no-workers-timeout`` of
            Dask's configuration.
        Exception
            The error of a task that failed, or KilledWorker if several workers died while they ran the same task.
        """
        handles = list(handles)

        async def gathered() -> Any:
            return await self.client.gather(handles, asynchronous=True)

        loop: Any = self.client.loop
        waiting = asyncio.run_coroutine_threadsafe(gathered(), loop.asyncio_loop)
        looked = running = time.monotonic()
        try:
            while True:
                try:
                    values: list[Any] = waiting.result(_POLL)
                    return values
                except FutureTimeoutError:
                    if waiting.done():  # a task raised a TimeoutError of its own
                        raise
                if self.on_poll is not None:
                    self.on_poll()
                now = time.monotonic()
                if now - looked > _LOOK:
                    looked = now
                    running = now if self._is_any_running() else running
                    if now - running > self.patience:
                        raise RuntimeError(
                            f"the Dask cluster has had no running worker for {self.patience:g} seconds: all workers "
                            "have stopped or are paused because their memory is full. Start workers, or workers with "
                            "more memory, and fit again."
                        )
        finally:
            waiting.cancel()

    def _prefix(self, name: str) -> str:
        """Return the start of the keys of new tasks, from which Dask reads their name."""
        self._n_calls += 1
        return f"{name}-{self.token}-{self._n_calls}"

    def _is_any_running(self) -> bool:
        """Return whether a worker can run tasks. If the scheduler cannot be asked, Dask itself reports the error."""
        if self.client.status != "running":
            return True
        workers = self.client.scheduler_info()["workers"].values()
        return any(worker["status"] == "running" for worker in workers)


def _literal(item: Any) -> Any:
    """Return a future as it is, and another object in a form that Dask does not search for futures."""
    return item if isinstance(item, Future) else Given(item)
