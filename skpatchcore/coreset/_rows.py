"""Rows as selection sees them: projected, and laid out so that one matrix product gives squared distances."""

from __future__ import annotations

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor
from skpatchcore._utils.threads import SMALL_PASS, SMALL_PRODUCT, one_thread

# Rows that are projected, or shifted, at once. Projecting always in these blocks makes the result independent of the
# batches that rows come in: the rounding of a matrix product depends on its shape.
_BLOCK = 4096


class Rows:
    """Rows seen from their mean; one matrix product gives squared distances: ``|x|² + [x, 1]·[-2p, |p|²]``.

    Parameters
    ----------
    left : tensor of shape (n_rows, n_columns + 1), float32 or float64
        The rows, and a last column with anything in it. Changed in place: there is no second copy of all rows.

    Attributes
    ----------
    left : tensor of shape (n_rows, n_columns + 1)
        The rows without their mean, and a column of ones.
    norms : tensor of shape (n_rows,)
        Their squared lengths: smaller than from the origin, so less is cancelled in the sum.
    mean : tensor of shape (n_columns,)
        What was taken from them.
    """

    def __init__(self, left: torch.Tensor):
        with one_thread(left.numel() < SMALL_PASS):
            left[:, -1] = 0
            mean = left.mean(0)
            self.left, self.mean = left, mean[:-1]
            self.norms = left.new_empty(len(left))
            for i in range(0, len(left), _BLOCK):
                part = left[i : i + _BLOCK].sub_(mean)
                torch.linalg.vecdot(part, part, out=self.norms[i : i + _BLOCK])
            left[:, -1] = 1

    def __len__(self) -> int:
        return len(self.left)

    def right(self, picks: torch.Tensor) -> torch.Tensor:
        """Return the columns ``[-2p, |p|²]`` of `picks`, as rows."""
        columns = self.left[picks] * -2
        columns[:, -1] = self.norms[picks]
        return columns

    def as_they_came(self, picks: torch.Tensor) -> torch.Tensor:
        """Return some rows with the mean added again, and a last column with anything in it."""
        came = self.left[picks]
        came[:, :-1] += self.mean
        return came


class RowBuffer:
    """Where rows are gathered, projected, as they come in batches.

    Parameters
    ----------
    matrix : array of shape (n_features, n_columns) or None
        The projection; None keeps the features as they are.
    n_features : int
        Columns of the batches.
    dtype, device
        Of the gathered rows.
    """

    def __init__(self, matrix: np.ndarray | None, n_features: int, dtype: torch.dtype, device: torch.device):
        self._matrix = None
        n_columns = n_features
        if matrix is not None:
            # One more column, of zeros: the product is written straight to its place.
            self._matrix = torch.from_numpy(np.pad(matrix, [(0, 0), (0, 1)])).to(device, dtype)
            n_columns = matrix.shape[1]
        self._left = torch.empty((0, n_columns + 1), dtype=dtype, device=device)
        self._waiting = np.empty((0, n_features))  # fewer rows than a block
        self._n_written = self._n_before = 0

    @property
    def n_gathered(self) -> int:
        """How many rows are in here."""
        return self._n_written + len(self._waiting)

    def reserve(self, n_rows: int) -> None:
        """Make place for so many rows. Memory is taken as they come: more than come cost nothing."""
        if n_rows > len(self._left):
            larger = self._left.new_empty((n_rows, self._left.shape[1]))
            larger[: self._n_written] = self._left[: self._n_written]
            self._left = larger

    def extend(self, X: np.ndarray) -> None:
        """Append rows.

        Raises
        ------
        ValueError
            If a row holds NaN or infinity, or a value too large for the projection; the error says which of all rows
            that ever came.
        """
        if len(self._waiting):
            n_missing = min(_BLOCK - len(self._waiting), len(X))
            self._waiting = np.concatenate([self._waiting, X[:n_missing]])
            X = X[n_missing:]
            if len(self._waiting) == _BLOCK:
                self._write_waiting()
        n_whole = len(X) // _BLOCK * _BLOCK
        for i in range(0, n_whole, _BLOCK):
            self._write_block(X[i : i + _BLOCK])
        if n_whole < len(X):
            self._waiting = X[n_whole:].copy()

    def take(self) -> tuple[torch.Tensor, np.ndarray]:
        """Return the rows, as `Rows` takes them, with their numbers among all that ever came; there are none then.

        The place that they were in is used again for those that come afterwards.
        """
        self._write_waiting()
        numbers = np.arange(self._n_before, self._n_before + self._n_written)
        taken = self._left[: self._n_written]
        self._n_before += self._n_written
        self._n_written = 0
        return taken, numbers

    def _write_waiting(self) -> None:
        self._write_block(self._waiting)
        self._waiting = self._waiting[:0]

    def _write_block(self, X: np.ndarray) -> None:
        with one_thread(X.size * self._left.shape[1] < SMALL_PRODUCT):
            self._write(X)

    def _write(self, X: np.ndarray) -> None:
        start, end = self._n_written, self._n_written + len(X)
        if end > len(self._left):
            self.reserve(max(end, len(self._left) * 9 // 8))
        part = self._left[start:end]
        block = as_tensor(X, part.device).to(part.dtype)
        if self._matrix is None:
            part[:, :-1] = block
        else:
            torch.mm(block, self._matrix, out=part)
        if not bool(torch.isfinite(part[:, :-1].sum())):
            bad = ~torch.isfinite(part[:, :-1]).all(1)
            if bool(bad.any()):  # else it was the sum alone that overflowed
                first = self._n_before + start + int(bad.int().argmax())
                raise ValueError(f"row {first} of X holds NaN, infinity or a value too large for {part.dtype}.")
        self._n_written = end
