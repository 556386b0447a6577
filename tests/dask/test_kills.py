"""Kill tests: a worker process is killed at random moments of a fit, and the fit ends with the same memory bank."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("distributed", reason="needs the extra dask")
import dask
from dask.utils import key_split
from distributed.diagnostics.plugin import SchedulerPlugin

from skpatchcore import GreedyCoresetSampler, PatchCoreDetector
from skpatchcore.dask import DaskPatchCoreDetector
from tests.dask.clusters import local_cluster
from tests.factories import CellMeans

N_KILLS = 30
N_WORKERS = 3
# The phases of a fit, and the tasks with which they begin.
PHASES = ("extraction", "rounds", "collection", "calibration")
FIRST_TASK = {"skpatchcore-begin": "rounds", "skpatchcore-collect": "collection", "skpatchcore-folds": "calibration"}
# The collection and the calibration run side by side, in an order that differs between fits.
OWN_PHASE = {
    "skpatchcore-collect": "collection", "skpatchcore-join": "collection",
    "skpatchcore-folds": "calibration", "skpatchcore-calibrate": "calibration",
}  # fmt: skip
KILLED = ("extraction", "rounds", "calibration")
ATTRIBUTES = (
    "memory_bank_", "bank_image_indices_", "bank_positions_", "calibration_scores_", "calibration_peaks_",
    "calibration_image_indices_", "offset_", "pixel_offset_",
)  # fmt: skip


class Killer(SchedulerPlugin):
    """Kills a worker process shortly after a given number of tasks of a phase have finished. Counts the tasks."""

    name = "killer"

    def __init__(self, scheduler, phase=None, n_tasks=0, delay=0.0, pid=None):
        self.scheduler, self.phase, self.n_tasks, self.delay, self.pid = scheduler, phase, n_tasks, delay, pid
        self.counts = Counter()
        self.now, self.hit = "extraction", None

    def transition(self, key, start, finish, *args, **kwargs):
        # The scheduler runs in the process of the tests, so that no moment is missed.
        name = key_split(key)
        if finish != "memory" or not name.startswith("skpatchcore"):
            return
        self.now = max(self.now, FIRST_TASK.get(name, self.now), key=PHASES.index)  # lost tasks run again later
        phase = OWN_PHASE.get(name, self.now)
        self.counts[phase] += 1
        if phase == self.phase and self.counts[phase] == self.n_tasks:
            self.scheduler.loop.call_later(self.delay, self.kill)

    def kill(self):
        self.hit = self.now
        os.kill(self.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    found = [str(folder / f"{i}.png") for i in range(24)]
    for path in found:
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    return found


def pids_of(client, killed=None):
    """Return the processes of all workers. Wait until a killed process has been replaced."""
    for _ in range(1200):
        found = sorted(nanny.pid for nanny in client.cluster.workers.values() if nanny.pid)
        if len(found) == N_WORKERS and killed not in found:
            client.wait_for_workers(N_WORKERS, timeout=120)
            return found
        time.sleep(0.1)
    raise TimeoutError(f"there are only the workers {found}")


def fit_with(client, killer, paths):
    """Fit with a plugin of the scheduler, in at most two minutes."""
    scheduler = client.cluster.scheduler
    scheduler.add_plugin(killer)
    detector = DaskPatchCoreDetector(
        CellMeans(),
        sampler=GreedyCoresetSampler(0.2),
        calibration=3,
        contamination=0.2,
        random_state=0,
        client=client,
        n_shards=2 * N_WORKERS,
    )
    executor = ThreadPoolExecutor(1)
    try:
        return executor.submit(detector.fit, paths).result(timeout=120).to_local()
    finally:
        scheduler.remove_plugin(killer.name)
        executor.shutdown(wait=False, cancel_futures=True)  # does not wait for a fit that hangs


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(os.name != "posix", reason="kills processes with signals")
def test_worker_killed_at_30_random_moments_gives_the_same_bank_30_times(paths, tmp_path):
    expected = PatchCoreDetector(
        CellMeans(), sampler=GreedyCoresetSampler(0.2), calibration=3, contamination=0.2, random_state=0
    ).fit(paths)
    # By default, LocalCluster gives up a worker that is killed again within 15 seconds.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        local_cluster(tmp_path, N_WORKERS) as client,
    ):
        undisturbed = Killer(client.cluster.scheduler)
        fit_with(client, undisturbed, paths)
        hits, killed = Counter(), None
        for seed in range(N_KILLS):
            draws = random.Random(seed)
            phase = KILLED[seed % 3]
            killer = Killer(
                client.cluster.scheduler,
                phase,
                n_tasks=draws.randint(1, int(0.8 * undisturbed.counts[phase])),
                delay=0.0 if phase == "calibration" else draws.uniform(0, 0.03),  # the calibration takes 30 ms
                pid=draws.choice(pids_of(client, killed)),
            )
            fitted = fit_with(client, killer, paths)
            assert killer.hit is not None, (seed, phase, killer.n_tasks, killer.counts, undisturbed.counts)
            hits[killer.hit] += 1
            killed = killer.pid
            for name in ATTRIBUTES:
                np.testing.assert_array_equal(getattr(fitted, name), getattr(expected, name), err_msg=f"seed {seed}")
    assert min(hits[phase] for phase in KILLED) >= 3, hits
