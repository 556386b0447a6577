"""Rows of a bank that are equal to others: of a thousand equally near ones, one is enough to search for."""

from __future__ import annotations

import numpy as np
import torch


class Copies:
    """Which rows are equal to others.

    Parameters
    ----------
    firsts : array of shape (n_distinct,), int64
        The first of each kind, ascending.
    kinds : array of shape (n_rows,), int64
        Kind of each row.
    """

    def __init__(self, firsts: np.ndarray, kinds: np.ndarray):
        self.firsts, self._kinds = firsts, kinds

    @classmethod
    def of(cls, rows: torch.Tensor) -> Copies | None:
        """Return the copies among `rows`, None where there are none."""
        generator = torch.Generator().manual_seed(0)
        key = rows @ torch.randn(rows.shape[1], generator=generator, dtype=rows.dtype)
        _, firsts, kinds = np.unique(key.numpy(), return_index=True, return_inverse=True)
        later = np.flatnonzero(firsts[kinds] != np.arange(len(rows)))
        differs = np.array([not torch.equal(rows[i], rows[firsts[kinds[i]]]) for i in later], dtype=bool)
        if len(later) == differs.sum():
            return None
        kinds = firsts[kinds]
        apart = later[differs]
        kinds[apart] = apart  # each on its own, even if some are equal: that costs time only
        return cls(*np.unique(kinds, return_inverse=True))

    def all_in(self, excluded: np.ndarray) -> np.ndarray:
        """Return the kinds of which no row is left."""
        left = np.bincount(np.delete(self._kinds, excluded), minlength=len(self.firsts))
        return np.flatnonzero(left == 0)

    def expand(
        self, distances: np.ndarray, kinds: np.ndarray, n_neighbors: int, excluded: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest rows, given the nearest kinds."""
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
            # copies of one row stay together, so that the first neighbours are the same however many are wanted
            copies = [rows[starts[kind] : starts[kind + 1]] for kind in row_kinds]
            all_rows[q] = np.concatenate(copies)[:n_neighbors]
            all_distances[q] = np.repeat(row_distances, [len(some) for some in copies])[:n_neighbors]
        return all_distances, all_rows.astype(np.int64)
