"""PatchDetector: the base class that implements fit, calibration and scoring for detectors on patch features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.bytes import parse_bytes
from skpatchcore._utils.diagrams import DocumentationLinkMixin, diagram_of
from skpatchcore._utils.progress import report_tasks
from skpatchcore._utils.sklearn import (
    CallbackSupportMixin,
    HasMethods,
    Interval,
    OlderStatesMixin,
    RealNotInt,
    StrOptions,
    fit_context,
    with_callbacks,
)
from skpatchcore._utils.warning import warn_user
from skpatchcore.bank.budget import Budget, MemoryEstimate, MemoryNeeds, estimate_memory
from skpatchcore.calibration.folds import CrossFitted
from skpatchcore.calibration.plan import kind_of, plan_calibration
from skpatchcore.calibration.plans import CalibrationScores, NoCalibration, SketchOf
from skpatchcore.calibration.sketches import sketch_of_scores
from skpatchcore.detectors._image_detector import ImageDetector
from skpatchcore.detectors._image_scores import ImageScoring
from skpatchcore.detectors._inputs import PatchInputs, turned_training_images
from skpatchcore.detectors._learning import Learned, learn_and_calibrate
from skpatchcore.detectors._records import ImageRecords
from skpatchcore.detectors._stages import default_stage, make_stage, stands_for_default, with_stages_for
from skpatchcore.detectors._thresholds import older_thresholds, peaks_of, restored_on_failure
from skpatchcore.images.containers import ImagesWithRegions, listed, with_regions
from skpatchcore.images.errors import ImageError, InspectionWarning
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.roi import Region, as_region
from skpatchcore.images.turns import TURNS, Turn
from skpatchcore.images.views import View
from skpatchcore.maps import map_of
from skpatchcore.patches.inspection import Inspection
from skpatchcore.patches.model import PatchModel, score_batches
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import Check, PatchSource, PatchStream
from skpatchcore.patches.transform import RowTransform
from skpatchcore.protocols import image_size_of, with_layer_channels


class PatchDetector(
    DocumentationLinkMixin, OlderStatesMixin, CallbackSupportMixin, PatchInputs, ImageDetector, BaseEstimator
):
    """Base class of the detectors that fit a model to patch features and score patches.

    A subclass must have the parameters in ``_parameter_constraints`` and implement `_learn`. A subclass may have
    additional parameters. It may override `_memory_needs` (the memory that `_learn` needs), `_stage_names` (the names
    of its stages), and `_keep` and `_model` (the conversion between the model and the fitted attributes).
    """

    _parameter_constraints: dict[str, Any] = {
        "extractor": [HasMethods(["fit", "transform"]), StrOptions({"precomputed"}), None],
        "contamination": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"})],
        "pixel_contamination": [Interval(Real, 0, 0.5, closed="right"), None],
        "calibration": [
            StrOptions({"auto", "leave-one-out"}),
            Interval(RealNotInt, 0, 1, closed="neither"),
            Interval(Integral, 2, None, closed="left"),
            HasMethods(["split", "get_n_splits"]),
            None,
        ],
        "smoothing": [Interval(Real, 0, None, closed="left")],
        "roi": "no_validation",  # as_region checks it
        "max_memory": [Interval(Integral, 1, None, closed="left"), str, None],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }
    _stage_names: tuple[str, ...] = ("extractor",)

    extractor: Any
    extractor_: Any
    transformer: Any = None  # PatchCoreDetector has the parameter
    transformer_: Any = None
    calibration: Any
    smoothing: float
    roi: Any
    max_memory: int | str | None
    device: str
    random_state: Any
    verbose: int
    model_: Any
    roi_: Region | None
    inspection_: Inspection | None
    appearance_range_: np.ndarray | None
    embeddings_: np.ndarray | None
    appearances_: np.ndarray | None

    @abstractmethod
    def _learn(self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int) -> PatchModel:
        """Fit a model to patch features.

        `fit` calls this method once for the final model, and once per fold of the calibration.

        Parameters
        ----------
        patches : Patches or PatchStream
            Patch features of the training images: held in memory, or extracted again in each pass.
        stages : dict of str to estimator
            The stages by name. They are not changed.
        budget : Budget
            Memory that this method may use if the patch features are not held in memory.
        seed : int
            Seed for the random draws of the detector itself. All calls during one `fit` get the same seed.
        """

    def _learn_folds(
        self,
        patches: PatchSource,
        stages: dict[str, Any],
        budget: Budget,
        seed: int,
        left_out: Sequence[np.ndarray],
        held: Callable[[PatchSource], tuple[PatchSource, Budget]],
    ) -> tuple[PatchModel, Iterable[Sequence[PatchModel]]]:
        """Fit the model, and one model per item of `left_out` without the images of this item.

        A detector may override this method if the models can share work.

        Parameters
        ----------
        patches, stages, budget, seed
            As for `_learn`.
        left_out : sequence of arrays of int
            Images that each additional model leaves out.
        held : callable
            ``held(patches)`` returns the patches, held in memory if possible, and the budget of `_learn`.

        Returns
        -------
        model : PatchModel
            Model of all images.
        fold_models : iterable of lists of PatchModel
            The additional models, in lists of models that are in memory at the same time. The models of a list are
            fitted when the iterator reaches it.
        """
        everything = np.arange(len(patches))
        parts = (held(patches.subset(np.setdiff1d(everything, images))) for images in left_out)
        fold_models = ([self._learn(part, stages, part_budget, seed)] for part, part_budget in parts)
        return self._learn_all(patches, stages, budget, seed), fold_models

    def _learn_all(self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int) -> PatchModel:
        """Fit the model that `fit` keeps, which may hold more than those of folds."""
        return self._learn(patches, stages, budget, seed)

    def _draws(self) -> bool:
        """Return whether the fit uses the `seed` of `_learn`."""
        return True

    def _n_folds(self, patches: PatchSource, budget: Budget, stages: dict[str, Any]) -> int:
        """Return the number of folds for ``calibration="auto"``. 0 means that the model leaves out images exactly."""
        return 0

    def _copies_for_folds(self, stages: dict[str, Any]) -> int:
        """Return the number of copies of the patch features that `_learn_folds` makes."""
        return 1

    def _memory_needs(self, n_patches: int, first: Patches, stages: dict[str, Any]) -> MemoryNeeds:
        """Return the memory that `_learn` needs in addition to the patch features.

        The default states that `_learn` needs all patch features in memory.
        """
        return MemoryNeeds(learning=None, model=0)

    def _keep(self, model: Any, numbers: np.ndarray) -> None:
        """Set the fitted attributes from a model; `numbers` are the indices in `X` of its training images."""
        self.model_ = model

    def _model(self) -> PatchModel:
        """Rebuild the model from the fitted attributes."""
        check_is_fitted(self, "model_")
        model: PatchModel = self.model_
        return model

    def _image_scoring(self) -> ImageScoring:
        """Return how patch scores become image scores."""
        return ImageScoring(getattr(self, "image_score", None), self.smoothing)

    def _scoring_model(self) -> PatchModel:
        """Return the model that computes the image scores and patch scores of new images."""
        return self._image_scoring().of(self._model())

    def _patch_check(self, is_fitted: bool) -> Check | None:
        """Return a function that raises an error for patches that cannot be used, or None."""
        return None

    def set_params(self, **params: Any) -> Any:
        """Set parameters of the detector and of its stages.

        The stages are the estimators inside the detector, such as ``extractor``. ``extractor__patch_size=1`` sets the
        parameter ``patch_size`` of the extractor. If the stage is None or the name of an index, the default estimator
        or the named index replaces this value first.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        detector
            The detector itself.
        """
        params = with_stages_for(self, params, self._default_stage)
        self._warn_of_thresholds(params)
        super().set_params(**params)
        return self

    @fit_context(prefer_skip_nested_validation=False)
    @with_callbacks
    def fit(self, X: Any, y: Any = None, *, groups: Any = None, roi: Any = None) -> Any:
        """Fit the detector on images of good parts, and set the thresholds.

        Parameters
        ----------
        X : sequence of images, or array of shape (n_images, height, width, n_channels)
            Images of good parts: paths, arrays or PIL images, in a list, a tuple, an array or a pandas Series. With
            ``extractor="precomputed"``, `X` contains patch features.
        y : array of shape (n_images,) or None, default=None
            Labels: +1 for good images, -1 for anomalous images, and 0, NaN or None for images without a label. The
            detector is fitted only on the images with the label +1. ``y=None`` means that all images are good.
        groups : array of shape (n_images,) or None, default=None
            Group of each image, a number or a text. Give all images of the same workpiece the same group. The
            calibration scores an image with a model that was fitted without all images of its group. This is not
            checked. If images of one workpiece are in different groups, too many new good images are labelled -1. None
            means that each image is a group of its own. A search or a pipeline with scikit-learn's metadata routing
            passes `groups` only after ``detector.set_fit_request(groups=True)``.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, in any form of the parameter `roi` (e.g. masks or their paths); None in
            the sequence means the whole image. A patch must also lie in the region of the parameter `roi`, if set.

        Returns
        -------
        detector
            The fitted detector itself.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image. The error names the image's index and path.
        ValueError
            If a parameter is out of its range; if `X`, `y` and `groups` differ in length; if `y` contains values other
            than +1, -1, 0, NaN and None; if no image has the label +1; if all images with the label +1 are in one group
            and `calibration` is not None; if `X` is a dataset with several classes and `y` is None; if patch features
            contain NaN or infinity; or if `max_memory` is too small for the fit. The last error names the memory that
            is needed.
        WeightsError
            If the network's weights cannot be found.

        Warns
        -----
        UserWarning
            If `y` contains images without a label, if `y` is None and `X` is a dataset with targets (which are then
            ignored), if there are too few calibration images or groups for the value of `contamination`, if the
            calibration cannot score some images, or if all images are nearly black.
        InspectionWarning
            If a part of the images is not inspected, or if a patch is more than 32 pixels wide or high.
        SuspectImageWarning
            If a few calibration images are far more anomalous than the others (only PatchCoreDetector).
        """
        X = with_regions(listed(X), roi)
        with report_tasks(self, X, y), restored_on_failure(self):
            return self._fit(X, y, groups)

    def _fit(self, X: Any, y: Any, groups: Any) -> Any:
        self._memory_limit()  # a malformed limit is an error before any work
        rng = check_random_state(self.random_state)
        stages = self._make_stages(rng)
        extractor = stages["extractor"]
        X, kept, groups = self._nominal_images(X, y, groups, extractor)
        plan = plan_calibration(self.calibration, groups, len(kept), rng, self.contamination, self.verbose)
        seed = int(rng.randint(2**31 - 1)) if self._draws() else 0
        if extractor is not None:
            extractor.fit(X.images if isinstance(X, ImagesWithRegions) else X)
        if stages.get("transformer") is not None:
            with_layer_channels(stages["transformer"], extractor)
        self.roi_ = None if self.roi is None else as_region(self.roi)
        records = ImageRecords(self._patch_check(is_fitted=False), of_good_images=True)
        turns = self._turns()
        if turns:
            X = turned_training_images(X, turns, extractor)
        numbers = np.tile(kept, 1 + len(turns))
        stream = PatchStream(extractor, X, numbers, check=records, verbose=self.verbose, region=self.roi_)
        learned = self._learned(stream, records, plan, stages, seed)
        self.calibration_plan_ = learned.description

        self.extractor_ = extractor
        self.embeddings_, self.appearances_ = records.embedding.embeddings(), records.embedding.appearances()
        self.appearance_range_ = records.range_of_appearance()
        self.inspection_ = records.inspection.summary(image_size_of(extractor), stream.has_own_regions())
        if self.inspection_ is not None and (problem := self.inspection_.problem()):
            warn_user(problem, InspectionWarning)
        self._keep(learned.model, learned.numbers)
        found = learned.found
        self._keep_calibration(found)
        self._set_thresholds(
            found.scores, peaks_of(found.sketches), found.sketches, kept[found.images],
            self.contamination, self.pixel_contamination,
        )  # fmt: skip
        return self

    def _keep_calibration(self, found: CalibrationScores) -> None:
        """Set fitted attributes from the calibration scores, in addition to the thresholds."""

    def _learned(
        self, stream: PatchStream, records: ImageRecords, plan: NoCalibration, stages: dict[str, Any], seed: int
    ) -> Learned:
        """Learn the model and score the calibration images. `records` is the check of the stream, which it fills."""
        return learn_and_calibrate(self, stream, plan, stages, seed)

    def estimate_memory(self, n_images: int, image: Any = None) -> MemoryEstimate:
        """Estimate the memory (RAM) that `fit` will need.

        Parameters
        ----------
        n_images : int
            Number of training images.
        image : image, grid of patch features, or None, default=None
            Example of a training image. None uses a square grey image. Pass an example if the images are not square,
            or if the extractor's `image_size` is None.

        Returns
        -------
        MemoryEstimate
            Estimate in bytes. `fit` chooses the fastest of up to four methods that fit into `max_memory`: ``"at
            once"`` holds all patch features in memory, ``"transformed"`` runs the network twice and holds the patch
            features after the transformer (if there is one), ``"two passes"`` runs the network again where patch
            features are needed later, and ``"shards"`` selects from a part of the patch features at a time.
            ``str(estimate)`` lists the memory that each method needs. ``estimate.way(n_bytes)`` returns the name of the
            method that `fit` uses with ``max_memory=n_bytes``.

        Raises
        ------
        ValueError
            If `n_images` is less than 1, or if `image` is None and the extractor has no `image_size`, or `roi` is a
            function or given in pixels.

        Examples
        --------
        >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
        >>> detector = PatchCoreDetector(TorchFeatureExtractor("resnet18", weights=None))
        >>> estimate = detector.estimate_memory(4000)
        >>> (estimate.n_patches, estimate.n_channels, estimate.way(4_000_000_000))
        (4096000, 384, 'two passes')
        """
        if n_images < 1:
            raise ValueError(f"n_images={n_images}: expected at least 1.")
        stages = self._make_stages(check_random_state(self.random_state))
        extractor = stages["extractor"]
        if no_example := image is None:
            if image_size_of(extractor) is None:
                raise ValueError(
                    "the needed memory depends on the size of the images, and image=None: pass an example image."
                )
            image = np.full((64, 64, 3), 127, np.uint8)
        region = None if self.roi is None else as_region(self.roi)
        if no_example and region is not None and (region.function is not None or not all(region.in_shares)):
            raise ValueError("the needed memory depends on the region roi, and image=None: pass an example image.")
        example = PatchStream(extractor, [image] if extractor is not None else np.asarray(image)[None], region=region)
        first = next(iter(example))
        tile = example.tile_shape(first)
        batch_size = example.batch_size() if tile is not None else min(n_images, example.batch_size())
        n_copies = 0 if extractor is None else 1
        if kind_of(self.calibration) is CrossFitted:
            n_copies += self._copies_for_folds(stages)
        if getattr(self, "suspect_share", None) is not None:
            n_copies += 1
        needs = partial(self._memory_needs, stages=stages)
        n_patches = (1 + len(self._turns())) * n_images * first.n_rows
        return estimate_memory(n_patches, first, batch_size, n_copies, needs, tile)

    def _iter_scores(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, adapt: bool = False
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        model, known = self._scoring_model(), getattr(self, "appearance_range_", None)
        records = ImageRecords(self._patch_check(is_fitted=True), of_good_images=adapt)
        with_views = of_map is not None or self._image_scoring().needs_views()
        stream = self._stream(X, records, with_views=with_views)

        def keep(patch_scores: np.ndarray, view: View | None, mask: PixelMask | None) -> Any:
            assert of_map is not None
            return of_map(map_of(patch_scores, view, self.smoothing, mask))

        try:
            yield from score_batches(stream, model, None if of_map is None else keep)
        except ImageError:
            if not adapt:
                records.warn_of_difference(known)
            raise
        if not adapt:
            records.warn_of_difference(known)
            return
        self.appearance_range_ = records.extended_range(known)
        self.embeddings_, self.appearances_ = records.embedding.embeddings(), records.embedding.appearances()

    def _stream(self, X: Any, records: ImageRecords, with_views: bool = True) -> PatchStream:
        """Return the stream of the patches of new images, which are recorded in `records`."""
        X = self._validated(X, self.extractor_, reset=False)
        self._warn_of_missing_regions(X)
        return PatchStream(
            self.extractor_,
            X,
            with_views=with_views,
            check=records,
            description="scoring",
            verbose=self.verbose,
            region=self.roi_,
            transform=self._row_transform(),
        )

    def _warn_of_missing_regions(self, X: Any) -> None:
        """Warn if the detector was fitted with a region for each image, and `X` has none."""
        if self.inspection_ is not None and self.inspection_.has_own_regions and not isinstance(X, ImagesWithRegions):
            warn_user(
                "the detector was fitted with a region of interest for each image (roi), and the new images have none: "
                "they are inspected as a whole, and good images can be flagged. Pass roi to this method, too.",
                InspectionWarning,
            )

    def _row_transform(self) -> RowTransform | None:
        """Return the fitted step between the extractor and the model; None if there is none."""
        return None if self.transformer_ is None else RowTransform(self.transformer_)

    def _turns(self) -> tuple[Turn, ...]:
        """Return the turned views of each training image on which the detector is fitted."""
        return TURNS[getattr(self, "augment", None)]

    def _groups_of(self, images: np.ndarray) -> np.ndarray:
        """Return the group of each training image as an integer. An image without a group is a group of its own."""
        groups = getattr(self, "training_groups_", None)
        if groups is None:
            return images
        names = [f"image {i}" if groups[i] is None else f"group {groups[i]}" for i in images]
        return np.unique(names, return_inverse=True)[1]

    def _memory_limit(self) -> int | str | None:
        """Return `max_memory` in bytes, or ``"auto"`` or None."""
        return self.max_memory if self.max_memory in ("auto", None) else parse_bytes(self.max_memory)

    def _sketch_of(self) -> SketchOf:
        """Return the function that returns the sketch of the anomaly map of an image from its patch scores."""
        return partial(sketch_of_scores, smoothing=self.smoothing)

    def _make_stages(self, rng: np.random.RandomState) -> dict[str, Any]:
        """Return new, unfitted stages by name."""
        rng_or_none = None if self.random_state is None else rng
        return {
            name: make_stage(name, self._given_stage(name), rng_or_none, self.device, self.verbose)
            for name in self._stage_names
        }

    def _given_stage(self, name: str) -> Any:
        """Return the value of the parameter of a stage, or the estimator for which it stands."""
        given = getattr(self, name)
        return self._default_stage(name, given) if stands_for_default(name, given) else given

    def _default_stage(self, name: str, given: str | None) -> Any:
        return default_stage(name, given)

    def _require_scores_of_training_images(self) -> None:
        if self.calibration is None or isinstance(self.calibration, float):
            raise ValueError(
                f"calibration={self.calibration} sets no threshold or does not score all training images, so "
                "fit_predict has no scores for them: choose 'auto', 'leave-one-out' or a number of folds."
            )

    def _sk_visual_block_(self) -> Any:
        # Show the fitted stages if there are any, otherwise the estimators that fit would use.
        names = [name for name in self._stage_names if name != "transformer" or self.transformer is not None]
        fitted = (getattr(self, f"{name}_", None) for name in names)
        stages = [self._given_stage(n) if stage is None else stage for n, stage in zip(names, fitted, strict=True)]
        return diagram_of("serial", stages, list(names))

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "offset_" in state:  # a fitted detector of an older version lacks some attributes
            names = ("training_paths_", "embeddings_", "appearances_", "roi_", "inspection_")
            state = {**dict.fromkeys(names), **older_thresholds(state), **state}
        super().__setstate__(state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.extractor != "precomputed":
            tags.input_tags = get_tags(self._given_stage("extractor")).input_tags
        return tags
