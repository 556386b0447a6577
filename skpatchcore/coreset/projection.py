"""Johnson-Lindenstrauss projection: fewer columns, nearly the same distances."""

from __future__ import annotations

import numpy as np


def gaussian_projection(n_features: int, n_projections: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw a random matrix that keeps Euclidean distances in expectation.

    Parameters
    ----------
    n_features : int
        Columns of the data.
    n_projections : int
        Columns after the projection.
    rng : numpy.random.RandomState
        Source of the entries; numpy's, so that every device sees the same matrix.

    Returns
    -------
    array of shape (n_features, n_projections), float64
        Independent normal entries with variance ``1 / n_projections``: ``X @ result`` is the projection.

    References
    ----------
    Dasgupta and Gupta, "An elementary proof of a theorem of Johnson and Lindenstrauss", 2003.
    """
    return rng.standard_normal((n_features, n_projections)) / np.sqrt(n_projections)
