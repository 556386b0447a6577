"""k-center greedy selection (Eq. 5, Algorithm 1) at the speed of matrix products: functions of tensors.

The textbook loop compares all rows with each pick as soon as it is made: one matrix-vector product per pick, bound by
memory. Here almost everything is a matrix product, and much of it is left out. Two facts allow that:

1. A row's distance to the picks can only shrink, so what was computed a while ago is an upper bound. Greedy may
   therefore go on among the few rows with the largest bounds, alone, as long as the best of them is no nearer than the
   largest bound outside: no row outside can be the farthest. Then the others are compared with all those picks at once.
2. For the same reason, a row whose bound lies below the present radius need not be compared with anything before the
   radius has come down to its bound. Most rows lie well below: they wait, and catch up when their level is reached.

Neither changes a pick: the farthest row is found each time, up to the rounding of matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from skpatchcore.coreset._rows import Rows

# Rows that compete for the next picks between two comparisons of the others.
_N_CANDIDATES = 1024
# Picks made before it is asked whether they still hold: asking makes a GPU wait.
_N_UNASKED = 16
# Rows are compared while their bound, squared, is at least this share of the largest one, squared: the first where the
# last level brought many picks, the second where it brought few and passing over the rows costs more than products do.
_LEVELS = (0.88, 0.7)
_FEW_PICKS = 64
# Levels, each below the one before by a factor of 0.88 or less, from the largest to the smallest float64; only bounds
# that are NaN would need more.
_N_LEVELS = 12_000
# Rows and picks in one matrix product: their distances stay in the cache.
_BLOCK = (1024, 512)
# Picks that are copied out at once.
_N_PICKS = 8192


def k_center_greedy(
    rows: Rows,
    n_selected: int,
    start: int,
    on_pick: Callable[[int], Any] | None = None,
    resume: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pick rows one after the other, each the farthest from those before it (Algorithm 1).

    Parameters
    ----------
    rows : Rows
        What to pick from, on any device.
    n_selected : int
        How many to pick, at most the number of rows.
    start : int
        The first pick.
    on_pick : callable or None
        Called with the number of new picks, for a progress bar.
    resume : (array, array) or None
        `order` and `radii` of an earlier, smaller selection from the same rows and start: it is gone on with.

    Returns
    -------
    order : array of shape (n_selected,), int64
        The rows picked, in order, all distinct.
    radii : array of shape (n_selected,), float64
        Covering radius: distance of the farthest row from the picks up to and including this one.
    """
    picks = torch.full((n_selected,), start, dtype=torch.int64, device=rows.left.device)
    squares = rows.norms.new_zeros(n_selected)  # the radii
    bounds = _Bounds(rows)
    n_picked = 1
    if resume is not None:
        n_picked = len(resume[0])
        picks[:n_picked] = torch.from_numpy(resume[0]).to(picks)
        squares[:n_picked] = torch.from_numpy(resume[1] ** 2).to(squares)
    bounds.squares[picks[:n_picked]] = -1.0
    level, active, n_before = torch.inf, picks[:0], 0
    for _ in range(n_selected - n_picked + 1):  # each time round, at least one row is picked
        active = active[bounds.squares[active] >= level]
        for _ in range(_N_LEVELS):
            if len(active):
                break
            largest = float(bounds.squares.max())
            if largest < 0:  # every row is picked
                return picks.cpu().numpy(), _radii(squares)
            step = _LEVELS[n_picked - n_before < _FEW_PICKS]
            level, n_before = largest * step if largest < torch.inf else 0.0, n_picked
            active = torch.nonzero(bounds.squares >= level)[:, 0]
            bounds.catch_up(active, picks[:n_picked])
            active = active[bounds.squares[active] >= level]
            if largest == torch.inf:  # the first comparison was with all rows: now there is a level
                active = active[:0]
        else:
            raise ArithmeticError("squared distances between rows are not finite: scale the features.")
        fresh = bounds.squares[active]
        if n_picked == n_selected:
            squares[-1] = fresh.max()
            return picks.cpu().numpy(), _radii(squares)
        n_candidates = min(_N_CANDIDATES, len(active))
        largest_bounds, places = torch.topk(fresh, min(n_candidates + 1, len(active)))
        outside = float(largest_bounds[-1]) if len(active) > n_candidates else -torch.inf
        found, found_squares = _pick_among(
            rows,
            active[places[:n_candidates]],
            largest_bounds[:n_candidates].clone(),
            max(level, outside),
            n_selected - n_picked,
        )
        picks[n_picked : n_picked + len(found)] = found
        squares[n_picked - 1 : n_picked - 1 + len(found)] = found_squares
        n_picked += len(found)
        bounds.squares[found] = -1.0
        active = active[bounds.squares[active] >= level]
        bounds.catch_up(active, picks[:n_picked])
        if on_pick is not None:
            on_pick(len(found))
    raise AssertionError("more rounds than picks")


