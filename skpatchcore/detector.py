"""PatchCoreDetector: the stages composed into one outlier detector."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._labels import group_codes, is_nominal
from skpatchcore._memory import parse_bytes
from skpatchcore._progress import stage
from skpatchcore._sklearn import HasMethods, Interval, StrOptions, fit_context, safe_indexing
from skpatchcore.bank import Bank, collect_bank, estimate_memory
from skpatchcore.calibration import conformal_threshold
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.features.images import as_image_sequence
from skpatchcore.features.stream import PatchStream, as_grids, images_at_once, n_images_of
from skpatchcore.inference import leave_one_out, score_stream
from skpatchcore.memory import MemoryEstimate
from skpatchcore.persistence import with_shared_bank, without_copies_of_bank
from skpatchcore.stages import INDEXES, STAGES, default_stage, make_stage, stands_for_default


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
        "index": [HasMethods(["fit", "kneighbors"]), StrOptions(set(INDEXES)), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "contamination": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"})],
        "calibration": [StrOptions({"leave-one-out"}), None],
        "smoothing": [Interval(Real, 0, None, closed="left")],
        "max_memory": [Interval(Integral, 1, None, closed="left"), str, None],
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
            If a parameter is out of its range, lengths differ, no image is left, features hold NaN, or `max_memory` is
            too little: the error says what would do.
        WeightsError
            If the network's weights can't be had.

        Warns
        -----
        UserWarning
            If `y` holds other labels than +1 and -1, or if there are too few images to calibrate.
        """
        max_memory = self.max_memory if self.max_memory in ("auto", None) else parse_bytes(self.max_memory)
        rng = check_random_state(self.random_state)
        extractor, sampler, index = self._make_stages(rng)
        X = self._validated(X, extractor, reset=True)
        nominal = is_nominal(y, n_images_of(X))
        kept, groups = np.flatnonzero(nominal), group_codes(groups, len(nominal))[nominal]
        X = X if nominal.all() else safe_indexing(X, kept)
        if extractor is not None:
            extractor.fit(X)
        stream = PatchStream(extractor, X, kept, verbose=self.verbose)
        bank = collect_bank(stream, sampler, max_memory)
        with stage("index"):
            index.fit(bank.rows)
        _share_rows(bank, sampler, index)
        with stage("calibration"):
            scores, peaks = self._leave_one_out(index, bank, groups)

        self.extractor_, self.sampler_, self.index_ = extractor, sampler, index
        self.memory_bank_ = bank.rows
        self.bank_image_indices_ = kept[bank.images]
        self.bank_positions_ = bank.positions
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
        return estimate_memory(n_images * len(first[0].rows), first, batch_size, sampler, is_held=extractor is None)

    def _require_threshold(self) -> None:
        if math.isnan(self.offset_):
            raise ValueError(
                "this detector has no threshold: it was fitted with calibration=None or on too few images to leave "
                "one out. score_samples and segment work; fit on more images for predict and decision_function."
            )

    def _score(self, X: Any, with_maps: bool) -> tuple[np.ndarray, np.ndarray | list[np.ndarray]]:
        check_is_fitted(self, "memory_bank_")
        X = self._validated(X, self.extractor_, reset=False)
        stream = PatchStream(self.extractor_, X, with_views=with_maps, description="scoring", verbose=self.verbose)
        smoothing = self.smoothing if with_maps else None
        scores, maps = score_stream(stream, self.index_, self.memory_bank_, self.n_neighbors, smoothing)
        same_size = len({m.shape for m in maps}) == 1
        return -scores, np.stack(maps) if same_size else maps

    def _leave_one_out(self, index: Any, bank: Bank, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.calibration is None:
            return np.full(len(groups), np.nan), np.full(len(groups), np.nan)
        scores, peaks = leave_one_out(bank, index, groups, self.n_neighbors, self.smoothing, self.verbose)
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

    def _make_stages(self, rng: np.random.RandomState) -> Iterator[Any]:
        rng_or_none = None if self.random_state is None else rng
        return (make_stage(name, getattr(self, name), rng_or_none, self.verbose) for name in STAGES)

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


def _share_rows(bank: Bank, sampler: Any, index: Any) -> None:
    """Let the bank and the sampler hold the rows that the index keeps, if it keeps them otherwise than they came."""
    stored = getattr(index, "stored_rows", bank.rows)
    if stored.dtype != bank.rows.dtype:
        if getattr(sampler, "components_", None) is bank.rows:
            sampler.components_ = stored
        bank.rows = stored
