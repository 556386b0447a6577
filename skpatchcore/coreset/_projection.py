"""Johnson-Lindenstrauss projection: fewer columns, nearly the same distances."""

from __future__ import annotations

import numpy as np
from sklearn.random_projection import johnson_lindenstrauss_min_dim

# Distortion that "auto" allows for, as large as the lemma's formula is good for: a coreset needs distances roughly.
_AUTO_EPS = 0.9


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
    matrix: np.ndarray = rng.standard_normal((n_features, n_projections)) / np.sqrt(n_projections)
    return matrix


def sparse_projection(n_features: int, n_projections: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw a very sparse random matrix that keeps Euclidean distances in expectation.

    Parameters
    ----------
    n_features, n_projections, rng
        As for :func:`gaussian_projection`.

    Returns
    -------
    array of shape (n_features, n_projections), float64
        Zero but for about ``sqrt(n_features)`` entries a column, which are plus or minus
        ``sqrt(sqrt(n_features) / n_projections)``.

    References
    ----------
    Li, Hastie and Church, "Very sparse random projections", KDD 2006.
    """
    s = np.sqrt(n_features)
    draws = rng.random_sample((n_features, n_projections))
    signs = (draws < 0.5 / s).astype(float) - (draws > 1 - 0.5 / s)
    matrix: np.ndarray = signs * np.sqrt(s / n_projections)
    return matrix


def lemma_projections(n_samples: int, n_features: int) -> int:
    """Return as many projections as the Johnson-Lindenstrauss lemma asks for, and no more than there are columns."""
    if n_samples == 1:
        return n_features
    return min(n_features, int(johnson_lindenstrauss_min_dim(n_samples, eps=_AUTO_EPS)))
