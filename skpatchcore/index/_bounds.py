"""Bounds: lower bounds of squared distances between queries and rows of the bank, from a thin matrix product.

All vectors are centred on the mean of the bank. Each vector is split into two orthogonal parts: its ``h`` coordinates
in the first principal directions of the bank, and a rest. Only the length ``r`` of the rest is kept. By the triangle
inequality, the rests of a query ``q`` and of a row ``b`` are at least ``|r_q - r_b|`` apart. Therefore

    |q - b|² >= |q_h - b_h|² + (r_q - r_b)².

The right side is a squared distance in ``h + 1`` dimensions. One thin matrix product computes it for all pairs. The
limits below allow for all rounding errors, so no nearer row is skipped in any precision. Therefore the product may
use bfloat16 on machines that multiply bfloat16 fast.

The bits of a positive floating-point number, read as an integer, have the same order as the number. Integers are
compared, and minima of integers are found, several times as fast as bfloat16 numbers. Therefore the bounds are returned
as such integers, the keys. A bound that is negative because of rounding has a negative key.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# Rows of the bank in one product. The block of bounds of some queries fits in the processor's cache.
N_ROWS = 8192
# Number of rows per group, about. Only the smallest bound of each group is compared first, which costs almost nothing.
_GROUP = 32
# The number of groups of a block is a multiple of this number, because minima of contiguous parts are fast to compute.
_N_LANES = 64
# Integer type with the bits of a floating-point type.
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
# Unit roundoff: the largest relative error of rounding to this precision.
_EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


class Block(NamedTuple):
    """Consecutive rows of the bank. Row ``start + i`` belongs to the group ``i % n_groups``; `stop` is exclusive."""

    start: int
    stop: int
    n_groups: int


class Bounds:
    """Rows of the bank, prepared for the matrix product that bounds squared distances.

    The rows are padded to a multiple of the number of groups. The bounds of the padding are infinite.

    Parameters
    ----------
    coordinates : tensor of shape (n_rows, n_directions), float32
        Coordinates of the centred rows in the first principal directions of the bank.
    norms : tensor of shape (n_rows,), float32
        Squared lengths of the centred rows, over all features.
    n_features : int
        Dimension of the rows. If `n_directions` equals `n_features`, the rests are zero.
    dtype : torch.float32 or torch.bfloat16
        Data type of the product.

    Attributes
    ----------
    blocks : list of Block
        Blocks of rows. The last block includes the padding.
    infinity : int
        Key of an infinite bound.
    """

    def __init__(self, coordinates: torch.Tensor, norms: torch.Tensor, n_features: int, dtype: torch.dtype):
        # With points p = [coordinates, rest], the bound is |p_q|² + |p_b|² - 2 p_q·p_b, where |p|² is the squared
        # length over all features. The stored factor of a row is [-2 p_b, high, low, 1, 1], and the factor of a query
        # is [p_q, 1, 1, high, low]. high + low is |p|², split into two numbers.
        self.n_rows, self.n_directions = coordinates.shape
        self.dtype = dtype
        # Upper bound of the relative error of a float32 sum of n_features products, and of results derived from it.
        self._share = 4 * (n_features + 8) * _EPS[torch.float32]
        self._is_whole = self.n_directions == n_features
        points = self._with_rest(coordinates, norms)
        n_points = points.shape[1]
        rounded = points.to(dtype)
        # The largest length of a row, and the largest length of a rounding error of a row's point.
        self._reach = float(norms.max().sqrt())
        self._rounded_off = float((points - rounded.float()).square().sum(1).max().sqrt())
        self.blocks = [_block(start, min(N_ROWS, self.n_rows - start)) for start in range(0, self.n_rows, N_ROWS)]
        self._rows = torch.zeros((self.blocks[-1].stop, n_points + 4), dtype=dtype)
        self._rows[: self.n_rows, :-4] = rounded * -2
        _set_in_two(self._rows[: self.n_rows, -4:-2], norms)
        self._rows[self.n_rows :, -4] = torch.inf
        self._rows[:, -2:] = 1
        self.infinity = int(torch.tensor(torch.inf, dtype=dtype).view(_BITS[dtype]))

    def left(self, coordinates: torch.Tensor, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factor of some queries in the product, and upper bounds of the rounding errors.

        Parameters
        ----------
        coordinates : tensor of shape (n_queries, at least n_directions), float32
            Coordinates of the centred queries in the principal directions.
        norms : tensor of shape (n_queries,), float32
            Squared lengths of the centred queries, over all features.

        Returns
        -------
        left : tensor of shape (n_queries, n_points + 4)
            Left factor of the product.
        added : tensor of shape (n_queries,), float32
            Upper bound of the amount by which rounding may have increased the lower bounds of each query.
        """
        points = self._with_rest(coordinates[:, : self.n_directions], norms)
        left = torch.ones((len(points), self._rows.shape[1]), dtype=self.dtype)
        left[:, :-4] = points
        _set_in_two(left[:, -2:], norms)
        lengths = norms.sqrt()
        # Rounding in float32. No term of the product is larger than (|q| + |b|)².
        added = self._share * (lengths + self._reach) ** 2
        if self.dtype == torch.bfloat16:
            # Rounding of the points to bfloat16. With errors e of the points, the inner product is off by at most
            # |p_q| |e_b| + |e_q| (|p_b| + |e_b|), by the Cauchy-Schwarz inequality.
            differences = points - left[:, :-4]
            off = torch.linalg.vecdot(differences, differences).sqrt_()
            added += 2 * (lengths * self._rounded_off + off * (self._reach + self._rounded_off))
            # Rounding of the low parts of the squared lengths.
            added += _EPS[torch.bfloat16] ** 2 * (self._reach**2 + norms)
        return left, added

    def limits(self, squares: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """Return the limit of the keys for each query: rows with a key above the limit can be skipped.

        Parameters
        ----------
        squares : tensor of shape (n_queries,), float32
            Squared distances, finite or infinite. A row may be skipped only if its squared distance from the query is
            larger.
        added : tensor of shape (n_queries,), float32
            Upper bounds of the rounding errors, from `left`.

        Returns
        -------
        tensor of shape (n_queries,), int16 or int32
            Largest key that a row within `squares` may have.
        """
        # The bounds are rounded to this type, and so is the limit. Rounding keeps the order. The factor leaves room for
        # products that are rounded in another way.
        limits = (squares + added).clamp_min(0) * (1 + 2 * _EPS[self.dtype])
        return limits.to(self.dtype).view(_BITS[self.dtype])

    def keys(self, left: torch.Tensor, block: Block) -> torch.Tensor:
        """Return the keys of the bounds of the queries with the factor `left` and the rows of one block.

        Returns
        -------
        tensor of shape (n_queries, block.stop - block.start), int16 or int32
        """
        return torch.mm(left, self._rows[block.start : block.stop].T).view(_BITS[self.dtype])

    def _with_rest(self, coordinates: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Return the points: the coordinates, followed by the length of the rest unless all directions are kept."""
        if self._is_whole:
            return coordinates
        # The length is rounded up. A longer rest increases p_q·p_b, which makes the bound lower and therefore safe.
        rest = (norms - coordinates.square().sum(1)).clamp_min_(0) + self._share * norms
        return torch.cat([coordinates, rest.sqrt_()[:, None]], dim=1)


def _block(start: int, n_rows: int) -> Block:
    """Return the block of `n_rows` rows from row `start`, with the padding that makes all groups equally large."""
    n_groups = _N_LANES * max(1, round(n_rows / (_N_LANES * _GROUP)))
    return Block(start, start + n_groups * -(-n_rows // n_groups), n_groups)


def _set_in_two(columns: torch.Tensor, norms: torch.Tensor) -> None:
    """Set two columns to numbers with the sum `norms`: one bfloat16 number is too coarse for a squared length."""
    columns[:, 0] = norms
    columns[:, 1] = norms - columns[:, 0]
