"""DaskGroup: run one function for each shard as named Dask tasks, and wait for the results without hanging.

All tasks are pure: their inputs are literals or the results of other tasks, and they change none of them. If a worker
dies, the scheduler runs the tasks whose results are lost again on other workers.
"""

from __future__ import annotations

import asyncio
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Client, Future

from skpatchcore.dask._cluster import scheduler_workers
from skpatchcore.dask._partitions import Given, large_graphs
from skpatchcore.dask._worker import run_task, unpack

# Seconds between two looks at the tasks: during the first second, in which short tasks end, and afterwards.
_SHORT_POLL, _SHORT, _POLL = 0.002, 1.0, 0.05
# Seconds between two looks at the workers.
_LOOK = 2.0
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
        self._futures: weakref.WeakSet[Any] = weakref.WeakSet()
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
            futures: list[Any] = self.client.map(run_task, [_Literal(function)] * n_shards, *columns, key=keys)
        self._futures.update(futures)
        return futures

    def share(self, name: str, value: Any) -> Any:
        """Return a handle of a value. The value can be computed again, because it is part of the task."""
        with large_graphs():
            future = self.client.submit(unpack, _Literal(value), key=self._prefix(name))
        self._futures.add(future)
        return future

    def joined(self, name: str, function: Callable[..., Any], handles: Sequence[Any], *others: Any) -> Any:
        """Return the handle of ``function([value of each handle], *others)``, which runs as one task."""
        arguments = (_Literal(function), list(handles), *map(_literal, others))
        with large_graphs():
            future = self.client.submit(run_task, *arguments, key=self._prefix(name))
        self._futures.add(future)
        return future

    def compute(self, delayed: Sequence[Any]) -> list[Any]:
        """Return the handles of partitions of Dask collections."""
        futures: list[Any] = self.client.compute(list(delayed), optimize_graph=False)
        self._futures.update(futures)
        return futures

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Return the values of handles.

        Raises
        ------
        RuntimeError
            If no worker is running for 60 seconds, or for the time ``distributed.scheduler.no-workers-timeout`` of
            Dask's configuration; or if the connection to the scheduler is lost.
        Exception
            The error of a task that failed, or KilledWorker if several workers died while they ran the same task.
        """
        handles = list(handles)
        self._wait(lambda: _are_done(handles))

        async def gathered() -> Any:
            return await self.client.gather(handles, asynchronous=True)

        # A worker can die before its results are here. Dask then computes them again, and the client waits.
        coming = asyncio.run_coroutine_threadsafe(gathered(), self.client.loop.asyncio_loop)
        try:
            self._wait(coming.done)
        except BaseException:
            coming.cancel()
            raise
        values: list[Any] = coming.result()
        return values

    def __enter__(self) -> DaskGroup:
        return self

    def __exit__(self, *error: Any) -> None:
        # The traceback of an error refers to handles. Their tasks must not stay on the cluster as long as the error.
        for future in list(self._futures):
            future.release()

    def _wait(self, is_done: Callable[[], bool]) -> None:
        """Wait until `is_done` returns True. Raise a RuntimeError if no worker is running for too long."""
        start = looked = running = time.monotonic()
        while not is_done():
            now = time.monotonic()
            time.sleep(_SHORT_POLL if now - start < _SHORT else _POLL)
            if self.on_poll is not None:
                self.on_poll()
            if now - looked > _LOOK:
                looked = now
                running = now if self._is_any_running() else running
                if now - running > self.patience:
                    raise RuntimeError(
                        f"the Dask cluster has had no running worker for {self.patience:g} seconds: all workers have "
                        "stopped, or are paused because their memory is full. Start workers, or workers with more "
                        "memory, and fit again."
                    )

    def _prefix(self, name: str) -> str:
        """Return the start of the keys of new tasks, from which Dask reads their name."""
        self._n_calls += 1
        return f"{name}-{self.token}-{self._n_calls}"

    def _is_any_running(self) -> bool:
        """Return whether a worker can run tasks. If the scheduler cannot be asked, Dask itself reports the error."""
        if self.client.status != "running":
            return True
        return any(worker["status"] == "running" for worker in scheduler_workers(self.client).values())


class _Literal(Given):
    """Argument of a task that Dask neither searches for futures nor hashes, because it can be large."""

    def __dask_tokenize__(self) -> str:
        return uuid.uuid4().hex


def _literal(item: Any) -> Any:
    """Return a future as it is, and another object as a literal."""
    return item if isinstance(item, Future) else _Literal(item)


def _are_done(futures: Sequence[Future]) -> bool:
    """Return whether all tasks have finished, or a task has failed. Raise a RuntimeError if tasks were cancelled."""
    statuses = {future.status for future in futures}
    if "cancelled" in statuses:
        raise RuntimeError(
            "the tasks of the fit were cancelled, or the connection to the Dask scheduler was lost. Fit again."
        )
    return "error" in statuses or statuses <= {"finished"}
