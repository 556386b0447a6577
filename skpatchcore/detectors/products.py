"""MultiProductDetector: one model and one threshold per product, with one network, in one detector."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import fields
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.diagrams import DocumentationLinkMixin, diagram_of
from skpatchcore._utils.sklearn import Interval, OlderStatesMixin, StrOptions, fit_context, safe_indexing
from skpatchcore._utils.warning import warn_user
from skpatchcore.calibration.conformal import adjusted_p_values, check_adjust
from skpatchcore.detectors._combined import require_maps
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.detectors._product_members import ProductMembers
from skpatchcore.detectors._product_scores import ProductResult
from skpatchcore.detectors._recognition import by_product, codes_of
from skpatchcore.detectors._results import (
    ImageResult,
    Scored,
    check_on_error,
    results_of,
    score_or_flag,
    turned,
)
from skpatchcore.detectors._thresholds import restored_on_failure
from skpatchcore.images.containers import listed, n_images_of, with_regions
from skpatchcore.images.errors import InspectionWarning
from skpatchcore.images.products import divided, product_names, with_products


class MultiProductDetector(ProductMembers, DocumentationLinkMixin, OlderStatesMixin, BaseEstimator):
    """Detect anomalous images of several products with one detector, which knows or recognises the product.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. ``segment`` returns anomaly maps, **bigger = more anomalous**.

    `fit` fits one copy of `estimator` per product, on the images of this product only. Each product therefore has a
    memory bank and thresholds of its own. The network runs once per image, at `fit` and at all other methods. The
    product of a new image is given, or the detector recognises it: the product with the most similar training image, by
    the mean patch feature of the whole image. An image that is not similar to any training image shows none of the
    products, and is anomalous.

    Parameters
    ----------
    estimator : detector
        Detector that is copied for each product: a :class:`PatchCoreDetector`, a :class:`PaDiMDetector` or a
        :class:`SPADEDetector`. Its `calibration` must not be None.
    tolerance : float, default=1.5
        How far an image may be from the nearest training image, in the unit `product_radii_` of the product. An image
        that is farther shows none of the products. A smaller value finds more images of other products, and a larger
        value accepts more unusual images.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted false-positive rate of each product: fraction of good images for which `predict` may return -1
        (anomalous). The `contamination` of `estimator` is not used.
    pixel_contamination : float in (0, 0.5] or None, default=None
        Accepted fraction of the *pixels* of good images above the pixel threshold of their product. None derives the
        pixel threshold from `contamination` instead. The value of `estimator` is not used.

    Attributes
    ----------
    products_ : array of shape (n_products,), str
        Names of the products, sorted.
    estimators_ : list of detectors
        The fitted detector of each product. Their scores and thresholds are not standardised, and the indices of their
        training images count the images of the product only.
    product_image_indices_ : list of arrays of int64
        For each product, the index of each image of its detector, counted over the `X` of `fit` and of all calls of
        `partial_fit`. An index of the product's detector, e.g. in its ``bank_image_indices_``, is a position in this
        array.
    n_images_seen_ : int
        Number of images in the `X` of `fit` and of all calls of `partial_fit`.
    whole_images_ : list of (array, array, float)
        For each product, what the recognition compares: the positions of its training images in
        `product_image_indices_`, their mean patch features in at most 32 random projections, and the radius.
    product_radii_ : array of shape (n_products,), float64
        Distance within which a new image of the product is expected to have a neighbour among the training images,
        between mean patch features: the largest distance from a training image to its nearest neighbour, or the root
        mean square distance from the mean if this is larger.
    calibration_scores_ : array of shape (n_calibration,), float64
        Standardised scores of the calibration images of all products, bigger = more normal, below -1 = flagged.
    calibration_peaks_ : array of shape (n_calibration,), float64
        Standardised maxima of the maps of the calibration images, bigger = more anomalous.
    calibration_sketches_ : array of shape (n_calibration, 2, n_levels), float32
        Sketches of the maps of the calibration images, with standardised values.
    calibration_image_indices_ : array of shape (n_calibration,), int64
        Index of each calibration image, counted over the `X` of `fit` and of all calls of `partial_fit`; -1 for images
        of `recalibrate`.
    calibration_products_ : array of shape (n_calibration,), str
        Product of each calibration image.
    calibration_plan_ : str
        How the calibration images were scored, e.g. ``"40 folds"``.
    inspection_ : Inspection or None
        Fraction of the training images' pixels that is inspected, and the size of a patch. None if the extractor does
        not report views.
    promised_rate_ : float
        False-positive rate that the thresholds promise: the largest of all products.
    offset_, pixel_offset_ : float
        -1 and 1: standardised scores and maps are multiples of the thresholds of the product.
    n_features_in_ : int
        Number of columns of `X`. Set only if `X` is a 2-D array or table of precomputed features.
    feature_names_in_ : array of str
        Column names of `X`. Set only if `X` is a 2-D table of precomputed features with column names.
    min_area_ : float
        Largest area of a region that ``min_area="auto"`` removes, as a fraction of the inspected pixels; see
        `PatchCoreDetector.predict_mask`.

    See Also
    --------
    MultiLightDetector : Several images of each part, e.g. one per light.

    Notes
    -----
    Scores of different products are not comparable. Therefore the anomaly score of an image is divided by the image
    threshold of its product, and the map by the pixel threshold of its product. An image that shows none of the
    products is scored by the most similar product. Its anomaly score is at least u / `tolerance`, where u is the
    distance from this product in the unit of `tolerance`: this is more than 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import MultiProductDetector, PatchCoreDetector, TorchFeatureExtractor
    >>> rng = np.random.default_rng(0)
    >>> bright, dark = (rng.normal(mean, 0.02, (12, 64, 64, 3)).clip(0, 1) for mean in (0.7, 0.3))
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None)
    >>> detector = MultiProductDetector(PatchCoreDetector(extractor, random_state=0))
    >>> detector = detector.fit(np.concatenate([bright, dark]), products=["bright"] * 12 + ["dark"] * 12)
    >>> new = rng.normal(0.3, 0.02, (1, 64, 64, 3)).clip(0, 1)
    >>> detector.identify(new)
    array(['dark'], dtype=object)
    >>> detector.predict(new)
    array([1])
    """

    _parameter_constraints: dict[str, Any] = {
        "estimator": [PatchDetector],
        "tolerance": [Interval(Real, 0, None, closed="neither")],
        "contamination": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"})],
        "pixel_contamination": [Interval(Real, 0, 0.5, closed="right"), None],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        tolerance: float = 1.5,
        contamination: float | str = "auto",
        pixel_contamination: float | None = None,
    ):
        self.estimator = estimator
        self.tolerance = tolerance
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination

    def set_params(self, **params: Any) -> MultiProductDetector:
        """Set parameters of the detector and of `estimator`.

        Parameters
        ----------
        **params : dict
            Parameter names and values. ``estimator__parameter=value`` sets a parameter of `estimator`.

        Returns
        -------
        MultiProductDetector
            The detector itself.
        """
        self._warn_of_thresholds(params)
        super().set_params(**params)
        return self

    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self, X: Any, y: Any = None, *, products: Any = None, groups: Any = None, roi: Any = None
    ) -> MultiProductDetector:
        """Fit one detector per product on images of good parts.

        Parameters
        ----------
        X : sequence of images, or array of shape (n_images, height, width, n_channels)
            Images of good parts of all products, in any order.
        y : array of shape (n_images,) or None, default=None
            Labels, as for `PatchCoreDetector.fit`.
        products : sequence of shape (n_images,)
            Name of the product of each image. Other types than texts are converted to texts.
        groups : array of shape (n_images,) or None, default=None
            Groups of the images, as for `PatchCoreDetector.fit`.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `PatchCoreDetector.fit`.

        Returns
        -------
        MultiProductDetector
            The fitted detector itself.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image. The error names the index of the image in `X`, and its path.
        ValueError, WeightsError
            As in the `fit` of `estimator`; the error names the product. In addition, a ValueError if `products` is
            None, has another length than `X` or a missing value, or if a product has fewer than two good images.
        """
        require_maps({"estimator": self.estimator}, self)
        X, names = self._named(X, products)
        n_images = n_images_of(X)
        X = with_regions(X, roi)
        with restored_on_failure(self):
            self.whole_images_ = []  # those of an earlier fit
            self.products_ = np.zeros(0, str)
            codes, indices = codes_of(names, (known := sorted(set(names)))), {}
            members = {}
            for code, here in by_product(codes):
                members[known[code]] = self._fitted_to(known[code], here, X, y, groups)
                indices[known[code]] = here
            self.n_images_seen_ = n_images
            self._keep_members(members, indices)
            if self.inspection_ is not None and (problem := self.inspection_.problem()):
                warn_user(problem, InspectionWarning)
        return self

    def for_product(self, product: str) -> Any:
        """Return a copy of the fitted detector of a product. Its scores and thresholds are not standardised.

        Parameters
        ----------
        product : str
            Name of the product.

        Returns
        -------
        detector
            A copy of the item of `estimators_`. It can be saved and exported as a detector of one product. Changes of
            the copy do not change this detector: use the methods of this detector to add or forget images.

        Raises
        ------
        ValueError
            If the product is unknown.
        """
        check_is_fitted(self, "estimators_")
        if str(product) not in self.products_:
            known = ", ".join(map(repr, self.products_.tolist()))
            raise ValueError(f"product {product!r} is unknown: the detector knows {known}.")
        return copy(self.estimators_[self.products_.tolist().index(str(product))])

    def identify(self, X: Any, *, roi: Any = None) -> np.ndarray:
        """Return the product that each image shows.

        Parameters
        ----------
        X : as for `fit`
            The images.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

        Returns
        -------
        array of shape (n_images,), object
            Names of products. None if the image shows none of the products.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image.
        """
        check_is_fitted(self, "estimators_")
        X, _ = divided(X)
        stream = self._stream(with_regions(X, roi), with_views=False)[0]
        codes = np.concatenate([self._recognised(patches)[0] for patches in stream])
        return self._names_of(codes)

    def thresholds(self) -> pd.DataFrame:
        """Return the thresholds of each product, e.g. to write them to a file.

        Returns
        -------
        DataFrame
            One row per product with the columns ``product``, ``n_calibration`` (number of calibration images with a
            score), ``offset`` and ``pixel_offset`` (thresholds of the product's own detector: images with a score
            *below* ``offset`` are anomalous, and pixels with a map value *above* ``pixel_offset``),
            ``promised_rate``, and ``n_bank`` (rows of the memory bank; 0 for detectors without a bank).
        """
        check_is_fitted(self, "estimators_")
        members = self.estimators_
        return pd.DataFrame(
            {
                "product": self.products_,
                "n_calibration": [int(np.count_nonzero(~np.isnan(m.calibration_scores_))) for m in members],
                "offset": [m.offset_ for m in members],
                "pixel_offset": [m.pixel_offset_ for m in members],
                "promised_rate": [m.promised_rate_ for m in members],
                "n_bank": [len(getattr(m, "memory_bank_", ())) for m in members],
            }
        )

    def p_values(self, X: Any, *, products: Any = None, adjust: str | None = None, roi: Any = None) -> np.ndarray:
        """Return conformal p-values, **small = anomalous**, from the calibration images of the image's product.

        Parameters
        ----------
        X, products
            As for `score_samples`.
        adjust : {"bh", "by"} or None, default=None
            As for `PatchCoreDetector.p_values`.
        roi
            As for `score_samples`.

        Returns
        -------
        array of shape (n_images,), float64
            P-values, as `PatchCoreDetector.p_values` returns them.

        Raises
        ------
        ImageError, ValueError
            As in `score_samples`. In addition, a ValueError if `adjust` has an invalid value.
        """
        check_adjust(adjust)
        check_is_fitted(self, "estimators_")
        found = list(self._iter_products(with_regions(with_products(X, products), roi), None))
        scores, nearest = (np.concatenate([part[i] for part in found]) for i in (0, 2))
        return adjusted_p_values(self._p_values_of(scores, nearest), adjust)

    def iter_results(
        self,
        X: Any,
        *,
        products: Any = None,
        with_maps: bool = True,
        on_error: str = "raise",
        chunk_size: int = 64,
        roi: Any = None,
    ) -> Iterator[ProductResult]:
        """Yield the results of images one by one, in bounded memory for any number of images.

        Parameters
        ----------
        X, products
            As for `score_samples`. `X` may also be a generator if `products` is None.
        with_maps, on_error, chunk_size
            As for `PatchCoreDetector.iter_results`.
        roi
            As for `score_samples`.

        Returns
        -------
        iterator of ProductResult
            Score, decision, label, p-value, anomaly map, error and product of one image, in the order of `X`.

        Raises
        ------
        ImageError
            If an image cannot be scored, and ``on_error="raise"``. The results of all previous images come first.
        """
        check_is_fitted(self, "estimators_")
        check_on_error(on_error)
        if chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: expected at least 1.")
        of_map = np.asarray if with_maps else None

        def explained(images: Any) -> Iterator[tuple[np.ndarray, list[Any]]]:
            for scores, codes, nearest, maps in self._iter_products(images, of_map):
                yield scores, list(zip(codes, nearest, maps or [None] * len(scores), strict=True))

        def scored(images: Any) -> Iterator[Scored]:
            for part in score_or_flag(images, explained):
                if part.error is not None and on_error == "raise":
                    raise part.error
                yield part

        X = with_regions(with_products(X, products), roi)
        results = results_of(X, scored, self.calibration_scores_, self.offset_, chunk_size)
        return (self._with_product(result) for result in results)

    def _with_product(self, result: ImageResult) -> ProductResult:
        """Return the result of an image with its product, and with the p-value of its product."""
        values = {field.name: getattr(result, field.name) for field in fields(result)}
        if result.error is not None:
            return ProductResult(**values)
        code, nearest, anomaly_map = result.anomaly_map  # type: ignore[misc]
        values["p_value"] = float(self._p_values_of(np.array([turned(result.score)]), np.array([nearest]))[0])
        return ProductResult(**{**values, "anomaly_map": anomaly_map}, product=self._names_of(np.array([code]))[0])

    def recalibrate(
        self,
        X: Any = None,
        *,
        products: Any = None,
        contamination: float | str | None = None,
        pixel_contamination: float | None = None,
        roi: Any = None,
    ) -> MultiProductDetector:
        """Set new thresholds without a new fit, from new good images or for another false-positive rate.

        Parameters
        ----------
        X : as for `fit`, or None, default=None
            Good images on which the detector was not fitted. Products without images in `X` are not changed. None uses
            the existing calibration scores.
        products : str, sequence of shape (n_images,), or None, default=None
            Product of each image, as for `score_samples`. An image that shows none of the products is an error. If `X`
            is None, the names of the products to recalibrate; None recalibrates all products.
        contamination, pixel_contamination
            As for `PatchCoreDetector.recalibrate`.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

        Returns
        -------
        MultiProductDetector
            The detector itself, with new thresholds.

        Raises
        ------
        ImageError, ValueError
            As in `PatchCoreDetector.recalibrate`. In addition, a ValueError if an image shows none of the products.
        """
        check_is_fitted(self, "estimators_")
        rates = {
            "contamination": self.contamination if contamination is None else contamination,
            "pixel_contamination": self.pixel_contamination if pixel_contamination is None else pixel_contamination,
        }
        images: dict[int, Any] = {}
        if X is None:
            wanted = [products] if isinstance(products, str) else self.products_ if products is None else products
            images = dict.fromkeys(codes_of(product_names(wanted), self.products_.tolist()).tolist())
        else:
            X, names = divided(with_products(listed(X), products))
            X = with_regions(X, roi)
            codes = codes_of(self.identify(X) if names is None else names, self.products_.tolist())
            if (codes < 0).any():
                raise ValueError(f"image {int((codes < 0).argmax())} shows none of the products: pass its product.")
            images = {code: safe_indexing(X, here) for code, here in by_product(codes)}
        with restored_on_failure(self):
            # Copies: if one of them raises, all detectors stay as they are.
            members = [
                copy(member).recalibrate(images[code], **rates) if code in images else member
                for code, member in enumerate(self.estimators_)
            ]
            indices = dict(zip(self.products_.tolist(), self.product_image_indices_, strict=True))
            self._keep_members(dict(zip(self.products_.tolist(), members, strict=True)), indices)
        return self

    def _require_scores_of_training_images(self) -> None:
        self.estimator._require_scores_of_training_images()

    def _sk_visual_block_(self) -> Any:
        fitted = getattr(self, "estimators_", None)
        if fitted is None:
            return diagram_of("serial", [self.estimator], ["estimator, one per product"])
        return diagram_of("parallel", fitted, [f"product {name}" for name in self.products_])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        tags.no_validation = True
        return tags
