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

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch

# Rows that compete for the next picks between two comparisons of the others.
_N_CANDIDATES = 2048
# Picks made before it is asked whether they still hold: asking makes a GPU wait.
_N_UNASKED = 16
# Rows are compared while their bound, squared, is at least this share of the largest one, squared: the first where the
# last level brought many picks, the second where it brought few and passing over the rows costs more than products do.
_LEVELS = (0.92, 0.8)
_FEW_PICKS = 64
# Rows and picks in one matrix product: their distances stay in the cache.
_BLOCK = (1024, 512)


class _Rows:
    """The rows, with what turns one matrix product into squared distances: ``|x|² + [x, 1]·[-2p, |p|²]``."""

    def __init__(self, X: torch.Tensor):
        self.left = X.new_ones(len(X), X.shape[1] + 1)
        self.norms = X.new_empty(len(X))
        mean = X.mean(0)  # seen from here norms are smaller, so less is cancelled
        for i in range(0, len(X), _BLOCK[0]):  # in parts: no second copy of all rows
            part = slice(i, i + _BLOCK[0])
            shifted = X[part] - mean
            self.left[part, :-1] = shifted
            self.norms[part] = shifted.square_().sum(1)

    def right(self, picks: torch.Tensor) -> torch.Tensor:
        """Return the columns ``[-2p, |p|²]`` of `picks`, as rows."""
        columns = self.left[picks] * -2
        columns[:, -1] = self.norms[picks]
        return columns


def count_of(ratio: float, n_samples: int) -> int:
    """Return how many of `n_samples` rows a `ratio` selects: a share in (0, 1], or an int count.

    Raises
    ------
    ValueError
        If the count is larger than the number of rows.
    """
    if isinstance(ratio, Integral):
        if int(ratio) > n_samples:
            raise ValueError(f"ratio={ratio} rows were asked for, but X has n_samples={n_samples}.")
        return int(ratio)
    # 0.07 * 100 is a little more than 7 in floating point: that alone shall not select an eighth row.
    return max(1, math.ceil(ratio * n_samples - 1e-9))


def k_center_greedy(
    X: torch.Tensor,
    n_selected: int,
    start: int,
    on_pick: Callable[[int], Any] | None = None,
    resume: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pick rows one after the other, each the farthest from those before it (Algorithm 1).

    Parameters
    ----------
    X : tensor of shape (n_samples, n_features), float32 or float64
        The rows, on any device.
    n_selected : int
        How many to pick, at most `n_samples`.
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
    rows = _Rows(X)
    picks = torch.full((n_selected,), start, dtype=torch.int64, device=X.device)
    squares = torch.zeros(n_selected, dtype=X.dtype, device=X.device)  # the radii
    bounds = torch.full_like(rows.norms, torch.inf)
    # How many of the picks each row's bound takes into account. Picked rows stand at -1, below the 0 of duplicates.
    n_seen = torch.zeros(len(X), dtype=torch.int64, device=X.device)
    n_picked = 1
    if resume is not None:
        n_picked = len(resume[0])
        picks[:n_picked] = torch.from_numpy(resume[0]).to(picks)
        squares[:n_picked] = torch.from_numpy(resume[1] ** 2).to(squares)
    bounds[picks[:n_picked]] = -1.0
    level, active, n_before = torch.inf, picks[:0], 0
    while True:
        active = active[bounds[active] >= level]
        while not len(active):
            largest = float(bounds.max())
            if largest < 0:  # every row is picked
                return picks.cpu().numpy(), _radii(squares)
            step = _LEVELS[n_picked - n_before < _FEW_PICKS]
            level, n_before = largest * step if largest < torch.inf else 0.0, n_picked
            active = torch.nonzero(bounds >= level)[:, 0]
            _catch_up(bounds, n_seen, rows, active, picks[:n_picked])
            active = active[bounds[active] >= level]
            if largest == torch.inf:  # the first comparison was with all rows: now there is a level
                active = active[:0]
        fresh = bounds[active]
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
        bounds[found] = -1.0
        active = active[bounds[active] >= level]
        _catch_up(bounds, n_seen, rows, active, picks[:n_picked])
        if on_pick is not None:
            on_pick(len(found))


def _radii(squares: torch.Tensor) -> np.ndarray:
    return np.sqrt(squares.clamp_min(0).cpu().numpy().astype(np.float64))


def _pick_among(
    rows: _Rows, candidates: torch.Tensor, distances: torch.Tensor, floor: float, n_wanted: int
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


def _catch_up(
    bounds: torch.Tensor, n_seen: torch.Tensor, rows: _Rows, members: torch.Tensor, picks: torch.Tensor
) -> None:
    """Lower, in place, the bounds of `members` by all of `picks` that they have not seen."""
    behind = n_seen[members]
    for count in torch.unique(behind).tolist():
        if count < len(picks):
            _lower_bounds(bounds, rows, members[behind == count], picks[count:])
    n_seen[members] = len(picks)


def _lower_bounds(bounds: torch.Tensor, rows: _Rows, members: torch.Tensor, picks: torch.Tensor) -> None:
    """Lower, in place, the bounds of `members` to their squared distance from the nearest of `picks`."""
    n_rows, n_columns = _BLOCK
    blocks = [right.T.contiguous() for right in rows.right(picks).split(n_columns)]
    # Written again for each block: fresh memory would cost more than the products.
    gathered = rows.left.new_empty((min(n_rows, len(members)), rows.left.shape[1]))
    products = rows.left.new_empty(len(gathered) * min(n_columns, len(picks)))
    for part in members.split(n_rows):
        left = torch.index_select(rows.left, 0, part, out=gathered[: len(part)])
        lowest = torch.full_like(part, torch.inf, dtype=left.dtype)
        for block in blocks:
            out = products[: len(part) * block.shape[1]].view(len(part), -1)
            torch.minimum(lowest, torch.mm(left, block, out=out).amin(1), out=lowest)
        bounds[part] = torch.minimum(bounds[part], lowest.add_(rows.norms[part]).clamp_min_(0))