def _radii(squares: torch.Tensor) -> np.ndarray:
    return np.sqrt(squares.clamp_min(0).cpu().numpy().astype(np.float64))


def _pick_among(
    rows: Rows, candidates: torch.Tensor, distances: torch.Tensor, floor: float, n_wanted: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the textbook loop among a few rows while the farthest of them is at least at `floor`, squared; at least once.

    Returns
    -------
    picks : tensor of int64
        Of `candidates`.
    squares : tensor
        Squared distance of each from the picks before it.
    """
    left, norms, right = rows.left[candidates], rows.norms[candidates], rows.right(candidates)
    n_wanted = min(n_wanted, len(candidates))
    order = torch.empty(n_wanted, dtype=torch.int64, device=left.device)
    squares = torch.empty(n_wanted, dtype=left.dtype, device=left.device)
    product = torch.empty_like(norms)
    n_made = 0
    while n_made < n_wanted and (n_made == 0 or bool(squares[n_made - 1] >= floor)):
        for i in range(n_made, min(n_made + _N_UNASKED, n_wanted)):
            squares[i], best = distances.max(0)
            order[i] = best
            torch.mv(left, right[best], out=product)
            torch.minimum(distances, product.add_(norms).clamp_min_(0), out=distances)
            distances[best] = -1.0
        n_made = min(n_made + _N_UNASKED, n_wanted)
    # The distances never grow from pick to pick, so those that hold come first.
    n_held = max(1, int((squares[:n_made] >= floor).sum()))
    return candidates[order[:n_held]], squares[:n_held]


class _Bounds:
    """Upper bounds of the rows' squared distances from the picks, and how many of the picks each takes into account."""

    def __init__(self, rows: Rows):
        self.rows = rows
        # Picked rows stand at -1, below the 0 of duplicates.
        self.squares = torch.full_like(rows.norms, torch.inf)
        self.n_seen = torch.zeros(len(rows), dtype=torch.int32, device=rows.left.device)
        # Written again for each block: fresh memory would cost as much as the products.
        self._gathered = rows.left.new_empty((min(_BLOCK[0], len(rows)), rows.left.shape[1]))
        self._products = rows.left.new_empty(len(self._gathered) * _BLOCK[1])

    def catch_up(self, members: torch.Tensor, picks: torch.Tensor) -> None:
        """Lower the bounds of `members` by all of `picks` that they have not seen."""
        behind = self.n_seen[members]
        for count in torch.unique(behind).tolist():
            if count < len(picks):
                self._lower(members[behind == count], picks[count:])
        self.n_seen[members] = len(picks)

    def _lower(self, members: torch.Tensor, picks: torch.Tensor) -> None:
        rows = self.rows
        norms = rows.norms[members]
        lowest = torch.full_like(norms, torch.inf)
        for some in torch.split(picks, _N_PICKS):
            blocks = [right.T.contiguous() for right in torch.split(rows.right(some), _BLOCK[1])]
            for i in range(0, len(members), len(self._gathered)):
                part = members[i : i + len(self._gathered)]
                left = torch.index_select(rows.left, 0, part, out=self._gathered[: len(part)])
                out = lowest[i : i + len(part)]
                for block in blocks:
                    products = self._products[: len(part) * block.shape[1]].view(len(part), -1)
                    torch.minimum(out, torch.mm(left, block, out=products).amin(1), out=out)
        lowest.add_(norms).clamp_min_(0)
        self.squares[members] = torch.minimum(self.squares[members], lowest)
