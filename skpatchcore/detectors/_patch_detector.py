"""What detectors share that look at images as patch features: what they take, and what they need for a threshold."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import get_tags
from sklearn.utils.validation import validate_data

from skpatchcore._utils.labels import group_codes, is_nominal
from skpatchcore._utils.sklearn import HasMethods, Interval, RealNotInt, StrOptions, safe_indexing
from skpatchcore.detectors._image_detector import ImageOutlierMixin
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.images.reading import as_image_sequence
from skpatchcore.patches.stream import PatchStream, as_grids, n_images_of


class PatchOutlierMixin(ImageOutlierMixin):
    """An `ImageOutlierMixin` whose scores come from patch features.

    The detector has the parameters of ``_parameter_constraints``, and after `fit` an ``extractor_``.
    """

    _parameter_constraints: dict[str, Any] = {
        "extractor": [HasMethods(["fit", "transform"]), StrOptions({"precomputed"}), None],
        "contamination": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"})],
        "calibration": [
            StrOptions({"leave-one-out"}),
            Interval(RealNotInt, 0, 1, closed="neither"),
            Interval(Integral, 2, None, closed="left"),
            HasMethods(["split", "get_n_splits"]),
            None,
        ],
        "smoothing": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    extractor: Any
    extractor_: Any
    calibration: Any
    verbose: int

    def _stream(self, X: Any, with_views: bool) -> PatchStream:
        X = self._validated(X, self.extractor_, reset=False)
        return PatchStream(self.extractor_, X, with_views=with_views, description="scoring", verbose=self.verbose)

    def _nominal_images(self, X: Any, y: Any, groups: Any, extractor: Any) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """Return the images to learn from, their numbers in `X`, and their groups as integers."""
        X = self._validated(X, extractor, reset=True)
        nominal = is_nominal(y, n_images_of(X))
        codes = None if groups is None else group_codes(groups, nominal)
        kept = np.flatnonzero(nominal)
        return X if nominal.all() else safe_indexing(X, kept), kept, codes

    def _validated(self, X: Any, extractor: Any, reset: bool) -> Any:
        """Return `X` as a sequence of images or of grids; a table of one patch an image as scikit-learn checks it."""
        if extractor is not None:
            return as_image_sequence(X) if hasattr(extractor, "iter_transform") else X
        grids = as_grids(X)
        if grids is None:
            return validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)
        if reset and hasattr(self, "n_features_in_"):  # left by an earlier fit on a table
            del self.n_features_in_
        return grids

    def _require_scores_of_training_images(self) -> None:
        if self.calibration is None or isinstance(self.calibration, float):
            raise ValueError(
                f"calibration={self.calibration} has no threshold, or no scores of images that were learnt from, to "
                "judge the training images by: choose 'leave-one-out' or a number of folds."
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.extractor != "precomputed":
            extractor = TorchFeatureExtractor() if self.extractor is None else self.extractor
            tags.input_tags = get_tags(extractor).input_tags
        return tags
