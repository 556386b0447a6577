"""ProductMembers: the detectors of several products, which are fitted, extended, reduced and joined to one detector."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore.calibration.sketches import smallest_area
from skpatchcore.detectors._combined import joint_inspection, scored_by, without_inspection_warnings
from skpatchcore.detectors._forgotten import places_of
from skpatchcore.detectors._product_scores import ProductScores, standardised, standardised_map
from skpatchcore.detectors._recognition import radius_of
from skpatchcore.detectors._results import turned
from skpatchcore.detectors._thresholds import restored_on_failure
from skpatchcore.images.containers import listed, n_images_of, with_regions
from skpatchcore.images.errors import ImageError
from skpatchcore.images.products import divided, with_products
from skpatchcore.patches.inspection import Inspection

# Local indices of the images of a product, their embeddings, and the radius.
WholeImages = tuple[np.ndarray, np.ndarray, float]


def _can_grow(detector: Any) -> bool:
    """Return whether the detectors of the products can be extended by images."""
    return hasattr(detector.estimator, "partial_fit")


class ProductMembers(ProductScores):
    """Base class that keeps one fitted detector per product. A subclass must have the parameter `estimator`."""

    # Searches and pipelines do not route calibrate as metadata.
    __metadata_request__partial_fit = {"calibrate": UNUSED}

    estimator: Any
    n_images_seen_: int
    product_image_indices_: list[np.ndarray]
    whole_images_: list[WholeImages]
    inspection_: Inspection | None

    @available_if(_can_grow)
    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        *,
        products: Any = None,
        groups: Any = None,
        roi: Any = None,
        calibrate: bool = True,
    ) -> Any:
        """Add images of good parts to the detectors of their products. The first call is `fit`.

        The detector of each product is extended by its images, see `PatchCoreDetector.partial_fit`. A product with a
        new name gets a new detector, which is fitted on its images. Products without new images are not changed.

        Parameters
        ----------
        X, y, groups, roi : as for `fit`
            The new images.
        products : str or sequence of shape (n_images,)
            Product of each image, or of all images.
        calibrate : bool, default=True
            As for `PatchCoreDetector.partial_fit`.

        Returns
        -------
        MultiProductDetector
            The detector itself. If the method raises an error, the detector is unchanged.

        Raises
        ------
        ImageError, ValueError, WeightsError
            As in `PatchCoreDetector.partial_fit` and in `fit`.
        """
        if not hasattr(self, "estimators_") and not calibrate:
            raise ValueError(
                "calibrate=False: the first call of partial_fit is a fit, which calibrates. Pass calibrate=True."
            )
        if not hasattr(self, "estimators_"):
            return self.fit(X, y, products=products, groups=groups, roi=roi)  # type: ignore[call-arg]
        X, names = self._named(X, products)
        n_images = n_images_of(X)
        X = with_regions(X, roi)
        with restored_on_failure(self):
            members = dict(zip(self.products_.tolist(), self.estimators_, strict=True))
            indices = dict(zip(self.products_.tolist(), self.product_image_indices_, strict=True))
            for name in dict.fromkeys(names.tolist()):
                here = np.flatnonzero(names == name)
                if name not in members and not calibrate:
                    raise ValueError(
                        f"calibrate=False: {name!r} is a new product, and its first images calibrate. The known "
                        f"products are {', '.join(map(repr, self.products_.tolist()))}."
                    )
                if name not in members:
                    members[name], indices[name] = self._fitted_to(name, here, X, y, groups), self.n_images_seen_ + here
                    continue
                member = members[name] = copy(members[name])
                labelled, own_groups = _of(here, X, y, groups)
                grow = partial(member.partial_fit, *labelled, groups=own_groups, calibrate=calibrate)
                _for_product(name, here, grow)
                if member.n_images_seen_ > len(indices[name]):  # otherwise all images were known
                    indices[name] = np.concatenate([indices[name], self.n_images_seen_ + here])
            self.n_images_seen_ += n_images
            self._keep_members(members, indices)
        return self

    @available_if(_can_grow)
    def forget(self, images: Any) -> Any:
        """Remove training images, and everything that was learnt from them. See `PatchCoreDetector.forget`.

        Parameters
        ----------
        images : int, path, or sequence of int or paths
            Indices of the images, counted over the `X` of `fit` and of all calls of `partial_fit`, or their paths.

        Returns
        -------
        MultiProductDetector
            The detector itself. If the method raises an error, the detector is unchanged.

        Raises
        ------
        ValueError
            If an image is not a training image, or if a product would have no image left.
        """
        check_is_fitted(self, "estimators_")
        held = [
            (int(indices[i]), None if member.training_paths_ is None else member.training_paths_[i])
            for member, indices in zip(self.estimators_, self.product_image_indices_, strict=True)
            for i in member.training_image_indices_.tolist()
        ]
        found = places_of(images, held, self.n_images_seen_)
        with restored_on_failure(self):
            members = dict(zip(self.products_.tolist(), self.estimators_, strict=True))
            known = dict(zip(self.products_.tolist(), self.product_image_indices_, strict=True))
            for name, indices in known.items():
                if len(own := np.flatnonzero(np.isin(indices, found))):
                    members[name] = copy(members[name])
                    _for_product(name, None, partial(members[name].forget, own.tolist()))
            self._keep_members(members, known)
        return self

    def _scores_of_training_images(self) -> np.ndarray:
        images, scores = [], []
        for member, indices in zip(self.estimators_, self.product_image_indices_, strict=True):
            images.append(indices[scored_by(member)])
            scores.append(turned(standardised(turned(member._scores_of_training_images()), member)))
        return np.concatenate(scores)[np.argsort(np.concatenate(images))]

    def _named(self, X: Any, products: Any) -> tuple[Any, np.ndarray]:
        """Return training images, and the product of each of them."""
        X, names = divided(with_products(listed(X), products))
        if names is None:
            raise ValueError("products=None: pass the name of the product of each image.")
        if missing := [i for i, name in enumerate(names) if name is None]:
            raise ValueError(f"products[{missing[0]}] is missing: pass the product of each training image.")
        return X, names

    def _fitted_to(self, product: str, here: np.ndarray, X: Any, y: Any, groups: Any) -> Any:
        """Return the detector of a product, fitted on the images with the indices `here`."""
        member = clone(self.estimator)
        member.set_params(contamination=self.contamination, pixel_contamination=self.pixel_contamination)
        labelled, own_groups = _of(here, X, y, groups)
        with without_inspection_warnings():
            _for_product(product, here, partial(member.fit, *labelled, groups=own_groups))
        if np.isnan(member.offset_):
            raise ValueError(
                f"product {product!r} has no threshold: its detector was fitted with calibration=None, or on too few "
                f"images (n_samples={len(here)}). Set the calibration of estimator, or fit on more images."
            )
        return member

    def _keep_members(self, members: dict[str, Any], indices: dict[str, np.ndarray]) -> None:
        """Set the fitted attributes from the detector and the image indices of each product."""
        known = dict(
            zip(getattr(self, "products_", np.zeros(0)).tolist(), getattr(self, "whole_images_", []), strict=True)
        )
        names = sorted(members)
        self.products_ = np.array(names)
        self.estimators_ = [members[name] for name in names]
        self.product_image_indices_ = [indices[name] for name in names]
        self.whole_images_ = [whole_images_of(members[name], known.get(name)) for name in names]
        self.product_radii_ = np.array([radius for _, _, radius in self.whole_images_])
        self._join()

    def _join(self) -> None:
        """Set the attributes that describe all products together, from those of each product."""
        members, products = self.estimators_, self.products_
        for learnt in ("n_features_in_", "feature_names_in_"):
            if hasattr(members[0], learnt):
                setattr(self, learnt, getattr(members[0], learnt))
            elif hasattr(self, learnt):  # an earlier fit on a table has set the attribute
                delattr(self, learnt)
        self.calibration_scores_ = turned(
            np.concatenate([standardised(turned(m.calibration_scores_), m) for m in members])
        )
        self.calibration_peaks_ = np.concatenate([standardised_map(m.calibration_peaks_, m) for m in members])
        sketches = np.concatenate([m.calibration_sketches_ for m in members])
        sketches[:, 0] = np.concatenate([standardised_map(m.calibration_sketches_[:, 0], m) for m in members])
        self.calibration_sketches_ = sketches
        self.calibration_image_indices_ = np.concatenate(
            [_among(m, indices) for m, indices in zip(members, self.product_image_indices_, strict=True)]
        )
        self.calibration_products_ = np.repeat(products, [len(m.calibration_scores_) for m in members])
        self.calibration_plan_ = "; ".join(dict.fromkeys(m.calibration_plan_ for m in members))
        self.offset_, self.pixel_offset_ = turned(1.0), 1.0
        self.promised_rate_ = max(m.promised_rate_ for m in members)
        self.min_area_ = smallest_area(sketches, 1.0, self.promised_rate_)
        parts = [m.inspection_ for m in members]
        self.inspection_ = None if None in parts else joint_inspection(parts)


def whole_images_of(member: Any, known: WholeImages | None) -> WholeImages:
    """Return the training images of a product's detector as the recognition sees them.

    `recalibrate` replaces the embeddings of a detector by those of its images. Therefore the embeddings of the training
    images are kept apart.

    Parameters
    ----------
    member : PatchDetector
        The fitted detector, after a change.
    known : (array, array, float) or None
        Result of this function before the change. None after a fit.
    """
    held = getattr(member, "training_image_indices_", None)
    if known is None:
        held = np.arange(len(member.embeddings_)) if held is None else held
        return held, member.embeddings_, radius_of(member.embeddings_)
    local, embeddings, radius = known
    if held is None or np.array_equal(held, local):
        return known
    is_left, new = np.isin(local, held), np.setdiff1d(held, local)
    local = np.concatenate([local[is_left], new])
    embeddings = np.concatenate([embeddings[is_left], member.embeddings_[len(member.embeddings_) - len(new) :]])
    return local, embeddings, radius_of(embeddings) if len(embeddings) > 1 else radius


def _of(here: np.ndarray, X: Any, y: Any, groups: Any) -> tuple[tuple[Any, Any], Any]:
    """Return the images with the indices `here` with their labels, and their groups."""
    labels, own_groups = (None if values is None else safe_indexing(values, here) for values in (y, groups))
    return (safe_indexing(X, here), labels), own_groups


def _for_product(product: str, here: np.ndarray | None, run: Callable[[], Any]) -> None:
    """Call `run`. Errors of images name their index among all images, and other errors name the product."""
    try:
        run()
    except ImageError as error:
        index = error.index if here is None else int(here[error.index])
        raise ImageError(error.message, index, error.path) from error
    except ValueError as error:
        raise ValueError(f"product {product!r}: {error}") from error


def _among(member: Any, indices: np.ndarray) -> np.ndarray:
    """Return the index of each calibration image of a product among all images; -1 for images of `recalibrate`."""
    own = member.calibration_image_indices_
    if member.calibration_plan_ == "other good images":
        return np.full(len(own), -1)
    return np.where(own >= 0, indices[own], -1)
