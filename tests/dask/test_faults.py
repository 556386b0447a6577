"""Tests of faults during a fit on a cluster: the result is the same, or the fit raises an error in bounded time."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("distributed", reason="needs the extra dask")
import dask
import distributed

from skpatchcore import ExactIndex, GreedyCoresetSampler
from skpatchcore.dask import DaskPatchCoreDetector
from tests.dask.clusters import local_cluster
from tests.dask.helpers import assert_same_fit, local_fit
from tests.factories import CellMeans

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="kills processes with signals"),
]
# Longest time that a test waits for something, in seconds.
PATIENCE = 90


class Mortal:
    """Kills its own process once: the first process that creates the file dies."""

    def __init__(self, file=None):
        self.file = file

    def die_once(self):
        if self.file is not None:
            try:
                os.close(os.open(self.file, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


class MortalMeans(Mortal, CellMeans):
    """Extractor that logs the process of each image, and dies or is slow at chosen images."""

    def __init__(self, file=None, deadly=None, seconds=0.0, log=None, slow_process=None):
        super().__init__(file)
        self.deadly, self.seconds, self.log, self.slow_process = deadly, seconds, log, slow_process

    def iter_transform(self, X):
        for path, item in zip(X, super().iter_transform(X), strict=True):
            if self.deadly is not None and self.deadly in path:
                self.die_once()
            if self.log is not None:
                with open(self.log, "a") as file:
                    file.write(f"{os.getpid()}\n")
            time.sleep(self.seconds * (10 if os.getpid() == self.slow_process else 1))
            yield item


class MortalIndex(Mortal, ExactIndex):
    """Index that dies at its first search."""

    def __init__(self, storage=None, device="auto", file=None):
        ExactIndex.__init__(self, storage=storage, device=device)
        self.file = file

    def kneighbors(self, *args, **kwargs):
        self.die_once()
        return super().kneighbors(*args, **kwargs)


class KillingSampler(GreedyCoresetSampler):
    """Sampler that calls a function of the test after the second round."""

    kill = None

    def fit_shards(self, group, projected, **arguments):
        follow = arguments["on_progress"]

        def on_progress(n_new, n_rounds):
            follow(n_new, n_rounds)
            if n_rounds == 2:
                KillingSampler.kill()

        return super().fit_shards(group, projected, **{**arguments, "on_progress": on_progress})


@contextmanager
def cluster_of(n_workers, folder, **config):
    with (
        dask.config.set(config),
        local_cluster(folder, n_workers, set_as_default=False, silence_logs=logging.CRITICAL) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with cluster_of(3, tmp_path_factory.mktemp("dask")) as client:
        yield client


@pytest.fixture(scope="module")
def expected(client, image_paths):
    return local_fit(client, settings(), image_paths)


def settings(**parameters):
    default = {"extractor": MortalMeans(), "sampler": GreedyCoresetSampler(0.1), "random_state": 0, "calibration": 6}
    return {**default, **parameters}


def until(is_true, what):
    end = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < end, f"waited {PATIENCE} seconds for {what}"
        time.sleep(0.05)


def processes(client):
    """Return the process of each running worker by address."""
    found = client.run(os.getpid, on_error="ignore")
    running = client.scheduler_info()["workers"]
    return {address: pid for address, pid in found.items() if running.get(address, {}).get("status") == "running"}


def wait_for(client, n_workers):
    until(lambda: len(processes(client)) >= n_workers, f"{n_workers} workers")


def kill(client, rng):
    """Kill one worker process and return its number. Its nanny starts another one."""
    pid = rng.choice(sorted(processes(client).values()))
    os.kill(pid, signal.SIGKILL)
    return pid


def check(client, image_paths, expected, **parameters):
    detector = DaskPatchCoreDetector(**settings(**parameters), client=client).fit(image_paths)
    local = detector.to_local()
    if "index" in parameters:
        local.index_ = expected.index_
    if "sampler" in parameters:
        local.sampler_ = expected.sampler_
    assert_same_fit(local, expected)
    return detector


def test_worker_dies_during_the_extraction(client, image_paths, expected, tmp_path):
    wait_for(client, 2)
    check(client, image_paths, expected, extractor=MortalMeans(str(tmp_path / "dead"), deadly="17.png"))
    assert (tmp_path / "dead").exists()


def test_worker_dies_between_two_rounds(client, image_paths, expected):
    wait_for(client, 2)
    killed = []
    KillingSampler.kill = lambda: killed.append(kill(client, random.Random(0)))
    check(client, image_paths, expected, sampler=KillingSampler(0.1))
    assert len(killed) == 1


@pytest.mark.parametrize("max_memory", ["auto", 1_000_000])
def test_worker_dies_during_the_calibration(client, image_paths, expected, tmp_path, max_memory):
    wait_for(client, 2)
    check(client, image_paths, expected, index=MortalIndex(file=str(tmp_path / "dead")), max_memory=max_memory)
    assert (tmp_path / "dead").exists()


def test_image_that_kills_each_worker_is_an_error(image_paths, tmp_path):
    with cluster_of(1, tmp_path, **{"distributed.scheduler.allowed-failures": 0}) as client:
        detector = DaskPatchCoreDetector(**settings(extractor=AlwaysDeadly()), client=client)
        with pytest.raises(distributed.KilledWorker, match="skpatchcore-"):
            detector.fit(image_paths)


class AlwaysDeadly(CellMeans):
    """Extractor that kills its process."""

    def iter_transform(self, X):
        os.kill(os.getpid(), signal.SIGKILL)
        yield from super().iter_transform(X)


def test_fit_without_any_worker_left_is_an_error_after_the_configured_time(image_paths, tmp_path):
    log = tmp_path / "log"
    with cluster_of(1, tmp_path) as client:
        client.cluster.scale(1)

        def stop():
            until(log.exists, "the extraction")
            client.cluster.scale(0)

        stopping = threading.Thread(target=stop)
        stopping.start()
        detector = DaskPatchCoreDetector(**settings(extractor=MortalMeans(seconds=0.3, log=str(log))), client=client)
        with (
            dask.config.set({"distributed.scheduler.no-workers-timeout": "3s"}),
            pytest.raises(RuntimeError, match="no running worker for 3 seconds"),
        ):
            detector.fit(image_paths)
        stopping.join(PATIENCE)
        with pytest.raises(RuntimeError, match="the Dask cluster has no worker"):
            detector.fit(image_paths)


def test_worker_that_joins_late_takes_part(image_paths, expected, tmp_path):
    log = tmp_path / "log"
    with cluster_of(1, tmp_path) as client:

        def join():
            until(log.exists, "the extraction")
            client.cluster.scale(2)

        joining = threading.Thread(target=join)
        joining.start()
        check(
            client, image_paths, expected, extractor=MortalMeans(seconds=0.5, log=str(log)), n_shards=26,
        )  # fmt: skip
        joining.join(PATIENCE)
        assert len(set(log.read_text().splitlines())) == 2


def test_late_worker_with_another_version_is_an_error(image_paths, tmp_path):
    log, flag = tmp_path / "log", tmp_path / "flag"
    with cluster_of(1, tmp_path) as client:
        client.register_plugin(OtherVersion(str(flag)))

        def join():
            until(log.exists, "the extraction")
            flag.touch()
            client.cluster.scale(2)

        joining = threading.Thread(target=join)
        joining.start()
        extractor = MortalMeans(seconds=0.5, log=str(log))
        with pytest.raises(RuntimeError, match=r"this worker has skpatchcore 0\.0\.1") as caught:
            DaskPatchCoreDetector(**settings(extractor=extractor, n_shards=26), client=client).fit(image_paths)
        assert "Dask worker tcp://" in str(caught.value.__notes__)
        joining.join(PATIENCE)


class OtherVersion(distributed.WorkerPlugin):
    """Plugin that changes the version of the package in workers that start when a file exists."""

    def __init__(self, flag):
        self.flag = flag

    def setup(self, worker):
        if Path(self.flag).exists():
            from skpatchcore.dask import _cluster

            _cluster.__version__ = "0.0.1"


def test_slow_worker_gets_less_work_and_changes_nothing(client, image_paths, expected, tmp_path):
    wait_for(client, 3)
    log, slow = tmp_path / "log", sorted(processes(client).values())[0]
    extractor = MortalMeans(seconds=0.1, log=str(log), slow_process=slow)
    check(client, image_paths, expected, extractor=extractor, n_shards=26)
    images = np.array(log.read_text().split(), int)
    assert (images == slow).sum() < len(image_paths) / 3


CODE = """
import sys
from distributed import Client
from skpatchcore.dask import DaskPatchCoreDetector
from tests.dask.test_faults import MortalMeans, settings
if __name__ == "__main__":
    address, log, *paths = sys.argv[1:]
    with Client(address) as client:
        DaskPatchCoreDetector(**settings(extractor=MortalMeans(seconds=1, log=log)), client=client).fit(paths)
"""


def test_program_that_is_killed_leaves_the_cluster_free(client, image_paths, expected, tmp_path):
    wait_for(client, 2)
    log = tmp_path / "log"
    command = [sys.executable, "-c", CODE, client.scheduler_info()["address"], str(log), *image_paths]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as program:
        until(log.exists, "the extraction")
        program.send_signal(signal.SIGKILL)
    until(lambda: not client.run_on_scheduler(_tasks), "the end of the tasks")
    check(client, image_paths, expected)


def _tasks(dask_scheduler):
    return [str(key) for key in dask_scheduler.tasks if str(key).startswith("skpatchcore")]
