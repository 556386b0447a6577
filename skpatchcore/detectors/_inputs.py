"""PatchInputs: the base class that validates the images, patch features and labels that a detector is given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from skpatchcore._utils.labels import group_codes, is_nominal
from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore._utils.warning import warn_user
from skpatchcore.images.containers import DatasetImages, ImagesWithRegions, as_image_sequence, listed, n_images_of
from skpatchcore.images.turned import with_turned_views
from skpatchcore.images.turns import Turn
from skpatchcore.patches.stream import as_grids
from skpatchcore.protocols import max_pixels_of, pixel_format_of, reports_views


class PatchInputs:
    """Base class that validates the `X`, `y` and `groups` of a detector on patch features."""

    n_features_in_: int
    training_paths_: list[str] | None

    def _nominal_images(self, X: Any, y: Any, groups: Any, extractor: Any) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """Return the good images, their indices in `X`, and their groups as integers."""
        X = self._validated(X, extractor, reset=True)
        images = X.images if isinstance(X, ImagesWithRegions) else X
        self.training_paths_ = None if extractor is None else _paths_of(images)
        if y is None and len(classes := getattr(images, "classes", ())) > 1:
            raise ValueError(
                f"X is a dataset with the classes {', '.join(classes)}: pass a dataset of good images only, or y with "
                "+1 for good and -1 for anomalous images."
            )
        if y is None and isinstance(images, DatasetImages) and images.has_targets():
            warn_user(
                "X is a dataset of images with targets, which are ignored: fit uses all images as good images. If some "
                "images are not good, pass y with +1 for good and -1 for anomalous images."
            )
        nominal = is_nominal(y, n_images_of(X), is_table=hasattr(self, "n_features_in_"))
        codes = None if groups is None else group_codes(groups, nominal)
        kept = np.flatnonzero(nominal)
        self._keep_numbers(len(nominal), kept, groups)
        return X if nominal.all() else safe_indexing(X, kept), kept, codes

    def _keep_numbers(self, n_images: int, kept: np.ndarray, groups: Any) -> None:
        """Set fitted attributes from the number of images, the indices of the good images and the groups of all."""

    def _validated(self, X: Any, extractor: Any, reset: bool) -> Any:
        """Return `X` as a sequence of images or of grids. Validate a 2-D table with scikit-learn."""
        X = listed(X)
        if isinstance(X, ImagesWithRegions):
            return X.with_images(self._validated(X.images, extractor, reset))
        if extractor is not None:
            if reset and hasattr(self, "n_features_in_"):  # an earlier fit on a table has set the attribute
                del self.n_features_in_
            return as_image_sequence(X) if reports_views(extractor) else X
        grids = as_grids(X)
        if grids is None:
            return validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)
        if reset and hasattr(self, "n_features_in_"):  # an earlier fit on a table has set the attribute
            del self.n_features_in_
        return grids


def turned_training_images(X: Any, turns: Sequence[Turn], extractor: Any) -> Any:
    """Return training images followed by their turned views.

    Raises
    ------
    ValueError
        If `X` consists of patch features, the extractor does not report views, or turned images would be stretched to
        other proportions.
    """
    if extractor is None or not reports_views(extractor):
        kind = "precomputed features" if extractor is None else f"a {type(extractor).__name__}"
        raise ValueError(
            f"augment needs images and an extractor that reports views, such as TorchFeatureExtractor, and not {kind}. "
            "Pass augment=None."
        )
    if any(turn.quarters % 2 for turn in turns):
        for name in ("image_size", "crop_size"):
            size = getattr(extractor, name, None)
            if isinstance(size, tuple | list) and size[0] != size[1]:
                raise ValueError(
                    f"augment turns images by 90 degrees, and {name}={size} would give turned images other "
                    f"proportions. Pass an int or equal sides as {name} of the extractor, or augment='flips'."
                )
    return with_turned_views(X, turns, pixel_format_of(extractor), max_pixels_of(extractor))


def _paths_of(images: Any) -> list[str] | None:
    """Return the absolute paths of images; None if they are not all given as paths."""
    if getattr(images, "ndim", None) == 1:  # a column, for an extractor of the user's
        images = images.tolist()
    # Other sequences read an image when an item is asked for.
    if not isinstance(images, list | tuple) or not all(isinstance(image, str | os.PathLike) for image in images):
        return None
    return [os.path.abspath(os.fsdecode(image)) for image in images]
