"""ProductScores: standardised scores of images of several products, each by the detector of its product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.warning import warn_user
from skpatchcore.calibration.conformal import upper_tail_p_values
from skpatchcore.detectors._product_methods import WithProducts
from skpatchcore.detectors._recognition import by_product, codes_of, recognised
from skpatchcore.detectors._records import ImageRecords
from skpatchcore.detectors._results import ImageResult, turned
from skpatchcore.images.appearance import describe_difference
from skpatchcore.images.errors import AppearanceWarning
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.products import divided
from skpatchcore.images.views import View
from skpatchcore.maps import map_of
from skpatchcore.patches.embedding import embeddings_of
from skpatchcore.patches.model import PatchModel, score_batches
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchStream


@dataclass(frozen=True)
class ProductResult(ImageResult):
    """Result of a :class:`~skpatchcore.MultiProductDetector` for one image: an ImageResult with the product.

    Attributes
    ----------
    product : str or None
        Product of the image, as given or recognised. None if the image shows none of the products, or if it could not
        be scored.
    """

    product: str | None = None


class ProductScores(WithProducts):
    """Base class that scores each image by the detector of its product, which is given or recognised.

    `fit` must set the attributes below.
    """

    tolerance: float
    products_: np.ndarray
    estimators_: list[Any]
    product_radii_: np.ndarray
    whole_images_: list[tuple[np.ndarray, np.ndarray, float]]
    calibration_products_: np.ndarray

    def _iter_scores(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, adapt: bool = False
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        for scores, _, _, kept in self._iter_products(X, of_map):
            yield scores, kept

    def _iter_products(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, list[Any]]]:
        """Yield standardised anomaly scores, products (-1 for none), nearest products and values of maps of a batch."""
        check_is_fitted(self, "estimators_")
        X, names = divided(X)
        given = None if names is None else codes_of(names, self.products_.tolist())
        needs_views = self.estimators_[0]._image_scoring().needs_views()
        stream, records = self._stream(X, with_views=of_map is not None or needs_views)
        models: dict[int, PatchModel] = {}
        done: list[np.ndarray] = []
        first = 0
        for patches in stream:
            codes, nearest, distances = self._recognised(patches)
            if given is not None:
                some = given[first : first + len(patches)]
                codes, nearest = np.where(some < 0, codes, some), np.where(some < 0, nearest, some)
            scores, kept = np.empty(len(patches)), [None] * (len(patches) if of_map is not None else 0)
            for code, here in by_product(nearest):
                member = self.estimators_[code]
                models.setdefault(code, member._scoring_model())
                scores[here], maps = _scored(member, models[code], patches.subset(here), of_map)
                for place, value in zip(here.tolist(), maps, strict=False):
                    kept[place] = value
            is_none = codes < 0
            scores[is_none] = np.maximum(scores[is_none], distances[is_none] / self.tolerance)
            yield scores, codes, nearest, kept
            done.append(nearest)
            first += len(patches)
        self._warn_of_difference(records, np.concatenate(done))

    def _stream(self, X: Any, with_views: bool) -> tuple[PatchStream, ImageRecords]:
        """Return the stream of the patch features of new images before any transformer, and what it will record."""
        member = self.estimators_[0]
        records = ImageRecords(member._patch_check(is_fitted=True), of_good_images=False)
        stream = member._stream(X, records, with_views=with_views)
        stream.transform = None  # each product has its own
        return stream, records

    def _recognised(self, patches: Patches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the product of each image (-1 for none), the nearest product, and the distance in its unit."""
        known = [embeddings for _, embeddings, _ in self.whole_images_]
        nearest, distances = recognised(embeddings_of(patches), known, self.product_radii_)
        return np.where(distances > self.tolerance, -1, nearest), nearest, distances

    def _names_of(self, codes: np.ndarray) -> np.ndarray:
        """Return the names of products; None for the code -1."""
        names = np.full(len(codes), None, object)
        for i, code in enumerate(codes.tolist()):
            if code >= 0:
                names[i] = str(self.products_[code])
        return names

    def _p_values_of(self, scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return the p-values of standardised anomaly scores, each from the calibration images of its product."""
        found = np.empty(len(scores))
        for code, here in by_product(codes):
            own = self.calibration_products_ == self.products_[code]
            found[here] = upper_tail_p_values(turned(self.calibration_scores_[own]), scores[here])
        return found

    def _warn_of_difference(self, records: ImageRecords, codes: np.ndarray) -> None:
        """Warn if all new images of a product look unlike its training images."""
        if (appearances := records.appearance.as_array()) is None:
            return
        for code, here in by_product(codes):
            known = self.estimators_[code].appearance_range_
            if known is not None and (problem := describe_difference(known, appearances[here])):
                warn_user(f"product {str(self.products_[code])!r}: {problem}", AppearanceWarning)


def _scored(
    member: Any, model: PatchModel, patches: Patches, of_map: Callable[[np.ndarray], Any] | None
) -> tuple[np.ndarray, list[Any]]:
    """Return the standardised anomaly scores of images of one product, and the values of their standardised maps."""

    def keep(patch_scores: np.ndarray, view: View | None, mask: PixelMask | None) -> Any:
        assert of_map is not None
        anomaly_map = map_of(patch_scores, view, member.smoothing, mask)
        return of_map(standardised_map(anomaly_map, member).astype(np.float32))

    if (transform := member._row_transform()) is not None:
        patches = transform.of(patches, None, None)
    ((scores, kept),) = score_batches([patches], model, None if of_map is None else keep)
    return standardised(scores, member), kept


def standardised(anomaly_scores: np.ndarray, member: Any) -> np.ndarray:
    """Return anomaly scores as multiples of the image threshold of a product's detector."""
    return multiples(anomaly_scores, turned(member.offset_))


def standardised_map(anomaly_map: np.ndarray, member: Any) -> np.ndarray:
    """Return map values as multiples of the pixel threshold of a product's detector."""
    return multiples(anomaly_map, member.pixel_offset_)


def multiples(values: np.ndarray, threshold: float) -> np.ndarray:
    """Return values as multiples of a threshold; if the threshold is 0, the values plus 1.

    Values above the threshold become larger than 1, and other values at most 1. A threshold is 0 if all calibration
    images are copies of each other.
    """
    # A value next to the threshold can be rounded to 1, and the threshold itself must not exceed 1.
    relative: np.ndarray = values / threshold if threshold > 0 else values + 1.0
    relative = np.where(values > threshold, np.maximum(relative, np.nextafter(1.0, 2.0)), np.minimum(relative, 1.0))
    return relative
