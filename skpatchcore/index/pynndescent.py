"""PyNNDescentIndex: approximate nearest-neighbour search on a graph."""

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
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.sklearn import Interval, OlderStatesMixin, fit_context
from skpatchcore.index._copies import Copies

# Graphs hold compiled functions and don't survive numba upgrades in a pickle: kept beside the bank, per process.
_graphs = DerivedCache()
# Neighbours that the graph search returns beyond those asked for, to be re-ranked by exact distances.
_N_SPARE = 4


@dataclass(frozen=True)
class _Graph:
    """What is derived from a bank.

    Attributes
    ----------
    rows : array of shape (n_distinct, n_features), float32
        The distinct rows of the bank. In a graph of equal rows, the edges of each lead to its copies only.
    copies : Copies or None
        Which rows of the bank they stand for; None if all rows of the bank are distinct.
    searcher : NNDescent or None
        Searches the distinct rows; None if there are too few for a graph.
    lock : lock
        Held during a search: queries write to buffers that the searcher owns.
    """

    rows: np.ndarray
    copies: Copies | None
    searcher: Any
    lock: threading.Lock


class PyNNDescentIndex(OlderStatesMixin, BaseEstimator):
    """Approximate nearest rows of the memory bank, by nearest-neighbour descent.

    The search misses some of the true nearest neighbours (3-11 % on real patch features, with the defaults) and then
    returns one that is a little farther; what it returns carries its exact distance. Building the graph takes a while,
    and compiling its code takes seconds once a process: prefer :class:`ExactIndex` unless the bank is very large.

    Parameters
    ----------
    n_neighbors : int, default=30
        Edges of the graph at each row: more give better recall, slower building.
    epsilon : float, default=0.1
        How far beyond the best so far the search looks: more gives better recall, slower search.
    n_jobs : int or None, default=None
        Threads that build the graph; None means 1, -1 all.
    random_state : int, RandomState instance or None, default=None
        Seed of the graph. An instance or None gives a seed that is drawn in `fit`.

    Attributes
    ----------
    n_samples_fit_ : int
        Rows of the bank.
    n_distinct_ : int
        Number of distinct rows. Equal rows are one node of the graph: otherwise they would fill each other's lists of
        neighbours.
    seed_ : int
        The graph's seed: a loaded index builds the same graph again.
    n_features_in_ : int
        Columns of the bank.
    feature_names_in_ : array of str
        Names of the columns, where the bank had them.

    See Also
    --------
    ExactIndex : Exact search.

    Notes
    -----
    The graph is built from the distinct rows of the bank. Of equal rows, one is searched for, and its copies follow it.
    If there are at most ``2 * n_neighbors`` distinct rows, no graph is built and all rows are compared.

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
        """Keep the bank and build its graph.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            The rows; searched as float32.
        y : ignored
            Present by convention.

        Returns
        -------
        PyNNDescentIndex
            Itself.

        Raises
        ------
        ValueError
            If `X` holds NaN, infinity or values beyond ±1e15, whose squares could overflow.
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
        """Return near rows of the bank: the nearest ones, with the recall that the parameters buy.

        Parameters
        ----------
        X : array of shape (n_queries, n_features)
            The rows whose neighbours are sought.
        n_neighbors : int, default=1
            How many for each.
        return_distance : bool, default=True
            False returns the indices alone.

        Returns
        -------
        distances : array of shape (n_queries, n_neighbors), float64
            Euclidean, exact, ascending; only with `return_distance`.
        indices : array of shape (n_queries, n_neighbors), int64
            Rows of the bank.

        Raises
        ------
        ValueError
            If the bank has fewer than `n_neighbors` rows, `X` does not fit the bank, or holds values beyond ±1e15.
        """
        check_is_fitted(self)
        X = _validated(self, X, reset=False)
        if not isinstance(n_neighbors, Integral) or n_neighbors < 1:
            raise ValueError(f"n_neighbors={n_neighbors!r}: expected an int of at least 1.")
        if n_neighbors > self.n_samples_fit_:
            raise ValueError(f"n_neighbors={n_neighbors} were asked for of a bank of {self.n_samples_fit_} rows.")
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
        """Return distinct rows that are probably the nearest."""
        if graph.searcher is None or n_candidates > len(graph.rows) // 2:
            return _all_compared(graph.rows, X, n_candidates)
        found: np.ndarray
        with graph.lock:
            found, _ = graph.searcher.query(X, k=n_candidates, epsilon=self.epsilon)
        found = found.astype(np.int64)
        # -1 marks what the search did not find, where rows of the bank stand apart from the graph.
        missed = (found < 0).any(axis=1)
        if missed.any():
            found[missed] = _all_compared(graph.rows, X[missed], n_candidates)
        return found

    def _graph(self) -> _Graph:
        graph: _Graph = _graphs.get(self, self._fit_X, (self.n_neighbors, self.seed_, self.n_jobs), self._build)
        return graph

    def _build(self, bank: np.ndarray) -> _Graph:
        copies = Copies.of(as_tensor(bank, torch.device("cpu")))
        rows = bank if copies is None else bank[copies.firsts]
        if len(rows) <= 2 * self.n_neighbors:
            return _Graph(rows, copies, None, threading.Lock())
        from pynndescent import NNDescent

        if not rows.flags.writeable:
            rows = rows.copy()  # for a memory map, numba would compile everything a second time
        # scikit-learn's None, -1 and more than there are; numba refuses the last
        n_threads = min(effective_n_jobs(self.n_jobs), effective_n_jobs(-1))
        with warnings.catch_warnings():
            # Rows far from all others have few near neighbours; the search says so by itself when it misses one.
            warnings.filterwarnings("ignore", message="Failed to correctly find n_neighbors")
            searcher = NNDescent(rows, n_neighbors=self.n_neighbors, random_state=self.seed_, n_jobs=n_threads)
            searcher.prepare()
        return _Graph(rows, copies, searcher, threading.Lock())


def _validated(index: PyNNDescentIndex, X: Any, reset: bool) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # of sums, where values are huge
        X = validate_data(index, X, dtype=[np.float32, np.float64], order="C", reset=reset)
    limit = largest_value(np.float32)
    if (found := first_beyond(X, limit)) is not None:
        row, column, value = found
        raise ValueError(f"row {row} of X holds {describe_beyond(value, f'column {column}', limit)}")
    rows: np.ndarray = X.astype(np.float32, copy=False)
    return rows


def _all_compared(rows: np.ndarray, X: np.ndarray, n_candidates: int) -> np.ndarray:
    brute = NearestNeighbors(algorithm="brute").fit(rows)
    indices: np.ndarray = brute.kneighbors(X, n_candidates, return_distance=False)
    return indices
