"""SubsetSampler, the base class of the samplers, and helpers for checking rows and counting selected rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._utils.arrays import describe_beyond, first_beyond, largest_value
from skpatchcore._utils.diagrams import DocumentationLinkMixin
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.sklearn import OlderStatesMixin


class SubsetSampler(
    DocumentationLinkMixin, OlderStatesMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Base class of samplers: `fit` sets the rows ``components_``, and `transform` returns distances to these rows."""

    random_state: Any
    components_: np.ndarray

    def _new_seed(self) -> int:
        """Return the seed of a fit. `extend` can draw the same or further random numbers from it."""
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _validated_rows(self, X: Any) -> np.ndarray:
        """Return `X` as float32 or float64. Raise a ValueError if the square of a value could overflow."""
        X = np.asarray(X, np.float32) if getattr(X, "dtype", None) == np.float16 else X
        rows: np.ndarray = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=False)
        refuse_beyond(rows, largest_value(rows.dtype))
        return rows

    @default_modes()
    def transform(self, X: Any) -> np.ndarray:
        """Return the distance from each row of `X` to each row of ``components_``.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Rows with as many columns as the rows in `fit`.

        Returns
        -------
        array of shape (n_samples, n_selected)
            Euclidean distances between the original rows, even if `fit` used projected rows.
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
    """Raise a ValueError that names the first NaN or value beyond ±`limit`. The first row has number `first_row`."""
    if (found := first_beyond(rows, limit)) is not None:
        row, column, value = found
        raise ValueError(f"row {first_row + row} of X holds {describe_beyond(value, f'column {column}', limit)}")


def checked_batches(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the batches. Raise a ValueError if a value is NaN, infinite or so large that its square could overflow."""
    limit, n_before = None, 0
    for batch in batches:
        limit = limit or largest_value(batch.dtype)  # the selection uses the dtype of the first batch
        refuse_beyond(batch, limit, n_before)
        yield batch
        n_before += len(batch)


def count_of(ratio: float, n_samples: int) -> int:
    """Return the number of rows that `ratio` selects.

    Parameters
    ----------
    ratio : float or int
        A float in (0, 1] is a fraction of the rows, rounded up to at least one row. An int is the number of rows.
    n_samples : int
        Number of rows to select from.

    Returns
    -------
    int
        Number of selected rows, at most `n_samples`.

    Raises
    ------
    ValueError
        If `ratio` is an int and larger than `n_samples`.
    """
    if isinstance(ratio, Integral):
        if int(ratio) > n_samples:
            raise ValueError(f"ratio={ratio} selects more rows than X has (n_samples={n_samples}): reduce ratio.")
        return int(ratio)
    # In floating point, 0.07 * 100 is slightly larger than 7. The small offset prevents an eighth row.
    return max(1, math.ceil(ratio * n_samples - 1e-9))
