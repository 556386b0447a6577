"""What all samplers share: rows stay rows, seen from those that were selected."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._utils.arrays import describe_beyond, first_beyond, largest_value
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.sklearn import OlderStatesMixin


class SubsetSampler(OlderStatesMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of samplers, whose ``fit`` sets ``components_``: the protocol of a transformer that keeps its rows."""

    components_: np.ndarray

    def _validated_rows(self, X: Any) -> np.ndarray:
        """Return `X` as `fit` takes it: float32 or float64, with values whose squares do not overflow."""
        X = np.asarray(X, np.float32) if getattr(X, "dtype", None) == np.float16 else X
        rows: np.ndarray = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=False)
        refuse_beyond(rows, largest_value(rows.dtype))
        return rows

    @default_modes()
    def transform(self, X: Any) -> np.ndarray:
        """Return distances to the selected rows, as KMeans does to its centres.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Any rows.

        Returns
        -------
        array of shape (n_samples, n_selected)
            Euclidean distances in the original space.
        """
        check_is_fitted(self, "components_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        refuse_beyond(X, largest_value(np.float64))
        distances: np.ndarray = euclidean_distances(X, self.components_)
        return distances

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def refuse_beyond(rows: np.ndarray, limit: float, first_row: int = 0) -> None:
    """Raise a ValueError that names the first value beyond ±`limit`; rows are counted from `first_row`."""
    if (found := first_beyond(rows, limit)) is not None:
        row, column, value = found
        raise ValueError(f"row {first_row + row} of X holds {describe_beyond(value, f'column {column}', limit)}")


def count_of(ratio: float, n_samples: int) -> int:
    """Return how many of `n_samples` rows a `ratio` selects: a share in (0, 1], or an int count.

    Raises
    ------
    ValueError
        If the count is larger than the number of rows.
    """
    if isinstance(ratio, Integral):
        if int(ratio) > n_samples:
            raise ValueError(f"ratio={ratio} rows were asked for, but X has n_samples={n_samples}.")
        return int(ratio)
    # 0.07 * 100 is a little more than 7 in floating point: that alone shall not select an eighth row.
    return max(1, math.ceil(ratio * n_samples - 1e-9))
