"""Johnson-Lindenstrauss projections: random matrices that reduce the columns and nearly keep the distances."""

from __future__ import annotations

import math

import numpy as np
import torch
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


class ExactProjection:
    """Projection of rows whose result for a row does not depend on the other rows, on the device or on the threads.

    The values of each row and of the matrix are rounded to so few bits that all sums of their products are exact in
    float64.

    Parameters
    ----------
    matrix : array of shape (n_features, n_columns)
        The projection matrix.
    device : torch.device
        Device on which rows are projected.
    """

    def __init__(self, matrix: np.ndarray, device: torch.device):
        # A product has n_bits of the row and n_bits of the matrix. A sum has log2(n_features) bits more.
        n_bits = 52 - math.ceil(math.log2(matrix.shape[0]))
        self._row_bits = (n_bits + 1) // 2
        unit = math.ldexp(1.0, math.frexp(float(np.abs(matrix).max()))[1] - n_bits // 2)
        self._matrix = torch.from_numpy(np.rint(matrix / unit) * unit).to(device)

    def __call__(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Write the projected rows to `out`, of shape (n_rows, n_columns)."""
        if not len(rows):
            return
        # Each row has its own unit, a power of two, so that rows with small values are as precise as others.
        exponents = torch.frexp(rows.abs().amax(1, keepdim=True))[1] - self._row_bits
        powers = exponents.clamp(-1000, 1000).to(torch.float64)
        whole = rows.to(torch.float64, copy=True).mul_(torch.exp2(-powers)).round_()
        torch.mul(whole @ self._matrix, torch.exp2(powers), out=out)
