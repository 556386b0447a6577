"""nearest_of_far: exact search for queries with values so large that their squared distances would overflow."""

from __future__ import annotations

import numpy as np

# Maximum number of values in one block of differences.
_N_BLOCK = 1 << 21


def nearest_of_far(
    bank: np.ndarray, queries: np.ndarray, n_neighbors: int, excluded: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest rows of queries with arbitrarily large finite values.

    Parameters
    ----------
    bank : array of shape (n_rows, n_features)
        Rows of the bank.
    queries : array of shape (n_queries, n_features)
        The queries. There should be few of them, because each query is compared with all rows.
    n_neighbors : int
        Number of rows to return per query, at most the number of rows that are not excluded.
    excluded : array of int or None
        Indices of rows that are not searched.

    Returns
    -------
    distances : array of shape (n_queries, n_neighbors), float64
        Euclidean distances, ascending. A distance beyond the range of float64 is infinite.
    indices : array of shape (n_queries, n_neighbors), int64
        Indices of the nearest rows. Rows at equal distances are sorted by index, lowest first.
    """
    counting = np.arange(len(bank)) if excluded is None else np.delete(np.arange(len(bank)), excluded)
    distances, indices = np.empty((len(queries), n_neighbors)), np.empty((len(queries), n_neighbors), np.int64)
    step = max(1, _N_BLOCK // bank.shape[1])
    for i, query in enumerate(queries.astype(np.float64)):
        to_rows = np.concatenate(
            [_lengths(bank[part], query) for part in np.split(counting, range(step, len(counting), step))]
        )
        order = to_rows.argsort(kind="stable")[:n_neighbors]
        distances[i], indices[i] = to_rows[order], counting[order]
    return distances, indices


def _lengths(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the distances between the rows and the query, without overflow of intermediate results."""
    with np.errstate(over="ignore", under="ignore"):
        # Halve the values first: the difference of two values close to the largest float64 would overflow.
        differences = rows.astype(np.float64) / 2 - query / 2
        # Divide each difference by its largest entry: the squares are then at most 1.
        unit = np.abs(differences).max(axis=1)
        differences /= np.where(unit > 0, unit, 1.0)[:, None]
        lengths: np.ndarray = 2 * (unit * np.sqrt(np.einsum("ij,ij->i", differences, differences)))
    return lengths
