"""Checked nearest-neighbour search: :func:`neighbors_of` searches an index and checks its results.

All searches of a custom index pass through this module. Only the row numbers of a custom index are used; the distances
are recomputed here. A wrong result of an index can therefore only make an image look more anomalous, never more normal.
Rows that do not exist and excluded rows are never used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skpatchcore._utils.derived import DerivedCache
from skpatchcore._utils.warning import warn_user
from skpatchcore.index.exact import ExactIndex
from skpatchcore.index.pynndescent import PyNNDescentIndex
from skpatchcore.protocols import Index, can_exclude

# The results of these indexes are not checked: both compute distances from differences, return neighbours for every
# query, and are tested against brute force.
_OWN = (ExactIndex, PyNNDescentIndex)
# Exact indexes of the banks that a custom index searched incompletely.
_exact = DerivedCache()
# Number of values in one block of differences.
_N_BLOCK = 1 << 22
# Relative error up to which a distance counts as a rounded or compressed Euclidean distance.
_TOLERANCE = 0.1


def neighbors_of(
    index: Index, bank: np.ndarray, X: np.ndarray, n_neighbors: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Search an index, check its result, and complete the result by exact search where neighbours are missing.

    Parameters
    ----------
    index : Index
        Fitted on `bank`.
    bank : array of shape (n_bank, n_channels)
        The memory bank.
    X : array of shape (n_queries, n_channels)
        Queries.
    n_neighbors : int
        Number of neighbours per query; at most the number of rows that are not excluded.
    exclude : array of int or None, default=None
        Rows of the bank that are ignored. None ignores no row.

    Returns
    -------
    distances : array of shape (n_queries, n_neighbors)
        Euclidean distances, ascending in each row.
    indices : array of shape (n_queries, n_neighbors)
        Rows of the bank. The rows of one query are distinct, and none is excluded.

    Raises
    ------
    ValueError
        If the result of the index has a wrong shape or type, or contains rows that the bank does not have. The error
        names the class of the index. A row of -1, or the largest value of an unsigned type, is not an error: both mark
        a neighbour that was not found.

    Warns
    -----
    UserWarning
        If the index returned fewer than `n_neighbors` distinct rows for a query. Such queries are searched exactly.
    UserWarning
        If most distances of the index are not Euclidean. The recomputed Euclidean distances are returned.
    """
    answer = kneighbors_without(index, X, n_neighbors, exclude, trimmed=type(index) in _OWN)
    if type(index) in _OWN:
        return answer
    name = type(index).__name__
    claimed, indices = _checked(answer, len(X), len(bank), name)
    missing = (indices < 0) | _repeated(indices)
    if exclude is not None and len(exclude):
        missing |= np.isin(indices, exclude)
    distances = measured(X, bank, np.where(missing, 0, indices))
    _compare(claimed, distances, missing, X, name)
    distances[missing] = np.inf
    order = np.lexsort((distances, missing), axis=1)[:, :n_neighbors]
    n_found = order.shape[1] - np.take_along_axis(missing, order, axis=1).sum(axis=1)
    distances, indices = (np.take_along_axis(some, order, axis=1) for some in (distances, indices))
    incomplete = np.flatnonzero(n_found < n_neighbors)
    if not len(incomplete):
        return distances, indices
    warn_user(
        f"index: {name} returned fewer distinct rows of the memory bank than requested for some queries. These queries "
        "are searched exactly, which is slower. To avoid this, configure the index to search more thoroughly.",
    )
    complete_distances, complete_indices = np.empty((len(X), n_neighbors)), np.empty((len(X), n_neighbors), np.int64)
    found = np.flatnonzero(n_found == n_neighbors)
    complete_distances[found], complete_indices[found] = distances[found], indices[found]
    exact: ExactIndex = _exact.get(index, bank, "exact", _exact_index)
    rows = X[incomplete].astype(exact.stored_rows.dtype, copy=False)
    complete_distances[incomplete], complete_indices[incomplete] = exact.kneighbors(rows, n_neighbors, exclude=exclude)
    return complete_distances, complete_indices


