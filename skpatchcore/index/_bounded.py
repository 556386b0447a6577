"""Exact nearest neighbours on the CPU: most pairs are ruled out by lower bounds, the rest are looked at in full."""

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

# Rows of the bank, and pairs, in one block of bounds, which stays in the cache.
_N_ROWS, _N_BLOCK = 8192, 1 << 21
# Numbers of principal directions to choose from; those tried first; those for a first look when
# only farthest queries are wanted.
_N_DIRECTIONS = (32, 64, 96, 128, 192, 256, 384, 512)
_N_FEW, _N_COARSE = 128, 32
# Queries that are searched for first then, of each group.
_N_FIRST = 16
# Rows that principal directions are taken from, and rows that their number is tried on.
_N_LEARNED, _N_TRIED = 4096, 64
# Seconds of what is done for each pair: a multiplication of the bound's product; one of the distance in full, of rows
# anywhere in memory; and what a pair in full costs beside these.
_SECONDS = {torch.float32: 1.4e-11, torch.bfloat16: 6e-12}
_SECONDS_FULL, _SECONDS_PAIR = 1.6e-10, 3e-7
# A block is compared in full, by one product, if more than this share of it is left.
_DENSE = 1 / 16
# Numbers in a bank so small that bounds cost more than they spare.
_N_SMALL = 1 << 19
# Pairs whose differences are written out at once.
_N_PAIRS = 2048


