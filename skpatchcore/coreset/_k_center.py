"""k_center_greedy: k-center greedy selection (Equation 5, Algorithm 1) by blocked matrix products.

The textbook loop compares every row with each new pick. Each pick costs one matrix-vector product, and its speed is
limited by memory bandwidth. The algorithm in this module makes the same picks with matrix-matrix products, and it skips
most of the comparisons. It relies on two facts:

1. The distance from a row to its nearest pick can only decrease as picks are added. Therefore a distance computed some
   picks ago is an upper bound. The rows with the largest bounds are called candidates. The textbook loop runs among the
   candidates only, as long as the farthest candidate is at least as far as the largest bound outside. No row outside
   can then be the farthest row. Afterwards, the other rows are compared with all new picks in one matrix product.
2. A row with a bound below the current covering radius cannot be the farthest row. Its comparisons can wait until the
   radius has come down to its bound. Most rows lie well below the radius, so most of the work is deferred or skipped.

Neither fact changes a pick: the farthest row is found every time, up to the rounding of the matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from skpatchcore.coreset._rows import Rows

# Maximum number of candidates: the rows among which the textbook loop runs.
_N_CANDIDATES = 1024
# Number of picks between two checks that the picks are still valid. Each check makes a GPU wait for the result.
_N_UNASKED = 16
# The level is this fraction of the largest squared bound. Rows with a squared bound at or above the level are active.
# The first fraction is used if the previous level yielded at least _FEW_PICKS picks. Otherwise the second is used: the
# pass over all rows then costs more than the matrix products, and a lower level needs fewer passes.
_LEVELS = (0.88, 0.7)
_FEW_PICKS = 64
# Maximum number of levels tried in a row. Each level is at most 0.88 times the previous one, so this many levels reach
# from the largest to the smallest float64. Only NaN bounds would need more.
_N_LEVELS = 12_000
# Rows and picks in one matrix product. The block of products fits in the processor's cache.
_BLOCK = (1024, 512)
# Maximum number of picks copied into one factor of the matrix products.
_N_PICKS = 8192


def k_center_greedy(
    rows: Rows,
    n_selected: int,
    start: int,
    on_pick: Callable[[int], Any] | None = None,
    resume: tuple[np.ndarray, np.ndarray] | None = None,
    left_out: torch.Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pick rows in greedy order: each pick is the row farthest from all previous picks (Algorithm 1).

    Parameters
    ----------
    rows : Rows
        Rows to pick from, on any device.
    n_selected : int
        Number of rows to pick, at most the number of rows that are not left out.
    start : int
        Index of the first pick.
    on_pick : callable or None
        Called with the number of new picks after each round. It serves a progress bar.
    resume : (array, array) or None
        `order` and `radii` of an earlier, smaller selection from the same rows and the same start. The selection
        continues after these picks. None starts a new selection.
    left_out : tensor of int64 or None
        Indices of rows that are ignored: they are not picked, and they do not count in the radii. None ignores no row.

    Returns
    -------
    order : array of shape (n_selected,), int64
        Indices of the picked rows in order of selection, all distinct.
    radii : array of shape (n_selected,), float64
        Covering radius after each pick: the largest distance from a row to the nearest of the picks made so far.

    Raises
    ------
    ArithmeticError
        If the squared distances between rows are not finite.
    """
    # Each row has an upper bound of its squared distance from the picks. A round works on the active rows: the rows
    # with a bound at or above a level just below the largest bound. Each round picks at least one row:
    #   a. If no row is active, lower the level, find the rows above it and compare them with the picks they missed.
    #   b. Choose the active rows with the largest bounds as candidates, and run the textbook loop among them.
    #   c. Compare the remaining active rows with the new picks.
    # Rows below the level wait. They catch up with all missed picks at once when the level reaches their bound.
    picks = torch.full((n_selected,), start, dtype=torch.int64, device=rows.left.device)
    squares = rows.norms.new_zeros(n_selected)  # squared radii
    bounds = _Bounds(rows)
    # Without `resume`, the only pick so far is `start`, which already fills `picks`.
    n_picked = 1
    if resume is not None:
        n_picked = len(resume[0])
        picks[:n_picked] = torch.from_numpy(resume[0]).to(picks)
        squares[:n_picked] = torch.from_numpy(resume[1] ** 2).to(squares)
    # Picked rows and rows that are left out have the bound -1, which is below every level. They are never picked.
    bounds.squares[picks[:n_picked]] = -1.0
    if left_out is not None:
        bounds.squares[left_out] = -1.0
    level, active, n_before = torch.inf, picks[:0], 0
    # The last round only measures the radius of the last pick.
    for _ in range(n_selected - n_picked + 1):
        active = active[bounds.squares[active] >= level]
        for _ in range(_N_LEVELS):
            if len(active):
                break
            # Step a: no active row is left, so lower the level.
            largest = float(bounds.squares.max())
            if largest < 0:  # every row is picked, so the last radius is 0
                return picks.cpu().numpy(), _radii(squares)
            step = _LEVELS[n_picked - n_before < _FEW_PICKS]
            # Initially all bounds are infinite. The level 0 then compares all rows.
            level, n_before = largest * step if largest < torch.inf else 0.0, n_picked
            active = torch.nonzero(bounds.squares >= level)[:, 0]
            bounds.catch_up(active, picks[:n_picked])
            # Bounds that fell below the level leave the active rows. If none remains, the level is lowered again.
            active = active[bounds.squares[active] >= level]
            # After the first comparison of all rows, choose a level from finite bounds. If all rows can be candidates,
            # keep the level 0: one round then makes all picks.
            if largest == torch.inf and len(active) > _N_CANDIDATES:
                active = active[:0]
        else:
            raise ArithmeticError("squared distances between rows are not finite: scale the features.")
        # The active rows were compared with all picks, so their bounds are their actual squared distances.
        fresh = bounds.squares[active]
        if n_picked == n_selected:  # the largest one is the last squared radius
            squares[-1] = fresh.max()
            return picks.cpu().numpy(), _radii(squares)
        # Step b: take the candidates and the largest bound outside. Inactive rows are below the level.
        n_candidates = min(_N_CANDIDATES, len(active))
        largest_bounds, places = torch.topk(fresh, min(n_candidates + 1, len(active)))
        outside = float(largest_bounds[-1]) if len(active) > n_candidates else -torch.inf
        # A candidate is the farthest of all rows while its squared distance is at least max(level, outside).
        found, found_squares = _pick_among(
            rows,
            active[places[:n_candidates]],
            largest_bounds[:n_candidates].clone(),
            max(level, outside),
            n_selected - n_picked,
        )
        picks[n_picked : n_picked + len(found)] = found
        # The distance of a new pick from the earlier picks is the covering radius of the earlier picks: offset by one.
        squares[n_picked - 1 : n_picked - 1 + len(found)] = found_squares
        n_picked += len(found)
        bounds.squares[found] = -1.0
        # Step c: compare the remaining active rows with the new picks.
        active = active[bounds.squares[active] >= level]
        bounds.catch_up(active, picks[:n_picked])
        if on_pick is not None:
            on_pick(len(found))
    raise AssertionError("more rounds than picks")


