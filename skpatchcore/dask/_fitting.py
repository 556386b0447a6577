"""ShardedDetector: a PatchCoreDetector whose step that learns and calibrates runs on a Dask cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from distributed import Client
from sklearn.base import clone
from sklearn.utils import check_random_state

from skpatchcore._utils.progress import phase, progress_bar
from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore.bank.folds import affordable_folds
from skpatchcore.bank.memory_bank import MemoryBank
from skpatchcore.calibration.plans import CalibrationScores, HeldOut, LeaveOneOut, NoCalibration, ScoredPart, SketchOf
from skpatchcore.coreset._base import count_of
from skpatchcore.coreset.distributed import SelectionReport
from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.dask._cluster import check_workers, workers_of
from skpatchcore.dask._division import Division
from skpatchcore.dask._extraction import Extraction, Summary, extract, part_of, recount
from skpatchcore.dask._group import DaskGroup
from skpatchcore.dask._progress import FitProgress
from skpatchcore.dask._scoring import (
    Collected,
    Folds,
    assemble,
    build_bank,
    calibrate_folds,
    calibrate_shard,
    collect,
)
from skpatchcore.dask._shards import PartitionedImages, Shard
from skpatchcore.detectors._learning import Learned
from skpatchcore.detectors._records import ImageRecords
from skpatchcore.detectors.patchcore import PatchCoreDetector
from skpatchcore.patches.stream import PatchStream, extrapolated_count
from skpatchcore.protocols import ratio_of

# Fraction of a worker's memory limit that a fit uses with max_memory="auto". Dask writes results to disk above it.
_SHARE_OF_WORKER = 0.6
# Fraction of this memory that the banks of folds may take.
_SHARE_OF_FOLDS = 0.25


@dataclass
class ClusterSettings:
    """Client and settings of a fit on a cluster, as the parameters of :class:`DaskPatchCoreDetector`."""

    client: Client
    mode: str
    oversampling: float
    n_shards: int | None


class ShardedDetector(PatchCoreDetector):
    """PatchCoreDetector that learns and calibrates on a Dask cluster.

    `settings` must be set before the fit. The fit also sets ``selection_report_`` and ``shard_sizes_``.
    """

    settings: ClusterSettings
    selection_report_: SelectionReport
    shard_sizes_: np.ndarray

    def _make_stages(self, rng: np.random.RandomState) -> dict[str, Any]:
        stages = super()._make_stages(rng)
        if self.augment is not None:
            raise ValueError(
                f"augment={self.augment!r} is not possible on a Dask cluster: it is made for few training images. Fit "
                "a PatchCoreDetector on one machine, or pass augment=None."
            )
        if self.suspect_share is not None:
            raise ValueError(
                f"suspect_share={self.suspect_share!r} is not possible on a Dask cluster, because patches of all "
                "images would have to be compared. Fit a PatchCoreDetector on one machine, or pass suspect_share=None."
            )
        sampler = stages["sampler"]
        if stages["transformer"] is not None:
            raise ValueError(
                f"transformer={type(stages['transformer']).__name__}: a fit on a Dask cluster has no transformer. Each "
                "worker would fit on its own images, and the sum of their results depends on the division into shards. "
                "Fit a PatchCoreDetector on one machine."
            )
        if not isinstance(sampler, GreedyCoresetSampler):
            raise ValueError(
                f"sampler={sampler!r}: a fit on a Dask cluster needs a GreedyCoresetSampler. Fit a PatchCoreDetector "
                "on one machine to use another sampler."
            )
        if sampler.n_projections == "auto":
            raise ValueError(
                "n_projections='auto' depends on the number of patches, which is not known before the extraction. Pass "
                "a number to the sampler, e.g. n_projections=128."
            )
        if not isinstance(sampler.random_state, int | np.integer):  # all workers must draw the same projection
            sampler.set_params(random_state=int(check_random_state(sampler.random_state).randint(2**31 - 1)))
        return stages

    def _validated(self, X: Any, extractor: Any, reset: bool) -> Any:
        if extractor is None and isinstance(X, PartitionedImages):
            if reset and hasattr(self, "n_features_in_"):
                del self.n_features_in_
            if reset and X.n_columns is not None:
                self.n_features_in_ = X.n_columns
            return X
        return super()._validated(X, extractor, reset)

    def _learned(
        self, stream: PatchStream, records: ImageRecords, plan: NoCalibration, stages: dict[str, Any], seed: int
    ) -> Learned:
        n_units = len(stream) * (1 if type(plan) is NoCalibration else 2)
        with (
            progress_bar(n_units, "connecting", "image", self.verbose) as bar,
            DaskGroup(self.settings.client) as group,
            FitProgress(group.client, f"skpatchcore-{group.token}", bar) as progress,
        ):
            group.on_poll = progress.poll
            fit = _ClusterFit(self, group, progress, stream, records, plan, stages)
            learned = fit.run()
            progress.finish()
        self.selection_report_ = fit.report
        self.shard_sizes_ = np.array([len(shard) for shard in fit.shards])
        if fit.paths is not None:
            self.training_paths_ = fit.paths
        return learned


class _ClusterFit:
    """One fit on a cluster: the steps of :meth:`ShardedDetector._learned`, and what they share."""

    report: SelectionReport
    shards: list[Shard]

    def __init__(
        self,
        detector: ShardedDetector,
        group: DaskGroup,
        progress: FitProgress,
        stream: PatchStream,
        records: ImageRecords,
        plan: NoCalibration,
        stages: dict[str, Any],
    ):
        self.detector, self.group, self.progress = detector, group, progress
        self.stream, self.records, self.plan = stream, records, plan
        self.sampler, self.index = clone(stages["sampler"]), stages["index"]
        self.paths = detector.training_paths_
        self._task_numbers = count()
        self._workers = workers_of(group.client)
        self._sketch_of: SketchOf = detector._sketch_of()
        self._scoring = detector._image_scoring()

    def run(self) -> Learned:
        """Run all steps: extract, select, collect the bank, calibrate."""
        learnt = np.arange(len(self.stream)) if self.plan.learnt is None else self.plan.learnt
        settings, extractor = self.detector.settings, self.stream.extractor
        environment = check_workers(self.group.client, extractor)
        self.memory = self._memory_of_worker()
        self.task = Extraction(
            extractor, self.stream.region, self.sampler, environment, self.memory, 1, self.progress.topic
        )
        division = Division(self.group, self.task, self._workers, settings.n_shards)
        with phase("network"):
            X = self.stream.X if self.plan.learnt is None else safe_indexing(self.stream.X, learnt)
            self.shards, self.sources = division.of(X, self.stream.numbers[learnt])
            self.task.n_held = math.ceil(len(self.shards) / len(self._workers))
            self.shared_task = self.group.share("skpatchcore-settings", self.task)
            summaries = self._extract()
        self.plan = self.plan.resolved(lambda: self._n_folds(summaries))
        with phase("selection"):
            picks = self._select()
        bank_rows = self._collected(self.sampler.component_indices_, with_origin=True)
        collected: Collected = self.group.gather([bank_rows])[0]
        bank = self._bank(collected)
        with phase("calibration"):
            found = self._calibrated(picks, bank_rows, bank, division)
        self._add_paths(division.paths)
        return Learned(bank, self.stream.numbers[learnt], found, self.plan.description)

    def _memory_of_worker(self) -> int | None:
        """Return the memory that a worker process may use for the fit; None without a limit."""
        given = self.detector._memory_limit()
        limits = [worker.memory_limit for worker in self._workers.values() if worker.memory_limit]
        if given is None:
            return None
        if isinstance(given, int):
            return min([given, *limits])
        return int(_SHARE_OF_WORKER * min(limits)) if limits else None

    def _extract(self) -> list[Summary]:
        """Extract all shards, keep the handles of their parts, and return what the client needs to know of them."""
        n_images = sum(len(shard) for shard in self.shards)
        self.progress.begin("extracting features", n_images, n_images)
        group, numbers = self.group, [next(self._task_numbers) for _ in self.shards]
        sources, common = self.sources.handles(), [self.shared_task]
        extracted = group.map("skpatchcore-extract", extract, sources, self.shards, numbers, common=common)
        self.projected, self.held, summaries = (
            group.map(f"skpatchcore-{title}", part_of, extracted, common=[name])
            for title, name in (("project", "projected"), ("hold", "held"), ("summarize", "summary"))
        )
        del extracted, sources
        found: list[Summary] = group.gather(summaries)
        for shard, summary in zip(self.shards, found, strict=True):
            if summary.n_images != len(shard):
                raise RuntimeError(f"{summary.n_images} images were extracted, but {len(shard)} were sent out.")
            if summary.n_channels != found[0].n_channels:
                raise ValueError(
                    f"patch features of image {shard.numbers[0]} have {summary.n_channels} channels, expected "
                    f"{found[0].n_channels} as in the images before."
                )
            self.records.include(summary.records)
        if all(summary.is_table for summary in found):
            self.detector.n_features_in_ = found[0].n_channels
        self.shards = [replace(shard, n_rows=some.n_rows) for shard, some in zip(self.shards, found, strict=True)]
        self.starts = np.concatenate([[0], np.cumsum([summary.n_rows for summary in found])])
        self.is_held, self.row_bytes = [summary.is_held for summary in found], found[0].row_bytes
        return found

    def _n_folds(self, summaries: Sequence[Summary]) -> int:
        """Return the number of folds of ``calibration="auto"``, as a fit on one machine computes it."""
        first, n_images = summaries[0], len(self.stream)
        if self.stream.extractor is None:
            n_cells = sum(summary.n_cells for summary in summaries)
        else:
            known = [summary.sizes for summary in summaries if summary.sizes is not None]
            sizes = np.concatenate(known) if len(known) == len(summaries) else None
            n_cells = extrapolated_count(first.first_cells[1], first.first_cells[0], n_images, sizes)
        return affordable_folds(n_cells, first.n_channels, self.sampler, self.index)

    def _select(self) -> list[np.ndarray]:
        """Select the memory bank, and return the row numbers of the banks of folds."""
        self.progress.begin("selecting the coreset")
        n_picked = 0

        def on_progress(n_new: int, n_rounds: int) -> None:
            nonlocal n_picked
            n_picked += n_new
            self.progress.bar.describe(f"selecting the coreset: round {n_rounds}, {n_picked:,} rows")

        settings = self.detector.settings
        self.report, picks = self.sampler.fit_shards(
            self.group,
            self.projected,
            left_out=self.plan.left_out,
            mode=settings.mode,
            oversampling=settings.oversampling,
            on_progress=on_progress,
        )
        n_wanted = count_of(ratio_of(self.sampler), int(self.starts[-1]))
        n_found = len(np.unique(self.sampler.component_indices_))
        if n_found != n_wanted:
            raise RuntimeError(f"{n_found} different rows were selected instead of {n_wanted}.")
        self.group.gather(self.group.map("skpatchcore-count", recount, self.held, self.shards))
        return list(picks)

    def _collected(self, picks: np.ndarray, with_origin: bool) -> Any:
        """Return the handle of the patches with the row numbers `picks`, in this order."""
        owners = np.searchsorted(self.starts, picks, side="right") - 1
        places = [np.flatnonzero(owners == i) for i in range(len(self.shards))]
        numbers = [picks[some] - start for some, start in zip(places, self.starts[:-1], strict=True)]
        parts = self.group.map(
            "skpatchcore-collect",
            collect,
            self.held,
            self._sources_to_extract([len(some) > 0 for some in places]),
            self.shards,
            numbers,
            common=[self.shared_task, with_origin],
        )
        return self.group.joined("skpatchcore-join", assemble, parts, places)

    def _sources_to_extract(self, needed: Sequence[bool]) -> list[Any]:
        """Return the handles of the images of the shards that must be extracted again, and None for the others."""
        return self.sources.handles([need and not held for need, held in zip(needed, self.is_held, strict=True)])

    def _bank(self, collected: Collected) -> MemoryBank:
        """Return the memory bank with its fitted index. The bank and the sampler share the array of the rows."""
        self.sampler.components_ = collected.rows
        with phase("index"):
            return build_bank(collected, self.sampler, clone(self.index), self.detector._n_in_weight())

    def _calibrated(
        self, picks: list[np.ndarray], bank_rows: Any, bank: MemoryBank, division: Division
    ) -> CalibrationScores:
        """Score the calibration images on the workers, and join their scores."""
        n_units = 0 if type(self.plan) is NoCalibration else self.progress.bar.total - self.progress.bar.n
        self.progress.begin("calibrating", n_units, self.plan.n_scores())
        if len(self.plan.left_out):
            return self.plan.joined(self._scores_of_folds(picks))
        if isinstance(self.plan, LeaveOneOut | HeldOut):
            return self.plan.joined(self._scores_of_bank(bank_rows, division))
        return self.plan.joined(())

    def _scores_of_folds(self, picks: list[np.ndarray]) -> list[ScoredPart]:
        """Score the test images of all folds, as many folds at a time as fit in memory."""
        found: list[ScoredPart] = []
        tests = [test for _, test in self.plan.folds]  # type: ignore[attr-defined]
        for first, last in self._fold_groups(picks):
            some = picks[first:last]
            numbers = np.unique(np.concatenate(some))
            folds = Folds(first, numbers, some, self.index, self.detector._n_in_weight())
            of_shards = [
                [test[(test >= shard.first) & (test < shard.first + len(shard))] for test in tests[first:last]]
                for shard in self.shards
            ]
            parts = self.group.map(
                "skpatchcore-calibrate",
                calibrate_folds,
                self.held,
                self._sources_to_extract([True] * len(self.shards)),
                self.shards,
                of_shards,
                [next(self._task_numbers) for _ in self.shards],
                common=[
                    self._collected(numbers, with_origin=False),
                    self.group.share("skpatchcore-folds", folds),
                    self.shared_task,
                    self._sketch_of,
                    self._scoring,
                ],
            )
            found += [part for some_parts in self.group.gather(parts) for part in some_parts]
        return found

    def _fold_groups(self, picks: list[np.ndarray]) -> list[tuple[int, int]]:
        """Return the first fold of each group of folds that are scored together, and the fold after its last."""
        if self.memory is None:
            return [(0, len(picks))]
        capacity = int(_SHARE_OF_FOLDS * self.memory) // self.row_bytes
        groups, first, n_rows = [], 0, 0
        for i, picked in enumerate(picks):
            if i > first and n_rows + len(picked) > capacity:
                groups.append((first, i))
                first, n_rows = i, 0
            n_rows += len(picked)
        return [*groups, (first, len(picks))]

    def _scores_of_bank(self, bank_rows: Any, division: Division) -> list[ScoredPart]:
        """Score images with the memory bank of all images, for a plan without folds."""
        plan, group = self.plan, self.group
        shards, held, sources = self.shards, self.held, self._sources_to_extract([True] * len(self.shards))
        if isinstance(plan, HeldOut):
            X = safe_indexing(self.stream.X, plan.held)
            shards, division_sources = division.of(X, self.stream.numbers[plan.held])
            held, sources = [None] * len(shards), division_sources.handles()
        common = [None, clone(self.index), self.detector._n_in_weight()]
        bank = group.map("skpatchcore-index", build_bank, [bank_rows], common=common)[0]
        results = group.gather(
            group.map(
                "skpatchcore-calibrate",
                calibrate_shard,
                held,
                sources,
                shards,
                [next(self._task_numbers) for _ in shards],
                common=[bank, group.share("skpatchcore-plan", plan), self.shared_task, self._sketch_of, self._scoring],
            )
        )
        if isinstance(plan, HeldOut):
            for _, records in results:
                self.records.include(records)
        return [part for parts, _ in results for part in parts]

    def _add_paths(self, found: dict[int, str]) -> None:
        """Replace the paths of images by their absolute paths on the workers."""
        if self.paths is not None:
            self.paths = [found.get(i, path) for i, path in enumerate(self.paths)]
