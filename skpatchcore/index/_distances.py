"""Distances: squared distances between queries and rows of the bank, fast with known errors, or precise.

Matrix products and inner products are fast, but their results lose digits by cancellation. They are returned with
bounds of their rounding errors. Differences between a query and a row are slower and lose no digits. Their squared
lengths do not depend on which other pairs are computed at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from skpatchcore._utils.arrays import largest_value
from skpatchcore.index._bounds import N_ROWS, Block
from skpatchcore.index._pairs import pair_products

# Number of values in one block of differences. The block fits in the cache of one core.
_N_DIFFERENCES = 1 << 18

# Queries (ascending), rows, squared distances and bounds of their errors of some pairs, each of shape (n_pairs,).
Pairs: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Queries:
    """Some queries.

    Attributes
    ----------
    given : tensor of shape (n_queries, n_features)
        The queries as given.
    seen : tensor of shape (n_queries, n_features)
        The queries as "seen" vectors (see `Distances`).
    norms : tensor of shape (n_queries,)
        Squared lengths of `seen`.
    shifts : tensor of shape (n_queries,)
        Inner products of `seen` and the centre, in units.
    """

    given: torch.Tensor
    seen: torch.Tensor
    norms: torch.Tensor
    shifts: torch.Tensor

    def __len__(self) -> int:
        return len(self.given)


class Distances:
    """Squared distances between queries and the rows of a bank on the CPU, in units of the bank.

    Approximate distances are computed for "seen" vectors: centred on the mean of the bank and divided by a unit. All
    seen rows have entries between -1 and 1, and the largest is at least 1/2. Squared distances then neither overflow
    nor vanish. The unit is a power of 2, because division by a power of 2 has no rounding error.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_features), float32 or float64
        The bank.

    Attributes
    ----------
    rows : tensor of shape (n_rows, n_features)
        The bank.
    norms : tensor of shape (n_rows,)
        Squared lengths of the seen rows.
    unit : float
        Length of one unit.
    limit : float
        Largest absolute value of a query. Squared distances of larger queries would overflow.
    """

    def __init__(self, rows: torch.Tensor):
        self.rows, n_features = rows, rows.shape[1]
        self._center = rows.mean(0)
        reach = max(float((part - self._center).abs().max()) for part in self._parts())
        self.unit = 2.0 ** math.frexp(reach)[1] if reach > 0 else 1.0
        self.limit = largest_value(np.float64 if rows.dtype == torch.float64 else np.float32) * min(self.unit, 1.0)
        self.norms = torch.cat([part.square().sum(1) for part in self.seen_parts()])
        # Upper bound of the relative rounding error of a sum of n_features products. The factor 1.5 and the 8 extra
        # roundings cover the rounding errors of the inputs.
        self._rounding = 1.5 * (n_features + 8) * torch.finfo(rows.dtype).eps / 2
        # Inner products use the rows without centring, plus a correction for the centre. Their rounding errors are
        # proportional to the length of the row plus the length of the centre.
        lengths = torch.cat([torch.linalg.vector_norm(part / self.unit, dim=1) for part in self._parts()])
        self._shift = self._center / self.unit
        self._lengths = lengths + torch.linalg.vector_norm(self._shift)

    def _parts(self) -> Iterator[torch.Tensor]:
        """Return an iterator over the rows in blocks of `N_ROWS`."""
        return iter(torch.split(self.rows, N_ROWS))

    def seen_parts(self) -> Iterator[torch.Tensor]:
        """Yield the seen rows in blocks of `N_ROWS`."""
        for part in self._parts():
            yield self.seen(part)

    def seen(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return seen vectors: centred on the mean of the bank, and divided by the unit."""
        return (vectors - self._center).div_(self.unit)

    def prepared(self, queries: torch.Tensor) -> Queries:
        """Return queries with the values that all distances need."""
        seen = self.seen(queries)
        return Queries(queries, seen, torch.linalg.vecdot(seen, seen), seen @ self._shift)

    def of_pairs(self, queries: Queries, q: torch.Tensor, rows: torch.Tensor) -> Pairs:
        """Return pairs with their squared distances, computed from inner products, and bounds of the errors.

        Parameters
        ----------
        queries : Queries
            The queries.
        q : tensor of shape (n_pairs,), int64
            Index of the query of each pair, ascending.
        rows : tensor of shape (n_pairs,), int64
            Index of the row of each pair.
        """
        # q·(b - c) = q·b - q·c: no centred copy of the bank is needed.
        products = pair_products(queries.seen, self.rows, q, rows) / self.unit
        products -= queries.shifts[q]
        squares = queries.norms[q] + self.norms[rows] - 2 * products
        return q, rows, squares, self._errors(queries.norms, q, rows)

    def in_full(
        self, best: torch.Tensor, queries: Queries, block: Block, dead: torch.Tensor | None
    ) -> tuple[torch.Tensor, Pairs]:
        """Compute all squared distances of a block.

        Parameters
        ----------
        best : tensor of shape (n_queries, n_neighbors)
            Upper bounds of the smallest squared distances of each query so far, over distinct rows.
        queries : Queries
            The queries.
        block : Block
            The block.
        dead : tensor or None
            Excluded rows of the block, relative to its first row.

        Returns
        -------
        best : tensor of shape (n_queries, n_neighbors)
            Updated upper bounds.
        pairs : Pairs
            The pairs that may be nearest.
        """
        part, n_neighbors = slice(block.start, block.stop), best.shape[1]
        rows, row_norms, norms = self.rows[part], self.norms[part], queries.norms
        # For a seen query q, a row b and the centre c (both divided by the unit),
        #     |q - (b - c)|² = (|q|² + 2 q·c) + (|b - c|² - 2 q·b).
        # The first part (`own`) is the same for all rows. `products` contains the second part. `worst` bounds the
        # rounding errors of a query for all rows of the block, which suffices to choose pairs.
        own = norms + 2 * queries.shifts
        worst = self._rounding * (norms + row_norms.max() + 2 * norms.sqrt() * self._lengths[part].max())
        products = torch.addmm(row_norms, queries.seen, rows.T, alpha=-2 / self.unit)
        if dead is not None:
            products.index_fill_(1, dead, torch.inf)
        if n_neighbors == 1:
            smallest = products.amin(1, keepdim=True)
        else:
            smallest = products.topk(min(n_neighbors, len(rows)), largest=False).values
        # Update `best` with the upper bounds of the nearest rows of the block.
        best = torch.cat([best, smallest + (own + worst)[:, None]], dim=1).topk(n_neighbors, largest=False).values
        # A row may be nearest if its squared distance minus the rounding error is at most the maximum of `best`.
        limits = best.amax(1) - own + worst
        is_near = ~(products > limits[:, None])
        if dead is not None:
            is_near &= products != torch.inf
        q, columns = torch.nonzero(is_near, as_tuple=True)
        errors = self._errors(norms, q, block.start + columns)
        return best, (q, block.start + columns, products[q, columns] + own[q], errors)

    def _errors(self, norms: torch.Tensor, q: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return upper bounds of the rounding errors of squared distances that are computed from inner products."""
        sums = norms[q] + self.norms[rows]
        errors: torch.Tensor = self._rounding * (sums + 2 * norms.sqrt()[q] * self._lengths[rows])
        return errors

    def measured(self, queries: Queries, q: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the squared distances of pairs, computed from differences, of shape (n_pairs,) and type float64.

        Parameters
        ----------
        queries : Queries
            The queries.
        q : tensor of shape (n_pairs,), int64
            Index of the query of each pair.
        rows : tensor of shape (n_pairs,), int64
            Index of the row of each pair.
        """
        squares, step = torch.empty(len(q), dtype=torch.float64), max(1, _N_DIFFERENCES // self.rows.shape[1])
        for i in range(0, len(q), step):
            part = slice(i, i + step)
            differences = self.rows.index_select(0, rows[part]).sub_(queries.given.index_select(0, q[part]))
            squares[part] = differences.div_(self.unit).square_().sum(1, dtype=torch.float64)
        return squares