def farthest_of(
    index: ExactIndex, bank: np.ndarray, X: np.ndarray, starts: np.ndarray, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each group of queries, the query that has the largest distance to its nearest row.

    The result is that of :meth:`ExactIndex.farthest`. The result of a subclass is checked.

    Parameters
    ----------
    index : ExactIndex
        Fitted on `bank`. Custom classes with a method `farthest` are not supported, because the returned query cannot
        be checked without a search for all queries.
    bank, X, exclude
        As for :func:`neighbors_of`.
    starts : array of shape (n_groups + 1,)
        Index of the first query of each group, then the total number of queries as the last item.

    Returns
    -------
    queries : array of shape (n_groups,), int
        Index of the returned query of each group.
    distances : array of shape (n_groups,)
        Euclidean distance of the returned query from its nearest row.
    indices : array of shape (n_groups,), int
        Row of the bank that is nearest to the returned query.

    Raises
    ------
    ValueError
        If a subclass of :class:`ExactIndex` returns, for a group, a query that is not in this group, a row that does
        not exist, or an excluded row.
    """
    queries, distances, indices = index.farthest(X, starts, exclude=exclude)
    if type(index) in _OWN:
        return queries, distances, indices
    name = type(index).__name__
    queries = _row_numbers(np.asarray(queries), len(X), name)
    _, indices = _checked((np.asarray(distances)[:, None], np.asarray(indices)[:, None]), len(queries), len(bank), name)
    is_wrong = (indices[:, 0] < 0) | np.isin(indices[:, 0], [] if exclude is None else exclude)
    is_wrong |= (queries < starts[:-1]) | (queries >= starts[1:])
    if is_wrong.any():
        raise ValueError(
            f"index: farthest of {name} returned a query of another group, or a row that does not exist or is excluded."
        )
    return queries, measured(X[queries], bank, indices)[:, 0], indices[:, 0]


def kneighbors_without(
    index: Any, X: np.ndarray, n_neighbors: int, exclude: np.ndarray | None, trimmed: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Search an index for neighbours outside a set of excluded rows. The result is not checked.

    Parameters
    ----------
    index : Index
        Fitted. If its `kneighbors` has no argument ``exclude``, one additional neighbour is requested per excluded row.
    X : array of shape (n_queries, n_features)
        Queries.
    n_neighbors : int
        Number of neighbours per query; at most the number of rows that are not excluded.
    exclude : array of int or None
        Rows of the bank that are ignored. None ignores no row.
    trimmed : bool, default=True
        If True, excluded rows and additional neighbours are removed from the result. If False, they stay in the result
        of an index without ``exclude``.

    Returns
    -------
    distances, indices : arrays of shape (n_queries, n_neighbors)
        Ascending by distance. More columns if `trimmed` is False and additional neighbours were requested.
    """
    found: tuple[np.ndarray, np.ndarray]
    if exclude is None or not len(exclude):
        found = index.kneighbors(X, n_neighbors=n_neighbors, return_distance=True)
        return found
    if can_exclude(index):
        found = index.kneighbors(X, n_neighbors=n_neighbors, return_distance=True, exclude=exclude)
        return found
    found = index.kneighbors(X, n_neighbors=n_neighbors + len(exclude), return_distance=True)
    if not trimmed:
        return found
    distances, indices = found
    # At most len(exclude) neighbours of a query are excluded, so at least n_neighbors neighbours remain. The stable
    # sort moves the remaining neighbours to the front in their original order.
    order = np.isin(indices, exclude).argsort(axis=1, kind="stable")[:, :n_neighbors]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)


