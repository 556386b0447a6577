"""Exact search for queries so far from the bank that their squared distances overflow: by differences, in float64."""

from __future__ import annotations

import numpy as np

# Numbers in one block of differences.
_N_BLOCK = 1 << 21


def nearest_of_far(
    bank: np.ndarray, queries: np.ndarray, n_neighbors: int, excluded: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest rows of queries with any finite values.

    Parameters
    ----------
    bank : array of shape (n_rows, n_features)
        The rows.
    queries : array of shape (n_queries, n_features)
        Few queries: each is compared with all rows.
    n_neighbors : int
        How many; at most as many rows as count.
    excluded : array of int or None
        Rows that don't count.

    Returns
    -------
    distances : array of shape (n_queries, n_neighbors), float64
        Euclidean, ascending; infinity if a distance is beyond the range of float64.
    indices : array of shape (n_queries, n_neighbors), int64
        Of equal distances the lower index comes first.
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
    with np.errstate(over="ignore", under="ignore"):
        differences = rows.astype(np.float64) / 2 - query / 2  # the difference of the largest two overflows
        unit = np.abs(differences).max(axis=1)
        differences /= np.where(unit > 0, unit, 1.0)[:, None]
        lengths: np.ndarray = 2 * (unit * np.sqrt(np.einsum("ij,ij->i", differences, differences)))
    return lengths
