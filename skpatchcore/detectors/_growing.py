"""GrowingDetector: the base class that adds images to a fitted detector, and removes images from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.labels import group_codes
from skpatchcore._utils.sklearn import fit_context, safe_indexing
from skpatchcore._utils.warning import warn_user
from skpatchcore.bank.budget import within_memory
from skpatchcore.bank.memory_bank import MemoryBank
from skpatchcore.bank.reserve import Reserve
from skpatchcore.bank.update import grown, growth_needs, without_images
from skpatchcore.calibration.new_images import (
    HeldOutScores,
    describe_flagged,
    is_improbable,
    recent_scores,
    relative_sizes,
)
from skpatchcore.calibration.plans import CalibrationScores
from skpatchcore.detectors._forgotten import places_of
from skpatchcore.detectors._growth_states import older_growth
from skpatchcore.detectors._inputs import paths_of, turned_training_images
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.detectors._records import ImageRecords
from skpatchcore.detectors._results import turned
from skpatchcore.detectors._thresholds import peaks_of, restored_on_failure
from skpatchcore.detectors._updates import digests_of, log_update, values_of
from skpatchcore.images.appearance import appearance_range
from skpatchcore.images.containers import ImagesWithRegions, item_of, listed, n_images_of, with_regions
from skpatchcore.images.errors import SuspectImageWarning
from skpatchcore.patches.stream import PatchStream
from skpatchcore.protocols import require_extension

# Two images are the same if their embeddings differ by less than this fraction of their length. Rounding errors of the
# network between batches of other sizes are much smaller.
_SAME = 1e-5
# Number of names in a warning.
_N_NAMED = 5


class GrowingDetector(PatchDetector):
    """Base class of detectors with a memory bank that can grow (`partial_fit`) and forget.

    A subclass must have the parameter `growth`, and implement `_model` and `_keep_bank`.
    """

    # Searches and pipelines do not route calibrate as metadata.
    __metadata_request__partial_fit = {"calibrate": UNUSED}

    growth: str
    bank_image_indices_: np.ndarray
    n_images_seen_: int
    training_image_indices_: np.ndarray
    training_groups_: list[Any] | None
    embedding_image_indices_: np.ndarray
    calibration_sizes_: np.ndarray
    calibration_slope_: float
    pixel_calibration_slope_: float
    contamination_: float | str
    pixel_contamination_: float | None
    suspect_image_indices_: np.ndarray
    suspect_scores_: np.ndarray
    updates_: list[dict[str, Any]]
    reserve_rows_: np.ndarray | None
    reserve_image_indices_: np.ndarray | None
    reserve_positions_: np.ndarray | None
    reserve_boxes_: np.ndarray | None
    reserve_indices_: np.ndarray | None
    reserve_supports_: np.ndarray | None

    @abstractmethod
    def _model(self) -> MemoryBank:
        """Rebuild the memory bank from the fitted attributes."""

    @abstractmethod
    def _keep_bank(self, bank: MemoryBank) -> None:
        """Set the fitted attributes from a bank whose images are numbered as in `bank_image_indices_`."""

    @fit_context(prefer_skip_nested_validation=False)
    def partial_fit(self, X: Any, y: Any = None, *, groups: Any = None, roi: Any = None, calibrate: bool = True) -> Any:
        """Add images of good parts to a fitted detector, and adapt the thresholds. The first call is `fit`.

        No earlier image is read again. The new images are scored *before* they are added: these are true scores of
        images that the detector has not seen, and become calibration scores. Then the selection of the memory bank goes
        on among the new patches, as the parameter `growth` says. The rows that are in the bank stay.

        Parameters
        ----------
        X, y : as for `fit`
            The new images and their labels.
        groups : array of shape (n_images,) or None, default=None
            Group of each image, as for `fit`. A new image of a group that the detector knows is scored without the rows
            of this group.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.
        calibrate : bool, default=True
            If False, the new images do not become calibration images. Use this for images that were added because they
            were flagged: they are not a random sample of good images, and would raise the thresholds without need.

        Returns
        -------
        detector
            The detector itself. Its size, its thresholds and `n_images_seen_` have grown, and `updates_` has one entry
            more. If the method raises an error, the detector is unchanged.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image. The error names the image's index and path.
        ValueError
            If the sampler cannot go on selecting (see :class:`~skpatchcore.protocols.Sampler`), if `growth` does not
            fit the sampler, if the patch features have another number of channels than those of the first images, if
            `calibrate` is False in the first call, and in the same cases as for `fit`.
        WeightsError
            If the network's weights differ from those of the fit.

        Warns
        -----
        UserWarning
            If images are training images of the detector already: they are left out. If all of them are, the detector
            stays unchanged.
        SuspectImageWarning
            If many more new images are flagged than the threshold promises: they may be defective, or of another kind.
            They are learnt nevertheless; use `forget` to remove them.
        AppearanceWarning
            If all new images differ from the training images in brightness, colour or contrast.

        Notes
        -----
        Good images look more normal when the detector learns more images: the absolute values of their scores fall. The
        calibration scores were computed by models of fewer images. Therefore, they are multiplied by
        ``max(n / m, b / c) ** a`` when the number of training images grows from n to m, and the number of rows of the
        bank from b to c. The exponent a, `calibration_slope_`, is known if ``calibration="auto"`` has used folds: it is
        the slope of the mean logarithm of the absolute scores of the images against the logarithm of the number of
        images, between models without a third of the images and models without a small fold. Otherwise a is 0. Scores
        are not extrapolated beyond twice the images of their model. Scores by models of less than half of the images
        are left out if ``5 / contamination`` others remain. See the user guide.

        With ``growth="radius"``, each new patch is within the covering radius of `fit` from a row of the bank,
        whatever the order and the number of the calls.

        Examples
        --------
        >>> import numpy as np
        >>> from skpatchcore import PatchCoreDetector
        >>> features = np.random.default_rng(0).random((60, 4, 4, 8), np.float32)
        >>> detector = PatchCoreDetector("precomputed", random_state=0).partial_fit(features[:40])
        >>> detector = detector.partial_fit(features[40:])
        >>> detector.n_images_seen_, len(detector.calibration_scores_)
        (60, 60)
        """
        if not hasattr(self, "memory_bank_"):
            if not calibrate:
                raise ValueError(
                    "calibrate=False: the first call of partial_fit is a fit, which calibrates as the parameter "
                    "calibration says. Pass calibrate=True, and calibration=None to fit without thresholds."
                )
            return self.fit(X, y, groups=groups, roi=roi)
        with restored_on_failure(self):
            self._grow(with_regions(listed(X), roi), y, groups, calibrate)
        return self

    def _grow(self, X: Any, y: Any, groups: Any, calibrate: bool) -> None:
        """Add images to the fitted detector."""
        before, bank, extractor = values_of(self), self._model(), self.extractor_
        require_extension(bank.sampler)
        X, images, nominal = self._labelled(X, y, extractor, reset=False)
        if groups is not None:
            group_codes(groups, nominal)  # raises an error if groups do not fit
        self._warn_of_missing_regions(X)
        paths = None if extractor is None else paths_of(images)
        known = self._known_paths(paths, np.flatnonzero(nominal))
        kept = np.setdiff1d(np.flatnonzero(nominal), known)
        while True:  # again without the images whose embedding is known; ends because there are fewer each time
            if not len(kept):
                _warn_of_known(known, paths, "The detector is unchanged.")
                return
            records = ImageRecords(self._patch_check(is_fitted=True), of_good_images=True)
            new, found = self._extended(bank, safe_indexing(X, kept), kept, groups, records)
            again = self._known_embeddings(records, kept)
            if not len(again):
                break
            known, kept = np.union1d(known, again), np.setdiff1d(kept, again)
        if len(known):
            _warn_of_known(known, paths, "They are left out.")
        records.warn_of_difference(self.appearance_range_)
        first, n_before = self.n_images_seen_, len(self.training_image_indices_)
        self._count(n_images_of(X), first + kept, paths, groups)
        self._add_records(records, first + kept)
        self._keep_bank(new)
        note = None if calibrate else "not used for the calibration"
        if not np.isnan(self.offset_):
            is_flagged = turned(found.scores) < self.offset_
            note = "; ".join([*([note] if note else []), f"{is_flagged.sum()} of {len(kept)} were flagged before"])
            if calibrate and is_improbable(int(is_flagged.sum()), len(kept), self.promised_rate_):
                names = [f"image {i}" if paths is None else repr(paths[i]) for i in kept[is_flagged]]
                warn_user(describe_flagged(names, len(kept), self.promised_rate_), SuspectImageWarning)
        self._recalibrate_to(n_before, len(bank.rows), found if calibrate and len(self.calibration_scores_) else None)
        given = [item_of(images, int(i)) for i in kept]
        some_paths = None if paths is None else [paths[i] for i in kept]
        log_update(
            self, "partial_fit", before, n_images=len(kept), paths=some_paths, digests=digests_of(given),
            note=note,
        )  # fmt: skip

    def _extended(
        self, bank: MemoryBank, X: Any, kept: np.ndarray, groups: Any, records: ImageRecords
    ) -> tuple[MemoryBank, CalibrationScores]:
        """Return the bank extended by images, and the scores of the images by the bank as it was.

        `kept` are the indices of the images in the `X` of `partial_fit`, and `records` the check of the stream.
        """
        numbers, turns = self.n_images_seen_ + kept, self._turns()
        if turns:
            X = turned_training_images(X, turns, self.extractor_)
        stream = PatchStream(
            self.extractor_, X, np.tile(kept, 1 + len(turns)), check=records, verbose=self.verbose,
            region=self.roi_, transform=self._row_transform(),
        )  # fmt: skip
        needs = partial(growth_needs, bank=bank)
        patches, budget = within_memory(stream, self._memory_limit(), 0, needs)
        scores = HeldOutScores(self._scoring_model(), self._sketch_of(), numbers, self._kin(groups, kept))
        new = grown(bank, patches, budget, self.growth, np.tile(numbers, 1 + len(turns)), scores.add)
        return new, scores.found()

    def _kin(self, groups: Any, kept: np.ndarray) -> dict[int, np.ndarray]:
        """Return the earlier images in the group of each new image, by the index of the new image."""
        if groups is None or self.training_groups_ is None:
            return {}
        own, found = _plain(groups), {}
        earlier: dict[Any, list[int]] = {}
        for image in self.training_image_indices_.tolist():
            if (group := self.training_groups_[image]) is not None:
                earlier.setdefault(group, []).append(image)
        for i in kept.tolist():
            if own[i] in earlier:
                found[self.n_images_seen_ + i] = np.array(earlier[own[i]], np.int64)
        return found

    def _known_paths(self, paths: Sequence[str] | None, among: np.ndarray) -> np.ndarray:
        """Return which of the images `among` are training images by their paths."""
        if paths is None or self.training_paths_ is None:
            return np.zeros(0, np.int64)
        own = {self.training_paths_[i] for i in self.training_image_indices_.tolist()}
        return np.array([i for i in among.tolist() if paths[i] in own], np.int64)

    def _known_embeddings(self, records: ImageRecords, kept: np.ndarray) -> np.ndarray:
        """Return which of the images `kept` are training images by their embeddings; none for precomputed features."""
        new = records.embedding.embeddings()
        if self.extractor_ is None or self.embeddings_ is None or new is None:
            return np.zeros(0, np.int64)
        own = self.embeddings_[self.embedding_image_indices_ >= 0]
        if not len(own) or own.shape[1] != new.shape[1]:
            return np.zeros(0, np.int64)
        with np.errstate(all="ignore"):  # embeddings of huge features are infinite, and equal no other
            is_known = [bool((_lengths(own - row) <= _SAME * _lengths(row[None])).any()) for row in new]
        return np.asarray(kept[np.array(is_known)])

    def _count(self, n_images: int, numbers: np.ndarray, paths: Sequence[str] | None, groups: Any) -> None:
        """Count new images, and append their paths and groups. `numbers` are the indices of the added images."""
        first = self.n_images_seen_
        if paths is not None or self.training_paths_ is not None:
            old = [None] * first if self.training_paths_ is None else self.training_paths_
            self.training_paths_ = [*old, *([None] * n_images if paths is None else paths)]
        if groups is not None or self.training_groups_ is not None:
            old = [None] * first if self.training_groups_ is None else self.training_groups_
            self.training_groups_ = [*old, *([None] * n_images if groups is None else _plain(groups))]
        self.n_images_seen_ = first + n_images
        n_before = len(self.training_image_indices_)
        self.calibration_sizes_ = np.concatenate([self.calibration_sizes_, np.full(n_images, n_before)])
        self.training_image_indices_ = np.concatenate([self.training_image_indices_, numbers])

    def _add_records(self, records: ImageRecords, numbers: np.ndarray) -> None:
        """Append the embeddings and appearances of new images with the indices `numbers`."""
        new = records.embedding.embeddings()
        if self.embeddings_ is None or new is None:
            return
        self.embeddings_ = np.concatenate([self.embeddings_, new])
        self.embedding_image_indices_ = np.concatenate([self.embedding_image_indices_, numbers])
        appearances = records.embedding.appearances()
        if self.appearances_ is not None and appearances is not None:
            self.appearances_ = np.concatenate([self.appearances_, appearances])
        self.appearance_range_ = records.extended_range(self.appearance_range_)

    def _recalibrate_to(
        self, n_before: int, bank_before: int, found: CalibrationScores | None, remaining: Any = None
    ) -> None:
        """Set the thresholds after the number of training images has changed from `n_before`.

        Parameters
        ----------
        n_before : int
            Number of training images before. `training_image_indices_` are those now.
        bank_before : int
            Number of rows of the memory bank before.
        found : CalibrationScores or None
            Scores of new calibration images. None adds none.
        remaining : array of bool or None, default=None
            Which of the earlier calibration images remain. None keeps all.
        """
        n_now = len(self.training_image_indices_)
        remaining = np.ones(len(self.calibration_scores_), bool) if remaining is None else remaining
        scores, peaks = turned(self.calibration_scores_)[remaining], self.calibration_peaks_[remaining]
        sketches, images = self.calibration_sketches_[remaining], self._calibrated_images()[remaining]
        if found is not None:
            scores, peaks = np.concatenate([scores, found.scores]), np.concatenate([peaks, peaks_of(found.sketches)])
            sketches, images = np.concatenate([sketches, found.sketches]), np.concatenate([images, found.images])
            sizes = np.where(images >= 0, self.calibration_sizes_[images], n_before)
            recent = recent_scores(sizes, n_now, scores, self.contamination_)
            scores, peaks, sketches, images = scores[recent], peaks[recent], sketches[recent], images[recent]
            if not self.calibration_plan_.endswith("new images"):
                self.calibration_plan_ = f"{self.calibration_plan_}, then new images"
        sizes = np.where(images >= 0, self.calibration_sizes_[images], n_before)
        changes = (n_before, n_now), (bank_before, len(self.memory_bank_))
        growth = relative_sizes(sizes, *changes)
        scores, of_maps = scores * growth**self.calibration_slope_, growth**self.pixel_calibration_slope_
        sketches = sketches.copy()
        sketches[:, 0] *= of_maps[:, None].astype(np.float32)
        self._set_thresholds(scores, peaks * of_maps, sketches, images, self.contamination_, self.pixel_contamination_)
        of_suspects = relative_sizes(self.calibration_sizes_[self.suspect_image_indices_], *changes)
        self.suspect_scores_ = self.suspect_scores_ * of_suspects**self.calibration_slope_

    def forget(self, images: Any) -> Any:
        """Remove what the detector has learnt from given training images, and adapt the thresholds.

        Use this method for images that turn out to be bad. No image is read. Afterwards, no row of the memory bank and
        no calibration score comes from these images; see the notes for the values that remain. The indices of other
        images do not change.

        Parameters
        ----------
        images : int, path, or sequence of int or of paths
            The images: indices as in `bank_image_indices_`, or paths as in `training_paths_`.

        Returns
        -------
        detector
            The detector itself. If the method raises an error, the detector is unchanged.

        Raises
        ------
        ValueError
            If an image is no training image of the detector, e.g. because it is forgotten already, if no image would
            remain, or if the sampler computes the rows of the memory bank from all images
            (:class:`~skpatchcore.LearnedProxySampler`). The error names the image.

        Warns
        -----
        UserWarning
            If the detector holds no reserve, so that the removed rows of the memory bank are not replaced.

        Notes
        -----
        Patches of other images can lose the row of the bank that covered them. These holes are filled from the reserve
        (parameter `reserve`), a set of patches which covers each image by its own patches. Afterwards, the bank covers
        the patches of the other images within the covering radius of the fit, up to the rounding of the reserve. A row
        is added only if an image has lost the row that covered it. The reserve cannot fill every hole exactly if many
        images are forgotten at once that covered the same patches.

        The remaining calibration scores are scaled back as `partial_fit` has scaled them. A fitted `transformer`
        stays as it is: its few numbers were computed from all images. So does `appearance_range_` if `recalibrate` has
        extended it. The log `updates_` keeps the paths and the digests of the images.

        In models of versions without `training_image_indices_`, the images of the embeddings are not always known, e.g.
        with ``calibration=0.3``. Then the embeddings of the forgotten images cannot be told apart, and `embeddings_`
        and `appearance_range_` keep them.

        Examples
        --------
        >>> import numpy as np
        >>> from skpatchcore import PatchCoreDetector
        >>> features = np.random.default_rng(0).random((60, 4, 4, 8), np.float32)
        >>> detector = PatchCoreDetector("precomputed", random_state=0).fit(features).forget([3, 17])
        >>> bool(np.isin(detector.bank_image_indices_, [3, 17]).any())
        False
        """
        check_is_fitted(self, "memory_bank_")
        with restored_on_failure(self):
            paths = self.training_paths_ or [None] * self.n_images_seen_
            held = ((i, paths[i]) for i in self.training_image_indices_.tolist())
            self._forget(places_of(images, held, self.n_images_seen_))
        return self

    def _forget(self, forgotten: np.ndarray) -> None:
        """Remove the training images with the given indices."""
        before, held, bank_before = values_of(self), self.training_image_indices_, len(self.memory_bank_)
        remaining = np.setdiff1d(held, forgotten)
        if not len(remaining):
            raise ValueError("forget: no training image would remain. Fit again on other images.")
        self._keep_bank(without_images(self._model(), forgotten, remaining))
        paths = None
        if self.training_paths_ is not None:
            paths = [self.training_paths_[i] for i in forgotten.tolist()]
            self.training_paths_ = _without(self.training_paths_, forgotten)
        if self.training_groups_ is not None:
            self.training_groups_ = _without(self.training_groups_, forgotten)
        if self.embeddings_ is not None:
            is_left = ~np.isin(self.embedding_image_indices_, forgotten)
            self.embeddings_ = self.embeddings_[is_left]
            self.embedding_image_indices_ = self.embedding_image_indices_[is_left]
            if self.appearances_ is not None:
                self.appearances_ = self.appearances_[is_left]
                # If recalibrate has replaced the appearances, the range cannot be computed again.
                if len(self.appearances_) and (self.embedding_image_indices_ >= 0).all():
                    self.appearance_range_ = appearance_range(self.appearances_)
        self.training_image_indices_ = remaining
        is_left = ~np.isin(self.suspect_image_indices_, forgotten)
        self.suspect_image_indices_ = self.suspect_image_indices_[is_left]
        self.suspect_scores_ = self.suspect_scores_[is_left]
        self._recalibrate_to(len(held), bank_before, None, ~np.isin(self._calibrated_images(), forgotten))
        log_update(self, "forget", before, n_images=len(forgotten), paths=paths)

    # The following methods set and keep the attributes that growing needs.

    def _keep_numbers(self, n_images: int, kept: np.ndarray, groups: Any) -> None:
        self.n_images_seen_, self.training_image_indices_ = n_images, kept
        self.calibration_sizes_ = np.full(n_images, len(kept))
        self.embedding_image_indices_ = kept
        self.training_groups_ = None if groups is None else _plain(groups)

    def _log_fit(self) -> None:
        """Start the log. Call this method when all thresholds of the fit are set."""
        self.updates_ = []
        before = dict.fromkeys(values_of(self))
        log_update(self, "fit", before, n_images=len(self.training_image_indices_))

    def _keep_calibration(self, found: CalibrationScores) -> None:
        self.calibration_slope_, self.pixel_calibration_slope_ = found.slopes

    def _set_thresholds(self, *args: Any) -> None:
        super()._set_thresholds(*args)
        self.contamination_, self.pixel_contamination_ = args[-2:]

    def _before_recalibration(self) -> Any:
        return values_of(self)

    def _after_recalibration(self, before: Any, X: Any, n_images: int) -> None:
        if X is not None and self.embeddings_ is not None:
            self.embedding_image_indices_ = np.full(len(self.embeddings_), -1)
        images = None if X is None else X.images if isinstance(X, ImagesWithRegions) else X
        log_update(
            self, "recalibrate", before, n_images=n_images, paths=None if images is None else paths_of(images),
            digests=None if images is None else digests_of(item_of(images, i) for i in range(n_images)),
        )  # fmt: skip

    def _reserve(self) -> Reserve | None:
        """Return the reserve; None if there is none."""
        if self.reserve_rows_ is None:
            return None
        parts = ("rows", "image_indices", "positions", "boxes", "indices", "supports")
        return Reserve(*(getattr(self, f"reserve_{part}_") for part in parts))

    def _keep_reserve(self, reserve: Reserve | None) -> None:
        """Set the attributes of the reserve."""
        for part in ("rows", "images", "positions", "boxes", "indices", "supports"):
            name = "image_indices" if part == "images" else part
            setattr(self, f"reserve_{name}_", None if reserve is None else getattr(reserve, part))

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "offset_" in state and "n_images_seen_" not in state:
            state = {**older_growth(state), **state}
        super().__setstate__(state)


def _plain(groups: Any) -> list[Any]:
    """Return groups as a list of Python objects; None for a missing group."""
    values = pd.Series(groups)
    return [None if pd.isna(v) else v.item() if isinstance(v, np.generic) else v for v in values]


def _without(values: list[Any], forgotten: np.ndarray) -> list[Any]:
    """Return a list with None in place of the values of forgotten images."""
    gone = set(forgotten.tolist())
    return [None if i in gone else value for i, value in enumerate(values)]


def _lengths(rows: np.ndarray) -> Any:
    return np.linalg.norm(rows.astype(np.float64), axis=1)


def _warn_of_known(known: np.ndarray, paths: Sequence[str] | None, consequence: str) -> None:
    """Warn that images are training images already."""
    names = [f"image {i}" if paths is None else repr(paths[i]) for i in known[:_N_NAMED]]
    more = f" and {len(known) - _N_NAMED} more" if len(known) > _N_NAMED else ""
    warn_user(f"partial_fit: {', '.join(names)}{more} are training images of the detector already. {consequence}")
