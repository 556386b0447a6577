"""Rounding of rows to a grid, on which squared distances are integers and therefore exact in float64.

Floating-point sums depend on their order, and the order depends on the shapes of matrix products, on the number of
threads and on the processor. If two rows are almost equally far from the selected rows, rounding would decide which row
is selected next. The selection therefore rounds all rows to multiples of one power of two, the quantum, and computes in
units of the quantum. Squared distances between such rows are integers below 2**53. Float64 represents these integers
exactly, so that sums in any order are equal. The same rows are then selected on all devices, for all batches, and if
the rows are divided among several processes.

The quantum and the centre of the rows are computed from counts and from sums of integers. Both are the same for any
order of the rows, and those of several parts can be added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

# Number of rows that are rounded at once. The blocks fit in the processor's cache.
_BLOCK = 2048
# Exponents from -_OFFSET to _OFFSET have a count.
_OFFSET = 1100
# Exponents of the smallest quantum. Its inverse is finite in float64.
_SMALLEST = -1000
# The quantum is chosen such that all rows are exact, unless the largest value is more than 2**_MOST_BITS times as large
# as the values of the fraction _SHARE of the rows. Then it is chosen for this fraction, because it would be too coarse
# for nearly all rows. Distances of the few other rows are then inexact in the last bits of float64.
_SHARE, _MOST_BITS = 0.999, 8
# The largest value is at most 2**_WIDEST quanta, so that squares of float32 values cannot overflow.
_WIDEST = 52


def n_bits(n_columns: int) -> int:
    """Return the number of bits per value with which squared distances of rows are below 2**53.

    The values of centred rows are at most ``2**n_bits`` quanta, and at most 2**24, so that float32 represents them.
    """
    return min(24, int((51 - math.log2(n_columns)) / 2))


def exponent_counts(rows: torch.Tensor, centre: torch.Tensor | None = None) -> np.ndarray:
    """Return the number of rows per binary exponent of their largest absolute value.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_columns)
        Finite rows.
    centre : tensor of shape (n_columns,), float64, or None, default=None
        Vector that is subtracted from each row. None subtracts nothing.

    Returns
    -------
    array of shape (2201,), int64
        The counts of the exponents -1100 to 1100. Rows of zeros are not counted.
    """
    counts = np.zeros(2 * _OFFSET + 1, np.int64)
    for _, block in _blocks(rows, centre):
        largest = block.abs().amax(1)
        exponents = torch.frexp(largest[largest > 0])[1].to(torch.int64)
        counts += torch.bincount(exponents + _OFFSET, minlength=len(counts)).cpu().numpy()
    return counts


def quantum_of(counts: np.ndarray, n_columns: int) -> float:
    """Return the quantum, a power of two, for rows with the given :func:`exponent_counts`."""
    found = np.flatnonzero(counts)
    if not len(found):
        return 1.0
    usual = int(np.searchsorted(np.cumsum(counts), math.ceil(_SHARE * counts.sum()))) - _OFFSET
    largest = int(found[-1]) - _OFFSET
    exact_for = largest if largest - usual <= _MOST_BITS else usual
    exponent = max(exact_for - n_bits(n_columns), largest - _WIDEST, _SMALLEST)
    return math.ldexp(1.0, exponent)


def sum_of(rows: torch.Tensor, quantum: float) -> np.ndarray:
    """Return the sum of the rows, rounded to quanta, per column.

    Values beyond ``2**n_bits`` quanta count as this limit. Therefore, a few rows with huge values do not move the
    centre, and the sums of up to 2**29 rows are exact.

    Returns
    -------
    array of shape (n_columns,), float64
        Integers: the sums in units of the quantum.
    """
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    limit = 2.0 ** n_bits(rows.shape[1])
    for _, block in _blocks(rows, None):
        total += block.mul_(1 / quantum).round_().clamp_(-limit, limit).sum(0)
    return total.cpu().numpy()


def centre_of(total: np.ndarray, n_rows: int, quantum: float) -> np.ndarray:
    """Return the centre of `n_rows` rows with the given :func:`sum_of`, rounded to quanta.

    Returns
    -------
    array of shape (n_columns,), float64
    """
    centre: np.ndarray = np.rint(total / max(n_rows, 1)) * quantum
    return centre


def round_rows(rows: torch.Tensor, centre: np.ndarray, quantum: float, out: torch.Tensor) -> None:
    """Write the centred rows in units of the quantum, rounded to integers, to `out`.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_columns), float32 or float64
        The rows.
    centre : array of shape (n_columns,), float64
        Centre of the rows.
    quantum : float
        The quantum.
    out : tensor of shape (n_rows, n_columns), float32
        The result. It may share the memory of `rows` row by row.
    """
    for start, block in _blocks(rows, torch.from_numpy(centre).to(rows.device)):
        out[start : start + len(block)] = block.mul_(1 / quantum).round_()


def _blocks(rows: torch.Tensor, centre: torch.Tensor | None) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first row number and a float64 copy of each block of rows, minus the centre."""
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].to(torch.float64, copy=True)
        yield start, block if centre is None else block.sub_(centre)
