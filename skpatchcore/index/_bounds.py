"""Bounds: lower bounds of squared distances between queries and rows of the bank, from a thin matrix product.

All vectors are centred on the mean of the bank. Each vector is split into two orthogonal parts: its ``h`` coordinates
in the first principal directions of the bank, and a rest. Only the length ``r`` of the rest is kept. By the triangle
inequality, the rests of a query ``q`` and of a row ``b`` are at least ``|r_q - r_b|`` apart. Therefore

    |q - b|² >= |q_h - b_h|² + (r_q - r_b)².

The right side is a squared distance in ``h + 1`` dimensions. One thin matrix product computes it for all pairs. The
limits below allow for all rounding errors, so no nearer row is skipped in any precision. Therefore the product may
use bfloat16 on machines that multiply bfloat16 fast.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch

# Number of rows per group. Only the smallest bound of each group is compared first, which costs almost nothing.
GROUP = 32
# Unit roundoff: the largest relative error of rounding to this precision.
_EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


class Bounds:
    """Rows of the bank, prepared for the matrix product that bounds squared distances.

    The product of `left` and the stored factor is, for each pair, the lower bound minus the squared length of the
    query. The rows are padded to a multiple of `GROUP`. The product is infinite for the padding.

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
    """

    def __init__(self, coordinates: torch.Tensor, norms: torch.Tensor, n_features: int, dtype: torch.dtype):
        # With points p = [coordinates, rest], the bound is |p_q|² + |p_b|² - 2 p_q·p_b, where |p|² is the squared
        # length over all features. The stored factor of a row is [-2 p_b, high, low], and the factor of a query is
        # [p_q, 1, 1]. high + low is |p_b|², split into two numbers.
        self.n_rows, self.n_directions = coordinates.shape
        self.dtype = dtype
        # Upper bound of the relative error of a float32 sum of n_features products, and of results derived from it.
        self._share = 4 * (n_features + 8) * _EPS[torch.float32]
        self._is_whole = self.n_directions == n_features
        points = self._with_rest(coordinates, norms)
        rounded = points.to(dtype)
        # The largest length of a row, and the largest length of a rounding error of a row's point.
        self._reach = float(norms.max().sqrt())
        self._rounded_off = float((points - rounded.float()).square().sum(1).max().sqrt())
        # One bfloat16 number is too coarse for the squared length. The low part holds the rounding error of the high.
        high = norms.to(dtype)
        low = (norms - high.float()).to(dtype)
        n_padded = -(-self.n_rows // GROUP) * GROUP
        self._rows = torch.zeros((n_padded, self.n_directions + 3), dtype=dtype)
        self._rows[: self.n_rows, :-2] = rounded * -2
        self._rows[: self.n_rows, -2], self._rows[: self.n_rows, -1] = high, low
        self._rows[self.n_rows :, -2] = torch.inf

    def __len__(self) -> int:
        return len(self._rows)

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
        left : tensor of shape (n_queries, n_directions + 3)
            Left factor of the product.
        added : tensor of shape (n_queries,), float32
            Upper bound of the amount by which rounding may have increased the lower bounds of each query.
        """
        points = self._with_rest(coordinates[:, : self.n_directions], norms)
        rounded = points.to(self.dtype)
        ones = torch.ones((len(points), 2), dtype=self.dtype)
        lengths = norms.sqrt()
        # Rounding in float32. No term of the product is larger than (|q| + |b|)².
        added = self._share * (lengths + self._reach) ** 2
        if self.dtype == torch.bfloat16:
            # Rounding of the points to bfloat16. With errors e of the points, the inner product is off by at most
            # |p_q| |e_b| + |e_q| (|p_b| + |e_b|), by the Cauchy-Schwarz inequality.
            off = (points - rounded.float()).square().sum(1).sqrt()
            added += 2 * (lengths * self._rounded_off + off * (self._reach + self._rounded_off))
            added += 2 * _EPS[torch.bfloat16] ** 2 * self._reach**2  # rounding of the low part of the squared lengths
        return torch.cat([rounded, ones], dim=1), added

    def limits(self, squares: torch.Tensor, norms: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """Return the limit of the product for each query: rows with a product above the limit can be skipped.

        Parameters
        ----------
        squares : tensor of shape (n_queries,)
            Squared distances. A row may be skipped only if its squared distance from the query is larger.
        norms : tensor of shape (n_queries,)
            Squared lengths of the centred queries.
        added : tensor of shape (n_queries,)
            Upper bounds of the rounding errors, from `left`.

        Returns
        -------
        tensor of shape (n_queries,)
            Largest value of the product that a row within `squares` may have.
        """
        limits = squares - norms + added
        if self.dtype == torch.bfloat16:  # the values of the product are rounded to bfloat16
            limits = limits + 2 * _EPS[torch.bfloat16] * limits.abs()
        return limits

    def product(self, left: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return the product of the queries' factor `left` with the rows from `start` to `stop` (exclusive)."""
        return torch.mm(left, self._rows[start:stop].T)

    def _with_rest(self, coordinates: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Return the points: the coordinates, followed by the length of the rest."""
        if self._is_whole:  # all directions are kept, so the rest is zero
            return torch.nn.functional.pad(coordinates, (0, 1))
        # The length is rounded up. A longer rest increases p_q·p_b, which makes the bound lower and therefore safe.
        rest = (norms - coordinates.square().sum(1)).clamp_min_(0) + self._share * norms
        return torch.cat([coordinates, rest.sqrt_()[:, None]], dim=1)


def principal_directions(rows: torch.Tensor, n_directions: int) -> torch.Tensor:
    """Return approximate principal directions of `rows`: orthonormal, in order of decreasing variance.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_features)
        Centred rows.
    n_directions : int
        Number of directions, less than `n_features`.

    Returns
    -------
    tensor of shape (n_features, n_directions), float32
        One direction per column.

    Notes
    -----
    The directions come from three steps of orthogonal iteration, which starts from fixed random numbers. The bounds are
    valid for any orthonormal directions. Better directions only make the bounds tighter, so approximate ones suffice.
    """
    # Iterate a few more directions than needed: the wanted ones then converge faster. The eigenvectors within the
    # iterated subspace sort the directions by variance.
    covariance = rows.T @ rows
    n_spare = min(rows.shape[1], n_directions + 16)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn((rows.shape[1], n_spare), generator=generator, dtype=rows.dtype)
    for _ in range(3):
        directions = torch.linalg.qr(covariance @ directions).Q
    _, vectors = torch.linalg.eigh(directions.T @ covariance @ directions)
    principal: torch.Tensor = (directions @ vectors.flip(1))[:, :n_directions].float().contiguous()
    return principal


@lru_cache(maxsize=1)
def fastest_dtype() -> torch.dtype:
    """Return bfloat16 if this machine multiplies bfloat16 matrices more than 1.3 times as fast as float32 ones.

    Otherwise, return float32. The speed is measured once per process.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones((256, 128), dtype=dtype), torch.ones((2048, 128), dtype=dtype)
        times = []
        for _ in range(4):  # the first products also load libraries, so the fastest of four counts
            start = time.perf_counter()
            torch.mm(left, right.T)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return torch.bfloat16 if 1.3 * seconds[torch.bfloat16] < seconds[torch.float32] else torch.float32
