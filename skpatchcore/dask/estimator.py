"""DaskPatchCoreDetector: PatchCore on a Dask cluster, with the same memory bank as on one machine."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import dask.array as da
import dask.bag as db
from dask.base import is_dask_collection
from distributed import Client
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.diagrams import DocumentationLinkMixin
from skpatchcore._utils.sklearn import Interval, StrOptions, fit_context
from skpatchcore.dask import _prediction as lazy
from skpatchcore.dask._cluster import client_of
from skpatchcore.dask._fitting import ClusterSettings, ShardedDetector
from skpatchcore.dask._group import DaskGroup
from skpatchcore.dask._partitioned import as_partitioned
from skpatchcore.detectors._stages import with_stages_for
from skpatchcore.detectors.patchcore import PatchCoreDetector

# Fitted attributes that a local detector does not have.
_OF_CLUSTER = ("selection_report_", "shard_sizes_")


class DaskPatchCoreDetector(DocumentationLinkMixin, BaseEstimator):
    """PatchCore on a Dask cluster: `fit` selects the same memory bank as :class:`~skpatchcore.PatchCoreDetector`.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. ``segment`` returns anomaly maps, **bigger = more anomalous**. All of these results are
    lazy Dask collections.

    The images are divided into parts, the shards. Each worker reads the images of its shards, computes their patch
    features, takes part in the selection of the memory bank, and scores its images for the calibration. If all workers
    use the same number of threads, the same kind of processor and the same versions, then the fitted attributes are
    equal to those of a :class:`~skpatchcore.PatchCoreDetector` that is fitted on one such worker.

    Parameters
    ----------
    extractor : estimator, "precomputed" or None, default=None
        As for :class:`~skpatchcore.PatchCoreDetector`.
    transformer : None, default=None
        Not supported: only None is valid. A transformer would depend on the division of the images into shards.
    sampler : GreedyCoresetSampler or None, default=None
        The sampler that selects the coreset. Its `n_projections` must not be ``"auto"``, and its cache `memory` is not
        used. None uses ``GreedyCoresetSampler()``. Other samplers need all patch features on one machine.
    index : estimator, {"exact", "pynndescent"} or None, default=None
        As for :class:`~skpatchcore.PatchCoreDetector`, like the next six parameters.
    n_neighbors : int, default=9
        *b* of Equation 7.
    image_score : {"reweighted", "max", "map-max"} or float in (0, 1], default="reweighted"
        How the image score is computed from the patch scores.
    contamination : float or "auto", default="auto"
        Accepted false-positive rate.
    pixel_contamination : float or None, default=None
        Accepted fraction of the pixels of good images above the pixel threshold.
    calibration : "auto", "leave-one-out", float, int, splitter or None, default="auto"
        How the calibration images are scored. The workers score their own images.
    smoothing : float, default=4.0
        Standard deviation of the Gaussian that smooths anomaly maps, in pixels.
    roi : region of interest or None, default=None
        As for :class:`~skpatchcore.PatchCoreDetector`. A mask is read by this process, not by the workers.
    augment : None, default=None
        Turned views of training images are not possible on a cluster: other values raise an error.
    suspect_share : None, default=None
        Suspicious patches cannot be found on a cluster: other values raise an error.
    growth : {"radius", "ratio"}, default="radius"
        How `partial_fit` of the local detector (`to_local`) grows, as for :class:`~skpatchcore.PatchCoreDetector`.
    reserve : bool, default=True
        Not used: a fit on a cluster selects no reserve.
    max_memory : int, str or None, default="auto"
        Memory that a fit may use in each worker process, e.g. ``"4GB"``. ``"auto"`` uses 60 % of the workers' smallest
        ``memory_limit``: above this share, Dask writes results to disk. None sets no limit. If the patch features of a
        worker's images do not fit, they are not kept, and the network runs again on images whose patch features are
        needed later. The memory bank is the same.
    device : str, default="auto"
        Device of the workers.
    random_state : int, RandomState instance or None, default=None
        As for :class:`~skpatchcore.PatchCoreDetector`. Pass an int for the same memory bank as on one machine.
    verbose : int, default=0
        If 1, `fit` shows one progress bar with images, rounds and selected rows.
    client : distributed.Client or None, default=None
        Client of the Dask cluster. None uses the current client of the process. The client is not pickled.
    mode : {"exact", "merge"}, default="exact"
        Kind of the selection. ``"exact"`` selects the same rows as on one machine, in several rounds of messages.
        ``"merge"`` needs two rounds only: each shard selects rows, and the memory bank is selected among these rows. It
        covers the patch features slightly less well, and the rows depend on the shards.
    oversampling : float, default=2.0
        Number of rows that all shards together select with ``mode="merge"``, as a multiple of the size of the bank.
    n_shards : int or None, default=None
        Maximum number of shards. A shard starts with a new batch of the extractor, so that there may be fewer. None
        uses two shards per thread of the cluster, or more if they would not fit in memory. A Dask bag or array has one
        shard per partition.

    Attributes
    ----------
    memory_bank_, calibration_scores_, offset_, ... : as for :class:`~skpatchcore.PatchCoreDetector`
        All attributes of a fitted :class:`~skpatchcore.PatchCoreDetector`, with the same values. ``training_paths_``
        holds the absolute paths on the workers.
    selection_report_ : SelectionReport
        Numbers of rounds, selected rows, rows and bytes that were sent, and the covering radius of the memory bank.
    shard_sizes_ : array of shape (n_shards,), int64
        Number of images in each shard, of the images from which the memory bank is selected.
    client_ : distributed.Client
        The client that is used.

    See Also
    --------
    skpatchcore.PatchCoreDetector : The same detector on one machine. `to_local` returns it.

    Notes
    -----
    If a worker stops during the fit, its shards are computed again on other workers, and the memory bank is the same.
    The fit raises an error instead if this is not possible, see `fit`. A fit never ends with a part of the images.

    Examples
    --------
    >>> import numpy as np
    >>> from distributed import Client
    >>> from skpatchcore.dask import DaskPatchCoreDetector
    >>> features = np.random.default_rng(0).random((20, 4, 4, 8))
    >>> with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
    ...     detector = DaskPatchCoreDetector("precomputed", random_state=0).fit(features)
    >>> detector.memory_bank_.shape
    (32, 8)
    >>> detector.to_local().predict(features[:2] + 9)
    array([-1, -1])
    """

    _parameter_constraints: dict[str, Any] = {
        **PatchCoreDetector._parameter_constraints,
        "client": [Client, None],
        "mode": [StrOptions({"exact", "merge"})],
        "oversampling": [Interval(Real, 1, None, closed="left")],
        "n_shards": [Interval(Integral, 1, None, closed="left"), None],
    }
    _stage_names = PatchCoreDetector._stage_names

    def __init__(
        self,
        extractor: Any = None,
        *,
        transformer: Any = None,
        sampler: Any = None,
        index: Any = None,
        n_neighbors: int = 9,
        image_score: str | float = "reweighted",
        contamination: float | str = "auto",
        pixel_contamination: float | None = None,
        calibration: Any = "auto",
        smoothing: float = 4.0,
        roi: Any = None,
        augment: str | None = None,
        suspect_share: float | None = None,
        growth: str = "radius",
        reserve: bool = True,
        max_memory: int | str | None = "auto",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
        client: Any = None,
        mode: str = "exact",
        oversampling: float = 2.0,
        n_shards: int | None = None,
    ):
        self.extractor = extractor
        self.transformer = transformer
        self.sampler = sampler
        self.index = index
        self.n_neighbors = n_neighbors
        self.image_score = image_score
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination
        self.calibration = calibration
        self.smoothing = smoothing
        self.roi = roi
        self.augment = augment
        self.suspect_share = suspect_share
        self.growth = growth
        self.reserve = reserve
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
        try:
            return client_of(self.client)
        except ValueError as error:  # an AttributeError, so that hasattr and HTML diagrams work
            raise AttributeError(str(error)) from None

    def set_params(self, **params: Any) -> DaskPatchCoreDetector:
        """Set parameters of the detector and of its stages, as for :class:`~skpatchcore.PatchCoreDetector`.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        DaskPatchCoreDetector
            The detector itself.
        """
        super().set_params(**with_stages_for(self, params))
        return self

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, *, groups: Any = None, roi: Any = None) -> DaskPatchCoreDetector:
        """Fit the detector on images of good parts, and set the thresholds.

        Parameters
        ----------
        X : sequence of images, dask Bag, or dask Array of shape (n_images, height, width, n_channels)
            Images of good parts. Paths in a list are read by the workers: a relative path is relative to the folder in
            which a worker runs. Other images in a list or an array are sent to the workers. The partitions of a Bag, of
            paths or of images, and the blocks of an Array along its first axis are the shards: their images stay on the
            workers. A Bag is computed twice, the first time to count the images. With ``extractor="precomputed"``, `X`
            contains patch features in one of these forms, also as a 2-D array.
        y, groups, roi : array or sequence of shape (n_images,), dask collection, or None
            As for :meth:`skpatchcore.PatchCoreDetector.fit`. They are sent to this process if they are Dask
            collections.

        Returns
        -------
        DaskPatchCoreDetector
            The fitted detector itself.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image. The error names the image's index in `X`, its path and the
            address of the worker.
        ValueError
            If there is no client; if the sampler cannot select on several machines; if `augment` or `suspect_share` is
            set; if the projected patch features of a list do not fit in the memory of the workers; and in the same
            cases as for a fit on one machine.
        RuntimeError
            If the cluster has no worker at the start, or no running worker for 60 seconds (or the time
            ``distributed.scheduler.no-workers-timeout`` of Dask's configuration); if the versions of packages or the
            weights of the network differ between the workers and this process; or if images that were read again after
            a worker stopped have changed.
        distributed.KilledWorker
            If more than ``distributed.scheduler.allowed-failures`` (3 by default) workers stopped while they ran the
            same task. A frequent cause is a lack of memory.
        WeightsError
            If the network's weights cannot be found.

        Warns
        -----
        UserWarning
            If the workers differ in the number of torch's threads or in the instruction set of their processors, and
            in the same cases as for a fit on one machine.
        """
        client = client_of(self.client)
        local = ShardedDetector(**self._local_params())
        local.settings = ClusterSettings(client, self.mode, self.oversampling, self.n_shards)
        X, paths = as_partitioned(X, client)
        with DaskGroup(client) as group:
            y, groups, roi = (
                group.gather([client.compute(some)])[0] if is_dask_collection(some) else some
                for some in (y, groups, roi)
            )
        local.fit(X, y, groups=groups, roi=roi)
        if paths is not None:
            local.training_paths_ = paths
        for name in self._fitted_names():
            delattr(self, name)
        for name, value in vars(local).items():
            if _is_fitted_name(name):
                setattr(self, name, value)
        return self

    def to_local(self) -> PatchCoreDetector:
        """Return a fitted :class:`~skpatchcore.PatchCoreDetector` with the same parameters and the same memory bank.

        Returns
        -------
        PatchCoreDetector
            The detector does not need Dask. It shares the arrays of the fitted attributes.
        """
        check_is_fitted(self, "memory_bank_")
        local = PatchCoreDetector(**self._local_params())
        for name in self._fitted_names():
            if name not in _OF_CLUSTER:
                setattr(local, name, getattr(self, name))
        return local

    def score_samples(self, X: Any, *, on_error: str = "raise", roi: Any = None) -> da.Array:
        """Return image scores of shape (n_images,), **bigger = more normal**, as a lazy dask array.

        Parameters
        ----------
        X : as for `fit`
            The images. Nothing is read before ``compute()``.
        on_error : {"raise", "flag"}, default="raise"
            As for the method of :class:`~skpatchcore.PatchCoreDetector`.
        roi : sequence of shape (n_images,), dask Bag or None, default=None
            Region of interest of each image. A Bag if `X` is a Bag, with the same partitions.

        Returns
        -------
        dask Array of shape (n_images,), float64
            One chunk per partition of `X`. A list is divided into partitions of at most 32 images. For a Bag, the sizes
            of the chunks are NaN (unknown).

        Raises
        ------
        TypeError, ValueError
            If an argument has another form. ``compute()`` raises the other errors of the local method. The index in an
            ImageError is the index in `X`.
        """
        return lazy.score_samples(self.to_local(), X, on_error=on_error, roi=roi, client=self.client)

    def decision_function(self, X: Any, *, on_error: str = "raise", roi: Any = None) -> da.Array:
        """Return scores relative to the threshold, **bigger = more normal**, negative = anomalous, as a lazy array.

        Parameters
        ----------
        X, on_error, roi : as for `score_samples`
            The images.

        Returns
        -------
        dask Array of shape (n_images,), float64
            ``score_samples(X) - offset_``.
        """
        return lazy.decision_function(self.to_local(), X, on_error=on_error, roi=roi, client=self.client)

    def predict(self, X: Any, *, on_error: str = "raise", roi: Any = None) -> da.Array:
        """Return +1 for normal and -1 for anomalous images as a lazy dask array.

        Parameters
        ----------
        X, on_error, roi : as for `score_samples`
            The images.

        Returns
        -------
        dask Array of shape (n_images,), int64
            +1 if `decision_function` is at least 0, otherwise -1.
        """
        return lazy.predict(self._with_threshold(), X, on_error=on_error, roi=roi, client=self.client)

    def p_values(self, X: Any, *, adjust: str | None = None, roi: Any = None) -> da.Array:
        """Return conformal p-values, **small = anomalous**, as a lazy dask array.

        Parameters
        ----------
        X : as for `score_samples`
            The images.
        adjust : {"bh", "by"} or None, default=None
            As for :meth:`skpatchcore.PatchCoreDetector.p_values`. All images of `X` count as one batch.
        roi : as for `score_samples`
            Region of interest of each image.

        Returns
        -------
        dask Array of shape (n_images,), float64
            One chunk per partition of `X`; a single chunk if `adjust` is not None.
        """
        return lazy.p_values(self._with_threshold(), X, adjust=adjust, roi=roi, client=self.client)

    def segment(self, X: Any, *, roi: Any = None) -> db.Bag:
        """Return anomaly maps, **bigger = more anomalous**, as a lazy Bag of arrays of shape (height, width), float32.

        Parameters
        ----------
        X, roi : as for `score_samples`
            The images.

        Returns
        -------
        dask Bag of arrays of shape (height, width), float32
            One map per image, at the image's own height and width. NaN for pixels that are not inspected.
        """
        return lazy.segment(self.to_local(), X, roi=roi, client=self.client)

    def score_and_segment(self, X: Any, *, on_error: str = "raise", roi: Any = None) -> db.Bag:
        """Return pairs of an image score, bigger = more normal, and an anomaly map, bigger = more anomalous.

        The network runs once for both.

        Parameters
        ----------
        X, on_error, roi : as for `score_samples`
            The images.

        Returns
        -------
        dask Bag of (float, array of shape (height, width))
            One pair per image. The map is None for an image that cannot be scored, with ``on_error="flag"``.
        """
        return lazy.score_and_segment(self.to_local(), X, on_error=on_error, roi=roi, client=self.client)

    def predict_mask(
        self, X: Any, *, pixel_contamination: float | None = None, min_area: int | str = 1, roi: Any = None
    ) -> db.Bag:
        """Return masks of the anomalous pixels, **True = anomalous**, as a lazy Bag of arrays of bool.

        Parameters
        ----------
        X : as for `score_samples`
            The images.
        pixel_contamination : float in (0, 0.5] or None, default=None
            Accepted fraction of the pixels of good images that are True. None uses ``pixel_offset_``.
        min_area : int or "auto", default=1
            Minimum area of a region in pixels, as for :meth:`skpatchcore.PatchCoreDetector.predict_mask`.
        roi : as for `score_samples`
            Region of interest of each image.

        Returns
        -------
        dask Bag of arrays of shape (height, width), bool
            One mask per image.
        """
        return lazy.predict_mask(
            self._with_threshold(),
            X,
            pixel_contamination=pixel_contamination,
            min_area=min_area,
            roi=roi,
            client=self.client,
        )

    def _with_threshold(self) -> PatchCoreDetector:
        """Return the local detector. Raise a ValueError if it has no threshold."""
        local = self.to_local()
        local._require_threshold()
        return local

    def _local_params(self) -> dict[str, Any]:
        """Return the parameters of a PatchCoreDetector."""
        return {name: getattr(self, name) for name in PatchCoreDetector._get_param_names()}

    def _fitted_names(self) -> list[str]:
        """Return the names of the fitted attributes."""
        return [name for name in vars(self) if _is_fitted_name(name)]

    def __sklearn_clone__(self) -> DaskPatchCoreDetector:
        # The client cannot be copied. The clone uses the same client.
        params = {name: getattr(self, name) for name in self._get_param_names() if name != "client"}
        return type(self)(**{name: clone(value, safe=False) for name, value in params.items()}, client=self.client)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "client": None}

    def __sklearn_tags__(self) -> Any:
        return get_tags(PatchCoreDetector(**self._local_params()))


def _is_fitted_name(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_")
