"""Rows and RowBuffer: projected rows, stored such that one matrix product yields squared distances."""

from __future__ import annotations

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor
from skpatchcore._utils.threads import SMALL_PASS, SMALL_PRODUCT, one_thread
from skpatchcore.coreset._grid import centre_of, exponent_counts, quantum_of, round_rows, sum_of
from skpatchcore.coreset._projection import ExactProjection

# Number of rows that are projected at once.
_BLOCK = 1024


class Rows:
    """Centred rows, rounded to integers, and stored such that one matrix product yields squared distances.

    The squared distance between a row ``x`` and a pick ``p`` is ``|x|² + [x, 1]·[-2p, |p|²]``. ``left`` contains the
    factors ``[x, 1]``. The module :mod:`skpatchcore.coreset._grid` explains why the rows are rounded.

    Parameters
    ----------
    left : tensor of shape (n_rows, n_columns + 1), float32 or float64
        The rows and one more column with arbitrary values. The tensor is changed in place, which avoids a second copy
        of all rows.
    grid : (float, array of shape (n_columns,)) or None, default=None
        Quantum and centre. None computes both from the rows.

    Attributes
    ----------
    left : tensor of shape (n_rows, n_columns + 1), float32
        The rows minus the centre in units of the quantum, followed by a column of ones.
    norms : tensor of shape (n_rows,), float32
        Squared lengths of the centred rows. They are smaller than the squared lengths of the original rows. Therefore
        fewer digits cancel in the sum above.
    quantum : float
        Unit of the rows, a power of two.
    centre : array of shape (n_columns,), float64
        Centre of the original rows.
    checksum : int
        Checksum of the original rows if these are rows of a shard; otherwise 0.
    """

    checksum = 0

    def __init__(self, left: torch.Tensor, grid: tuple[float, np.ndarray] | None = None):
        with one_thread(left.numel() < SMALL_PASS):
            rows, self._dtype = left[:, :-1], left.dtype
            self.quantum, self.centre = grid_of(rows) if grid is None else grid
            # The memory of a float64 row is used for its rounded values, too.
            self.left = left if left.dtype == torch.float32 else left.view(torch.float32)[:, : left.shape[1]]
            round_rows(rows, self.centre, self.quantum, self.left[:, :-1])
            # The last column stays 0 while the norms are computed over all columns.
            self.left[:, -1] = 0
            self.norms = self.left.new_empty(len(left))
            for i in range(0, len(left), _BLOCK):
                part = self.left[i : i + _BLOCK]
                torch.linalg.vecdot(part, part, out=self.norms[i : i + _BLOCK])
            self.left[:, -1] = 1

    @classmethod
    def from_rounded(cls, points: torch.Tensor, quantum: float, centre: np.ndarray) -> Rows:
        """Return rows that are already centred and rounded: integers of shape (n_rows, n_columns), float32."""
        rows = cls.__new__(cls)
        rows.quantum, rows.centre, rows._dtype = quantum, centre, torch.float32
        rows.left = torch.cat([points, points.new_ones((len(points), 1))], dim=1)
        rows.norms = torch.linalg.vecdot(points, points)
        return rows

    def __len__(self) -> int:
        return len(self.left)

    def __sizeof__(self) -> int:
        return int(self.left.nbytes + self.norms.nbytes)

    def exactly(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows with the given indices as float64, of shape (n, n_columns), without the column of ones."""
        return self.left[rows, :-1].to(torch.float64)

    def along(self, direction: np.ndarray) -> torch.Tensor:
        """Return the position of each row along a direction, exactly.

        Parameters
        ----------
        direction : array of shape (n_columns,)
            The direction. It is rounded to multiples of 2**-16.

        Returns
        -------
        tensor of shape (n_rows,), float64
        """
        vector = torch.from_numpy(np.rint(direction * 2.0**16)).to(self.left.device)
        found = torch.empty(len(self), dtype=torch.float64, device=self.left.device)
        for i in range(0, len(self), _BLOCK):
            torch.mv(self.left[i : i + _BLOCK, :-1].to(torch.float64), vector, out=found[i : i + _BLOCK])
        return found

    def as_they_came(self, picks: torch.Tensor) -> torch.Tensor:
        """Return the rows `picks` as ``left`` of new `Rows`: with the centre added back. The last column is arbitrary.

        Rounding errors of the values are at most half a quantum, plus half a unit in the last place of their dtype.
        """
        came = self.left[picks].to(torch.float64)
        came[:, :-1] = came[:, :-1] * self.quantum + torch.from_numpy(self.centre).to(came.device)
        return came.to(self._dtype)


def grid_of(rows: torch.Tensor) -> tuple[float, np.ndarray]:
    """Return the quantum and the centre of rows; see :mod:`skpatchcore.coreset._grid`."""
    n_columns = rows.shape[1]
    coarse = quantum_of(exponent_counts(rows), n_columns)
    centre = centre_of(sum_of(rows, coarse), len(rows), coarse)
    return quantum_of(exponent_counts(rows, torch.from_numpy(centre).to(rows.device)), n_columns), centre


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
        self._project = None if matrix is None else ExactProjection(matrix, device)
        n_columns = n_features if matrix is None else matrix.shape[1]
        self._left = torch.empty((0, n_columns + 1), dtype=dtype, device=device)
        self._waiting = np.empty((0, n_features))  # rows that do not fill a block yet, not projected
        self._n_written = self._n_before = 0

    @property
    def n_gathered(self) -> int:
        """Number of rows in the buffer."""
        return self._n_written + len(self._waiting)

    @property
    def n_seen(self) -> int:
        """Number of rows that were ever appended."""
        return self._n_before + self.n_gathered

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

    def fill(self, rows: np.ndarray) -> None:
        """Append rows that are already projected. All rows before must have been taken."""
        self.reserve(len(rows))
        self._left[: len(rows), :-1] = as_tensor(rows, self._left.device)
        self._n_written = len(rows)

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
        if self._project is None:
            part[:, :-1] = block
        else:
            self._project(block, part[:, :-1])
        if not bool(torch.isfinite(part[:, :-1].sum())):
            bad = ~torch.isfinite(part[:, :-1]).all(1)
            if bool(bad.any()):  # otherwise all values are finite and only the sum overflowed
                first = self._n_before + start + int(bad.int().argmax())
                raise ValueError(
                    f"row {first} of X holds NaN, infinity or a value too large for {part.dtype}: remove the row or "
                    "scale the features."
                )
        self._n_written = end
