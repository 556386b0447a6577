"""local_cluster: a Dask cluster of worker processes for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from distributed import Client, LocalCluster


@contextmanager
def local_cluster(folder: Path, n_workers: int = 2, set_as_default: bool = True, **options) -> Iterator[Client]:
    """Start worker processes with one thread each, and yield a client. The workers write their files in a folder."""
    with (
        mock.patch.dict(os.environ),  # restores OMP_NUM_THREADS, which the cluster sets
        LocalCluster(
            n_workers=n_workers,
            **{"threads_per_worker": 1, "dashboard_address": ":0", "local_directory": str(folder), **options},
        ) as cluster,
        Client(cluster, set_as_default=set_as_default) as client,
    ):
        yield client
