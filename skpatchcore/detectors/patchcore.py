"""PatchCoreDetector: the PatchCore method of Roth et al. (CVPR 2022) as a scikit-learn outlier detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.sklearn import HasMethods, Interval, RealNotInt, StrOptions
from skpatchcore._utils.warning import warn_user
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.bank.collect import collect_banks
from skpatchcore.bank.folds import FEWEST_FOLDS, affordable_folds, describe_long_selection
from skpatchcore.bank.memory_bank import MemoryBank, with_shared_bank, without_copies_of_bank
from skpatchcore.bank.transformer import TransformedModel, fit_transformer, transformed, transformed_needs
from skpatchcore.detectors._explaining import ExplainingDetector
from skpatchcore.detectors._growing import GrowingDetector
from skpatchcore.detectors._image_scores import image_score_constraints
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.detectors._stages import INDEXES
from skpatchcore.detectors._training_report import TrainingReport
from skpatchcore.images.turns import TURNS
from skpatchcore.patches.model import PatchModel
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource
from skpatchcore.protocols import selects_folds


class PatchCoreDetector(TrainingReport, GrowingDetector, ExplainingDetector):
    """Detect anomalous images, and the anomalous pixels in them, with PatchCore.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. ``segment`` returns anomaly maps, **bigger = more anomalous**.

    The detector is fitted on images of good parts only. `fit` computes the patch features of these images, selects a
    coreset of the patch features, and stores the coreset as the memory bank. The distance from a patch of a new image
    to the nearest row of the bank is the patch score. By default, the patch with the largest distance determines the
    image score.

    Parameters
    ----------
    extractor : estimator, "precomputed" or None, default=None
        The extractor turns images into grids of patch features. None uses ``TorchFeatureExtractor()``. Any stateless
        transformer can be used if its ``transform`` returns an array of shape (n_images, grid_height, grid_width,
        n_channels) or a list of grids of shape (grid_height, grid_width, n_channels). With ``"precomputed"``, `X` is
        such an array or list, or a 2-D array with one patch per image.
    transformer : estimator or None, default=None
        The transformer changes the patch features between the extractor and the sampler, e.g.
        :class:`~skpatchcore.PatchWhitening`, :class:`~skpatchcore.LayerScaling`, or ``PCA``, ``StandardScaler`` and
        other transformers of scikit-learn. It is fitted on the patch features of the good images on which the detector
        is fitted, one row per patch. The memory bank, the sampler and the index contain transformed patch features.
        Each fold of the calibration fits its own transformer. None leaves the patch features unchanged.
    sampler : estimator or None, default=None
        The sampler selects the coreset. Its ``fit`` must set ``component_indices_``, the indices of the selected rows.
        None uses ``GreedyCoresetSampler()``.
    index : "exact", "pynndescent", estimator or None, default=None
        The index searches the bank for nearest rows with ``kneighbors``. ``sklearn.neighbors.NearestNeighbors`` can be
        used too. None uses ``"exact"``.
    n_neighbors : int, default=9
        *b* of Equation 7 of the PatchCore paper: number of bank rows in the neighbourhood of the nearest bank row. The
        distances to these rows re-weight the image score. 1 turns the re-weighting off. Only
        ``image_score="reweighted"`` uses this number.
    image_score : {"reweighted", "max", "map-max"} or float in (0, 1], default="reweighted"
        How the image score is computed from the patch scores. `score_samples` returns the result with a negative sign.
        The calibration uses the same image score. If the parameter is changed after `fit`, pass good images that were
        not used for the fit to `recalibrate`.

        - ``"reweighted"``: the largest patch score (Equation 6 of the paper), multiplied by a weight (Equation 7).
        - ``"max"``: the largest patch score, as in the program of the paper's authors.
        - ``"map-max"``: the maximum of the anomaly map over the pixels that are inspected. The map is smoothed, so an
          anomaly of several neighbouring patches counts more than a single patch. With precomputed features, this is
          the largest patch score.
        - a float: mean of this fraction of the patch scores, the largest ones. At least one patch counts. 1.0 is the
          mean of all patch scores, for defects that change the whole image.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted false-positive rate: the fraction of *good* images for which `predict` may return -1 (anomalous).
        ``"auto"`` accepts 1 %, or ``1 / (n_calibration + 1)`` if this is larger: this is the smallest rate that can be
        promised with as many calibration images.
    pixel_contamination : float in (0, 0.5] or None, default=None
        Accepted fraction of the *pixels* of good images above the pixel threshold. None derives the pixel threshold
        from `contamination` instead: about this fraction of good *images* may have a pixel above it. A fraction of
        pixels, e.g. 0.001, gives larger masks, which cover more of each defect. See `predict_mask`.
    calibration : "auto", "leave-one-out", float, int, splitter or None, default="auto"
        Method that selects the calibration images. The thresholds are computed from the scores of these good images.
        A calibration image is never compared with its own patch features.

        - ``"auto"``: 5 to 40 folds (see below). Their number is chosen such that `fit` takes at most about twice as
          long as with leave-one-out. It depends on the number of patches and on the stages, not on the machine. The
          scores are corrected for the images that the folds leave out: 3 coarse folds show how much the scores change
          with the number of training images. ``"leave-one-out"`` is used instead if the sampler selects all rows,
          cannot select for folds, or selects shard by shard. With a transformer, there are 5 folds, and the scores are
          not corrected.
        - ``"leave-one-out"``: each training image is scored against the bank without the rows from this image (or from
          its group). This method costs one additional search. The bank was selected with the image present, and no
          other rows replace the rows of the image. Therefore fewer good images are flagged than `contamination`
          accepts, and fewer defects are found. A transformer has seen the image, so more good images are flagged: a
          warning is issued.
        - a float in (0, 1): this fraction of the images (or of the groups) is kept out of the bank and scored. The
          bound on the false-positive rate is exact without groups, but the bank is built from fewer images.
        - an int (number of folds), or a scikit-learn splitter: the training images are divided into folds, and the
          images of each fold are scored against a bank that is selected from all other folds. The final bank is
          selected from all images. This method costs a small selection per fold. The bank of a fold has fewer images
          than the final bank. Therefore fewer good images are flagged than `contamination` accepts. The difference
          becomes smaller with more folds.
        - None: no threshold is set. `predict` raises a ValueError, and `decision_function` returns the values of
          `score_samples`. Use None in a search whose scorer needs no threshold, e.g. ``GridSearchCV`` with
          ``scoring="roc_auc"`` and ``cv=OneClassSplit(5)``: otherwise, each of its fits is calibrated.
    smoothing : float, default=4.0
        Standard deviation of the Gaussian filter on anomaly maps, in pixels of the network's input. The default is the
        value in the paper. If an image is larger than the network's input, the standard deviation in pixels of the
        image is larger by the same factor.
    roi : mask, path, box, polygon, list, callable or None, default=None
        Region of interest: the part of the images that is inspected. A patch is neither learnt nor scored if more than
        half of its cell lies outside. Pixels outside have no effect: the network sees the mean colour of the pixels
        inside instead. None inspects whole images. One of:

        - a boolean array of shape (height, width), or the path of a mask image, in which pixels of the region are not
          0. The mask is scaled to each image.
        - a box ``(top, left, height, width)``, a polygon (at least three points ``(row, column)``), or a list of boxes
          or polygons. The numbers are pixels. If all of them lie in [0, 1] and at least one is a float, they are
          fractions of the image's height and width.
        - a function ``roi(image)`` that returns the mask of an image of shape (height, width, 1 or 3) with values in
          [0, 1]. The function may be called in another thread.

        If the region differs between images, e.g. for parts that move, pass one region per image to the argument `roi`
        of `fit`, `predict` and the other methods.
    augment : {"rotations", "flips", "rotations+flips"} or None, default=None
        Turned views of each training image from which the detector learns, too. Use them if the training images are few
        and the parts lie in any orientation. The views have exactly the pixels of the image, in another order. The
        calibration scores the images themselves only, against a bank without the image and its views. New images are
        not turned. Views make a `fit` slower and the bank larger.

        - ``"rotations"``: by 90, 180 and 270 degrees. Also for parts that must not be mirrored.
        - ``"flips"``: left-right and up-down.
        - ``"rotations+flips"``: the 7 rotations and reflections of the square that change the image.
        - None: no views.
    suspect_share : float in (0, 0.5) or None, default=None
        Fraction of the training images' patches that is not learnt: the patches that are most unlike the patches of
        other images. Use it if some training images may be defective, because a defect in the memory bank makes similar
        defects look normal. 0.01 is a good first value, also for 10 % defective images, because a defect covers a small
        part of an image. Larger values leave out more rare but normal patches, so that good images look more anomalous.
        On clean training sets, fewer defects may be found: with 0.01, the AUROC on Magnetic Tile Defects was a point
        lower.
        The scores of new images and the calibration use all patches. The thresholds are computed without the scores of
        images that look anomalous (`suspect_image_indices_`). If the scores of good images have heavy tails, this makes
        the thresholds on clean training sets a little too low: in a simulation of 200 scores and a promised rate of
        1 %, 1.37 % of the good images were flagged for Student's t-distribution with 3 degrees of freedom, 1.13 % for
        the Laplace distribution and 1.01 % for the normal distribution. Images of the same group are not compared (see
        `groups` of `fit`). `fit` takes up to twice as long. If it holds the patch features in memory, it needs memory
        for one more copy of them. None learns all patches. See also `training_report`.
    growth : {"radius", "ratio"}, default="radius"
        How many patches of new images `partial_fit` adds to the memory bank. ``"radius"`` adds patches until each new
        patch is as close to a row of the bank as the patches of `fit` are (the covering radius of the sampler). Images
        that look like those before add few rows. ``"ratio"`` also keeps the fraction of the patches that the sampler
        has selected. RandomSampler needs ``"ratio"``.
    reserve : bool, default=True
        Whether the detector holds further patches of each training image, from which `forget` fills the holes of the
        bank. Model files are about 2.2 times as large with a `ratio` of 1 %, and 1.2 times with 10 %. There is no
        reserve if the sampler is not a GreedyCoresetSampler, or selects shard by shard, or if the reserve does not fit
        within `max_memory`. In this last case, a warning is issued.
    max_memory : int, str or None, default="auto"
        Maximum memory (RAM) that `fit` may use in addition to the memory that the interpreter had at its start. An int
        is a number of bytes, and a string is e.g. ``"4GB"``. ``"auto"`` allows 60 % of the free memory, or more if
        `fit` needs more. None means no limit. `fit` works in one of these ways. `estimate_memory` returns the memory
        that each way needs.

        - at once: all patch features are held in memory, if they fit.
        - transformed: only with a transformer. The transformer is fitted in a pass of its own with its method
          ``partial_fit``. The network runs again, and the transformed patch features are held in memory.
        - two passes: only the data that the selection needs is held in memory. The network runs again on the images
          from which patches were selected. The memory bank is the same, but the fit takes longer.
        - shards: the coreset is selected shard by shard. This coreset covers the patch features slightly less well,
          and the selected rows depend on `max_memory`.
    device : str, default="auto"
        Device for the stages (extractor, sampler, index) with ``device="auto"``. ``"auto"`` uses CUDA if a CUDA device
        is available, otherwise the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed for the draws of held-out images and folds, and for the stages (extractor, sampler, index) with
        ``random_state=None``. Pass an int for reproducible results.
    verbose : int, default=0
        If 1, progress bars are shown for extraction, selection, calibration and scoring.

    Attributes
    ----------
    extractor_, transformer_, sampler_, index_ : estimators
        The fitted stages. ``extractor_`` is None with precomputed features, and ``transformer_`` is None without a
        transformer.
    memory_bank_ : array of shape (n_bank, n_columns)
        The patch features of the coreset, in order of selection, after the transformer. Without a transformer, there
        are as many columns as channels.
    bank_image_indices_ : array of shape (n_bank,), int64
        Index in `X` of the image from which each row of the bank was computed. Images of `partial_fit` count on from
        `n_images_seen_`.
    bank_positions_ : array of shape (n_bank, 2), int64
        Row and column of each bank row's patch in the patch grid of its image. For a patch of a turned view, the grid
        is turned back.
    bank_boxes_ : array of shape (n_bank, 4), float64
        Top, left, height and width of each bank row's patch in its image, in the image's own pixels, also for a patch
        of a turned view. NaN with precomputed features.
    calibration_scores_ : array of shape (n_calibration,), float64
        Scores of the calibration images, bigger = more normal. The array is empty with ``calibration=None``. With
        ``"leave-one-out"``, the score of an image is NaN if all rows of the bank come from this image or its group.
    calibration_peaks_ : array of shape (n_calibration,), float64
        Maximum of the anomaly map of each calibration image, bigger = more anomalous. NaN where the score is NaN.
    calibration_sketches_ : array of shape (n_calibration, 2, n_levels), float32
        Sketch of each calibration image's anomaly map, from which `recalibrate` and `predict_mask` compute pixel
        thresholds: values that fixed fractions of the pixels exceed, and the area of the largest region above each of
        these values.
    calibration_image_indices_ : array of shape (n_calibration,), int64
        Index in `X` of each calibration image, as in `bank_image_indices_`. -1 for images of `recalibrate` if
        `partial_fit` or `forget` was called afterwards.
    suspect_image_indices_ : array of shape (n_suspects,), int64
        Index in `X` of each calibration image that looked anomalous in `fit`, the most anomalous first. `fit` warns of
        them. With `suspect_share`, the calibration attributes above do not contain these images. Images that are
        forgotten are left out.
    suspect_scores_ : array of shape (n_suspects,), float64
        Scores of these images, bigger = more normal. `partial_fit` and `forget` scale them like `calibration_scores_`.
    appearance_range_ : array of shape (2, 5) or None
        Lowest and highest values over the training images, measured on the network's input in [0, 1]: median of red,
        green and blue, contrast (interquartile range of the grey values) and brightest value. `predict` and the other
        scoring methods warn if at least four images are given and all of them lie far outside this range. None if the
        extractor does not report views.
    roi_ : Region or None
        The region of interest as read from `roi`, e.g. the mask from the mask image.
    inspection_ : Inspection or None
        Fraction of the training images' pixels that is inspected, and the size of a patch in pixels of the image.
        ``print(detector.inspection_)`` describes both. None if the extractor does not report views.
    training_paths_ : list of str or None
        Absolute paths of the images in the `X` of `fit` and `partial_fit`, in the same order, including images that `y`
        leaves out. ``nominal_image`` of :meth:`nearest_patches` is an index in this list. None if no `X` consisted of
        paths. An item is None if the image was not a path, or is forgotten. Model files hold these paths, and those in
        `updates_`. If the names of folders and images must not be passed on, set `training_paths_` to None and
        `updates_` to [] before saving.
    training_image_indices_ : array of int64
        Indices of the training images, without those that `y` left out and those that are forgotten.
    training_groups_ : list or None
        Group of each image, in the order of the indices. None if there were no groups. An item is None if the image had
        no group, or is forgotten.
    n_images_seen_ : int
        Number of images in the `X` of `fit` and of all calls of `partial_fit`, including those that `y` leaves out.
    updates_ : list of dict
        What was done with the detector: an entry for `fit`, and for each call of `partial_fit`, `forget` and
        `recalibrate`. Keys: ``kind``, ``time`` (UTC), ``n_images``, ``paths``, ``digests`` (SHA-256 of the images), the
        pairs before and after ``offset``, ``pixel_offset``, ``promised_rate`` and ``n_bank``, and ``note``.
    calibration_sizes_ : array of shape (n_images,), int64
        For each image, the number of training images of the model that computed its calibration score.
    calibration_slope_, pixel_calibration_slope_ : float
        How fast the absolute values of the scores and the map values of good images fall with the number n of training
        images: as ``n ** -slope``. 0 if this is unknown. See `partial_fit`.
    contamination_, pixel_contamination_ : float, "auto" or None
        The values with which the thresholds were set last.
    reserve_rows_ : array of shape (n_reserve, n_columns) or None
        Patches of the training images from which `forget` fills holes of the bank. None without a reserve.
    reserve_image_indices_, reserve_positions_, reserve_boxes_ : arrays or None
        Image, position and box of each row of the reserve, as for the bank.
    reserve_indices_ : array of shape (n_reserve,), int64, or None
        Number of each row of the reserve among all patches of the training images.
    reserve_supports_ : array of shape (n_supports, 4), int32, or None
        Number of a row of the reserve, followed by the images without which this row is needed in the bank.
    embeddings_ : array of shape (n_images, n_columns), float32
        Mean patch feature of each good training image, projected at random to at most 32 columns.
        :class:`~skpatchcore.DriftMonitor` compares new images with these embeddings. `recalibrate` replaces them by
        those of its images. None in a model of an older version.
    embedding_image_indices_ : array of shape (n_images,), int64
        Index of the image of each of these rows; -1 for images of `recalibrate`.
    appearances_ : array of shape (n_images, 5) or None
        Values of `appearance_range_` for each of these images. None if the extractor does not report views.
    offset_ : float
        Image threshold: ``decision_function = score_samples - offset_``. NaN if there is no calibration score.
    pixel_offset_ : float
        Pixel threshold: pixels with an anomaly map value above ``pixel_offset_`` are anomalous. NaN if there is no
        calibration score.
    min_area_ : float
        Largest area of a region that ``min_area="auto"`` removes in `predict_mask` and `regions`, as a fraction of the
        inspected pixels of an image. At most the fraction `promised_rate_` of good images is expected to have a larger
        region above `pixel_offset_`.
    promised_rate_ : float
        False-positive rate that the image threshold promises: `contamination` (0.01 for ``"auto"``), or
        ``1 / (n_calibration + 1)`` if this is larger. NaN if there is no calibration score.
    calibration_plan_ : str
        How the calibration images were scored, e.g. ``"40 folds"``.
    n_features_in_ : int
        Number of columns of `X`. Set only if `X` is a 2-D array or table of precomputed features.
    feature_names_in_ : array of str
        Column names of `X`. Set only if `X` is a 2-D table of precomputed features with column names.

    References
    ----------
    Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> rng = np.random.default_rng(0)
    >>> good = rng.normal(0.5, 0.02, (12, 64, 64, 3)).clip(0, 1)
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None)
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
        "transformer": [HasMethods(["fit", "transform"]), None],
        "sampler": [HasMethods(["fit"]), None],
        "index": [HasMethods(["fit", "kneighbors"]), StrOptions(set(INDEXES)), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "image_score": image_score_constraints("reweighted", "max", "map-max"),
        "augment": [StrOptions({name for name in TURNS if name is not None}), None],
        "suspect_share": [Interval(RealNotInt, 0, 0.5, closed="neither"), None],
        "growth": [StrOptions({"radius", "ratio"})],
        "reserve": ["boolean"],
    }
    _stage_names = ("extractor", "transformer", "sampler", "index")

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

    def _fit(self, X: Any, y: Any, groups: Any) -> Any:
        super()._fit(X, y, groups)
        self._log_fit()
        return self

    def _learn(
        self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int, reserve_of: int | None = None
    ) -> MemoryBank | TransformedModel:
        transform = None
        if (transformer := stages["transformer"]) is not None:
            first = patches if isinstance(patches, Patches) else patches.peek()
            needs = self._memory_needs(budget.n_patches, first, stages)
            del first
            transform = fit_transformer(transformer, patches)
            patches, budget = transformed(patches, transform, budget, needs)
        stage = stages["sampler"], stages["index"]
        bank = collect_banks(patches, *stage, budget, self._n_in_weight(), reserve_of=reserve_of)[0]
        return bank if transform is None else TransformedModel(bank, transform)

    def _learn_folds(
        self,
        patches: PatchSource,
        stages: dict[str, Any],
        budget: Budget,
        seed: int,
        left_out: Sequence[np.ndarray],
        held: Callable[[PatchSource], tuple[PatchSource, Budget]],
    ) -> tuple[PatchModel, Iterable[Sequence[PatchModel]]]:
        first = patches if isinstance(patches, Patches) else patches.peek()
        if problem := describe_long_selection(budget.n_patches, first.n_channels, stages["sampler"]):
            warn_user(problem)
        if stages["transformer"] is not None or not self._shares_folds(budget, patches, stages):
            return super()._learn_folds(patches, stages, budget, seed, left_out, held)
        stage, reserve_of = (stages["sampler"], stages["index"]), self._reserve_of(patches)
        return collect_banks(patches, *stage, budget, self._n_in_weight(), left_out, reserve_of)

    def _learn_all(
        self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int
    ) -> MemoryBank | TransformedModel:
        return self._learn(patches, stages, budget, seed, self._reserve_of(patches))

    def _reserve_of(self, patches: PatchSource) -> int | None:
        """Return the number of original images among `patches` if there is a reserve; otherwise None."""
        return len(patches) // (1 + len(self._turns())) if self.reserve else None

    def _draws(self) -> bool:
        return self.suspect_share is not None

    def _n_folds(self, patches: PatchSource, budget: Budget, stages: dict[str, Any]) -> int:
        if stages["transformer"] is not None:  # the folds share no work
            return FEWEST_FOLDS
        if not self._shares_folds(budget, patches, stages):
            return 0
        n_channels = (patches if isinstance(patches, Patches) else patches.peek()).n_channels
        # All cells count, so that one region for all images and the same region for each image give the same folds.
        n_cells = budget.n_patches if budget.n_cells is None else budget.n_cells
        return affordable_folds(n_cells, n_channels, stages["sampler"], stages["index"])

    def _copies_for_folds(self, stages: dict[str, Any]) -> int:
        return 0 if stages["transformer"] is None and selects_folds(stages["sampler"]) else 1

    def _shares_folds(self, budget: Budget, patches: PatchSource, stages: dict[str, Any]) -> bool:
        """Return whether the banks of folds can be selected from one pass over the patches: they fit in memory."""
        sampler = stages["sampler"]
        if not selects_folds(sampler):
            return False
        if isinstance(patches, Patches) or budget.n_bytes is None:
            return True
        first = patches.peek().rows
        needed = sampler.estimate_memory(budget.n_patches * first.itemsize // 4, first.shape[1])
        return bool(needed <= budget.n_bytes)

    def _memory_needs(self, n_patches: int, first: Patches, stages: dict[str, Any]) -> MemoryNeeds:
        return transformed_needs(n_patches, first, stages["transformer"], stages["sampler"], self.reserve)

    def _keep(self, model: MemoryBank | TransformedModel, numbers: np.ndarray) -> None:
        bank: MemoryBank = model.model if isinstance(model, TransformedModel) else model
        self.transformer_ = model.transform.transformer if isinstance(model, TransformedModel) else None
        self._keep_bank(bank.numbered(numbers))

    def _keep_bank(self, bank: MemoryBank) -> None:
        self.sampler_, self.index_ = bank.sampler, bank.index
        self.memory_bank_ = bank.rows
        self.bank_image_indices_ = bank.images
        self.bank_positions_, self.bank_boxes_ = bank.positions, bank.boxes
        self._keep_reserve(bank.reserve)

    def _model(self) -> MemoryBank:
        check_is_fitted(self, "memory_bank_")
        return MemoryBank(
            self.memory_bank_,
            self.bank_image_indices_,
            self.bank_positions_,
            self.bank_boxes_,
            self.sampler_,
            self.index_,
            self._n_in_weight(),
            reserve=self._reserve(),
        )

    def _n_in_weight(self) -> int:
        """Return *b* of Equation 7, or 1 if the image scores are not re-weighted."""
        return self.n_neighbors if self.image_score == "reweighted" else 1

    def __getstate__(self) -> dict[str, Any]:
        return without_copies_of_bank(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "offset_" in state:  # a fitted detector of an older version has no transformer
            none = {"suspect_image_indices_": np.zeros(0, np.int64), "suspect_scores_": np.zeros(0)}
            state = {"transformer_": None, "training_groups_": None, **none, **state}
        super().__setstate__(with_shared_bank(state))
