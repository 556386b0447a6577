"""Johnson-Lindenstrauss projections: random matrices that reduce the columns and nearly keep the distances."""

from __future__ import annotations

import numpy as np
from sklearn.random_projection import johnson_lindenstrauss_min_dim

# Relative distortion of squared distances that n_projections="auto" allows. It is close to the limit of 1 of the
# lemma's formula, because a coreset needs only rough distances.
_AUTO_EPS = 0.9


def gaussian_projection(n_features: int, n_projections: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw a Gaussian random matrix that keeps squared Euclidean distances in expectation.

    Parameters
    ----------
    n_features : int
        Number of columns of the data.
    n_projections : int
        Number of columns after the projection.
    rng : numpy.random.RandomState
        Source of the entries. A numpy generator draws the same matrix for every device.

    Returns
    -------
    array of shape (n_features, n_projections), float64
        Independent normal entries with mean 0 and variance ``1 / n_projections``. ``X @ result`` is the projection.

    References
    ----------
    Dasgupta and Gupta, "An elementary proof of a theorem of Johnson and Lindenstrauss", 2003.
    """
    matrix: np.ndarray = rng.standard_normal((n_features, n_projections)) / np.sqrt(n_projections)
    return matrix


def sparse_projection(n_features: int, n_projections: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw a very sparse random matrix that keeps squared Euclidean distances in expectation.

    Parameters
    ----------
    n_features, n_projections, rng
        See :func:`gaussian_projection`.

    Returns
    -------
    array of shape (n_features, n_projections), float64
        Each column has about ``sqrt(n_features)`` nonzero entries. Each nonzero entry is plus or minus
        ``sqrt(sqrt(n_features) / n_projections)``. The matrix is stored as a dense array.

    References
    ----------
    Li, Hastie and Church, "Very sparse random projections", KDD 2006.
    """
    # An entry is positive with probability 0.5 / s, negative with probability 0.5 / s, and zero otherwise.
    s = np.sqrt(n_features)
    draws = rng.random_sample((n_features, n_projections))
    signs = (draws < 0.5 / s).astype(float) - (draws > 1 - 0.5 / s)
    matrix: np.ndarray = signs * np.sqrt(s / n_projections)
    return matrix


def lemma_projections(n_samples: int, n_features: int) -> int:
    """Return the number of projections that the Johnson-Lindenstrauss lemma requires, at most `n_features`."""
    if n_samples == 1:
        return n_features
    return min(n_features, int(johnson_lindenstrauss_min_dim(n_samples, eps=_AUTO_EPS)))
