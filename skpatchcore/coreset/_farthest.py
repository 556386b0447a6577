"""FarthestRows: finds the rows that are farthest from the picks, with exact distances, by blocked matrix products.

The distance from a row to its nearest pick can only decrease as picks are added. Therefore a distance computed some
picks ago is an upper bound, and a row with a bound below the current covering radius cannot be the farthest row. Its
comparisons can wait until the radius has come down to its bound. Most rows lie well below the radius, so most of the
work is deferred or skipped.

Most distances are computed in float32, which is fast but not exact. A bound of the rounding error is added, so that
the result is still an upper bound. Only the rows with the largest bounds, the candidates, are compared in float64,
which is exact (see :mod:`skpatchcore.coreset._grid`). A decision is made only if the exact distance of a candidate is
above the bounds of all other rows.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch

from skpatchcore.coreset._rows import Rows

# The level is this fraction of the largest squared bound. Rows with a squared bound at or above the level are active.
# The first fraction is used if the previous level yielded at least _FEW_PICKS picks. Otherwise the second is used: the
# pass over all rows then costs more than the matrix products, and a lower level needs fewer passes.
_LEVELS = (0.88, 0.7)
_FEW_PICKS = 64
# Rows and picks in one matrix product. The block of products fits in the processor's cache.
_BLOCK = (1024, 512)
# The same on a GPU, where the start of each operation takes time. The block takes 128 MB.
_GPU_BLOCK = (16384, 2048)
# Maximum number of picks copied into one factor of the matrix products.
_N_PICKS = 8192
# Maximum number of rows that are compared exactly at once. It bounds the memory of their float64 copies.
_N_EXACT = 8192
# Number of searches for candidates after which all rows that can be the farthest row are compared exactly.
_N_ATTEMPTS = 4


@dataclass
class Candidates:
    """The rows that are farthest from the picks.

    Attributes
    ----------
    rows : tensor of shape (n_candidates,), int64
        Indices of the rows, ascending.
    squares : tensor of shape (n_candidates,), float64
        Exact squared distances from the nearest pick, in units of the squared quantum.
    floor : float
        Upper bound of the squared distances of all other rows.
    first_tie : float
        All other rows whose squared distance equals `floor` have an index of at least `first_tie`. A candidate with the
        squared distance `floor` and a smaller index is therefore picked before them.
    """

    rows: torch.Tensor
    squares: torch.Tensor
    floor: float
    first_tie: float


class FarthestRows:
    """Search for the rows that are farthest from the picks, among the rows of one process.

    Parameters
    ----------
    rows : Rows
        The rows.
    left_out : tensor of int64 or None, default=None
        Indices of rows that are ignored. None ignores no row.

    Attributes
    ----------
    n_picks : int
        Number of picks so far. Picks can be rows of other processes.
    """

    def __init__(self, rows: Rows, left_out: torch.Tensor | None = None):
        self.rows, self.n_picks = rows, 0
        n, device = len(rows), rows.left.device
        # Upper bound of each row's squared distance from the nearest pick. Rows that are picked or left out have the
        # value -1, which is below every level.
        self._squares = torch.full_like(rows.norms, torch.inf)
        if left_out is not None:
            self._squares[left_out] = -1.0
        # Number of picks with which each row has been compared, and exact squared distances from the first picks.
        self._n_seen = torch.zeros(n, dtype=torch.int32, device=device)
        self._exact = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
        self._n_exact = torch.zeros(n, dtype=torch.int32, device=device)
        self._n_compared = 0  # number of picks at the last exact comparison
        self._level, self._n_before = torch.inf, 0
        self._active = torch.zeros(0, dtype=torch.int64, device=device)
        # Vectors [-2p, |p|²] of the picks, in blocks that are never changed.
        self._picks: list[torch.Tensor] = []
        # Bound of the rounding errors of a squared distance, relative to (|x| + |p|)². See `_lower`.
        self._unit = 2 * (rows.left.shape[1] + 4) * 2.0**-24

    def copy(self) -> FarthestRows:
        """Return a copy that can be changed without changing this object. The rows and the picks are shared."""
        other = copy(self)
        for name in ("_squares", "_n_seen", "_exact", "_n_exact"):
            setattr(other, name, getattr(self, name).clone())
        other._picks = list(self._picks)
        return other

    def nbytes(self) -> int:
        """Return the size of the bounds and the picks in bytes, without the rows."""
        arrays = (self._squares, self._n_seen, self._exact, self._n_exact, self._active, *self._picks)
        return sum(array.nbytes for array in arrays)

    def add(self, picks: torch.Tensor, own: torch.Tensor) -> None:
        """Add picks.

        Parameters
        ----------
        picks : tensor of shape (n_new, n_columns), float32
            The new picks, on the same grid as the rows.
        own : tensor of int64
            Indices of the picks that are rows of this object. They are never candidates again.
        """
        vectors = torch.empty((len(picks), picks.shape[1] + 1), dtype=torch.float32, device=self.rows.left.device)
        vectors[:, :-1] = picks
        vectors[:, -1] = torch.linalg.vecdot(vectors[:, :-1], vectors[:, :-1])
        vectors[:, :-1] *= -2
        self._picks.append(vectors)
        self.n_picks += len(picks)
        self._squares[own] = -1.0

    def candidates(self, n: int, least: int = 1) -> Candidates | None:
        """Return at most `n` rows with the largest distances; None if all rows are picked or left out.

        At least `least` rows are considered, if there are as many. More candidates need fewer calls, but more rows are
        then compared with all picks. The row with the largest distance is among the candidates. If several rows have
        this distance, the first of them is. Nothing else depends on rounding or on the order of earlier calls, except
        which other rows are returned.
        """
        if not self.n_picks:
            raise ValueError("there are no picks yet: add the first pick.")
        for _ in range(_N_ATTEMPTS):
            active = self._farthest_active(n, least)
            if active is None:
                return None
            fresh = self._squares[active]
            n_top = min(n, len(active))
            largest, places = torch.topk(fresh, min(n_top + 1, len(active)))
            found = active[places[:n_top]].sort()[0]
            # Inactive rows are below the level, so that no tie with them is possible.
            outside = float(largest[-1]) if len(active) > n_top else -torch.inf
            squares = self._compare_exactly(found)
            best = float(squares.max())
            if best > outside and best >= self._level:
                return Candidates(found, squares, max(outside, self._level), torch.inf if outside < self._level else -1)
        return self._all_tied(best, n)

    def _all_tied(self, best: float, n: int) -> Candidates:
        """Compare all rows that can be farther than `best` exactly, and return the first rows with the maximum."""
        # float32 rounds numbers up or down. The bounds are rounded up, so a comparison with a smaller number is safe.
        rows = torch.nonzero(self._squares >= best * (1 - 2.0**-22))[:, 0]
        self._catch_up(rows)
        rows = rows[self._squares[rows] >= best * (1 - 2.0**-22)]
        squares = self._compare_exactly(rows)
        largest = float(squares.max())
        tied = rows[squares == largest]
        beyond = float(tied[n]) if len(tied) > n else torch.inf
        tied = tied[:n]
        return Candidates(tied, torch.full_like(self._exact[tied], largest), largest, beyond)

    def _farthest_active(self, n: int, least: int) -> torch.Tensor | None:
        """Return the rows with bounds at or above the level, compared with all picks; None if no row is left."""
        active = self._active[self._squares[self._active] >= self._level]
        self._catch_up(active)
        active = active[self._squares[active] >= self._level]
        while len(active) < least and self._level > 0:
            # The level is lowered from the largest bound, or from the previous level if some rows are active.
            largest = float(self._squares.max()) if not len(active) else self._level
            if largest < 0:
                return None
            if largest < 1:  # squared distances are integers, so the level need not be lowered in small steps
                largest = 0.0
            # No row is active, so lower the level. Initially all bounds are infinite. The level 0 compares all rows.
            step = _LEVELS[self.n_picks - self._n_before < _FEW_PICKS]
            is_first = largest == torch.inf
            # float32, as the bounds: otherwise a comparison with the bounds would round the level
            self._level = 0.0 if is_first else float(np.float32(largest * step))
            self._n_before = self.n_picks
            active = torch.nonzero(self._squares >= self._level)[:, 0]
            self._catch_up(active)
            # Bounds that fell below the level leave the active rows. If none remains, the level is lowered again. After
            # the first comparison of all rows, choose a level from finite bounds, unless few rows are active.
            active = active[self._squares[active] >= self._level]
            if is_first and len(active) > n:
                active, self._level = active[:0], torch.inf
        self._active = active
        return active if len(active) else None

    def _catch_up(self, members: torch.Tensor) -> None:
        """Compare the rows `members` with all picks that they have not been compared with, and lower their bounds."""
        behind = self._n_seen[members]
        # Rows that miss the same picks share one matrix product.
        for count in torch.unique(behind).tolist():
            if count < self.n_picks:
                self._lower(members[behind == count], count)
        self._n_seen[members] = self.n_picks

    def _lower(self, members: torch.Tensor, first: int) -> None:
        """Lower the bound of each row in `members` to its squared distance from the picks from `first` on."""
        norms = self.rows.norms[members]
        lowest = self._lowest_products(members, first, torch.float32).add_(norms).clamp_min_(0)
        # The errors of a sum of n products, and those of the squared lengths |x|² and |p|², are each at most n units in
        # the last place of the sum of the absolute terms. Together they are at most unit * (|x| + |p|)², and |p| is at
        # most |x| + |x - p|.
        lowest.add_((norms.sqrt() * 2 + lowest.sqrt()).square_(), alpha=self._unit * (1 + 2.0**-10))
        self._squares[members] = torch.minimum(self._squares[members], lowest)

    def _lowest_products(self, members: torch.Tensor, first: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the minimum of ``[x, 1]·[-2p, |p|²]`` over the picks `p` from `first` on, for each row in `members`.

        The norm ``|x|²`` does not depend on the pick. Therefore the caller adds it to the minimum.
        """
        rows = self.rows
        lowest = torch.full((len(members),), torch.inf, dtype=dtype, device=members.device)
        n_rows, n_picks = _BLOCK if members.device.type == "cpu" else _GPU_BLOCK
        height = min(n_rows if dtype == torch.float32 else max(1, n_rows // 2), len(members))
        # These buffers are reused for every block. Allocating new memory would cost as much as the products.
        gathered = rows.left.new_empty((height, rows.left.shape[1]))
        products = torch.empty(height * n_picks, dtype=dtype, device=members.device)
        for some in torch.split(self._picks_from(first), _N_PICKS):
            blocks = [_exact_norms(right.to(dtype)).T.contiguous() for right in torch.split(some, n_picks)]
            for i in range(0, len(members), height):
                part = members[i : i + height]
                left = torch.index_select(rows.left, 0, part, out=gathered[: len(part)]).to(dtype)
                out = lowest[i : i + len(part)]
                for block in blocks:
                    some_products = products[: len(part) * block.shape[1]].view(len(part), -1)
                    torch.minimum(out, torch.mm(left, block, out=some_products).amin(1), out=out)
        return lowest

    def _compare_exactly(self, members: torch.Tensor) -> torch.Tensor:
        """Return the exact squared distances of the rows `members` from their nearest picks, and set their bounds."""
        # An upper bound of 0 is exact.
        self._exact[members[self._squares[members] == 0]] = 0
        behind = torch.where(self._squares[members] == 0, self.n_picks, self._n_exact[members])
        # Few rows are new candidates of an earlier round. They are compared with some picks again, because one large
        # product is faster than several small ones.
        is_recent = behind >= self._n_compared
        for group in (members[is_recent & (behind < self.n_picks)], members[~is_recent]):
            if not len(group):
                continue
            first = int(self._n_exact[group].min())
            for some in torch.split(group, _N_EXACT):
                points = self.rows.exactly(some)
                squares = self._lowest_products(some, first, torch.float64) + torch.linalg.vecdot(points, points)
                # Only distances of rows with huge values are inexact, and can be negative.
                self._exact[some] = torch.minimum(self._exact[some], squares.clamp_min_(0))
        self._n_compared = self.n_picks
        self._n_exact[members] = self.n_picks
        self._n_seen[members] = self.n_picks
        exact = self._exact[members]
        # Rounding to float32 may round down; the factor rounds up.
        self._squares[members] = (exact * (1 + 2.0**-23)).to(torch.float32)
        return exact

    def _picks_from(self, first: int) -> torch.Tensor:
        """Return the vectors of the picks from number `first` on."""
        parts, stop = [], self.n_picks
        for block in reversed(self._picks):
            start = stop - len(block)
            parts.append(block[max(0, first - start) :])
            if start <= first:
                break
            stop = start
        return parts[0] if len(parts) == 1 else torch.cat(parts[::-1])


def _exact_norms(picks: torch.Tensor) -> torch.Tensor:
    """Return the vectors [-2p, |p|²] of picks with exact norms if they are float64; float32 vectors unchanged."""
    if picks.dtype == torch.float64:
        picks[:, -1] = torch.linalg.vecdot(picks[:, :-1], picks[:, :-1]) / 4
    return picks
