"""BoundedBank: exact nearest neighbours on the CPU. Lower bounds show that most rows are not the nearest.

A thin matrix product (few columns) yields a lower bound of the squared distance of each pair of a query and a row (see
`Bounds`). The row with the lowest bound is usually near the query. The squared distance of this row, plus a bound of
the rounding error, is an upper bound for the nearest row. All rows with a lower bound above the upper bound are
skipped. The squared distances of the few remaining pairs are computed from inner products over all features. Pairs
that may still be nearest, given the rounding errors of these products, are measured once more: as the length of the
difference between the query and the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from skpatchcore.index._bounds import N_ROWS, Block, Bounds
from skpatchcore.index._copies import Copies
from skpatchcore.index._directions import cheapest_directions, sampled_rows
from skpatchcore.index._distances import Distances, Pairs, Queries
from skpatchcore.index._speeds import measured_speeds

# Number of pairs in one block of bounds. The block of bounds fits in the processor's cache.
_N_BLOCK = 1 << 21
# `farthest` first uses bounds with this number of directions.
_N_COARSE = 32
# Number of queries per group that `farthest` searches for first.
_N_FIRST = 16
# If the bounds leave more than this fraction of a block, one matrix product computes all distances of the block.
_DENSE = 1 / 16
# If the bounds leave at most this number of pairs per query, the pairs are measured without inner products.
_N_FEW = 2
# Banks with at most this many values are searched with bounds over all features: directions cost more than they save.
N_SMALL = 1 << 20
# Squared distances whose square roots are equal in float64 differ by less than this factor.
_SLACK = 1 + 1e-15
# Largest squared length of a query, in units of the bank, for which bounds are computed in float32 without overflow.
_LARGEST = 1e30


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
        self._copies = Copies.of(rows)
        self._distances = Distances(rows if self._copies is None else rows[self._copies.firsts])
        self.limit = self._distances.limit
        self._n_rows = len(self._distances.rows)
        self._n_queries = max(1, _N_BLOCK // min(self._n_rows, N_ROWS))
        self._directions = self._cheapest_directions()
        self._bounds, self._coarse = self._made_bounds()

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
        n_wanted = min(n_neighbors, self._n_rows - (0 if dead is None else len(dead)))
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

    def _cheapest_directions(self) -> torch.Tensor | None:
        """Return the directions of the bounds; None if bounds over all features are expected to be cheapest."""
        rows = self._distances.rows
        if rows.numel() <= N_SMALL:
            return None
        return cheapest_directions(self._distances.seen(sampled_rows(rows)).float(), len(rows), measured_speeds())

    def _made_bounds(self) -> tuple[Bounds, Bounds | None]:
        """Return the bounds that `kneighbors` uses, and the bounds that `farthest` uses first, if there are any."""
        n_features, dtype = self._distances.rows.shape[1], measured_speeds().fastest
        coordinates = torch.cat([self._coordinates(part) for part in self._distances.seen_parts()])
        norms = self._distances.norms.float()
        bounds, coarse = Bounds(coordinates, norms, n_features, dtype), None
        if self._directions is not None and coordinates.shape[1] > 2 * _N_COARSE:
            coarse = Bounds(coordinates[:, :_N_COARSE], norms, n_features, dtype)
        return bounds, coarse

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

    def _keys(
        self, bounds: Bounds, left: torch.Tensor, dead: torch.Tensor | None
    ) -> Iterator[tuple[Block, torch.Tensor]]:
        """Yield the blocks of the bank, and the keys of the bounds between the queries and the rows of each block."""
        for block in bounds.blocks:
            keys = bounds.keys(left, block)
            excluded = _within(dead, block)
            if excluded is not None:  # a row with an infinite bound is never searched
                keys.index_fill_(1, excluded, bounds.infinity)
            yield block, keys

    def _not_nearer(self, queries: torch.Tensor, bounds: Bounds, dead: torch.Tensor | None) -> np.ndarray:
        """Return upper bounds of the squared distances between the queries and their nearest rows.

        The upper bound of a query is its squared distance from the row with the lowest bound, plus the rounding error.
        """
        some = self._distances.prepared(queries)
        if not _are_bounded(some):
            return np.full(len(some), np.inf)
        left, _ = bounds.left(self._coordinates(some.seen, bounds.n_directions), some.norms.float())
        lowest, rows = torch.full((len(some),), bounds.infinity), torch.zeros(len(some), dtype=torch.int64)
        for block, keys in self._keys(bounds, left, dead):
            columns = _lowest(keys)
            values = keys.gather(1, columns)[:, 0]
            rows = torch.where(values < lowest, block.start + columns[:, 0], rows)
            lowest = torch.minimum(lowest, values)
        _, _, squares, errors = self._distances.of_pairs(some, torch.arange(len(some)), rows)
        return (squares + errors).double().numpy() * self._distances.unit**2

    def _nearest(
        self, queries: torch.Tensor, n_neighbors: int, dead: torch.Tensor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the distances and indices of the nearest distinct rows of one block of queries."""
        some = self._distances.prepared(queries)
        if not _are_bounded(some):
            return self._all_compared(some, n_neighbors, dead)
        left, added = self._bounds.left(self._coordinates(some.seen), some.norms.float())
        if n_neighbors == 1 and len(self._bounds.blocks) == 1:
            return self._nearest_of_one_block(some, left, added, dead)
        # The bank is processed block by block. `best` holds the n_neighbors smallest upper bounds of squared distances
        # per query, over distinct rows. Its maximum is an upper bound for the squared distance of the last neighbour.
        #   1. Compute the lower bounds of all pairs of the block with one thin product.
        #   2. Compute the squared distances of the rows with the lowest bounds, and update `best` with them.
        #   3. Keep the pairs with a lower bound up to the maximum of `best`, and compute their squared distances. If
        #      many pairs are left, one product that computes the whole block is faster.
        # After the last block, `best` has its final values. Pairs are dropped if their squared distance minus its
        # rounding error exceeds the maximum of `best`. The remaining pairs are measured by differences, and sorted.
        best = torch.full((len(some), n_neighbors), torch.inf, dtype=queries.dtype)
        pairs = []
        for block, keys in self._keys(self._bounds, left, dead):
            before, (best, members, candidates) = best, self._with_candidates(best, some, block, keys)
            limits = self._bounds.limits(best.amax(1).float(), added)
            q, columns = _not_above(keys, limits, block.n_groups, self._bounds.infinity)
            if len(q) > _DENSE * keys.numel():
                # Start from `before`: `best` already contains rows of this block, and they must not count twice.
                best, found = self._distances.in_full(before, some, block, _within(dead, block))
                pairs.append(found)
            else:
                is_new = (columns[:, None] != members[q]).all(1)
                pairs += [candidates, self._distances.of_pairs(some, q[is_new], block.start + columns[is_new])]
        return self._ranked(some, best, pairs)

    def _with_candidates(
        self, best: torch.Tensor, queries: Queries, block: Block, keys: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Pairs]:
        """Return `best`, updated with the rows that have the lowest bounds in the block, and the pairs with these rows.

        Parameters
        ----------
        best, queries, block
            As in `_nearest`.
        keys : tensor of shape (n_queries, n_columns)
            Keys of the bounds of the block.

        Returns
        -------
        best : tensor of the shape of `best`
            Updated upper bounds.
        members : tensor of shape (n_queries, n_candidates), int64
            Columns with the lowest keys of each query. Some may have infinite keys.
        pairs : Pairs
            The queries with these rows. Infinite keys are left out.
        """
        n_neighbors = best.shape[1]
        if n_neighbors == 1:
            members = _lowest(keys)
        else:
            members = keys.topk(min(n_neighbors, keys.shape[1]), largest=False).indices
        q = torch.arange(len(best)).repeat_interleave(members.shape[1])
        is_row = keys.gather(1, members).reshape(-1) != self._bounds.infinity  # neither padding nor an excluded row
        highest = torch.full((len(q),), torch.inf, dtype=best.dtype)
        pairs = self._distances.of_pairs(queries, q[is_row], block.start + members.reshape(-1)[is_row])
        highest[is_row] = pairs[2] + pairs[3]
        best = torch.cat([best, highest.view(members.shape)], dim=1).topk(n_neighbors, largest=False).values
        return best, members, pairs

    def _nearest_of_one_block(
        self, queries: Queries, left: torch.Tensor, added: torch.Tensor, dead: torch.Tensor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the distance and the index of the nearest distinct row of each query, in a bank of one block.

        `left` and `added` are the results of `Bounds.left` for the queries.
        """
        # The row with the lowest bound is the nearest row of most queries. Therefore its distance is measured at once,
        # and it is the limit for the other rows. Few other rows are left.
        ((block, keys),) = self._keys(self._bounds, left, dead)
        nearest = _lowest(keys)[:, 0]
        squares = self._distances.measured(queries, torch.arange(len(queries)), nearest)
        limits = self._bounds.limits(squares.float(), added)
        q, columns = _not_above(keys, limits, block.n_groups, self._bounds.infinity)
        if len(q) > _DENSE * keys.numel():
            return self._all_compared(queries, 1, dead)
        is_new = columns != nearest[q]
        q, columns = q[is_new], columns[is_new]
        if len(q) > _N_FEW * len(queries):  # inner products are faster than differences
            _, _, near, errors = self._distances.of_pairs(queries, q, columns)
            is_near = near - errors <= squares[q] * _SLACK
            q, columns = q[is_near], columns[is_near]
        distances, rows = self._lengths(squares), nearest.numpy()
        if len(q):
            others = self._lengths(self._distances.measured(queries, q, columns))
            _replace_by_nearer(rows, distances, q.numpy(), columns.numpy(), others)
        return distances[:, None], rows[:, None]

    def _lengths(self, squares: torch.Tensor) -> np.ndarray:
        """Return the distances for measured squared distances. Rows are equally far if these numbers are equal."""
        distances: np.ndarray = squares.sqrt().numpy() * self._distances.unit
        return distances

    def _all_compared(
        self, queries: Queries, n_neighbors: int, dead: torch.Tensor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the distances and indices of the nearest distinct rows, without bounds."""
        best, pairs = torch.full((len(queries), n_neighbors), torch.inf, dtype=queries.given.dtype), []
        for block in self._bounds.blocks:
            best, found = self._distances.in_full(best, queries, block, _within(dead, block))
            pairs.append(found)
        return self._ranked(queries, best, pairs)

    def _ranked(self, queries: Queries, best: torch.Tensor, pairs: list[Pairs]) -> tuple[np.ndarray, np.ndarray]:
        """Return the distances and indices of the nearest rows among the pairs.

        `best` contains upper bounds of the squared distances of the nearest rows.
        """
        q, rows, squares, errors = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        highest = best.amax(1)
        if best.shape[1] == 1:  # the smallest upper bound over all pairs may be smaller than `best`
            highest = highest.scatter_reduce(0, q, squares + errors, "amin")
        near = ~(squares - errors > highest[q])  # pairs with NaN are kept
        q, rows = q[near], rows[near]
        return self._sorted(q, rows, self._distances.measured(queries, q, rows), len(queries), best.shape[1])

    def _sorted(
        self, q: torch.Tensor, rows: torch.Tensor, squares: torch.Tensor, n_queries: int, n_neighbors: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sort the pairs of each query by distance, then by row, and return the first ones.

        Parameters
        ----------
        q, rows, squares : tensors of shape (n_pairs,)
            Query, row and squared distance of each pair. Each query has at least `n_neighbors` pairs.
        n_queries, n_neighbors : int
            Number of queries, and number of rows to return per query.

        Returns
        -------
        distances : array of shape (n_queries, n_neighbors), float64
            Euclidean distances, ascending.
        indices : array of shape (n_queries, n_neighbors), int64
            Indices of the distinct rows, at equal distances sorted by index.
        """
        distances = self._lengths(squares)
        if len(q) == n_queries:  # each query has exactly one pair
            order = q.argsort().numpy()
            return distances[order, None], rows.numpy()[order, None]
        order = np.lexsort((rows.numpy(), distances, q.numpy()))
        firsts = np.searchsorted(q.numpy()[order], np.arange(n_queries))
        chosen = order[firsts[:, None] + np.arange(n_neighbors)]
        return distances[chosen], rows.numpy()[chosen]


def _are_bounded(queries: Queries) -> bool:
    """Return whether bounds can be computed for all queries without overflow."""
    return bool((queries.norms <= _LARGEST).all())


def _within(rows: torch.Tensor | None, block: Block) -> torch.Tensor | None:
    """Return the rows of a block, relative to its first row. `rows` must be ascending."""
    if rows is None:
        return None
    first, last = np.searchsorted(rows.numpy(), [block.start, block.stop])
    return rows[first:last] - block.start


def _lowest(keys: torch.Tensor) -> torch.Tensor:
    """Return the column with the lowest key of each query, of shape (n_queries, 1)."""
    return torch.from_numpy(keys.numpy().argmin(1, keepdims=True))  # several times as fast as torch's


def _not_above(
    keys: torch.Tensor, limits: torch.Tensor, n_groups: int, infinity: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pairs with a key up to the limit of the query: queries (ascending) and columns.

    Pairs with an infinite key are left out: padding and excluded rows.
    """
    # Compare the minima of the groups first, and then only the members of groups with a minimum up to the limit. A
    # group consists of the columns with the same remainder modulo the number of groups. The minima of all groups are
    # then minima of contiguous parts, which are fast to compute.
    members = keys.view(len(keys), -1, n_groups)
    smallest = members.amin(1)
    q, groups = _places(smallest <= limits[:, None])
    if len(q) > smallest.numel() / 4:  # many groups are left: comparing the whole block is faster
        return _places((keys <= limits[:, None]) & (keys != infinity))
    values = members[q, :, groups]
    which, places = _places((values <= limits[q, None]) & (values != infinity))
    return q[which], places * n_groups + groups[which]


def _places(are_true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows (ascending) and the columns of the true values of a matrix."""
    # several times as fast as torch's nonzero if few values are true
    rows, columns = np.divmod(np.flatnonzero(are_true.numpy()), are_true.shape[1])
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _replace_by_nearer(
    nearest: np.ndarray, distances: np.ndarray, q: np.ndarray, rows: np.ndarray, others: np.ndarray
) -> None:
    """Replace the nearest row of a query by a nearer one, in place. Of several nearest rows, the first counts.

    Parameters
    ----------
    nearest, distances : arrays of shape (n_queries,)
        Nearest row of each query so far, and its distance.
    q, rows, others : arrays of shape (n_pairs,)
        Query, row and distance of other pairs.
    """
    order = np.lexsort((rows, others, q))
    own, first, found = q[order], rows[order], others[order]
    is_first = np.diff(own, prepend=-1) > 0
    own, first, found = own[is_first], first[is_first], found[is_first]
    is_nearer = (found < distances[own]) | ((found == distances[own]) & (first < nearest[own]))
    nearest[own[is_nearer]], distances[own[is_nearer]] = first[is_nearer], found[is_nearer]
