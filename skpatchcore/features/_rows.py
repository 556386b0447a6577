"""RowTransformer: the base class of the transformers of patch features, and their product with a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import validate_data

from skpatchcore._utils.arrays import as_tensor
from skpatchcore._utils.diagrams import DocumentationLinkMixin
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.sklearn import OlderStatesMixin

# All matrix products have this number of rows, and a number of columns that is a multiple of this number. Libraries sum
# in another order if a few columns are left over, or if the number of rows differs. With equal products, a row has the
# same result in each batch.
_N_ROWS = 256
_N_COLUMNS = 16
# Number of rows whose sums are computed at once in float64.
_N_SUMMED = 4096


class RowTransformer(DocumentationLinkMixin, OlderStatesMixin, TransformerMixin, BaseEstimator):
    """Base class of transformers of rows that are fitted from sums over rows, which arrive in one or several parts."""

    n_samples_seen_: int

    def _sums_begun(self) -> bool:
        return hasattr(self, "n_samples_seen_")

    def _validated(self, X: Any, reset: bool) -> np.ndarray:
        """Return `X` as a float32 or float64 matrix."""
        rows: np.ndarray = validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)
        return rows

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def summed_parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield parts of a matrix in float64."""
    for start in range(0, len(rows), _N_SUMMED):
        yield rows[start : start + _N_SUMMED].astype(np.float64)


@default_modes()
def product(rows: np.ndarray, mean: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return ``(rows - mean) @ matrix`` in the dtype of `rows`. The result for a row does not depend on other rows.

    Parameters
    ----------
    rows : array of shape (n_rows, n_features), float32 or float64
        The rows.
    mean : array of shape (n_features,)
        Vector that is subtracted from each row.
    matrix : array of shape (n_features, n_columns)
        The matrix.

    Returns
    -------
    array of shape (n_rows, n_columns)
    """
    n_columns = matrix.shape[1]
    found = np.empty((len(rows), n_columns), rows.dtype)
    mean, cpu = mean.astype(rows.dtype), torch.device("cpu")
    padded = np.zeros((matrix.shape[0], -(-n_columns // _N_COLUMNS) * _N_COLUMNS), rows.dtype)
    padded[:, :n_columns] = matrix
    factor = as_tensor(padded, cpu)
    block = np.zeros((_N_ROWS, rows.shape[1]), rows.dtype)
    for start in range(0, len(rows), _N_ROWS):
        some = rows[start : start + _N_ROWS]
        np.subtract(some, mean, out=block[: len(some)])
        found[start : start + len(some)] = (as_tensor(block, cpu) @ factor)[: len(some), :n_columns].numpy()
    return found
