"""PyNNDescentIndex: approximate nearest-neighbour search on a graph, for very large memory banks."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._utils.arrays import as_tensor, describe_beyond, first_beyond, largest_value
from skpatchcore._utils.derived import DerivedCache
from skpatchcore._utils.diagrams import DocumentationLinkMixin
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.sklearn import Interval, OlderStatesMixin, fit_context
from skpatchcore.index._copies import Copies

# Graphs per process, derived from banks. Graphs contain compiled functions, and a pickled graph may not load after an
# upgrade of numba. Therefore graphs are never pickled.
_graphs = DerivedCache()
# Number of additional neighbours that the graph search returns. All candidates are then ranked by exact distances.
_N_SPARE = 4


@dataclass(frozen=True)
class _Graph:
    """Search structures derived from a bank.

    Attributes
    ----------
    rows : array of shape (n_distinct, n_features), float32
        Distinct rows of the bank. The graph contains only distinct rows, because the edges of many equal rows would
        lead only to rows with equal values.
    copies : Copies or None
        Map between the distinct rows and all rows of the bank. None if all rows of the bank are distinct.
    searcher : NNDescent or None
        Graph of the distinct rows. None if there are too few rows for a graph.
    lock : lock
        Lock that is held during a search, because searches write to buffers of the searcher.
    """

    rows: np.ndarray
    copies: Copies | None
    searcher: Any
    lock: threading.Lock


class PyNNDescentIndex(DocumentationLinkMixin, OlderStatesMixin, BaseEstimator):
    """Approximate nearest-neighbour search in the memory bank by nearest-neighbour descent.

    The rows of the memory bank are the nodes of a graph, and each row is linked to rows near it. A search for the rows
    nearest to a query (a patch feature) follows these links. The search misses the true nearest row for some queries:
    3-11 % on real patch features with the default parameters. The search then returns a slightly farther row. The
    returned distances are the exact distances to the returned rows. Building the graph takes time, and compiling the
    search code takes seconds once per process. Prefer :class:`ExactIndex` unless the bank is very large.

    Parameters
    ----------
    n_neighbors : int, default=30
        Number of edges of the graph per row. More edges give a higher recall and a slower construction.
    epsilon : float, default=0.1
        The search also continues at rows that are up to ``1 + epsilon`` times as far from the query as the farthest of
        the best rows found so far. A larger value gives a higher recall and a slower search.
    n_jobs : int or None, default=None
        Number of threads that build the graph. None means 1, and -1 means all cores.
    random_state : int, RandomState instance or None, default=None
        Source of the seed of the graph. The seed is drawn in `fit`. Pass an int for the same graph in each fit.

    Attributes
    ----------
    n_samples_fit_ : int
        Number of rows of the bank.
    n_distinct_ : int
        Number of distinct rows of the bank. Rows with equal values are one node of the graph, because
        separate nodes with equal values would be linked only to each other.
    seed_ : int
        Seed of the graph. A loaded index builds the same graph again.
    n_features_in_ : int
        Number of columns of the bank.
    feature_names_in_ : array of str
        Names of the columns of the bank, if the bank has column names.

    See Also
    --------
    ExactIndex : Exact search.

    Notes
    -----
    The graph is built from the distinct rows of the bank. If the search finds one of several rows with equal values,
    the result contains these rows one after another, sorted by index. If there are at most ``2 * n_neighbors`` distinct
    rows, no graph is built, and each query is compared with all rows.

    References
    ----------
    Dong, Moses and Li, "Efficient k-nearest neighbor graph construction for generic similarity measures", WWW 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PyNNDescentIndex
    >>> index = PyNNDescentIndex(random_state=0).fit(np.array([[0.0, 0.0], [3.0, 4.0]]))
    >>> index.kneighbors(np.array([[0.0, 1.0]]), n_neighbors=1)
    (array([[1.]]), array([[0]]))
    """

    _parameter_constraints: dict[str, Any] = {
        "n_neighbors": [Interval(Integral, 2, None, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="left")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self, *, n_neighbors: int = 30, epsilon: float = 0.1, n_jobs: int | None = None, random_state: Any = None
    ):
        self.n_neighbors = n_neighbors
        self.epsilon = epsilon
        self.n_jobs = n_jobs
        self.random_state = random_state

    @fit_context(prefer_skip_nested_validation=True)
    @default_modes()
    def fit(self, X: Any, y: Any = None) -> PyNNDescentIndex:
        """Store the bank as float32 and build its graph.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Rows of the bank.
        y : ignored
            Present for API consistency.

        Returns
        -------
        PyNNDescentIndex
            The fitted index.

        Raises
        ------
        ValueError
            If `X` contains NaN, infinity or values beyond ±1e15. The squares of larger values could overflow.
        """
        self._fit_X = _validated(self, X, reset=True)
        self.n_samples_fit_ = len(self._fit_X)
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.n_distinct_ = len(self._graph().rows)
        return self

    @default_modes()
    def kneighbors(
        self, X: Any, n_neighbors: int = 1, return_distance: bool = True
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Return the approximate nearest rows of the bank for each query.

        Parameters
        ----------
        X : array of shape (n_queries, n_features)
            The queries.
        n_neighbors : int, default=1
            Number of rows to return per query.
        return_distance : bool, default=True
            Whether to return the distances. If False, only the indices are returned.

        Returns
        -------
        distances : array of shape (n_queries, n_neighbors), float64
            Exact Euclidean distances of the returned rows, ascending. Returned only if `return_distance` is True.
        indices : array of shape (n_queries, n_neighbors), int64
            Indices of the returned rows of the bank.

        Raises
        ------
        ValueError
            If `n_neighbors` is less than 1 or larger than the number of rows of the bank, if `X` and the bank differ in
            their number of columns, or if `X` contains NaN, infinity or values beyond ±1e15.
        """
        check_is_fitted(self)
        X = _validated(self, X, reset=False)
        if not isinstance(n_neighbors, Integral) or n_neighbors < 1:
            raise ValueError(f"n_neighbors={n_neighbors!r}: expected an int of at least 1.")
        if n_neighbors > self.n_samples_fit_:
            raise ValueError(
                f"n_neighbors={n_neighbors} is too large: the bank has only {self.n_samples_fit_} rows. "
                "Reduce n_neighbors."
            )
        # The graph search chooses candidates. Their exact distances are then computed from differences and sorted.
        graph = self._graph()
        n_wanted = min(n_neighbors, len(graph.rows))
        candidates = self._candidates(graph, X, min(n_wanted + _N_SPARE, len(graph.rows)))
        squares = np.empty(candidates.shape)
        for column, rows in enumerate(candidates.T):
            difference = (X - graph.rows[rows]).astype(np.float64)
            squares[:, column] = np.einsum("ij,ij->i", difference, difference)
        order = squares.argsort(axis=1, kind="stable")[:, :n_wanted]
        indices = np.take_along_axis(candidates, order, axis=1)
        distances = np.sqrt(np.take_along_axis(squares, order, axis=1))
        if graph.copies is not None:
            distances, indices = graph.copies.expand(distances, indices, int(n_neighbors), None)
        return (distances, indices) if return_distance else indices

    def _candidates(self, graph: _Graph, X: np.ndarray, n_candidates: int) -> np.ndarray:
        """Return the distinct rows that are probably nearest, as indices of shape (n_queries, n_candidates)."""
        if graph.searcher is None or n_candidates > len(graph.rows) // 2:
            return _all_compared(graph.rows, X, n_candidates)
        found: np.ndarray
        with graph.lock:
            found, _ = graph.searcher.query(X, k=n_candidates, epsilon=self.epsilon)
        found = found.astype(np.int64)
        # -1 marks a missing neighbour. This happens if some rows are not connected to the rest of the graph. Such
        # queries are compared with all rows.
        missed = (found < 0).any(axis=1)
        if missed.any():
            found[missed] = _all_compared(graph.rows, X[missed], n_candidates)
        return found

    def _graph(self) -> _Graph:
        """Return the graph of the bank. It is built once per process."""
        graph: _Graph = _graphs.get(self, self._fit_X, (self.n_neighbors, self.seed_, self.n_jobs), self._build)
        return graph

    def _build(self, bank: np.ndarray) -> _Graph:
        """Build the graph of the distinct rows of the bank."""
        copies = Copies.of(as_tensor(bank, torch.device("cpu")))
        rows = bank if copies is None else bank[copies.firsts]
        if len(rows) <= 2 * self.n_neighbors:
            return _Graph(rows, copies, None, threading.Lock())
        from pynndescent import NNDescent

        if not rows.flags.writeable:
            rows = rows.copy()  # numba would compile all functions a second time for a read-only array
        # Translate scikit-learn's None and -1. Limit the number to all cores: numba raises an error for more threads.
        n_threads = min(effective_n_jobs(self.n_jobs), effective_n_jobs(-1))
        with warnings.catch_warnings():
            # Rows far from all other rows cause this warning. It is not needed, because a search marks missing
            # neighbours, and `_candidates` replaces them.
            warnings.filterwarnings("ignore", message="Failed to correctly find n_neighbors")
            searcher = NNDescent(rows, n_neighbors=self.n_neighbors, random_state=self.seed_, n_jobs=n_threads)
            searcher.prepare()
        return _Graph(rows, copies, searcher, threading.Lock())


def _validated(index: PyNNDescentIndex, X: Any, reset: bool) -> np.ndarray:
    """Return `X` as float32. Raise a ValueError if a value is not finite or too large."""
    with np.errstate(over="ignore", invalid="ignore"):  # sums of huge values may overflow during validation
        X = validate_data(index, X, dtype=[np.float32, np.float64], order="C", reset=reset)
    limit = largest_value(np.float32)
    if (found := first_beyond(X, limit)) is not None:
        row, column, value = found
        raise ValueError(f"row {row} of X holds {describe_beyond(value, f'column {column}', limit)}")
    rows: np.ndarray = X.astype(np.float32, copy=False)
    return rows


def _all_compared(rows: np.ndarray, X: np.ndarray, n_candidates: int) -> np.ndarray:
    """Return the indices of the nearest rows by comparing each query with all rows."""
    brute = NearestNeighbors(algorithm="brute").fit(rows)
    indices: np.ndarray = brute.kneighbors(X, n_candidates, return_distance=False)
    return indices