def measured(X: np.ndarray, bank: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances between each query and the given rows of the bank.

    The distances are computed in float64 from differences, which is exact up to rounding.

    Parameters
    ----------
    X : array of shape (n_queries, n_channels)
        Queries.
    bank : array of shape (n_bank, n_channels)
        The memory bank.
    indices : array of int of shape (n_queries, n_neighbors)
        Rows of the bank for each query.

    Returns
    -------
    array of shape (n_queries, n_neighbors), float64
        Euclidean distances in the order of `indices`.
    """
    distances = np.empty(indices.shape)
    n_at_once = max(1, _N_BLOCK // max(1, indices.shape[1] * bank.shape[1]))
    with np.errstate(over="ignore", under="ignore"):
        for i in range(0, len(X), n_at_once):
            part = slice(i, i + n_at_once)
            differences = bank[indices[part]].astype(np.float64)
            differences -= X[part, None]
            squares = np.einsum("ijk,ijk->ij", differences, differences)
            distances[part] = np.sqrt(squares)
            if not np.isfinite(squares).all():  # squares of differences above 1e154 overflow: scale before squaring
                unit = np.abs(differences).max(axis=2)
                differences /= np.where(unit > 0, unit, 1.0)[:, :, None]
                distances[part] = unit * np.sqrt(np.einsum("ijk,ijk->ij", differences, differences))
    return distances


def _exact_index(bank: np.ndarray) -> ExactIndex:
    """Fit an exact index on the bank; a float16 bank is converted to float32."""
    rows = bank.astype(np.float32) if bank.dtype == np.float16 else bank
    index: ExactIndex = ExactIndex(device="cpu").fit(rows)
    return index


def _checked(answer: Any, n_queries: int, n_bank: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Check the result of `kneighbors`; return distances and int64 rows, with -1 for neighbours that were not found."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise ValueError(
            f"index: kneighbors of {name} returned {type(answer).__name__}, expected (distances, indices)."
        )
    distances, indices = np.asarray(answer[0]), np.asarray(answer[1])
    if indices.ndim != 2 or len(indices) != n_queries or distances.shape != indices.shape:
        raise ValueError(
            f"index: kneighbors of {name} returned distances of shape {distances.shape} and indices of shape "
            f"{indices.shape} for {n_queries} queries, expected (n_queries, n_neighbors) for both."
        )
    if not indices.shape[1]:
        return np.full((n_queries, 1), np.inf), np.full((n_queries, 1), -1)
    return distances, _row_numbers(indices, n_bank, name)


def _row_numbers(indices: np.ndarray, n_rows: int, name: str) -> np.ndarray:
    """Check row numbers and return them as int64, with -1 for neighbours that were not found."""
    if not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"index: {name} returned indices of dtype {indices.dtype}, expected integers.")
    numbers = indices.astype(np.int64)
    if np.issubdtype(indices.dtype, np.unsignedinteger):
        numbers[indices == np.iinfo(indices.dtype).max] = -1
    is_wrong = (numbers < -1) | (numbers >= n_rows)
    if is_wrong.any():
        raise ValueError(f"index: {name} returned the row {indices[is_wrong][0]}, expected -1 to {n_rows - 1}.")
    return numbers


def _repeated(indices: np.ndarray) -> np.ndarray:
    """Return True for each entry that equals an earlier entry of the same row."""
    order = indices.argsort(axis=1, kind="stable")
    in_order = np.take_along_axis(indices, order, axis=1)
    repeated = np.zeros(indices.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    return repeated


def _compare(claimed: np.ndarray, distances: np.ndarray, missing: np.ndarray, X: np.ndarray, name: str) -> None:
    """Warn if most distances of an index are not Euclidean.

    Only the first returned neighbour of each query is compared. Errors from compressed rows, and from distances that
    are computed with matrix products, are allowed.
    """
    if claimed.dtype.kind not in "fiu":
        raise ValueError(f"index: {name} returned distances of dtype {claimed.dtype}, expected floats.")
    first = (~missing).argmax(axis=1)[:, None]
    found = ~np.take_along_axis(missing, first, axis=1)[:, 0]
    of_index, true = (np.take_along_axis(some, first, axis=1)[found, 0] for some in (claimed, distances))
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(X[found].astype(np.float64), axis=1) + true
        allowed = _TOLERANCE * true + 8 * np.sqrt(float(np.finfo(np.float32).eps)) * lengths
        differs = ~(np.abs(of_index.astype(np.float64) - true) <= allowed)
    if 2 * differs.sum() > len(differs):
        i = int(differs.argmax())
        warn_user(
            f"index: the distances of {name} are not Euclidean: {of_index[i]:g} was returned for a row at the distance "
            f"{true[i]:g}. Scores use Euclidean distances. Squared distances and other metrics are not supported.",
        )
