"""PatchCoreDetector: the memory bank as a detector (Roth et al., CVPR 2022)."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.sklearn import HasMethods, Interval, StrOptions
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.bank.collect import bank_needs, collect_bank
from skpatchcore.bank.memory_bank import MemoryBank, with_shared_bank, without_copies_of_bank
from skpatchcore.bank.scoring import nearest_patches
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.detectors._stages import INDEXES
from skpatchcore.images.appearance import AppearanceLog
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource


class PatchCoreDetector(PatchDetector):
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
        on `max_memory`. `estimate_memory` returns how much is needed.
    device : str, default="auto"
        Device of the stages that are left at ``"auto"``, which is CUDA if there is one, otherwise the CPU.
    random_state : int, RandomState instance or None, default=None
        Seeds the stages that are left at None.
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
    appearance_range_ : array of shape (2, 5) or None
        Lowest and highest values over the training images, as the network sees them: median of red, green and blue,
        contrast (interquartile range of grey) and brightest value, in [0, 1]. `predict` and its companions warn if all
        of four or more new images lie far outside. None if the extractor does not report what it sees.
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
        **PatchDetector._parameter_constraints,
        "sampler": [HasMethods(["fit"]), None],
        "index": [HasMethods(["fit", "kneighbors"]), StrOptions(set(INDEXES)), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
    }
    _stage_names = ("extractor", "sampler", "index")
    _draws = False

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
        device: str = "auto",
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
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

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
        found = nearest_patches(self._stream(X, AppearanceLog()), self.index_, n_patches, self.memory_bank_)
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

    def _learn(self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int) -> MemoryBank:
        return collect_bank(patches, stages["sampler"], stages["index"], budget, self.n_neighbors)

    def _memory_needs(self, n_patches: int, first: Patches, stages: dict[str, Any]) -> MemoryNeeds:
        return bank_needs(n_patches, first, stages["sampler"])

    def _keep(self, model: MemoryBank, numbers: np.ndarray) -> None:
        self.sampler_, self.index_ = model.sampler, model.index
        self.memory_bank_ = model.rows
        self.bank_image_indices_ = numbers[model.images]
        self.bank_positions_, self.bank_boxes_ = model.positions, model.boxes

    def _model(self) -> MemoryBank:
        check_is_fitted(self, "memory_bank_")
        return MemoryBank(
            self.memory_bank_,
            self.bank_image_indices_,
            self.bank_positions_,
            self.bank_boxes_,
            self.sampler_,
            self.index_,
            self.n_neighbors,
        )

    def __getstate__(self) -> dict[str, Any]:
        return without_copies_of_bank(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(with_shared_bank(state))