class BoundedBank:
    """A memory bank with what makes exact search in it fast.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_features), float32 or float64
        The bank, on the CPU.

    Notes
    -----
    Of equal rows only the first is searched for: where a thousand are equally near, bounds rule out nothing.
    """

    def __init__(self, rows: torch.Tensor):
        self._copies = Copies.of(rows)
        self._rows = rows if self._copies is None else rows[self._copies.firsts]
        n_features = rows.shape[1]
        self._n_queries = max(1, _N_BLOCK // min(len(self._rows), _N_ROWS))
        self._center = self._rows.mean(0)
        reach = max(float((part - self._center).abs().max()) for part in self._parts())
        # In these units no square overflows or vanishes; a power of 2 rounds nothing.
        self._unit = 2.0 ** math.frexp(reach)[1] if reach > 0 else 1.0
        # Beyond it, squared distances of queries would overflow.
        self.limit = largest_value(np.float64 if rows.dtype == torch.float64 else np.float32) * min(self._unit, 1.0)
        self._norms = torch.cat([self._seen(part).square().sum(1) for part in self._parts()])
        # A sum of n products is off by n roundings at most; with room for those of what goes into it.
        self._rounding = 1.5 * (n_features + 8) * torch.finfo(rows.dtype).eps / 2
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
        """Return the nearest rows.

        Parameters
        ----------
        queries : tensor of shape (n_queries, n_features)
            Of the bank's dtype.
        n_neighbors : int
            How many; at most as many rows as count.
        excluded : array of int or None, default=None
            Rows that don't count.

        Returns
        -------
        distances : array of shape (n_queries, n_neighbors), float64
            Euclidean, ascending.
        indices : array of shape (n_queries, n_neighbors), int64
            Of equal distances the lower index comes first, its copies after it.
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
        """Return, of each group of queries, the one whose nearest row is farthest.

        Parameters
        ----------
        queries : tensor of shape (n_queries, n_features)
            Of the bank's dtype.
        starts : array of shape (n_groups + 1,), int64
            Where each group begins, and the last one ends; no group is empty.
        excluded : array of int or None, default=None
            Rows that don't count.

        Returns
        -------
        tops : array of shape (n_groups,), int64
            That query; of equal distances the first.
        distances : array of shape (n_groups,), float64
            Distance from its nearest row.
        indices : array of shape (n_groups,), int64
            That row.

        Notes
        -----
        A thin product bounds all distances from below, and one row for each query from above. What is nearer than the
        farthest query is for certain need not be searched for: usually nearly all.
        """
        candidates = np.arange(len(queries))
        groups = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        if self._coarse is not None:
            dead = self._dead(excluded)
            parts = torch.split(queries, self._n_queries)
            highest = np.concatenate([self._not_nearer(part, self._coarse, dead) for part in parts])
            # Those that look farthest are searched for first: their distances rule out most of the others.
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
        return iter(torch.split(self._rows, _N_ROWS))

    def _seen(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows as seen from the centre, in units of the bank's reach."""
        return (rows - self._center) / self._unit

    def _coordinates(self, seen: torch.Tensor, n_directions: int | None = None) -> torch.Tensor:
        return seen.float() if self._directions is None else seen.float() @ self._directions[:, :n_directions]

    def _dead(self, excluded: np.ndarray | None) -> torch.Tensor | None:
        """Return, in order, the distinct rows that don't count."""
        if excluded is None or not len(excluded):
            return None
        return torch.from_numpy(np.unique(excluded) if self._copies is None else self._copies.all_in(excluded))

    def _make_bounds(self, dtype: torch.dtype) -> None:
        n_features = self._rows.shape[1]
        sample = self._seen(self._rows[:: -(-len(self._rows) // _N_LEARNED)]).float()
        n_directions = [n for n in _N_DIRECTIONS if n < 0.75 * n_features]
        # Many directions are costly to find and seldom wanted: they are looked for if the most of a few are.
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
        """Return squared distances of some pairs, from products, and how far they may be off; `queries` ascend."""
        products = pair_products(seen, self._rows, queries, rows) / self._unit
        products -= (seen @ (self._center / self._unit))[queries]
        squares = norms[queries] + self._norms[rows] - 2 * products
        return squares, self._errors(norms, queries, rows)

    def _blocks(
        self, bounds: Bounds, left: torch.Tensor, dead: torch.Tensor | None
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield, for each block of the bank, its first row, the bounds' product and the smallest of each group."""
        for start in range(0, len(bounds), _N_ROWS):
            stop = min(start + _N_ROWS, len(bounds))
            product = bounds.product(left, start, stop)
            if dead is not None:
                product.index_fill_(1, _within(dead, start, stop), torch.inf)
            yield start, product, product.view(len(left), GROUP, -1).amin(1)

    def _not_nearer(self, queries: torch.Tensor, bounds: Bounds, dead: torch.Tensor | None) -> np.ndarray:
        """Return squared distances that are not below those of the nearest rows: of the rows with the lowest bounds."""
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
        seen = self._seen(queries)
        norms = seen.square().sum(1)
        best = torch.full((len(queries), n_neighbors), torch.inf, dtype=queries.dtype)
        pairs = []
        if self._bounds is None:
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
                    found, best = self._in_full(before, seen, norms, start, dead)
                    pairs.append(found)
                else:
                    pairs.append((q, start + columns, *self._squares(seen, norms, q, start + columns)))
        q, rows, squares, errors = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        highest = best.amax(1)
        if n_neighbors == 1:
            highest = highest.scatter_reduce(0, q, squares + errors, "amin")
        near = ~(squares - errors > highest[q])
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
        """Return what the nearest rows' squared distances are not above, given those with the lowest bounds too."""
        n_neighbors = best.shape[1]
        if n_neighbors == 1:
            members = _members(product, smallest.argmin(1, keepdim=True))
        else:
            members = product.float().topk(min(n_neighbors, product.shape[1]), largest=False).indices
        q = torch.arange(len(best)).repeat_interleave(members.shape[1])
        rows = start + members.reshape(-1)
        is_row = product[q, members.reshape(-1)] != torch.inf
        highest = torch.full((len(q),), torch.inf, dtype=best.dtype)
        squares, errors = self._squares(seen, norms, q[is_row], rows[is_row])
        highest[is_row] = squares + errors
        return torch.cat([best, highest.view(members.shape)], dim=1).topk(n_neighbors, largest=False).values

    def _in_full(
        self, best: torch.Tensor, seen: torch.Tensor, norms: torch.Tensor, start: int, dead: torch.Tensor | None
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
        """Compare a whole block; return pairs that may be nearest, and what the nearest are not above."""
        part, n_neighbors = slice(start, start + _N_ROWS), best.shape[1]
        rows, row_norms = self._rows[part], self._norms[part]
        # Without what is the same for all rows; the errors of the worst row do for a first look.
        own = norms + 2 * (seen @ (self._center / self._unit))
        worst = self._rounding * (norms + row_norms.max() + 2 * norms.sqrt() * self._lengths[part].max())
        products = torch.addmm(row_norms, seen, rows.T, alpha=-2 / self._unit)
        if dead is not None:
            products.index_fill_(1, _within(dead, start, start + _N_ROWS), torch.inf)
        if n_neighbors == 1:
            smallest = products.amin(1, keepdim=True)
        else:
            smallest = products.topk(min(n_neighbors, len(rows)), largest=False).values
        best = torch.cat([best, smallest + (own + worst)[:, None]], dim=1).topk(n_neighbors, largest=False).values
        limits = best.amax(1) - own + worst
        is_near = ~(products > limits[:, None])
        if dead is not None:
            is_near &= products != torch.inf
        q, columns = torch.nonzero(is_near, as_tuple=True)
        errors = self._errors(norms, q, start + columns)
        return (q, start + columns, products[q, columns] + own[q], errors), best

    def _errors(self, norms: torch.Tensor, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return how far squared distances of pairs from products may be off."""
        sums = norms[queries] + self._norms[rows]
        errors: torch.Tensor = self._rounding * (sums + 2 * norms.sqrt()[queries] * self._lengths[rows])
        return errors

    def _measured(
        self, queries: torch.Tensor, q: torch.Tensor, rows: torch.Tensor, n_neighbors: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measure distances by differences, without the cancellation of products, and sort."""
        squares = torch.empty(len(q), dtype=torch.float64)
        for i in range(0, len(q), _N_PAIRS):
            part = slice(i, i + _N_PAIRS)
            differences = (self._rows[rows[part]] - queries[q[part]]).div_(self._unit)
            squares[part] = differences.square_().sum(1, dtype=torch.float64)
        distances = squares.sqrt_().numpy() * self._unit
        if len(q) == len(queries):  # one each
            order = q.argsort().numpy()
            return distances[order, None], rows.numpy()[order, None]
        order = np.lexsort((rows.numpy(), distances, q.numpy()))
        firsts = np.searchsorted(q.numpy()[order], np.arange(len(queries)))
        chosen = order[firsts[:, None] + np.arange(n_neighbors)]
        return distances[chosen], rows.numpy()[chosen]


def _within(rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return those of `rows`, which ascend, from `start` up to `stop`, counted from `start`."""
    first, last = np.searchsorted(rows.numpy(), [start, stop])
    return rows[first:last] - start


def _members(product: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the columns with the smallest value in one group for each query, of shape (n_queries, 1)."""
    n_groups = product.shape[1] // GROUP
    values = product.view(len(product), GROUP, n_groups).gather(2, groups[:, None].expand(-1, GROUP, -1))
    return values.argmin(1) * n_groups + groups


def _cheapest(sample: torch.Tensor, directions: torch.Tensor, n_directions: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return with how many directions, or all coordinates, search is expected to cost least.

    Rows of the sample are searched for among the others: for each number of directions, so many would be left.
    """
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
    """Return queries and columns with values up to each query's limit; queries ascend."""
    # Written so that what can't be compared is looked at; infinite values are no rows, or such as don't count.
    q, groups = torch.nonzero(~(smallest > limits[:, None]), as_tuple=True)
    if len(q) > smallest.numel() / 4:
        q, columns = torch.nonzero(~(product > limits[:, None]) & (product != torch.inf), as_tuple=True)
        return q, columns
    values = product.view(len(product), GROUP, -1)[q, :, groups]
    which, members = torch.nonzero(~(values > limits[q, None]) & (values != torch.inf), as_tuple=True)
    return q[which], members * smallest.shape[1] + groups[which]
