"""BoundedBank: exact nearest neighbours on the CPU. Lower bounds show that most rows are not the nearest.

A thin matrix product (few columns) yields a lower bound of the squared distance of each pair of a query and a row (see
`Bounds`). The row with the lowest bound is usually near the query. The squared distance of this row, plus a bound of
the rounding error, is an upper bound for the nearest row. All rows with a lower bound above the upper bound are
skipped. The squared distances of the few remaining pairs are computed from inner products over all features. Pairs
that may still be nearest, given the rounding errors of these products, are measured once more: as the length of the
difference between the query and the row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from skpatchcore._utils.arrays import largest_value
from skpatchcore.index._bounds import GROUP, Bounds, fastest_dtype, principal_directions
from skpatchcore.index._copies import Copies
from skpatchcore.index._pairs import pair_products

# Rows of the bank in one block, and pairs in one block of bounds. The block of bounds fits in the processor's cache.
_N_ROWS, _N_BLOCK = 8192, 1 << 21
# Candidates for the number of principal directions. Candidates up to _N_FEW are tried first. `farthest` first uses
# _N_COARSE directions.
_N_DIRECTIONS = (32, 64, 96, 128, 192, 256, 384, 512)
_N_FEW, _N_COARSE = 128, 32
# Number of queries per group that `farthest` searches for first.
_N_FIRST = 16
# Number of rows from which principal directions are computed, and number of rows on which their number is tried.
_N_LEARNED, _N_TRIED = 4096, 64
# Costs per pair, in seconds: a multiplication of the product of bounds, a multiplication of a full distance between
# rows scattered in memory, and the remaining cost of a full distance.
_SECONDS = {torch.float32: 1.4e-11, torch.bfloat16: 6e-12}
_SECONDS_FULL, _SECONDS_PAIR = 1.6e-10, 3e-7
# If the bounds leave more than this fraction of a block, one matrix product computes all distances of the block.
_DENSE = 1 / 16
# Banks with at most this many values are searched without bounds, because bounds cost more than they save.
_N_SMALL = 1 << 19
# Number of pairs in one block of differences.
_N_PAIRS = 2048


class BoundedBank:
    """Memory bank on the CPU, with the derived data for fast exact search.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_features), float32 or float64
        The bank, on the CPU.

    Attributes
    ----------
    limit : float
        Largest absolute value of a query. Squared distances of larger queries would overflow.

    Notes
    -----
    Only the first of several equal rows is searched. If a thousand equal rows are nearest to a query, no bound is high
    enough to skip one of these rows.
    """

    def __init__(self, rows: torch.Tensor):
        # Bounds and norms are computed for "seen" vectors: centred on the mean of the bank and divided by a unit.
        self._copies = Copies.of(rows)
        self._rows = rows if self._copies is None else rows[self._copies.firsts]
        n_features = rows.shape[1]
        self._n_queries = max(1, _N_BLOCK // min(len(self._rows), _N_ROWS))
        self._center = self._rows.mean(0)
        reach = max(float((part - self._center).abs().max()) for part in self._parts())
        # All seen rows have entries between -1 and 1, and the largest is at least 1/2. Squared distances then neither
        # overflow nor vanish. The unit is a power of 2, because division by a power of 2 has no rounding error.
        self._unit = 2.0 ** math.frexp(reach)[1] if reach > 0 else 1.0
        self.limit = largest_value(np.float64 if rows.dtype == torch.float64 else np.float32) * min(self._unit, 1.0)
        self._norms = torch.cat([self._seen(part).square().sum(1) for part in self._parts()])
        # Upper bound of the relative rounding error of a sum of n_features products. The factor 1.5 and the 8 extra
        # roundings cover the rounding errors of the inputs.
        self._rounding = 1.5 * (n_features + 8) * torch.finfo(rows.dtype).eps / 2
        # Inner products use the rows without centring, plus a correction for the centre. Their rounding errors are
        # proportional to the length of the row plus the length of the centre.
        lengths = torch.cat([torch.linalg.vector_norm(part / self._unit, dim=1) for part in self._parts()])
        self._lengths = lengths + torch.linalg.vector_norm(self._center / self._unit)
        self._bounds: Bounds | None = None
        self._coarse: Bounds | None = None
        self._directions: torch.Tensor | None = None
        if self._rows.numel() > _N_SMALL:
            self._make_bounds(fastest_dtype())

    def kneighbors(
        self, queries: torch.Tensor, n_neighbors: int, excluded: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest rows of each query.

        Parameters
        ----------
        queries : tensor of shape (n_queries, n_features)
            The queries, with the dtype of the bank.
        n_neighbors : int
            Number of rows to return per query, at most the number of rows that are not excluded.
        excluded : array of int or None, default=None
            Indices of rows that are not searched.

        Returns
        -------
        distances : array of shape (n_queries, n_neighbors), float64
            Euclidean distances, ascending.
        indices : array of shape (n_queries, n_neighbors), int64
            Indices of the nearest rows, at equal distances sorted by index. Rows with equal values come directly after
            the first of them.
        """
        dead = self._dead(excluded)
        n_wanted = min(n_neighbors, len(self._rows) - (0 if dead is None else len(dead)))
        found = [self._nearest(part, n_wanted, dead) for part in torch.split(queries, self._n_queries)]
        distances, indices = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        if self._copies is None:
            return distances, indices
        return self._copies.expand(distances, indices, n_neighbors, excluded)

    def farthest(
        self, queries: torch.Tensor, starts: np.ndarray, excluded: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, for each group of queries, the query that has the largest distance to its nearest row.

        Parameters
        ----------
        queries : tensor of shape (n_queries, n_features)
            The queries, with the dtype of the bank, group after group.
        starts : array of shape (n_groups + 1,), int64
            First query of each group, then the total number of queries as the last item. No group may be empty.
        excluded : array of int or None, default=None
            Indices of rows that are not searched.

        Returns
        -------
        tops : array of shape (n_groups,), int64
            Index of the query with the largest distance, for each group. If there are several, the first of them.
        distances : array of shape (n_groups,), float64
            Euclidean distance from the returned query to its nearest row.
        indices : array of shape (n_groups,), int64
            Index of the row that is nearest to the returned query.

        Notes
        -----
        The distance from a query to any row is an upper bound of the distance from the query to its nearest row. Some
        queries of each group are searched exactly. A query with an upper bound below the largest of these exact
        distances cannot have the largest distance of the group. Such queries are not searched. Usually, almost all
        queries are such queries.
        """
        # 1. Find an upper bound for each query: the distance to the row with the lowest coarse bound.
        # 2. Search exactly for the _N_FIRST queries of each group with the highest upper bounds. The largest distance
        #    that is found is the floor of the group.
        # 3. Search exactly for all queries with an upper bound at or above the floor, and return the farthest query.
        candidates = np.arange(len(queries))
        groups = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        if self._coarse is not None:
            dead = self._dead(excluded)
            parts = torch.split(queries, self._n_queries)
            highest = np.concatenate([self._not_nearer(part, self._coarse, dead) for part in parts])
            # Queries with high upper bounds are probably far. Their distances give a high floor.
            first = np.concatenate(
                [start + np.argsort(-highest[start:stop], kind="stable")[:_N_FIRST] for start, stop in pairwise(starts)]
            )
            floor = np.zeros(len(starts) - 1)
            np.maximum.at(floor, groups[first], self.kneighbors(queries[first], 1, excluded)[0][:, 0])
            candidates = np.union1d(first, np.flatnonzero(highest >= floor[groups] ** 2))
        distances, indices = (found[:, 0] for found in self.kneighbors(queries[candidates], 1, excluded))
        tops = np.array(
            [
                where[distances[where].argmax()]
                for where in (np.flatnonzero(groups[candidates] == group) for group in range(len(starts) - 1))
            ]
        )
        return candidates[tops], distances[tops], indices[tops]

    def _parts(self) -> Iterator[torch.Tensor]:
        """Return an iterator over the rows in blocks of `_N_ROWS`."""
        return iter(torch.split(self._rows, _N_ROWS))

    def _seen(self, rows: torch.Tensor) -> torch.Tensor:
        """Return "seen" vectors: centred on the mean of the bank, and divided by the unit."""
        return (rows - self._center) / self._unit

    def _coordinates(self, seen: torch.Tensor, n_directions: int | None = None) -> torch.Tensor:
        """Return the coordinates of seen vectors in the principal directions, or all features if there are none."""
        return seen.float() if self._directions is None else seen.float() @ self._directions[:, :n_directions]

    def _dead(self, excluded: np.ndarray | None) -> torch.Tensor | None:
        """Return the positions of the excluded rows among the distinct rows, ascending, or None if there are none.

        A distinct row is excluded only if all its copies are excluded.
        """
        if excluded is None or not len(excluded):
            return None
        return torch.from_numpy(np.unique(excluded) if self._copies is None else self._copies.all_in(excluded))

    def _make_bounds(self, dtype: torch.dtype) -> None:
        """Choose the principal directions, and prepare the bounds that `kneighbors` and `farthest` use."""
        n_features = self._rows.shape[1]
        sample = self._seen(self._rows[:: -(-len(self._rows) // _N_LEARNED)]).float()
        n_directions = [n for n in _N_DIRECTIONS if n < 0.75 * n_features]
        # Many directions are expensive to compute and rarely needed. They are tried only if the largest of the few
        # numbers, or a product over all features, is cheapest.
        for tried in dict.fromkeys((tuple(n for n in n_directions if n <= _N_FEW), tuple(n_directions))):
            if tried:
                directions = principal_directions(sample, tried[-1])
                cheapest = _cheapest(sample, directions, tried, dtype)
                self._directions = None if cheapest == n_features else directions[:, :cheapest].contiguous()
                if cheapest < tried[-1]:
                    break
        coordinates = torch.cat([self._coordinates(self._seen(part)) for part in self._parts()])
        norms = self._norms.float()
        self._bounds = Bounds(coordinates, norms, n_features, dtype)
        if self._directions is not None and coordinates.shape[1] > 2 * _N_COARSE:
            self._coarse = Bounds(coordinates[:, :_N_COARSE], norms, n_features, dtype)

    def _squares(
        self, seen: torch.Tensor, norms: torch.Tensor, queries: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the squared distances of some pairs, computed from inner products, and bounds of their errors.

        Parameters
        ----------
        seen : tensor of shape (n_queries, n_features)
            Seen queries.
        norms : tensor of shape (n_queries,)
            Squared lengths of the seen queries.
        queries : tensor of shape (n_pairs,), int64
            Index of the query of each pair, ascending.
        rows : tensor of shape (n_pairs,), int64
            Index of the row of each pair.

        Returns
        -------
        squares : tensor of shape (n_pairs,)
            Squared distances in units of the bank.
        errors : tensor of shape (n_pairs,)
            Upper bounds of the rounding errors of `squares`.
        """
        # q·(b - c) = q·b - q·c: no centred copy of the bank is needed.
        products = pair_products(seen, self._rows, queries, rows) / self._unit
        products -= (seen @ (self._center / self._unit))[queries]
        squares = norms[queries] + self._norms[rows] - 2 * products
        return squares, self._errors(norms, queries, rows)

    def _blocks(
        self, bounds: Bounds, left: torch.Tensor, dead: torch.Tensor | None
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield the first row of each block of the bank, the product of bounds, and the minimum of each group.

        A group consists of the `GROUP` columns with the same remainder modulo the number of groups in the block. The
        minima of all groups are then minima of contiguous parts of the product, which are fast to compute.
        """
        for start in range(0, len(bounds), _N_ROWS):
            stop = min(start + _N_ROWS, len(bounds))
            product = bounds.product(left, start, stop)
            if dead is not None:  # a row with an infinite bound is never searched
                product.index_fill_(1, _within(dead, start, stop), torch.inf)
            yield start, product, product.view(len(left), GROUP, -1).amin(1)

    def _not_nearer(self, queries: torch.Tensor, bounds: Bounds, dead: torch.Tensor | None) -> np.ndarray:
        """Return upper bounds of the squared distances between the queries and their nearest rows.

        The upper bound of a query is its squared distance from the row with the lowest bound, plus the rounding error.
        """
        seen = self._seen(queries)
        norms = seen.square().sum(1)
        left, _ = bounds.left(self._coordinates(seen, bounds.n_directions), norms.float())
        lowest, rows = torch.full((len(queries),), torch.inf), torch.zeros(len(queries), dtype=torch.int64)
        for start, product, smallest in self._blocks(bounds, left, dead):
            values, groups = smallest.min(1)
            nearer = values.float() < lowest
            rows = torch.where(nearer, start + _members(product, groups[:, None])[:, 0], rows)
            lowest = torch.minimum(lowest, values.float())
        squares, errors = self._squares(seen, norms, torch.arange(len(queries)), rows)
        return (squares + errors).double().numpy() * self._unit**2

    def _nearest(
        self, queries: torch.Tensor, n_neighbors: int, dead: torch.Tensor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the distances and indices of the nearest distinct rows of one block of queries."""
        # The bank is processed block by block. `best` holds the n_neighbors smallest upper bounds of squared distances
        # per query, over distinct rows. Its maximum is an upper bound for the squared distance of the last neighbour.
        #   1. Compute the lower bounds of all pairs of the block with one thin product.
        #   2. Compute the squared distances of the rows with the lowest bounds, and update `best` with them.
        #   3. Keep the pairs with a lower bound up to the maximum of `best`, and compute their squared distances. If
        #      many pairs are left, one product that computes the whole block is faster.
        # After the last block, `best` has its final values. Pairs are dropped if their squared distance minus its
        # rounding error exceeds the maximum of `best`. The remaining pairs are measured by differences, and sorted.
        seen = self._seen(queries)
        norms = seen.square().sum(1)
        best = torch.full((len(queries), n_neighbors), torch.inf, dtype=queries.dtype)
        pairs = []
        if self._bounds is None:  # the bank is small
            for start in range(0, len(self._rows), _N_ROWS):
                found, best = self._in_full(best, seen, norms, start, dead)
                pairs.append(found)
        else:
            bounds = self._bounds
            left, added = bounds.left(self._coordinates(seen), norms.float())
            for start, product, smallest in self._blocks(bounds, left, dead):
                before, best = best, self._with_candidates(best, seen, norms, start, product, smallest)
                limits = bounds.limits(best.amax(1).float(), norms.float(), added)
                q, columns = _not_above(product, smallest, limits)
                if len(q) > _DENSE * product.numel():
                    # Start from `before`: `best` already contains rows of this block, and they must not count twice.
                    found, best = self._in_full(before, seen, norms, start, dead)
                    pairs.append(found)
                else:
                    pairs.append((q, start + columns, *self._squares(seen, norms, q, start + columns)))
        q, rows, squares, errors = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        highest = best.amax(1)
        if n_neighbors == 1:  # the smallest upper bound over all pairs may be smaller than `best`
            highest = highest.scatter_reduce(0, q, squares + errors, "amin")
        near = ~(squares - errors > highest[q])  # pairs with NaN are kept
        return self._measured(queries, q[near], rows[near], n_neighbors)

    def _with_candidates(
        self,
        best: torch.Tensor,
        seen: torch.Tensor,
        norms: torch.Tensor,
        start: int,
        product: torch.Tensor,
        smallest: torch.Tensor,
    ) -> torch.Tensor:
        """Return `best`, updated with the rows that have the lowest bounds in the block from row `start`.

        `product` contains the bounds of the block, and `smallest` the minima of their groups (see `_blocks`).
        """
        n_neighbors = best.shape[1]
        if n_neighbors == 1:  # the group with the smallest minimum contains the lowest bound
            members = _members(product, smallest.argmin(1, keepdim=True))
        else:
            members = product.float().topk(min(n_neighbors, product.shape[1]), largest=False).indices
        q = torch.arange(len(best)).repeat_interleave(members.shape[1])
        rows = start + members.reshape(-1)
        is_row = product[q, members.reshape(-1)] != torch.inf  # neither padding nor an excluded row
        highest = torch.full((len(q),), torch.inf, dtype=best.dtype)
        squares, errors = self._squares(seen, norms, q[is_row], rows[is_row])
        highest[is_row] = squares + errors
        return torch.cat([best, highest.view(members.shape)], dim=1).topk(n_neighbors, largest=False).values

    def _in_full(
        self, best: torch.Tensor, seen: torch.Tensor, norms: torch.Tensor, start: int, dead: torch.Tensor | None
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
        """Compute all squared distances of a block. Return the pairs that may be nearest, and the updated `best`.

        The pairs are tensors of shape (n_pairs,): queries (ascending), rows, squared distances and bounds of their
        errors.
        """
        part, n_neighbors = slice(start, start + _N_ROWS), best.shape[1]
        rows, row_norms = self._rows[part], self._norms[part]
        # For a seen query q, a row b and the centre c (both divided by the unit),
        #     |q - (b - c)|² = (|q|² + 2 q·c) + (|b - c|² - 2 q·b).
        # The first part (`own`) is the same for all rows. `products` contains the second part. `worst` bounds the
        # rounding errors of a query for all rows of the block, which suffices to choose pairs.
        own = norms + 2 * (seen @ (self._center / self._unit))
        worst = self._rounding * (norms + row_norms.max() + 2 * norms.sqrt() * self._lengths[part].max())
        products = torch.addmm(row_norms, seen, rows.T, alpha=-2 / self._unit)
        if dead is not None:
            products.index_fill_(1, _within(dead, start, start + _N_ROWS), torch.inf)
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
        errors = self._errors(norms, q, start + columns)
        return (q, start + columns, products[q, columns] + own[q], errors), best

    def _errors(self, norms: torch.Tensor, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return upper bounds of the rounding errors of squared distances that are computed from inner products."""
        sums = norms[queries] + self._norms[rows]
        errors: torch.Tensor = self._rounding * (sums + 2 * norms.sqrt()[queries] * self._lengths[rows])
        return errors

    def _measured(
        self, queries: torch.Tensor, q: torch.Tensor, rows: torch.Tensor, n_neighbors: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute the distances of pairs from differences, and return the nearest rows of each query in order.

        Differences lose no digits by cancellation, unlike inner products. Therefore the results do not depend on the
        shapes of the blocks.

        Parameters
        ----------
        queries : tensor of shape (n_queries, n_features)
            The queries, not centred.
        q : tensor of shape (n_pairs,), int64
            Index of the query of each pair. Each query has at least `n_neighbors` pairs.
        rows : tensor of shape (n_pairs,), int64
            Index of the row of each pair.
        n_neighbors : int
            Number of rows to return per query.

        Returns
        -------
        distances : array of shape (n_queries, n_neighbors), float64
            Euclidean distances, ascending.
        indices : array of shape (n_queries, n_neighbors), int64
            Indices of the distinct rows, at equal distances sorted by index.
        """
        squares = torch.empty(len(q), dtype=torch.float64)
        for i in range(0, len(q), _N_PAIRS):
            part = slice(i, i + _N_PAIRS)
            differences = (self._rows[rows[part]] - queries[q[part]]).div_(self._unit)
            squares[part] = differences.square_().sum(1, dtype=torch.float64)
        distances = squares.sqrt_().numpy() * self._unit
        if len(q) == len(queries):  # each query has exactly one pair
            order = q.argsort().numpy()
            return distances[order, None], rows.numpy()[order, None]
        # Sort the pairs by query, then by distance, then by row. Take the first n_neighbors pairs of each query.
        order = np.lexsort((rows.numpy(), distances, q.numpy()))
        firsts = np.searchsorted(q.numpy()[order], np.arange(len(queries)))
        chosen = order[firsts[:, None] + np.arange(n_neighbors)]
        return distances[chosen], rows.numpy()[chosen]


def _within(rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return the row indices from `start` to `stop` (exclusive), relative to `start`. `rows` must be ascending."""
    first, last = np.searchsorted(rows.numpy(), [start, stop])
    return rows[first:last] - start


def _members(product: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the column with the smallest value within the given group of each query, of shape (n_queries, 1)."""
    n_groups = product.shape[1] // GROUP
    values = product.view(len(product), GROUP, n_groups).gather(2, groups[:, None].expand(-1, GROUP, -1))
    return values.argmin(1) * n_groups + groups


def _cheapest(sample: torch.Tensor, directions: torch.Tensor, n_directions: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the number of directions with the lowest expected cost of a search.

    Parameters
    ----------
    sample : tensor of shape (n_rows, n_features), float32
        Sample of seen rows.
    directions : tensor of shape (n_features, max(n_directions))
        Principal directions.
    n_directions : tuple of int
        Numbers of directions to try.
    dtype : torch.dtype
        Data type of the product of bounds.

    Returns
    -------
    int
        One of `n_directions`, or `n_features` if a product over all features is cheapest.
    """
    # Some rows of the sample act as queries, and all other rows as the bank. For each number of directions, the
    # fraction of pairs with a bound up to the true nearest distance is counted: these pairs would need full distances.
    n_features = sample.shape[1]
    tried = torch.linspace(0, len(sample) - 1, min(_N_TRIED, len(sample))).long()
    norms, coordinates = sample.square().sum(1), sample @ directions
    squares = norms[tried, None] + norms - 2 * sample[tried] @ sample.T
    squares[torch.arange(len(tried)), tried] = torch.inf
    nearest = squares.amin(1, keepdim=True)
    costs = {n_features: n_features * _SECONDS[dtype]}
    for n in n_directions:
        points = coordinates[:, :n]
        rest = (norms - points.square().sum(1)).clamp_min(0).sqrt()
        bounds = norms[tried, None] + norms - 2 * (points[tried] @ points.T + rest[tried, None] * rest)
        share_left = float((bounds <= nearest).float().mean())
        costs[n] = n * _SECONDS[dtype] + share_left * (n_features * _SECONDS_FULL + _SECONDS_PAIR)
    return min(costs, key=lambda n: costs[n])


def _not_above(
    product: torch.Tensor, smallest: torch.Tensor, limits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pairs with a value up to the limit of the query: queries (ascending) and columns."""
    # The condition is `not greater`: pairs with NaN are kept. Infinite values mark padding and excluded rows.
    # Compare the minima of the groups first, and then only the members of groups with a minimum up to the limit.
    q, groups = torch.nonzero(~(smallest > limits[:, None]), as_tuple=True)
    if len(q) > smallest.numel() / 4:  # many groups are left: comparing the whole block is faster
        q, columns = torch.nonzero(~(product > limits[:, None]) & (product != torch.inf), as_tuple=True)
        return q, columns
    values = product.view(len(product), GROUP, -1)[q, :, groups]
    which, members = torch.nonzero(~(values > limits[q, None]) & (values != torch.inf), as_tuple=True)
    return q[which], members * smallest.shape[1] + groups[which]
