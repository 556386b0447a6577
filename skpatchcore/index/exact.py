"""ExactIndex: exact nearest-neighbour search in torch."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._device import as_tensor, available_device, device_copy, require_device
from skpatchcore._sklearn import fit_context

# Bytes of distances held at once.
_CHUNK_BYTES = 1 << 26
# Rows of the bank that are looked at together when it is fitted.
_BLOCK = 4096
# Runners-up measured beside the winners of the matrix product: its rounding may have put the true winner among them.
_N_SPARE = 4


def nearest_rows(
    queries: torch.Tensor,
    bank: torch.Tensor,
    center: torch.Tensor,
    norms: torch.Tensor,
    n_neighbors: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest rows of a bank by matrix products, and measure their distances by differences.

    Parameters
    ----------
    queries : tensor of shape (n_queries, n_features)
        The rows whose neighbours are sought.
    bank : tensor of shape (n_bank, n_features)
        The rows to choose from.
    center : tensor of shape (n_features,)
        A point amid the bank, such as its mean.
    norms : tensor of shape (n_bank,)
        Squared distance of each row of the bank from `center`; infinite for rows that don't count.
    n_neighbors : int
        How many, at most the number of rows that count.

    Returns
    -------
    distances : tensor of shape (n_queries, n_neighbors), float64
        Euclidean, ascending.
    indices : tensor of shape (n_queries, n_neighbors), int64
        Rows of the bank; of equal distances the lower index comes first.

    Notes
    -----
    With everything seen from `center`, ``|q - b|² = |q|² + |b|² - 2 q·b``: one matrix product, and ``|q|²`` changes
    nothing about who is nearest; nor does taking ``b`` unshifted in the product, which needs no shifted copy of the
    bank. But the sum cancels, and what is left near zero is rounding, which changes with the
    shape of the batch. So the product only nominates a few more candidates than are needed.
    """
    n_candidates = min(n_neighbors + _N_SPARE, int(torch.isfinite(norms).sum()))
    distances = queries.new_empty((len(queries), n_neighbors), dtype=torch.float64)
    indices = torch.empty((len(queries), n_neighbors), dtype=torch.int64, device=queries.device)
    # Neither the distances to the whole bank nor the candidates' rows shall outgrow the budget.
    row_bytes = queries.element_size() * max(len(bank), 2 * n_candidates * bank.shape[1])
    chunk = max(1, _CHUNK_BYTES // row_bytes)
    for i in range(0, len(queries), chunk):
        part = queries[i : i + chunk]
        nominated = torch.addmm(norms, part - center, bank.T, alpha=-2).topk(n_candidates, largest=False).indices
        nominated = nominated.sort(dim=1).values
        squares = (bank[nominated] - part[:, None]).square_().sum(2, dtype=torch.float64)
        squares, order = squares.sort(dim=1, stable=True)
        distances[i : i + chunk] = squares[:, :n_neighbors].sqrt()
        indices[i : i + chunk] = nominated.gather(1, order[:, :n_neighbors])
    return distances, indices


class ExactIndex(BaseEstimator):
    """Exact nearest rows of the memory bank, by blocked matrix products.

    Parameters
    ----------
    device : str, default="auto"
        ``"auto"`` is CUDA where there is one, else the CPU. An index fitted on CUDA searches on the CPU, with a
        warning, where there is none.

    Attributes
    ----------
    n_samples_fit_ : int
        Rows of the bank.
    n_features_in_ : int
        Columns of the bank.
    feature_names_in_ : array of str
        Names of the columns, where the bank had them.

    See Also
    --------
    PyNNDescentIndex : Approximate search, for very large banks.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import ExactIndex
    >>> index = ExactIndex().fit(np.array([[0.0, 0.0], [3.0, 4.0]]))
    >>> index.kneighbors(np.array([[0.0, 1.0]]), n_neighbors=1)
    (array([[1.]]), array([[0]]))
    """

    _parameter_constraints: dict = {"device": [str]}

    def __init__(self, *, device: str = "auto"):
        self.device = device

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> ExactIndex:
        """Keep the bank.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            The rows; float32 is kept as it is, without a copy, anything else becomes float64.
        y : ignored
            Present by convention.

        Returns
        -------
        ExactIndex
            Itself.

        Raises
        ------
        ValueError
            If `X` holds NaN or infinity, or the device is absent.
        """
        require_device(self.device)
        X = validate_data(self, X, dtype=[np.float64, np.float32], order="C")
        self._fit_X = X
        self._center = X.mean(0, dtype=np.float64).astype(X.dtype)
        self._norms = np.empty(len(X), X.dtype)
        for i in range(0, len(X), _BLOCK):  # in parts: no shifted copy of the bank
            shifted = X[i : i + _BLOCK] - self._center
            self._norms[i : i + _BLOCK] = np.einsum("ij,ij->i", shifted, shifted)
        self.n_samples_fit_ = len(X)
        return self

    def kneighbors(
        self, X: Any, n_neighbors: int = 1, return_distance: bool = True, *, exclude: Any = None
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Return the nearest rows of the bank.

        Parameters
        ----------
        X : array of shape (n_queries, n_features)
            The rows whose neighbours are sought.
        n_neighbors : int, default=1
            How many for each.
        return_distance : bool, default=True
            False returns the indices alone.
        exclude : array of int or None, default=None
            Rows of the bank that don't count, for all queries: the leave-one-out of calibration.

        Returns
        -------
        distances : array of shape (n_queries, n_neighbors), float64
            Euclidean, ascending; only with `return_distance`.
        indices : array of shape (n_queries, n_neighbors), int64
            Rows of the bank.

        Raises
        ------
        ValueError
            If fewer than `n_neighbors` rows of the bank count, or `X` does not fit the bank.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=self._fit_X.dtype, reset=False)
        if not isinstance(n_neighbors, Integral) or n_neighbors < 1:
            raise ValueError(f"n_neighbors={n_neighbors!r}: expected an int of at least 1.")
        norms = self._norms
        if exclude is not None:
            excluded = np.asarray(exclude)
            norms = norms.copy()
            if excluded.size:
                norms[excluded] = np.inf
        n_counting = int(np.isfinite(norms).sum())
        if n_neighbors > n_counting:
            raise ValueError(f"n_neighbors={n_neighbors} were asked for, but only {n_counting} rows of the bank count.")
        device = available_device(self.device)
        distances, indices = nearest_rows(
            as_tensor(X, device),
            device_copy(self._fit_X, device),
            as_tensor(self._center, device),
            as_tensor(norms, device),
            n_neighbors,
        )
        found = distances.cpu().numpy(), indices.cpu().numpy()
        return found if return_distance else found[1]
