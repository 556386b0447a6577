"""PatchCoreDetector: the stages composed into one outlier detector."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._grids import PatchGrids
from skpatchcore._labels import group_codes, is_nominal
from skpatchcore._progress import progress_bar, stage
from skpatchcore._sklearn import HasMethods, Interval, StrOptions, fit_context, safe_indexing
from skpatchcore.calibration import conformal_threshold, leave_group_out
from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.features.images import ImageError, View, as_image_sequence
from skpatchcore.features.stream import as_grids, iter_grids, n_images_of
from skpatchcore.index.exact import ExactIndex
from skpatchcore.index.pynndescent import PyNNDescentIndex
from skpatchcore.persistence import with_shared_bank, without_copies_of_bank
from skpatchcore.scoring import anomaly_map, score_grids

_INDEXES = {"exact": ExactIndex, "pynndescent": PyNNDescentIndex}


class PatchCoreDetector(OutlierMixin, BaseEstimator):
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
        training image is flagged when it is scored without its own patches.
    calibration : "leave-one-out" or None, default="leave-one-out"
        Each training image is scored against the bank without the rows that came from it (or from its group), and the
        threshold is taken from these scores: never from scores of images that are in the bank. The bank was still
        selected with the image present, so the promise is approximate. None skips it: `predict` and
        `decision_function` then raise.
    smoothing : float, default=4.0
        Standard deviation of the Gaussian on anomaly maps, in pixels of the network's input, as in the paper; scaled
        with the map to the image's own size.
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
    calibration_scores_ : array of shape (n_nominal,), float64
        Leave-one-out scores of the nominal training images, bigger = more normal. NaN where the whole bank came from
        the image's group.
    offset_ : float
        ``decision_function = score_samples - offset_``; NaN where nothing could be calibrated.
    pixel_offset_ : float
        Values of anomaly maps above it are beyond what `contamination` accepts of good images.
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

    _parameter_constraints: dict = {
        "extractor": [HasMethods(["fit", "transform"]), StrOptions({"precomputed"}), None],
        "sampler": [HasMethods(["fit"]), None],
        "index": [HasMethods(["fit", "kneighbors"]), StrOptions(set(_INDEXES)), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "contamination": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"})],
        "calibration": [StrOptions({"leave-one-out"}), None],
        "smoothing": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        extractor: Any = None,
        *,
        sampler: Any = None,
        index: Any = None,
        n_neighbors: int = 9,
        contamination: float | str = "auto",
        calibration: str | None = "leave-one-out",
        smoothing: float = 4.0,
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
        for name in ("extractor", "sampler", "index"):
            # Nested parameters need an estimator to be set on: None and "exact" become what they stand for.
            given = params.get(name, getattr(self, name))
            nested = any(key.startswith(f"{name}__") for key in params)
            if nested and (given is None or (isinstance(given, str) and given in _INDEXES)):
                params = {**params, name: self._default(name, given)}
        return super().set_params(**params)

    @fit_context(prefer_skip_nested_validation=False)
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
            Images that share a group show the same part: calibration leaves out the whole group.

        Returns
        -------
        PatchCoreDetector
            Itself.

        Raises
        ------
        ImageError
            If an image can't be read or isn't one; the error names its index and path.
        ValueError
            If a parameter is out of its range, lengths differ, no image is left, or features hold NaN.
        WeightsError
            If the network's weights can't be had.

        Warns
        -----
        UserWarning
            If `y` holds other labels than +1 and -1, or if there are too few images to calibrate.
        """
        rng = check_random_state(self.random_state)
        extractor, sampler, index = (self._make_stage(name, rng) for name in ("extractor", "sampler", "index"))
        X = self._validated(X, extractor, reset=True)
        nominal = is_nominal(y, n_images_of(X))
        kept, groups = np.flatnonzero(nominal), group_codes(groups, len(nominal))[nominal]
        X = X if nominal.all() else safe_indexing(X, kept)
        if extractor is not None:
            extractor.fit(X)
        try:
            grids, views = self._all_grids(extractor, X)
        except ImageError as error:  # its index counts the nominal images
            raise ImageError(error.message, int(kept[error.index]), error.path) from error
        with stage("selection"):
            sampler.fit(grids.rows)
        if not hasattr(sampler, "component_indices_"):
            raise ValueError(f"sampler={sampler!r} selects no rows: after fit it has no component_indices_.")
        picked = np.asarray(sampler.component_indices_, np.int64)
        bank = grids.rows[picked]
        if getattr(sampler, "components_", None) is not None and np.array_equal(sampler.components_, bank):
            bank = sampler.components_  # the same object, so that memory and files hold it once
        with stage("index"):
            index.fit(bank)
        bank_images = grids.image_of(picked)
        with stage("calibration"):
            scores, peaks = self._leave_one_out(index, bank, grids, views, groups, groups[bank_images])

        self.extractor_, self.sampler_, self.index_ = extractor, sampler, index
        self.memory_bank_ = bank
        self.bank_image_indices_ = kept[bank_images]
        self.bank_positions_ = grids.positions_of(picked)
        self.calibration_scores_ = -scores
        self.offset_ = -conformal_threshold(scores, self.contamination)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the line above has said it
            self.pixel_offset_ = conformal_threshold(peaks, self.contamination)
        return self

    def fit_predict(self, X: Any, y: Any = None, *, groups: Any = None) -> np.ndarray:
        """Learn from images and say which of *them* stand out: +1 for normal and -1 for anomalous ones.

        Each nominal image is judged by its leave-one-out score, not against a bank that holds its own patches:
        ``fit(X).predict(X)`` would find next to nothing. With ``contamination="auto"`` the threshold is set so that
        none is flagged; give a share to look for the odd ones among the training images.

        Parameters
        ----------
        X, y, groups : as for `fit`
            Images that `y` labels -1 are judged by the bank of the others.

        Returns
        -------
        array of shape (n_images,), int
            -1 for scores below the threshold, and for images that can't be scored without their own rows.

        Raises
        ------
        ImageError, ValueError
            As `fit` and `predict`.
        """
        if self.calibration is None:
            raise ValueError("calibration=None: there is no threshold to judge the training images by.")
        self.fit(X, y, groups=groups)
        X = self._validated(X, self.extractor_, reset=False)
        self._require_threshold()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fit has said it
            nominal = is_nominal(y, n_images_of(X))
        scores = np.empty(len(nominal))
        scores[nominal] = self.calibration_scores_
        if not nominal.all():
            scores[~nominal] = self.score_samples(safe_indexing(X, np.flatnonzero(~nominal)))
        return np.where(scores >= self.offset_, 1, -1)

    def score_samples(self, X: Any) -> np.ndarray:
        """Return image scores, **bigger = more normal**: minus the anomaly score of Eq. 6-7.

        Parameters
        ----------
        X : as for `fit`
            The images.

        Returns
        -------
        array of shape (n_images,), float64
            At most 0, in units of feature distance. 0 is a patch that stands in the bank.

        Raises
        ------
        ImageError
            If an image can't be read or isn't one; the error names its index and path.
        """
        return self._score(X, with_maps=False)[0]

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores relative to the threshold, **bigger = more normal**, negative = anomalous.

        Parameters
        ----------
        X : as for `fit`
            The images.

        Returns
        -------
        array of shape (n_images,), float64
            ``score_samples(X) - offset_``.

        Raises
        ------
        ImageError
            As `score_samples`.
        ValueError
            If the detector has no threshold: ``calibration=None``, or too few training images.
        """
        check_is_fitted(self, "memory_bank_")
        self._require_threshold()
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return +1 for normal and -1 for anomalous images.

        Parameters
        ----------
        X : as for `fit`
            The images.

        Returns
        -------
        array of shape (n_images,), int
            -1 where `decision_function` is negative.

        Raises
        ------
        ImageError, ValueError
            As `decision_function`.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def segment(self, X: Any) -> np.ndarray | list[np.ndarray]:
        """Return anomaly maps, **bigger = more anomalous**, each at its image's own height and width.

        Parameters
        ----------
        X : as for `fit`
            The images.

        Returns
        -------
        array of shape (n_images, height, width), float32
            Feature distances, upsampled and smoothed; a list of arrays (height, width) where sizes differ. Pixels
            outside the extractor's crop, which the network does not see, repeat the nearest pixel inside.
            Precomputed features have no image: their maps are the patch scores themselves, of shape (grid_height,
            grid_width).

        Raises
        ------
        ImageError
            As `score_samples`.
        """
        return self._score(X, with_maps=True)[1]

    def score_and_segment(self, X: Any) -> tuple[np.ndarray, np.ndarray | list[np.ndarray]]:
        """Return what `score_samples` and `segment` return, from one run of the network.

        Parameters
        ----------
        X : as for `fit`
            The images.

        Returns
        -------
        scores : array of shape (n_images,), float64
            Bigger = more normal.
        maps : array of shape (n_images, height, width) or list of arrays (height, width), float32
            Bigger = more anomalous.

        Raises
        ------
        ImageError
            As `score_samples`.
        """
        return self._score(X, with_maps=True)

    def _require_threshold(self) -> None:
        if math.isnan(self.offset_):
            raise ValueError(
                "this detector has no threshold: it was fitted with calibration=None or on too few images to leave "
                "one out. score_samples and segment work; fit on more images for predict and decision_function."
            )

    def _score(self, X: Any, with_maps: bool) -> tuple[np.ndarray, np.ndarray | list[np.ndarray]]:
        check_is_fitted(self, "memory_bank_")
        scores, maps = [], []
        X = self._validated(X, self.extractor_, reset=False)
        with progress_bar(n_images_of(X), "scoring", "image", self.verbose) as bar:
            for grids, views in iter_grids(self.extractor_, X, with_maps):
                with stage("search"):
                    batch_scores, patch_scores = score_grids(self.index_, self.memory_bank_, grids, self.n_neighbors)
                scores.append(-batch_scores)
                if with_maps:
                    with stage("maps"):
                        maps += [self._map(s, view) for s, view in zip(patch_scores, views, strict=True)]
                bar.update(len(grids))
        same_size = len({m.shape for m in maps}) == 1
        return np.concatenate(scores), np.stack(maps) if same_size else maps

    def _leave_one_out(
        self,
        index: Any,
        bank: np.ndarray,
        grids: PatchGrids,
        views: list[View | None],
        groups: np.ndarray,
        bank_groups: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return anomaly scores and map maxima of the training images, each without its group's rows of the bank."""
        scores, peaks = np.full((2, len(grids)), np.nan)
        if self.calibration is None:
            return scores, peaks
        with progress_bar(len(grids), "calibrating", "image", self.verbose) as bar:
            for images, rows in leave_group_out(groups, bank_groups):
                if len(rows) < len(bank):
                    scores[images], maps = score_grids(index, bank, grids.take(images), self.n_neighbors, rows)
                    peaks[images] = [self._map(m, views[i]).max() for i, m in zip(images, maps, strict=True)]
                bar.update(len(images))
        n_missing = int(np.isnan(scores).sum())
        if n_missing:
            warnings.warn(
                f"{n_missing} of {len(scores)} training images could not be scored without their own rows, because "
                "the whole memory bank came from them: they don't count for the threshold. Fit on more images, "
                "or with a larger ratio.",
                UserWarning,
                stacklevel=3,
            )
        return scores, peaks

    def _map(self, patch_scores: np.ndarray, view: View | None) -> np.ndarray:
        if view is None:
            return patch_scores.astype(np.float32)
        down, across = view.scale
        return anomaly_map(patch_scores, view.image_size, view.box, (self.smoothing * down, self.smoothing * across))

    def _all_grids(self, extractor: Any, X: Any) -> tuple[PatchGrids, list[View | None]]:
        """Return the patch features of all images, with what the network saw of each."""
        n_images = n_images_of(X)
        views: list[View | None] = []

        def batches() -> Iterator[PatchGrids]:
            with progress_bar(n_images, "extracting features", "image", self.verbose) as bar:
                for grids, seen in iter_grids(extractor, X):
                    views.extend(seen)
                    yield grids
                    bar.update(len(grids))

        return PatchGrids.from_batches(batches(), n_images), views

    def _validated(self, X: Any, extractor: Any, reset: bool) -> Any:
        """Return `X` as a sequence of images or of grids; a table of one patch an image as scikit-learn checks it."""
        if extractor is not None:
            return as_image_sequence(X) if hasattr(extractor, "iter_transform") else X
        grids = as_grids(X)
        if grids is None:
            return validate_data(self, X, dtype=[np.float32, np.float64], reset=reset)
        if reset and hasattr(self, "n_features_in_"):  # left by an earlier fit on a table
            del self.n_features_in_
        return grids

    def _make_stage(self, name: str, rng: np.random.RandomState) -> Any:
        """Return a fresh estimator for a stage, with the detector's seed and verbosity where it has none of its own."""
        given = getattr(self, name)
        if isinstance(given, str) and given == "precomputed":
            return None
        estimator = self._default(name, given) if given is None or isinstance(given, str) else clone(given)
        params = estimator.get_params(deep=False)
        if "random_state" in params and params["random_state"] is None and self.random_state is not None:
            estimator.set_params(random_state=int(rng.randint(2**31 - 1)))
        # The detector itself shows how far extraction and scoring are.
        if name == "sampler" and params.get("verbose") == 0:
            estimator.set_params(verbose=self.verbose)
        return estimator

    @staticmethod
    def _default(stage: str, given: str | None) -> Any:
        if stage == "extractor":
            return TorchFeatureExtractor()
        return GreedyCoresetSampler() if stage == "sampler" else _INDEXES[given or "exact"]()

    def __getstate__(self) -> dict:
        return without_copies_of_bank(super().__getstate__())

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(with_shared_bank(state))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.extractor != "precomputed":
            extractor = TorchFeatureExtractor() if self.extractor is None else self.extractor
            tags.input_tags = get_tags(extractor).input_tags
        return tags
