"""Rows and RowBuffer: projected rows, stored such that one matrix product yields squared distances."""

from __future__ import annotations

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor
from skpatchcore._utils.threads import SMALL_PASS, SMALL_PRODUCT, one_thread

# Number of rows that are projected or centred at once. The rounding of a matrix product depends on its shape. Blocks of
# a fixed size make the result independent of the sizes of the incoming batches.
_BLOCK = 4096


class Rows:
    """Centred rows, stored such that one matrix product yields squared distances.

    The squared distance between a row ``x`` and a pick ``p`` is ``|x|² + [x, 1]·[-2p, |p|²]``. ``left`` contains the
    factors ``[x, 1]``, and `right` returns the factors ``[-2p, |p|²]``.

    Parameters
    ----------
    left : tensor of shape (n_rows, n_columns + 1), float32 or float64
        The rows and one more column with arbitrary values. The tensor is changed in place, which avoids a second copy
        of all rows.

    Attributes
    ----------
    left : tensor of shape (n_rows, n_columns + 1)
        The rows minus their mean, followed by a column of ones.
    norms : tensor of shape (n_rows,)
        Squared lengths of the centred rows. They are smaller than the squared lengths of the original rows. Therefore
        fewer digits cancel in the sum above.
    mean : tensor of shape (n_columns,)
        Mean of the original rows.
    """

    def __init__(self, left: torch.Tensor):
        with one_thread(left.numel() < SMALL_PASS):
            # The last column stays 0 while the rows are centred, because the norms are computed over all columns.
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
        """Return the vector ``[-2p, |p|²]`` of each pick as a tensor of shape (n_picks, n_columns + 1)."""
        columns = self.left[picks] * -2
        columns[:, -1] = self.norms[picks]
        return columns

    def as_they_came(self, picks: torch.Tensor) -> torch.Tensor:
        """Return the rows `picks` with the mean added back, as ``left`` of new `Rows`. The last column is arbitrary."""
        came = self.left[picks]
        came[:, :-1] += self.mean
        return came


class RowBuffer:
    """Buffer that projects rows and collects them batch by batch.

    Parameters
    ----------
    matrix : array of shape (n_features, n_columns) or None
        Projection matrix. None keeps the features unchanged.
    n_features : int
        Number of columns of the batches.
    dtype : torch.dtype
        Data type of the collected rows.
    device : torch.device
        Device of the collected rows.
    """

    def __init__(self, matrix: np.ndarray | None, n_features: int, dtype: torch.dtype, device: torch.device):
        self._matrix = None
        n_columns = n_features
        if matrix is not None:
            # The extra column of zeros gives the product the width of the buffer. The product is then written directly
            # into the buffer.
            self._matrix = torch.from_numpy(np.pad(matrix, [(0, 0), (0, 1)])).to(device, dtype)
            n_columns = matrix.shape[1]
        self._left = torch.empty((0, n_columns + 1), dtype=dtype, device=device)
        self._waiting = np.empty((0, n_features))  # rows that do not fill a block yet, not projected
        self._n_written = self._n_before = 0

    @property
    def n_gathered(self) -> int:
        """Number of rows in the buffer."""
        return self._n_written + len(self._waiting)

    def reserve(self, n_rows: int) -> None:
        """Allocate space for `n_rows` rows. The operating system provides memory only for rows that are written."""
        if n_rows > len(self._left):
            larger = self._left.new_empty((n_rows, self._left.shape[1]))
            larger[: self._n_written] = self._left[: self._n_written]
            self._left = larger

    def extend(self, X: np.ndarray) -> None:
        """Append the rows of a batch.

        Raises
        ------
        ValueError
            If a row contains NaN, infinity or a value too large for the projection. The error names the row, counted
            over all rows that were ever appended.
        """
        # Complete the block that the previous batch left unfinished.
        if len(self._waiting):
            n_missing = min(_BLOCK - len(self._waiting), len(X))
            self._waiting = np.concatenate([self._waiting, X[:n_missing]])
            X = X[n_missing:]
            if len(self._waiting) == _BLOCK:
                self._write_waiting()
        # Write the whole blocks, and keep a copy of the remaining rows: the caller may overwrite the batch.
        n_whole = len(X) // _BLOCK * _BLOCK
        for i in range(0, n_whole, _BLOCK):
            self._write_block(X[i : i + _BLOCK])
        if n_whole < len(X):
            self._waiting = X[n_whole:].copy()

    def take(self) -> tuple[torch.Tensor, np.ndarray]:
        """Return all rows of the buffer and empty the buffer.

        The memory of the returned tensor is reused for the rows that are appended afterwards.

        Returns
        -------
        left : tensor of shape (n_rows, n_columns + 1)
            The rows, as the parameter ``left`` of `Rows`.
        numbers : array of shape (n_rows,), int64
            Index of each row among all rows that were ever appended.
        """
        self._write_waiting()
        numbers = np.arange(self._n_before, self._n_before + self._n_written)
        taken = self._left[: self._n_written]
        self._n_before += self._n_written
        self._n_written = 0
        return taken, numbers

    def _write_waiting(self) -> None:
        """Write the waiting rows as one block, even if the block is not full."""
        self._write_block(self._waiting)
        self._waiting = self._waiting[:0]

    def _write_block(self, X: np.ndarray) -> None:
        """Project the rows of one block into the buffer, with one thread if the block is small."""
        with one_thread(X.size * self._left.shape[1] < SMALL_PRODUCT):
            self._write(X)

    def _write(self, X: np.ndarray) -> None:
        """Project the rows of one block into the buffer, and raise a ValueError if the result is not finite."""
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
            if bool(bad.any()):  # otherwise all values are finite and only the sum overflowed
                first = self._n_before + start + int(bad.int().argmax())
                raise ValueError(
                    f"row {first} of X holds NaN, infinity or a value too large for {part.dtype}: remove the row or "
                    "scale the features."
                )
        self._n_written = end
