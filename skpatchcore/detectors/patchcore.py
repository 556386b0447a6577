"""PatchCoreDetector: the stages composed into one outlier detector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.bytes import parse_bytes
from skpatchcore._utils.progress import report_tasks, stage
from skpatchcore._utils.sklearn import (
    CallbackSupportMixin,
    HasMethods,
    Interval,
    StrOptions,
    fit_context,
    visual_block,
    with_callbacks,
)
from skpatchcore.bank.budget import MemoryEstimate
from skpatchcore.bank.collect import Bank, collect_bank, estimate_memory
from skpatchcore.bank.memory_bank import with_shared_bank, without_copies_of_bank
from skpatchcore.bank.scoring import nearest_of_stream, score_grids
from skpatchcore.calibration.plan import Judge, kind_of, plan_calibration
from skpatchcore.detectors._image_detector import restored_on_failure
from skpatchcore.detectors._patch_detector import PatchOutlierMixin
from skpatchcore.detectors._stages import INDEXES, STAGES, default_stage, make_stage, stands_for_default
from skpatchcore.maps import score_stream
from skpatchcore.patches.stream import PatchStream, images_at_once


class PatchCoreDetector(CallbackSupportMixin, PatchOutlierMixin, BaseEstimator):
    """Find images, and places in them, that are unlike all images of good parts: PatchCore.

    ``score_samples`` and ``decision_function``: bigger = more normal. ``predict``: +1 normal, -1 anomalous.
    ``segment``: maps, **bigger = more anomalous**.

    Fitting sees good images only. Their patch features, thinned out to a coreset that covers them, are the memory
    bank; the patch of a new image that lies farthest from the bank decides the image's score.

    Parameters
    ----------
    extractor : estimator, "precomputed" or None, default=None
        Turns images into grids of patch features; None is ``TorchFeatureExtractor()``. Any stateless transformer
        whose ``transform`` gives (n_images, grid_height, grid_width, n_channels) or a list of grids will do. With
        ``"precomputed"``, `X` is such an array or list, or a 2-D array with one patch an image.
    sampler : estimator or None, default=None
        Selects the coreset: ``fit`` sets ``component_indices_``; None is ``GreedyCoresetSampler()``.
    index : "exact", "pynndescent", estimator or None, default=None
        Searches the bank by ``kneighbors``, as ``sklearn.neighbors.NearestNeighbors`` does too; None is ``"exact"``.
    n_neighbors : int, default=9
        *b* of Eq. 7: rows of the bank around the nearest one that say how typical that one is. 1 turns the
        re-weighting off.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted share of *good* images that `predict` calls anomalous. ``"auto"`` sets the threshold so that no
        calibration image is flagged.
    calibration : "leave-one-out", float, int, splitter or None, default="leave-one-out"
        Which good images the threshold is taken from: never scores of images that are in the bank they are compared
        with.

        - ``"leave-one-out"``: each training image against the bank without the rows that came from it (or from its
          group). Costs one search. The bank was selected with the image present, so the promise is approximate.
        - a float in (0, 1): that share of the images (of the groups) is kept out of the bank and scored. The promise is
          exact without groups; the bank learns from fewer images.
        - an int, or a scikit-learn splitter: each fold is scored against a bank of the others; the final bank has all.
          Costs a selection and a search a fold. A fold's bank knows less than the final one, so fewer are flagged
          than asked for; the more folds, the nearer.
        - None: no threshold; `predict` and `decision_function` raise.
    smoothing : float, default=4.0
        Standard deviation of the Gaussian on anomaly maps, in pixels of the network's input, as in the paper; scaled
        with the map to the image's own size.
    max_memory : int, str or None, default="auto"
        Memory that `fit` may use above what the interpreter has at its start: bytes, or a text such as ``"4GB"``.
        ``"auto"`` is a share of what is free, None no limit. While all patch features fit, they are held. If only what
        selection looks at fits, images are extracted again where something was picked: the same memory bank, in more
        time. Beyond that, selection works shard by shard, and covers a little less well; what comes of it then depends
        on `max_memory`. `estimate_memory` tells beforehand.
    random_state : int, RandomState instance or None, default=None
        Seeds a sampler and an index that have no seed of their own.
    verbose : int, default=0
        1 shows progress bars of extraction, selection and scoring.

    Attributes
    ----------
    extractor_, sampler_, index_ : estimators
        The stages as fitted; ``extractor_`` is None with precomputed features.
    memory_bank_ : array of shape (n_bank, n_channels)
        The coreset, in order of selection.
    bank_image_indices_ : array of shape (n_bank,), int64
        Which image of `X` each row of the bank came from.
    bank_positions_ : array of shape (n_bank, 2), int64
        Where in that image's grid: row and column.
    bank_boxes_ : array of shape (n_bank, 4), float64
        Where in that image: top, left, height and width of the patch's cell in the image's own pixels; NaN with
        precomputed features.
    calibration_scores_ : array of shape (n_calibration,), float64
        Scores of the good images that calibrate, bigger = more normal; none with ``calibration=None``. NaN where an
        image can't be scored because the whole bank came from its group.
    calibration_peaks_ : array of shape (n_calibration,), float64
        Maxima of their anomaly maps, bigger = more anomalous.
    calibration_image_indices_ : array of shape (n_calibration,), int64
        Which images of `X` these are.
    offset_ : float
        ``decision_function = score_samples - offset_``; NaN where nothing could be calibrated.
    pixel_offset_ : float
        A share of at most `contamination` of good images has anomaly maps that exceed it anywhere.
    n_features_in_ : int
        Columns of a 2-D precomputed `X`.
    feature_names_in_ : array of str
        Their names, where `X` had them.

    References
    ----------
    Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> rng = np.random.default_rng(0)
    >>> good = rng.normal(0.5, 0.02, (12, 64, 64, 3)).clip(0, 1)
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0).fit(good)
    >>> bad = good[:1].copy()
    >>> bad[0, 20:40, 20:40] = 0  # a dark spot
    >>> detector.predict(bad)
    array([-1])
    >>> detector.segment(bad).shape
    (1, 64, 64)
    """

    _parameter_constraints: dict[str, Any] = {
        **PatchOutlierMixin._parameter_constraints,
        "sampler": [HasMethods(["fit"]), None],
        "index": [HasMethods(["fit", "kneighbors"]), StrOptions(set(INDEXES)), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "max_memory": [Interval(Integral, 1, None, closed="left"), str, None],
    }

    def __init__(
        self,
        extractor: Any = None,
        *,
        sampler: Any = None,
        index: Any = None,
        n_neighbors: int = 9,
        contamination: float | str = "auto",
        calibration: Any = "leave-one-out",
        smoothing: float = 4.0,
        max_memory: int | str | None = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.sampler = sampler
        self.index = index
        self.n_neighbors = n_neighbors
        self.contamination = contamination
        self.calibration = calibration
        self.smoothing = smoothing
        self.max_memory = max_memory
        self.random_state = random_state
        self.verbose = verbose

    def set_params(self, **params: Any) -> PatchCoreDetector:
        """Set parameters, also those of stages that stand at their default, such as ``sampler__ratio``.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        PatchCoreDetector
            Itself.
        """
        for name in STAGES:
            # Nested parameters need an estimator to be set on: None and "exact" become what they stand for.
            given = params.get(name, getattr(self, name))
            if stands_for_default(given) and any(key.startswith(f"{name}__") for key in params):
                params = {**params, name: default_stage(name, given)}
        super().set_params(**params)
        return self

    @fit_context(prefer_skip_nested_validation=False)
    @with_callbacks
    def fit(self, X: Any, y: Any = None, *, groups: Any = None) -> PatchCoreDetector:
        """Learn what good parts look like, and where the threshold lies.

        Parameters
        ----------
        X : sequence of images, or array of shape (n_images, height, width, n_channels)
            Images of good parts: paths, arrays or PIL images, in a list, a tuple, an array or a pandas Series. Patch
            features with ``extractor="precomputed"``.
        y : array of shape (n_images,) or None, default=None
            +1 good, -1 anomalous: images with -1 are left out. Other labels are ignored, with a warning.
        groups : array of shape (n_images,) or None, default=None
            Images that share a group show the same part: calibration leaves out the whole group. Can be routed:
            ``detector.set_fit_request(groups=True)``.

        Returns
        -------
        PatchCoreDetector
            Itself.

        Raises
        ------
        ImageError
            If an image can't be read or isn't one; the error names its index and path.
        ValueError
            If a parameter is out of its range, lengths differ, no image is left, all share one group, features hold
            NaN, or `max_memory` is too little: the error says what would do.
        WeightsError
            If the network's weights can't be had.

        Warns
        -----
        UserWarning
            If `y` holds other labels than +1 and -1, or if there are too few images or groups to calibrate.
        """
        with report_tasks(self, X, y), restored_on_failure(self):
            return self._fit(X, y, groups)

    def nearest_patches(self, X: Any, *, n_patches: int = 1) -> pd.DataFrame:
        """Return why images score as they do: their most anomalous patches, and the nominal patch nearest to each.

        Parameters
        ----------
        X : as for `fit`
            The images.
        n_patches : int, default=1
            How many patches of each image, the farthest from the bank first; neighbours in the grid often come
            together.

        Returns
        -------
        DataFrame
            One row a patch, in the order of the images: ``image`` (index in `X`), ``rank`` (0 is the patch that decides
            the image's score), ``top``, ``left``, ``height``, ``width`` (the patch's cell in the image's own pixels),
            ``distance`` (bigger = more anomalous: Eq. 6 for rank 0), ``bank_row`` (its nearest row of
            ``memory_bank_``), ``nominal_image`` (index in the `X` of `fit`) and ``nominal_top``, ``nominal_left``,
            ``nominal_height``, ``nominal_width`` (the cell there). Cells of precomputed features are NaN.

        Raises
        ------
        ImageError
            As `score_samples`.
        """
        check_is_fitted(self, "memory_bank_")
        if n_patches < 1:
            raise ValueError(f"n_patches={n_patches}: expected at least 1.")
        found = nearest_of_stream(self._stream(X, with_views=True), self.index_, n_patches)
        nearest = found["nearest"]
        sides = ("top", "left", "height", "width")
        return pd.DataFrame(
            {
                "image": found["image"],
                "rank": found["rank"],
                **dict(zip(sides, found["box"].T, strict=True)),
                "distance": found["distance"],
                "bank_row": nearest,
                "nominal_image": self.bank_image_indices_[nearest],
                **{f"nominal_{side}": values for side, values in zip(sides, self.bank_boxes_[nearest].T, strict=True)},
            }
        )

    def estimate_memory(self, n_images: int, image: Any = None) -> MemoryEstimate:
        """Estimate, before the work, what `fit` would need of memory.

        Parameters
        ----------
        n_images : int
            How many images there will be.
        image : image, grid of patch features, or None, default=None
            An example. None takes a square grey image, which will do for an extractor with an `image_size`.

        Returns
        -------
        MemoryEstimate
            Its attributes, and as text what a fit takes at once and in two passes; ``way(bytes)`` tells which it would
            be.

        Raises
        ------
        ValueError
            If there is no example and one is needed.

        Examples
        --------
        >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
        >>> detector = PatchCoreDetector(TorchFeatureExtractor("resnet18", weights=None))
        >>> estimate = detector.estimate_memory(4000)
        >>> (estimate.n_patches, estimate.n_channels, estimate.way(4_000_000_000))
        (3136000, 384, 'two passes')
        """
        extractor, sampler, _ = self._make_stages(check_random_state(self.random_state))
        if image is None:
            if getattr(extractor, "image_size", None) is None:
                raise ValueError("how much memory is needed depends on the images: pass an example as image=.")
            image = np.full((64, 64, 3), 127, np.uint8)
        X = [image] if extractor is not None else np.asarray(image)[None]
        first = next(iter(PatchStream(extractor, X)))
        batch_size = min(n_images, images_at_once(extractor, X))
        n_copies = kind_of(self.calibration).extra_copies + (0 if extractor is None else 1)
        return estimate_memory(n_images * len(first[0].rows), first, batch_size, sampler, n_copies)

    def _fit(self, X: Any, y: Any, groups: Any) -> PatchCoreDetector:
        max_memory = self.max_memory if self.max_memory in ("auto", None) else parse_bytes(self.max_memory)
        rng = check_random_state(self.random_state)
        extractor, sampler, index = self._make_stages(rng)
        X, kept, groups = self._nominal_images(X, y, groups, extractor)
        plan = plan_calibration(self.calibration, groups, len(kept), rng, max_memory)
        if extractor is not None:
            extractor.fit(X)
        stream = PatchStream(extractor, X, kept, verbose=self.verbose)
        source = stream if plan.learnt is None else stream.subset(plan.learnt)
        bank = collect_bank(source, sampler, max_memory, plan.extra_copies)
        with stage("index"):
            index.fit(bank.rows)
        _share_rows(bank, sampler, index)
        with stage("calibration"):
            judge = Judge(self.n_neighbors, self.smoothing, self.verbose)
            nominal_scores = plan.score(stream, bank, sampler, index, judge)

        self.extractor_, self.sampler_, self.index_ = extractor, sampler, index
        self.memory_bank_ = bank.rows
        self.bank_image_indices_ = source.numbers[bank.images]
        self.bank_positions_, self.bank_boxes_ = bank.positions, bank.boxes
        self._set_thresholds(
            -nominal_scores.scores, nominal_scores.peaks, kept[nominal_scores.images], self.contamination
        )
        if groups is not None:
            self._warn_of_few_groups(len(np.unique(groups[nominal_scores.images])))
        return self

    def _score(self, X: Any, of_map: Callable[[np.ndarray], Any] | None) -> tuple[np.ndarray, list[Any]]:
        check_is_fitted(self, "memory_bank_")
        stream = self._stream(X, with_views=of_map is not None)
        score = partial(score_grids, self.index_, self.memory_bank_, n_neighbors=self.n_neighbors)
        scores, kept = score_stream(stream, score, self.smoothing, of_map)
        return -scores, kept

    def _make_stages(self, rng: np.random.RandomState) -> Iterator[Any]:
        rng_or_none = None if self.random_state is None else rng
        return (make_stage(name, getattr(self, name), rng_or_none, self.verbose) for name in STAGES)

    def __getstate__(self) -> dict[str, Any]:
        return without_copies_of_bank(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(with_shared_bank(state))

    def _sk_visual_block_(self) -> Any:
        # as fitted, or as they will be; "precomputed" is a box that says so
        stages = [getattr(self, f"{name}_", None) for name in STAGES]
        given = [getattr(self, name) if s is None else s for name, s in zip(STAGES, stages, strict=True)]
        stages = [default_stage(n, g) if stands_for_default(g) else g for n, g in zip(STAGES, given, strict=True)]
        return visual_block("serial", stages, list(STAGES))


def _share_rows(bank: Bank, sampler: Any, index: Any) -> None:
    """Let the bank and the sampler hold the rows that the index keeps, if it keeps them otherwise than they came."""
    stored = getattr(index, "stored_rows", bank.rows)
    if stored.dtype != bank.rows.dtype:
        if getattr(sampler, "components_", None) is bank.rows:
            sampler.components_ = stored
        bank.rows = stored