def _radii(squares: torch.Tensor) -> np.ndarray:
    """Return the radii as float64, given the squared radii."""
    return np.sqrt(squares.clamp_min(0).cpu().numpy().astype(np.float64))


def _pick_among(
    rows: Rows, candidates: torch.Tensor, distances: torch.Tensor, floor: float, n_wanted: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the textbook loop among a few candidate rows, until the farthest candidate is nearer than the floor.

    Parameters
    ----------
    rows : Rows
        All rows.
    candidates : tensor of shape (n_candidates,), int64
        Indices of the rows to pick from.
    distances : tensor of shape (n_candidates,)
        Squared distance of each candidate from the earlier picks. It is changed in place.
    floor : float
        Smallest squared distance at which a candidate may be picked. The first pick is always made.
    n_wanted : int
        Maximum number of picks.

    Returns
    -------
    picks : tensor of shape (n_picks,), int64
        Indices of the picked rows, in order of selection. At least one row is picked.
    squares : tensor of shape (n_picks,)
        Squared distance of each pick from its nearest earlier pick.
    """
    # The candidates are copied out, so each pick is one small matrix-vector product.
    left, norms, right = rows.left[candidates], rows.norms[candidates], rows.right(candidates)
    n_wanted = min(n_wanted, len(candidates))
    order = torch.empty(n_wanted, dtype=torch.int64, device=left.device)
    squares = torch.empty(n_wanted, dtype=left.dtype, device=left.device)
    product = torch.empty_like(norms)
    n_made = 0
    # Reading a value from a GPU makes the program wait. Therefore the floor is checked only once per _N_UNASKED picks.
    while n_made < n_wanted and (n_made == 0 or bool(squares[n_made - 1] >= floor)):
        for i in range(n_made, min(n_made + _N_UNASKED, n_wanted)):
            squares[i], best = distances.max(0)  # pick the farthest candidate
            order[i] = best
            torch.mv(left, right[best], out=product)  # squared distances from the pick, without the candidates' norms
            torch.minimum(distances, product.add_(norms).clamp_min_(0), out=distances)
            distances[best] = -1.0  # never pick this candidate again
        n_made = min(n_made + _N_UNASKED, n_wanted)
    # The squared distances never increase from pick to pick. Therefore the picks at or above the floor come first, and
    # the picks after them are dropped.
    n_held = max(1, int((squares[:n_made] >= floor).sum()))
    return candidates[order[:n_held]], squares[:n_held]


class _Bounds:
    """Upper bounds of the squared distances between rows and picks.

    Parameters
    ----------
    rows : Rows
        All rows.

    Attributes
    ----------
    squares : tensor of shape (n_rows,)
        Squared distance of each row from the nearest of the first ``n_seen`` picks; infinity at first. It is an upper
        bound of the squared distance from all picks. Picked rows have the value -1, below the 0 of duplicate rows.
    n_seen : tensor of shape (n_rows,), int32
        Number of picks that each row has been compared with.
    """

    def __init__(self, rows: Rows):
        self.rows = rows
        self.squares = torch.full_like(rows.norms, torch.inf)
        self.n_seen = torch.zeros(len(rows), dtype=torch.int32, device=rows.left.device)
        # These buffers are reused for every block. Allocating new memory would cost as much as the products.
        self._gathered = rows.left.new_empty((min(_BLOCK[0], len(rows)), rows.left.shape[1]))
        self._products = rows.left.new_empty(len(self._gathered) * _BLOCK[1])

    def catch_up(self, members: torch.Tensor, picks: torch.Tensor) -> None:
        """Compare the rows `members` with all `picks` that they have not been compared with, and lower their bounds."""
        behind = self.n_seen[members]
        # Rows that miss the same picks share one matrix product.
        for count in torch.unique(behind).tolist():
            if count < len(picks):
                self._lower(members[behind == count], picks[count:])
        self.n_seen[members] = len(picks)

    def _lower(self, members: torch.Tensor, picks: torch.Tensor) -> None:
        """Lower the bound of each row in `members` to its squared distance from `picks`, if this is smaller."""
        # |x - p|² = |x|² + [x, 1]·[-2p, |p|²]. The norm |x|² does not depend on the pick. Therefore the minimum over
        # the picks is taken from the products alone, and |x|² is added once at the end.
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
