"""Lower bounds of distances, from a thin matrix product.

Seen from the bank's centre, and in its first principal directions, a row is ``h`` coordinates and a rest of known
length. The rest of a query and that of a row of the bank differ at least as much as their lengths do, so

    |q - b|² >= |q_h - b_h|² + (r_q - r_b)²,

a squared distance in ``h + 1`` dimensions: one thin matrix product bounds the distances of all pairs. What rounding may
have done is accounted for, so that a bound is one in any precision: bfloat16 where the machine is fast at it.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch

# Rows of the bank whose smallest bound is looked at first: the minimum of a group costs next to nothing.
GROUP = 32
_EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


class Bounds:
    """What a product with queries turns into lower bounds of squared distances, less the query's own squared length.

    Parameters
    ----------
    coordinates : tensor of shape (n_rows, n_directions), float32
        Rows, seen from the centre, in some of the bank's principal directions.
    norms : tensor of shape (n_rows,), float32
        Their whole squared lengths.
    n_features : int
        Dimension of the rows: that many directions leave nothing beside the coordinates.
    dtype : torch.float32 or torch.bfloat16
        Of the product.
    """

    def __init__(self, coordinates: torch.Tensor, norms: torch.Tensor, n_features: int, dtype: torch.dtype):
        self.n_rows, self.n_directions = coordinates.shape
        self.dtype = dtype
        # Sums of so many products in float32, and of numbers that came of such sums, are off by this share at most.
        self._share = 4 * (n_features + 8) * _EPS[torch.float32]
        self._is_whole = self.n_directions == n_features
        points = self._with_rest(coordinates, norms)
        rounded = points.to(dtype)
        self._reach = float(norms.max().sqrt())
        self._rounded_off = float((points - rounded.float()).square().sum(1).max().sqrt())
        high = norms.to(dtype)
        low = (norms - high.float()).to(dtype)  # bfloat16 alone would round lengths too coarsely
        n_padded = -(-self.n_rows // GROUP) * GROUP
        self._rows = torch.zeros((n_padded, self.n_directions + 3), dtype=dtype)
        self._rows[: self.n_rows, :-2] = rounded * -2
        self._rows[: self.n_rows, -2], self._rows[: self.n_rows, -1] = high, low
        self._rows[self.n_rows :, -2] = torch.inf

    def __len__(self) -> int:
        return len(self._rows)

    def left(self, coordinates: torch.Tensor, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the other factor for some queries, and how much rounding may have added to bounds of squares."""
        points = self._with_rest(coordinates[:, : self.n_directions], norms)
        rounded = points.to(self.dtype)
        ones = torch.ones((len(points), 2), dtype=self.dtype)
        lengths = norms.sqrt()
        added = self._share * (lengths + self._reach) ** 2
        if self.dtype == torch.bfloat16:
            off = (points - rounded.float()).square().sum(1).sqrt()
            added += 2 * (lengths * self._rounded_off + off * (self._reach + self._rounded_off))
            added += 2 * _EPS[torch.bfloat16] ** 2 * self._reach**2  # of the low part of the norms
        return torch.cat([rounded, ones], dim=1), added

    def limits(self, squares: torch.Tensor, norms: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """Return up to which value of the product rows may be nearer than `squares`, one for each query."""
        limits = squares - norms + added
        if self.dtype == torch.bfloat16:  # the product's own values are rounded
            limits = limits + 2 * _EPS[torch.bfloat16] * limits.abs()
        return limits

    def product(self, left: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return the product with the rows from `start` up to `stop`."""
        return torch.mm(left, self._rows[start:stop].T)

    def _with_rest(self, coordinates: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        if self._is_whole:
            return torch.nn.functional.pad(coordinates, (0, 1))
        # Rather too long than too short: that makes bounds lower.
        rest = (norms - coordinates.square().sum(1)).clamp_min_(0) + self._share * norms
        return torch.cat([coordinates, rest.sqrt_()[:, None]], dim=1)


def principal_directions(rows: torch.Tensor, n_directions: int) -> torch.Tensor:
    """Return orthonormal directions in which `rows`, seen from their mean, vary most, the largest first: about.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_features)
        Centred rows.
    n_directions : int
        How many, less than `n_features`.

    Returns
    -------
    tensor of shape (n_features, n_directions), float32

    Notes
    -----
    Orthogonal iteration from fixed random numbers: bounds need orthonormal directions, good ones rather than the best.
    """
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
    """Return the precision in which this machine multiplies matrices fastest: bfloat16 or float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones((256, 128), dtype=dtype), torch.ones((2048, 128), dtype=dtype)
        times = []
        for _ in range(4):  # the first ones load libraries
            start = time.perf_counter()
            torch.mm(left, right.T)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return torch.bfloat16 if 1.3 * seconds[torch.bfloat16] < seconds[torch.float32] else torch.float32
