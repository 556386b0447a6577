"""ExactIndex: exact nearest-neighbour search in torch."""

from __future__ import annotations

from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._utils.arrays import as_tensor, describe_beyond, exceeds, first_beyond, largest_value
from skpatchcore._utils.derived import DerivedCache
from skpatchcore._utils.device import available_device, require_device
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.sklearn import OlderStatesMixin, StrOptions, fit_context
from skpatchcore._utils.threads import SMALL_PRODUCT, one_thread
from skpatchcore.index import _bounded
from skpatchcore.index._bounded import BoundedBank
from skpatchcore.index._device_bank import DeviceBank
from skpatchcore.index._far import nearest_of_far

# What is derived from banks, for as long as they live: never in a pickle.
_searchers = DerivedCache()
# Products for each pair where bounds are used, at least.
_N_BOUND = 32

# A search by bounds takes about this many times as long as its first product.
_OTHER_WORK = 20


class ExactIndex(OlderStatesMixin, BaseEstimator):
    """Exact nearest rows of the memory bank.

    On the CPU, lower bounds from a thin matrix product rule out most rows; only the others are compared in full. What
    that takes is derived from the bank when it is first searched in a process: a second or so for 16 thousand rows of
    1,536 columns. On CUDA, where
    the full product is fast, blocks of it nominate a few rows each, whose distances are then measured by differences.

    Parameters
    ----------
    device : str, default="auto"
        ``"auto"`` is CUDA where there is one, else the CPU. An index fitted on CUDA searches on the CPU, with a
        warning, where there is none.
    storage : {"float16"} or None, default=None
        ``"float16"`` rounds the bank, which halves it in memory between searches and in files; distances change by
        about one part in ten thousand. None keeps it as it is. Searches work in float32 either way.

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

    _parameter_constraints: dict[str, Any] = {"device": [str], "storage": [StrOptions({"float16"}), None]}

    def __init__(self, *, device: str = "auto", storage: str | None = None):
        self.device = device
        self.storage = storage

    @fit_context(prefer_skip_nested_validation=True)
    @default_modes()
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
            If `X` holds NaN, infinity, values beyond ±1e150 or, with that storage, values too large for float16, or if
            the device is absent.
        """
        require_device(self.device)
        with np.errstate(over="ignore", invalid="ignore"):  # of sums, where values are huge
            X = validate_data(self, X, dtype=[np.float64, np.float32], order="C")
        limit = largest_value(np.float64)
        if (found := first_beyond(X, limit)) is not None:
            row, column, value = found
            raise ValueError(f"row {row} of X holds {describe_beyond(value, f'column {column}', limit)}")
        if self.storage == "float16":
            largest = max(float(X.max()), -float(X.min()))
            if largest > float(np.finfo(np.float16).max):
                raise ValueError(f"storage='float16' holds values up to 65504, but the bank has {largest:g}.")
            X = X.astype(np.float16)
        self._fit_X = X
        self.n_samples_fit_ = len(self._fit_X)
        return self

    @default_modes()
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
            Rows of the bank; of equal distances the lower index comes first, its copies after it.

        Raises
        ------
        ValueError
            If fewer than `n_neighbors` rows of the bank count, or `X` does not fit the bank.
        """
        if not isinstance(n_neighbors, Integral) or n_neighbors < 1:
            raise ValueError(f"n_neighbors={n_neighbors!r}: expected an int of at least 1.")
        searcher, queries, excluded = self._prepared(X, int(n_neighbors), exclude)
        with one_thread(self._is_small(len(queries))):
            found = self._nearest(searcher, queries, int(n_neighbors), excluded)
        return found if return_distance else found[1]

    def _nearest(
        self, searcher: BoundedBank | DeviceBank, queries: torch.Tensor, n_neighbors: int, excluded: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        far = self._far(searcher, queries)
        if not len(far):
            return searcher.kneighbors(queries, n_neighbors, excluded)
        near = np.setdiff1d(np.arange(len(queries)), far)
        distances, indices = np.empty((len(queries), n_neighbors)), np.empty((len(queries), n_neighbors), np.int64)
        if len(near):
            some = queries[torch.from_numpy(near).to(queries.device)]
            distances[near], indices[near] = searcher.kneighbors(some, n_neighbors, excluded)
        some = queries[torch.from_numpy(far).to(queries.device)]
        distances[far], indices[far] = nearest_of_far(self._fit_X, some.cpu().numpy(), n_neighbors, excluded)
        return distances, indices

    @default_modes()
    def farthest(self, X: Any, starts: np.ndarray, *, exclude: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, of each group of queries, the one whose nearest row of the bank is farthest (Eq. 6).

        The same as the largest distance that `kneighbors` finds for the group, in less time: most queries are ruled
        out before their nearest row is known.

        Parameters
        ----------
        X : array of shape (n_queries, n_features)
            The queries, group after group: the patches of images.
        starts : array of shape (n_groups + 1,), int64
            Where each group begins, and at last the number of queries; no group is empty.
        exclude : array of int or None, default=None
            Rows of the bank that don't count.

        Returns
        -------
        queries : array of shape (n_groups,), int64
            Which; of equal distances the first.
        distances : array of shape (n_groups,), float64
            Euclidean distance from the nearest row of the bank.
        indices : array of shape (n_groups,), int64
            That row.

        Raises
        ------
        ValueError
            If no row of the bank counts, or `X` does not fit the bank.
        """
        starts = np.asarray(starts)
        searcher, queries, excluded = self._prepared(X, 1, exclude)
        if not len(self._far(searcher, queries)):
            with one_thread(self._is_small(len(queries))):
                return searcher.farthest(queries, starts, excluded)
        distances, indices = (found[:, 0] for found in self.kneighbors(X, 1, exclude=exclude))
        tops = np.array([start + distances[start:stop].argmax() for start, stop in pairwise(starts)])
        return tops, distances[tops], indices[tops]

    @staticmethod
    def _far(searcher: BoundedBank | DeviceBank, queries: torch.Tensor) -> np.ndarray:
        """Return the queries whose squared distances would overflow."""
        if not queries.numel():
            return np.zeros(0, np.int64)
        low, high = torch.aminmax(queries)
        if bool((low >= -searcher.limit) & (high <= searcher.limit)):
            return np.zeros(0, np.int64)
        return torch.nonzero((queries.abs() > searcher.limit).any(1))[:, 0].cpu().numpy()

    @property
    def stored_rows(self) -> np.ndarray:
        """The bank as it is kept."""
        check_is_fitted(self)
        rows: np.ndarray = self._fit_X
        return rows

    def _is_small(self, n_queries: int) -> bool:
        n_features = self._fit_X.shape[1]
        if self._fit_X.size > _bounded._N_SMALL:  # bounds take fewer products, and rule out most pairs
            n_features = min(n_features, _N_BOUND)
            return bool(n_queries * len(self._fit_X) * n_features < SMALL_PRODUCT / _OTHER_WORK)
        return bool(n_queries * len(self._fit_X) * n_features < SMALL_PRODUCT)

    def _is_huge(self) -> bool:
        is_huge: bool = _searchers.get(
            self,
            self._fit_X,
            "is huge",
            lambda bank: bank.dtype == np.float32 and exceeds(bank, largest_value(np.float32)),
        )
        return is_huge

    def _prepared(
        self, X: Any, n_neighbors: int, exclude: Any
    ) -> tuple[BoundedBank | DeviceBank, torch.Tensor, np.ndarray | None]:
        """Return the bank on the device, the queries there, and in order the rows that don't count."""
        check_is_fitted(self)
        dtype = np.promote_types(self._fit_X.dtype, np.float32)
        if dtype == np.float32 and self._is_huge():  # its squares are finite in float64
            dtype = np.dtype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            X = validate_data(self, X, dtype=dtype, reset=False)
        excluded = None if exclude is None else np.arange(len(self._fit_X))[np.unique(np.asarray(exclude, np.int64))]
        n_counting = len(self._fit_X) - (0 if excluded is None else len(excluded))
        if n_neighbors > n_counting:
            raise ValueError(f"n_neighbors={n_neighbors} were asked for, but only {n_counting} rows of the bank count.")
        device = available_device(self.device)
        make = BoundedBank if device.type == "cpu" else DeviceBank
        searcher = _searchers.get(
            self, self._fit_X, device.type, lambda bank: make(as_tensor(bank.astype(dtype, copy=False), device))
        )
        return searcher, as_tensor(X, device), excluded
