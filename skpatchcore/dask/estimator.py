"""DaskPatchCoreDetector: PatchCore on a Dask cluster, with the same memory bank as on one machine."""

from __future__ import annotations

from typing import Any

from dask.base import is_dask_collection
from distributed import Client
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from skpatchcore.dask._cluster import client_of
from skpatchcore.dask._collections import as_partitioned
from skpatchcore.dask._fitting import ClusterSettings, ShardedDetector
from skpatchcore.detectors.patchcore import PatchCoreDetector


class DaskPatchCoreDetector(OutlierMixin, BaseEstimator):
    """Fit PatchCore on a Dask cluster."""

    def __init__(
        self,
        extractor: Any = None,
        *,
        sampler: Any = None,
        index: Any = None,
        n_neighbors: int = 9,
        contamination: float | str = "auto",
        pixel_contamination: float | None = None,
        calibration: Any = "auto",
        smoothing: float = 4.0,
        roi: Any = None,
        max_memory: int | str | None = "auto",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
        client: Client | None = None,
        mode: str = "exact",
        oversampling: float = 2.0,
        n_shards: int | None = None,
    ):
        self.extractor = extractor
        self.sampler = sampler
        self.index = index
        self.n_neighbors = n_neighbors
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination
        self.calibration = calibration
        self.smoothing = smoothing
        self.roi = roi
        self.max_memory = max_memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.client = client
        self.mode = mode
        self.oversampling = oversampling
        self.n_shards = n_shards

    @property
    def client_(self) -> Client:
        """The Dask client that is used: `client`, or the current client of this process."""
        return client_of(self.client)

    def fit(self, X: Any, y: Any = None, *, groups: Any = None, roi: Any = None) -> DaskPatchCoreDetector:
        """Fit on images."""
        client = self.client_
        local = ShardedDetector(**self._local_params())
        local.settings = ClusterSettings(client, self.mode, self.oversampling, self.n_shards)
        X, paths = as_partitioned(X, client)
        y, groups, roi = (some.compute() if is_dask_collection(some) else some for some in (y, groups, roi))
        local.fit(X, y, groups=groups, roi=roi)
        if paths is not None:
            local.training_paths_ = paths
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)
        for name, value in vars(local).items():
            if name.endswith("_") and not name.startswith("_"):
                setattr(self, name, value)
        return self

    def to_local(self) -> PatchCoreDetector:
        """Return a PatchCoreDetector."""
        check_is_fitted(self, "memory_bank_")
        local = PatchCoreDetector(**self._local_params())
        for name, value in vars(self).items():
            if name.endswith("_") and not name.startswith("_") and name not in ("selection_report_", "shard_sizes_"):
                setattr(local, name, value)
        return local

    def _local_params(self) -> dict[str, Any]:
        """Return the parameters of a PatchCoreDetector."""
        names = PatchCoreDetector._get_param_names()
        return {name: getattr(self, name) for name in names}
