"""TrainingReport: the base class with `training_report`, which shows the training images that may be defective."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.names import shown_name
from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore._utils.warning import warn_user
from skpatchcore.bank.answers import neighbors_of
from skpatchcore.calibration.tails import anomalous_scores, left_out_p_values
from skpatchcore.detectors._records import ImageRecords
from skpatchcore.detectors._results import turned
from skpatchcore.images.containers import listed, n_images_of, with_regions
from skpatchcore.images.errors import SuspectImageWarning
from skpatchcore.maps import map_of, regions_of_map
from skpatchcore.patches.patches import Patches

if TYPE_CHECKING:
    import pandas as pd

# Maximum number of images that the warning of `fit` names.
_N_NAMED = 5
_SIDES = ("top", "left", "height", "width")
_UNREAD = (
    "the regions of the training images are unknown, because {} are not known by their paths and X is None. Pass the "
    "images of the fit as X to locate the regions."
)


@dataclass
class Compared:
    """A training image that is compared with the rows of other images.

    Attributes
    ----------
    image : int
        Index of the image in the `X` of the fit.
    patches : Patches
        Patches of the image.
    distances, nearest : arrays of shape (n_patches,)
        Distance of each patch to the nearest row of the memory bank that is not of the image or its group, and this
        row. Bigger = more anomalous.
    """

    image: int
    patches: Patches
    distances: np.ndarray
    nearest: np.ndarray

    def anomaly_map(self, smoothing: float) -> np.ndarray:
        """Return the anomaly map, of shape (height, width), bigger = more anomalous."""
        grid = self.patches.as_grids(self.distances.astype(np.float64))[0]
        return map_of(grid, self.patches.views[0], smoothing, self.patches.masks[0])


class TrainingReport:
    """Base class of detectors with a memory bank that report on their training images."""

    training_groups_: list[Any] | None
    training_image_indices_: np.ndarray
    training_paths_: list[Any] | None
    memory_bank_: np.ndarray
    bank_image_indices_: np.ndarray
    bank_boxes_: np.ndarray
    suspect_share: float | None
    suspect_image_indices_: np.ndarray
    suspect_scores_: np.ndarray
    contamination: float | str
    pixel_contamination: float | None
    calibration_scores_: np.ndarray
    calibration_peaks_: np.ndarray
    calibration_sketches_: np.ndarray
    calibration_image_indices_: np.ndarray
    calibration_plan_: str
    smoothing: float
    index_: Any

    def training_report(self, X: Any = None, *, n_images: int | None = None, roi: Any = None) -> pd.DataFrame:
        """Return a table of the training images, the most suspicious first, to find defective images among them.

        Each training image is compared with other images only: neither its own patches nor those of its group count.
        Look at the first rows, remove the defective images and fit again.

        Parameters
        ----------
        X : as for `fit`, or None, default=None
            The same images as in `fit`, in the same order. None reads the images again from ``training_paths_``.
        n_images : int or None, default=None
            Number of rows to return. Only the images of these rows are read, so that a small number is fast. None
            returns a row for each training image.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, the same as in `fit`.

        Returns
        -------
        DataFrame
            One row per training image, in ascending order of ``score``, with these columns:

            - ``image``: index of the image in the `X` of `fit`.
            - ``path``: path of the image; None if `X` did not consist of paths.
            - ``score``: calibration score of the image, **bigger = more normal**. NaN if the image has no calibration
              score, e.g. with ``calibration=None``, or after a recalibration with other images.
            - ``p_value``: fraction of the training images, including the image itself, whose scores are at most as
              large, **small = anomalous**.
            - ``distance``: distance of the most anomalous patch to the nearest row of the memory bank from another
              image, **bigger = more anomalous**.
            - ``top``, ``left``, ``height``, ``width``: bounding box of the most anomalous region, in the image's own
              pixels: the region around the largest value of the anomaly map, in which the values are above the middle
              between the map's median and this largest value.
            - ``nominal_image``, ``nominal_path``: the other image that holds the row of ``distance``. -1 and None if it
              is unknown.
            - ``nominal_top``, ``nominal_left``, ``nominal_height``, ``nominal_width``: the cell of this row in that
              image, in its own pixels.

            Rows without a score are sorted by ``distance``, the largest first, and follow the rows with a score. The
            columns from ``distance`` on are NaN if the image was not read, or if all rows of the memory bank come from
            the image or its group. Cells are NaN with precomputed features.

        Raises
        ------
        ImageError
            If an image cannot be read. The error names its index in the `X` of `fit`.
        ValueError
            If `n_images` is less than 1, or if `X` has fewer images than the `X` of `fit`.

        Warns
        -----
        UserWarning
            If `X` is None, and the paths of some images are unknown.

        See Also
        --------
        AnomalyMapDisplay.from_training_image : Plot a training image with the anomaly map against the other images.

        Notes
        -----
        Scores come from the calibration, distances from the final memory bank. Therefore their order can differ.
        """
        import pandas as pd

        check_is_fitted(self, "memory_bank_")
        if n_images is not None and n_images < 1:
            raise ValueError(f"n_images={n_images}: expected at least 1.")
        images = self._training_images()
        scored, known = self._scored_images()
        scores = pd.Series(known, index=scored).reindex(images)
        order = np.argsort(scores.to_numpy(), kind="stable")  # NaN comes last
        table = pd.DataFrame({"image": images, "score": scores.to_numpy()})
        table["p_value"] = left_out_p_values(table["score"].to_numpy())
        table = table.iloc[order]
        if n_images is not None and not table["score"].isna().iloc[:n_images].any():
            table = table.iloc[:n_images]  # the order is known without the distances
        located = pd.DataFrame([self._located(found) for found in self._compared(table["image"].to_numpy(), X, roi)])
        located = located.reindex(columns=_LOCATION).set_index("image")
        table = table.join(located, on="image")
        table = table.sort_values(["score", "distance"], ascending=[True, False], kind="stable", ignore_index=True)
        table = table if n_images is None else table.iloc[:n_images]
        table["nominal_image"] = table["nominal_image"].fillna(-1).astype(np.int64)
        paths = self.training_paths_
        for column, of in (("path", "image"), ("nominal_path", "nominal_image")):
            table[column] = [None if paths is None or i < 0 else paths[i] for i in table[of]]
        return table[list(_COLUMNS)]

    def _located(self, found: Compared) -> dict[str, Any]:
        """Return the values of a row of the report for one image."""
        top = int(found.distances.argmax())
        nearest = int(found.nearest[top])
        box = found.patches.boxes_of(np.array([top]))[0]
        if found.patches.views[0] is not None:
            drawn = found.anomaly_map(self.smoothing)
            # Not pixel_offset_: defective training images raise this threshold.
            regions = regions_of_map(drawn, (float(np.nanmedian(drawn)) + float(np.nanmax(drawn))) / 2)
            if len(regions):  # none if the map is constant
                first = regions.iloc[0]
                box = (first["top"], first["left"], first["bottom"] - first["top"], first["right"] - first["left"])
        return {
            "image": found.image,
            "distance": float(found.distances[top]),
            **dict(zip(_SIDES, map(float, box), strict=True)),
            "nominal_image": int(self.bank_image_indices_[nearest]),
            **{f"nominal_{side}": float(v) for side, v in zip(_SIDES, self.bank_boxes_[nearest], strict=True)},
        }

    def _training_map(self, image: int, X: Any, roi: Any) -> tuple[Any, np.ndarray, float]:
        """Return a training image as given, its anomaly map against rows of other images, and its calibration score.

        A ValueError is raised if there is no such map. The parameters are those of
        :meth:`AnomalyMapDisplay.from_training_image`.
        """
        check_is_fitted(self, "memory_bank_")
        images = self._training_images()
        if image not in images:
            raise ValueError(
                f"image {image} is no training image: expected one of the {len(images)} in training_report."
            )
        if X is None and (self.training_paths_ is None or self.training_paths_[image] is None):
            raise ValueError(f"the path of image {image} is unknown. Pass the images of the fit as X.")
        found = list(self._compared(np.array([image]), X, roi))
        if not found:
            raise ValueError(
                f"image {image} cannot be compared with other images: all rows of the memory bank come from this image "
                "or its group."
            )
        given = self.training_paths_[image] if X is None else listed(X)[image]  # type: ignore[index]
        scored, known = self._scored_images()
        scores = known[scored == image]
        return given, found[0].anomaly_map(self.smoothing), float(scores[0]) if len(scores) else np.nan

    def _compared(self, images: np.ndarray, X: Any, roi: Any) -> Iterator[Compared]:
        """Yield the training images, each compared with rows of other images. Images that are unknown are left out."""
        images, X = self._sources(images, X, roi)
        if not len(images):
            return
        records = ImageRecords(self._patch_check(is_fitted=True), of_good_images=False)  # type: ignore[attr-defined]
        stream = self._stream(X, records)  # type: ignore[attr-defined]
        stream.numbers, done = images, 0
        groups = self._groups_of(np.concatenate([self.bank_image_indices_, images]))  # type: ignore[attr-defined]
        of_rows, of_images = np.split(groups, [len(self.bank_image_indices_)])
        for batch in stream:
            for i in range(len(batch)):
                patches, own = batch.between(i, i + 1), np.flatnonzero(of_rows == of_images[done + i])
                if len(own) < len(of_rows):
                    found = neighbors_of(self.index_, self.memory_bank_, patches.rows, 1, own)
                    yield Compared(int(images[done + i]), patches, found[0][:, 0], found[1][:, 0])
            done += len(batch)

    def _sources(self, images: np.ndarray, X: Any, roi: Any) -> tuple[np.ndarray, Any]:
        """Return the images that can be read, and these images with their regions."""
        n = int(self._training_images().max()) + 1
        if X is None:
            paths: Sequence[Any] = self.training_paths_ or [None] * n
            is_known = np.array([paths[i] is not None for i in images], bool)
            if not is_known.all():
                some = "the images" if not is_known.any() else f"{np.count_nonzero(~is_known)} of them"
                warn_user(_UNREAD.format(some))
            images = images[is_known]
            X = [paths[i] for i in images]
        else:
            X = listed(X)
            if n_images_of(X) < n:
                raise ValueError(
                    f"X has {n_images_of(X)} images, but the detector was fitted on {n}: pass the same images in the "
                    "same order as in fit."
                )
            X = safe_indexing(X, images)
        return images, with_regions(X, None if roi is None else [roi[i] for i in images])

    def _training_images(self) -> np.ndarray:
        """Return the indices of the training images in the `X` of the fit."""
        known: np.ndarray | None = getattr(self, "training_image_indices_", None)
        if known is not None:
            return known
        # The state of an older version: images without a row in the bank and without a score are unknown.
        return np.union1d(self.bank_image_indices_, self._scored_images()[0])

    def _fit(self, X: Any, y: Any, groups: Any) -> Any:
        super()._fit(X, y, groups)  # type: ignore[misc]
        suspects = anomalous_scores(turned(self.calibration_scores_))
        self.suspect_image_indices_ = self.calibration_image_indices_[suspects]
        self.suspect_scores_ = self.calibration_scores_[suspects]
        if not len(suspects):
            return self
        if self.suspect_share is not None:  # otherwise, they raise the thresholds
            others = np.setdiff1d(np.arange(len(self.calibration_scores_)), suspects)
            scores = turned(self.calibration_scores_[others])
            self._set_thresholds(  # type: ignore[attr-defined]
                scores, self.calibration_peaks_[others], self.calibration_sketches_[others],
                self.calibration_image_indices_[others], self.contamination, self.pixel_contamination,
            )  # fmt: skip
        warn_user(self._describe_suspects(), SuspectImageWarning)
        return self

    def _scores_of_training_images(self) -> np.ndarray:
        """Return the calibration scores and those that the thresholds leave out, in ascending order of the images."""
        images, scores = self._scored_images()
        return scores[np.argsort(images)]

    def _scored_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the training images with a score, in any order, and their scores."""
        images = self._calibrated_images()  # type: ignore[attr-defined]
        is_own = images >= 0
        if not is_own.all():  # recalibrate has replaced the scores of the fit; images of partial_fit can follow
            return images[is_own], self.calibration_scores_[is_own]
        is_apart = ~np.isin(self.suspect_image_indices_, images)
        images = np.concatenate([images, self.suspect_image_indices_[is_apart]])
        return images, np.concatenate([self.calibration_scores_, self.suspect_scores_[is_apart]])

    def _describe_suspects(self) -> str:
        """Return the text of the warning that a few calibration images look anomalous."""
        found, paths = self.suspect_image_indices_, self.training_paths_
        names = [f"image {i}" if paths is None or paths[i] is None else shown_name(paths[i]) for i in found[:_N_NAMED]]
        more = f" and {len(found) - _N_NAMED} more" if len(found) > _N_NAMED else ""
        of_all = f"{len(found)} of {len(self._scored_images()[0])} training images"
        effect = "" if self.suspect_share is None else " The thresholds are computed without their scores."
        return (
            f"{of_all} {'looks' if len(found) == 1 else 'look'} anomalous: {', '.join(names)}{more}.{effect} Look at "
            "the first rows of training_report(), and fit again without the images that are defective."
        )


_NOMINAL = ("nominal_image", *(f"nominal_{side}" for side in _SIDES))
_LOCATION = ("image", "distance", *_SIDES, *_NOMINAL)
_COLUMNS = ("image", "path", "score", "p_value", "distance", *_SIDES, "nominal_image", "nominal_path", *_NOMINAL[1:])
