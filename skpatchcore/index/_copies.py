"""Copies: groups of equal rows in a bank.

A search needs only the first row of each group. The remaining rows of the group have the same distances.
"""

from __future__ import annotations

import numpy as np
import torch


class Copies:
    """Map between the rows of a bank and their kinds. Rows of the same kind are equal.

    Kinds are numbered from 0 in the order of their first rows.

    Parameters
    ----------
    firsts : array of shape (n_distinct,), int64
        Index of the first row of each kind, ascending.
    kinds : array of shape (n_rows,), int64
        Kind of each row.
    """

    def __init__(self, firsts: np.ndarray, kinds: np.ndarray):
        self.firsts, self._kinds = firsts, kinds

    @classmethod
    def of(cls, rows: torch.Tensor) -> Copies | None:
        """Return the copies among `rows`, or None if all rows are distinct."""
        # Comparing all pairs of rows is too slow, and so is sorting whole rows. Instead, each row gets a key: its
        # product with a fixed random vector. Equal rows have equal keys. Different rows have equal keys only by a rare
        # coincidence of rounding. Therefore only rows with equal keys are compared in full.
        generator = torch.Generator().manual_seed(0)
        key = rows @ torch.randn(rows.shape[1], generator=generator, dtype=rows.dtype)
        # Group the rows by key. firsts[kinds[i]] is the first row with the key of row i.
        _, firsts, kinds = np.unique(key.numpy(), return_index=True, return_inverse=True)
        # Compare every later row of a group with the first row of the group.
        later = np.flatnonzero(firsts[kinds] != np.arange(len(rows)))
        differs = np.array([not torch.equal(rows[i], rows[firsts[kinds[i]]]) for i in later], dtype=bool)
        if len(later) == differs.sum():
            return None
        # Label each row with the first row of its group. A row that differs from the first row gets its own group, even
        # if such rows are equal to each other. Missed copies make the search slower, but the distances stay correct.
        kinds = firsts[kinds]
        apart = later[differs]
        kinds[apart] = apart
        return cls(*np.unique(kinds, return_inverse=True))

    def all_in(self, excluded: np.ndarray) -> np.ndarray:
        """Return the kinds that have no row left if the rows `excluded` are removed."""
        left = np.bincount(np.delete(self._kinds, excluded), minlength=len(self.firsts))
        return np.flatnonzero(left == 0)

    def expand(
        self, distances: np.ndarray, kinds: np.ndarray, n_neighbors: int, excluded: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest rows, given the nearest kinds.

        Parameters
        ----------
        distances : array of shape (n_queries, n_kinds), float64
            Distances to the nearest kinds, ascending.
        kinds : array of shape (n_queries, n_kinds), int64
            The nearest kinds.
        n_neighbors : int
            Number of rows to return per query. The given kinds must have at least that many rows.
        excluded : array of int or None
            Indices of rows that are not returned.

        Returns
        -------
        distances : array of shape (n_queries, n_neighbors), float64
            Distances to the nearest rows, ascending.
        indices : array of shape (n_queries, n_neighbors), int64
            Indices of the nearest rows. Rows with equal values follow each other in ascending order.
        """
        # Sort the rows that are not excluded by kind. The rows of a kind k are then rows[starts[k] : starts[k + 1]].
        counts = np.ones(len(self._kinds), bool)
        if excluded is not None:
            counts[excluded] = False
        rows = np.flatnonzero(counts)
        rows = rows[np.argsort(self._kinds[rows], kind="stable")]
        starts = np.searchsorted(self._kinds[rows], np.arange(len(self.firsts) + 1))
        if n_neighbors == 1:
            return distances, rows[starts[kinds]]
        all_distances, all_rows = np.empty((2, len(kinds), n_neighbors))
        for q, (row_distances, row_kinds) in enumerate(zip(distances, kinds, strict=True)):
            # The copies of a row stay together. Therefore the first neighbours do not depend on n_neighbors.
            copies = [rows[starts[kind] : starts[kind + 1]] for kind in row_kinds]
            all_rows[q] = np.concatenate(copies)[:n_neighbors]
            all_distances[q] = np.repeat(row_distances, [len(some) for some in copies])[:n_neighbors]
        return all_distances, all_rows.astype(np.int64)
