"""Kill tests: a worker process is killed at random moments of a fit, and the fit ends with the same memory bank."""

from __future__ import annotations

import os
import random
import signal
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
# Phase of a fit by the name of a task. All other tasks belong to the rounds of the selection.
PHASES = {
    "skpatchcore-extract": "extraction",
    "skpatchcore-measure": "extraction",
    "skpatchcore-profile": "extraction",
    "skpatchcore-settings": "extraction",
    "skpatchcore-project": "extraction",
    "skpatchcore-hold": "extraction",
    "skpatchcore-summarize": "extraction",
    "skpatchcore-collect": "calibration",
    "skpatchcore-folds": "calibration",
    "skpatchcore-calibrate": "calibration",
}
ATTRIBUTES = (
    "memory_bank_", "bank_image_indices_", "bank_positions_", "calibration_scores_", "calibration_peaks_",
    "calibration_image_indices_", "offset_", "pixel_offset_",
)  # fmt: skip


def phase_of(key) -> str | None:
    name = key_split(key)
    return PHASES.get(name, "rounds") if name.startswith("skpatchcore") else None


class Killer(SchedulerPlugin):
    """Kills a worker process shortly after a given number of tasks of a phase have finished. Counts the tasks."""

    name = "killer"

    def __init__(self, scheduler, phase=None, n_tasks=0, delay=0.0, pid=None):
        self.scheduler, self.phase, self.n_tasks, self.delay, self.pid = scheduler, phase, n_tasks, delay, pid
        self.counts = Counter()
        self.now = self.hit = None

    def transition(self, key, start, finish, *args, **kwargs):
        # The scheduler runs in the process of the tests, so that no moment is missed.
        phase = phase_of(key)
        if finish != "memory" or phase is None:
            return
        self.now = phase
        self.counts[phase] += 1
        if phase == self.phase and self.counts[phase] == self.n_tasks:
            self.scheduler.loop.call_later(self.delay, self.kill)

    def kill(self):
        self.hit = self.now  # the phase of the last task before the kill
        os.kill(self.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    found = [str(folder / f"{i}.png") for i in range(24)]
    for path in found:
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    return found


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
    with ThreadPoolExecutor(1) as executor:
        try:
            return executor.submit(detector.fit, paths).result(timeout=120).to_local()
        finally:
            scheduler.remove_plugin(killer.name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
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
        hits = Counter()
        for seed in range(N_KILLS):
            client.wait_for_workers(N_WORKERS, timeout=120)
            draws = random.Random(seed)
            phase = ("extraction", "rounds", "calibration")[seed % 3]
            killer = Killer(
                client.cluster.scheduler,
                phase,
                n_tasks=draws.randint(1, undisturbed.counts[phase]),
                delay=draws.uniform(0, 0.03),
                pid=draws.choice(sorted(client.run(os.getpid).values())),
            )
            fitted = fit_with(client, killer, paths)
            hits[killer.hit] += 1
            for name in ATTRIBUTES:
                np.testing.assert_array_equal(getattr(fitted, name), getattr(expected, name), err_msg=f"seed {seed}")
    assert sum(hits[phase] for phase in ("extraction", "rounds", "calibration")) == N_KILLS, hits
    assert min(hits[phase] for phase in ("extraction", "rounds", "calibration")) >= 3, hits
