"""ExactIndex: exact nearest-neighbour search in the memory bank, on the CPU or on CUDA."""

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
from skpatchcore._utils.diagrams import DocumentationLinkMixin
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.sklearn import OlderStatesMixin, StrOptions, fit_context
from skpatchcore._utils.threads import SMALL_PRODUCT, one_thread
from skpatchcore.index import _bounded
from skpatchcore.index._bounded import BoundedBank
from skpatchcore.index._device_bank import DeviceBank
from skpatchcore.index._far import nearest_of_far

# Searchers derived from banks. Each is kept as long as its bank, and never pickled.
_searchers = DerivedCache()
# Smallest number of multiplications per pair if bounds are used.
_N_BOUND = 32

# Time of a search by bounds, relative to the time of its first product (approximate).
_OTHER_WORK = 20


class ExactIndex(DocumentationLinkMixin, OlderStatesMixin, BaseEstimator):
    """Exact nearest-neighbour search in the memory bank.

    The rows of the memory bank are stored patch features. A query is a patch feature for which the index finds the
    nearest row. The results are the same as if the distances from each query to all rows were computed.

    On the CPU, a small matrix product computes a lower bound for the distance of each query from each row. A row is
    skipped if its lower bound is larger than the distance of another row, because it cannot be the nearest row. Most
    rows are skipped. The true distances are computed only for the remaining rows. The data for the lower bounds are
    computed from the bank at the first search in each operating system process. This takes about a second for 16,000
    rows of 1,536 columns.

    On CUDA, a matrix product computes all distances, with rounding errors. The rows with the smallest values are the
    candidates for each query. The distances of the candidates are then computed precisely: as the length of the
    difference between the query and the row.

    Parameters
    ----------
    device : str, default="auto"
        Device of the searches. ``"auto"`` uses CUDA if it is available, otherwise the CPU. If the index was fitted on
        CUDA and CUDA is not available, searches run on the CPU and warn.
    storage : {"float16"} or None, default=None
        Data type in which the bank is stored. ``"float16"`` rounds the values of the bank to float16. This rounding
        halves the size of a float32 bank in files, and in memory (RAM) until the first search. It changes distances by
        about one part in ten thousand. The first search makes a float32 copy of a float16 bank, which stays in memory.
        None stores float32 and float64 arrays unchanged. Searches compute in at least float32 in both cases.

    Attributes
    ----------
    n_samples_fit_ : int
        Number of rows of the bank.
    n_features_in_ : int
        Number of columns of the bank.
    feature_names_in_ : array of str
        Names of the columns of the bank, if the bank has column names.

    See Also
    --------
    PyNNDescentIndex : Approximate search for very large banks.

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
        """Store the bank.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Rows of the bank. A C-contiguous float32 or float64 array is stored without a copy. Values of other types,
            e.g. integers, are converted to float64.
        y : ignored
            Present for API consistency.

        Returns
        -------
        ExactIndex
            The fitted index.

        Raises
        ------
        ValueError
            If `X` contains NaN, infinity or values beyond ±1e150; if ``storage="float16"`` and `X` contains values
            beyond ±65504, the largest float16 value; or if the device is not available.
        """
        require_device(self.device)
        with np.errstate(over="ignore", invalid="ignore"):  # sums of huge values may overflow during validation
            X = validate_data(self, X, dtype=[np.float64, np.float32], order="C")
        limit = largest_value(np.float64)
        if (found := first_beyond(X, limit)) is not None:
            row, column, value = found
            raise ValueError(f"row {row} of X holds {describe_beyond(value, f'column {column}', limit)}")
        if self.storage == "float16":
            largest = max(float(X.max()), -float(X.min()))
            if largest > float(np.finfo(np.float16).max):
                raise ValueError(
                    f"storage='float16' holds values up to 65504, but the bank has {largest:g}: use storage=None."
                )
            X = X.astype(np.float16)
        self._fit_X = X
        self.n_samples_fit_ = len(self._fit_X)
        return self

    @default_modes()
    def kneighbors(
        self, X: Any, n_neighbors: int = 1, return_distance: bool = True, *, exclude: Any = None
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Return the nearest rows of the bank for each query.

        Parameters
        ----------
        X : array of shape (n_queries, n_features)
            The queries.
        n_neighbors : int, default=1
            Number of rows to return per query.
        return_distance : bool, default=True
            Whether to return the distances. If False, only the indices are returned.
        exclude : array of int or None, default=None
            Indices of rows of the bank that are not searched, for all queries. Leave-one-out calibration excludes the
            rows that come from the calibration image. None searches all rows.

        Returns
        -------
        distances : array of shape (n_queries, n_neighbors), float64
            Euclidean distances, ascending. Returned only if `return_distance` is True.
        indices : array of shape (n_queries, n_neighbors), int64
            Indices of the nearest rows of the bank. Rows at the same distance are sorted by index, lowest first. On the
            CPU, there is one exception: rows with equal values come directly after the first of them, even if a row
            with other values has the same distance and an index between the indices of the equal rows.

        Raises
        ------
        ValueError
            If `n_neighbors` is less than 1 or larger than the number of rows that are not excluded, if `X` and the bank
            differ in their number of columns, or if `X` contains NaN or infinity.
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
        """Return the distances and indices of the nearest rows. Queries with huge values are searched separately."""
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
        """Return, for each group of queries, the query that has the largest distance to its nearest row.

        In PatchCore, a group contains the patch features of one image. The returned query of a group is then the most
        anomalous patch of the image (Equation 6 of the PatchCore paper). `kneighbors` would return the nearest row of
        every query. This method is faster, because it skips most queries after a cheap test.

        Parameters
        ----------
        X : array of shape (n_queries, n_features)
            The queries, group after group.
        starts : array of shape (n_groups + 1,), int64
            Index in `X` of the first query of each group. The last item of `starts` is the total number of queries. No
            group may be empty.
        exclude : array of int or None, default=None
            Indices of rows of the bank that are not searched. None searches all rows.

        Returns
        -------
        queries : array of shape (n_groups,), int64
            Index in `X` of the query with the largest distance, for each group. If several queries of a group have the
            largest distance, the index of the first of these queries is returned.
        distances : array of shape (n_groups,), float64
            Euclidean distance from the returned query to its nearest row of the bank.
        indices : array of shape (n_groups,), int64
            Index of the row of the bank that is nearest to the returned query.

        Raises
        ------
        ValueError
            If all rows of the bank are excluded, if `X` and the bank differ in their number of columns, or if `X`
            contains NaN or infinity.
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
        """Return the indices of queries with values so large that their squared distances would overflow."""
        if not queries.numel():
            return np.zeros(0, np.int64)
        low, high = torch.aminmax(queries)
        if bool((low >= -searcher.limit) & (high <= searcher.limit)):
            return np.zeros(0, np.int64)
        return torch.nonzero((queries.abs() > searcher.limit).any(1))[:, 0].cpu().numpy()

    @property
    def stored_rows(self) -> np.ndarray:
        """Rows of the bank as stored, rounded if ``storage="float16"``."""
        check_is_fitted(self)
        rows: np.ndarray = self._fit_X
        return rows

    def _is_small(self, n_queries: int) -> bool:
        """Return whether a search of `n_queries` queries is so small that it should run on one thread."""
        n_features = self._fit_X.shape[1]
        if self._fit_X.size > _bounded.N_SMALL:  # bounds need fewer multiplications and skip most pairs
            n_features = min(n_features, _N_BOUND)
            return bool(n_queries * len(self._fit_X) * n_features < SMALL_PRODUCT / _OTHER_WORK)
        return bool(n_queries * len(self._fit_X) * n_features < SMALL_PRODUCT)

    def _is_huge(self) -> bool:
        """Return whether squared distances in a float32 bank would overflow float32."""
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
        """Return the searcher of the bank on the device, the queries on the device, and the excluded row indices."""
        check_is_fitted(self)
        dtype = np.promote_types(self._fit_X.dtype, np.float32)
        if dtype == np.float32 and self._is_huge():  # the squares of such a bank are finite in float64
            dtype = np.dtype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            X = validate_data(self, X, dtype=dtype, reset=False)
        excluded = None if exclude is None else np.unique(np.arange(len(self._fit_X))[np.asarray(exclude, np.int64)])
        n_counting = len(self._fit_X) - (0 if excluded is None else len(excluded))
        if n_neighbors > n_counting:
            raise ValueError(
                f"n_neighbors={n_neighbors} is too large: only {n_counting} rows of the bank can be returned. "
                "Reduce n_neighbors or exclude fewer rows."
            )
        device = available_device(self.device)
        make = BoundedBank if device.type == "cpu" else DeviceBank
        searcher = _searchers.get(
            self, self._fit_X, device.type, lambda bank: make(as_tensor(bank.astype(dtype, copy=False), device))
        )
        return searcher, as_tensor(X, device), excluded
