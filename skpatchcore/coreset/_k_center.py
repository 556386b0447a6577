"""k_center_greedy: k-center greedy selection (Equation 5, Algorithm 1) by blocked matrix products.

The textbook loop compares every row with each new pick. Each pick costs one matrix-vector product, and its speed is
limited by memory bandwidth. The algorithm in this module makes the same picks with matrix-matrix products, and it skips
most of the comparisons. :class:`~skpatchcore.coreset._farthest.FarthestRows` finds the rows with the largest distances,
which are called candidates, and an upper bound of the distances of all other rows. The textbook loop runs among the
candidates only, as long as the farthest candidate is farther than this bound. No other row can then be the farthest
row. Afterwards, the other rows are compared with all new picks in one matrix product.

All comparisons that decide about a pick are exact. If several rows are equally far, the first of them is picked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from skpatchcore.coreset._farthest import Candidates, FarthestRows
from skpatchcore.coreset._gpu_picks import pick_on_device
from skpatchcore.coreset._rows import Rows

# Maximum number of candidates: the rows among which the textbook loop runs.
N_CANDIDATES = 1024
# Number of picks between two checks that the picks are still valid.
_N_UNASKED = 16


def k_center_greedy(
    rows: Rows,
    n_selected: int,
    start: int,
    on_pick: Callable[[int], Any] | None = None,
    resume: tuple[np.ndarray, np.ndarray] | None = None,
    left_out: torch.Tensor | None = None,
    radius: float | None = None,
    at_least: int = 0,
    n_candidates: int = N_CANDIDATES,
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
    radius : float or None
        Covering radius that suffices: the selection stops as soon as no row is farther away from its nearest pick. None
        picks `n_selected` rows.
    at_least : int
        Number of rows, including those of `resume`, that are picked even if `radius` is reached before.
    n_candidates : int
        Maximum number of rows among which the textbook loop runs. It affects the time only.

    Returns
    -------
    order : array of shape (n_selected,), int64
        Indices of the picked rows in order of selection, all distinct. Fewer rows if `radius` is reached.
    radii : array of the same shape, float64
        Covering radius after each pick: the largest distance from a row to the nearest of the picks made so far.

    Raises
    ------
    ArithmeticError
        If the squared distances between rows are not finite.
    """
    if not bool(torch.isfinite(rows.norms).all()):
        raise ArithmeticError("squared distances between rows are not finite: scale the features.")
    order, radii = (np.array([start]), np.zeros(1)) if resume is None else resume
    enough = -1.0 if radius is None else squared_units(radius, rows.quantum)
    picks, squares = [torch.from_numpy(order).to(rows.left.device)], []
    n_given = n_picked = len(order)
    farthest = FarthestRows(rows, left_out)
    farthest.add(rows.left[picks[0], :-1], picks[0])
    # The distance of a pick from the earlier picks is the covering radius of the earlier picks. Therefore one more pick
    # than requested is made. Each round makes at least one pick.
    for _ in range(n_selected - n_picked + 1):
        found = farthest.candidates(n_candidates)
        if found is None:  # every row is picked, so the last radius is 0
            break
        points = rows.exactly(found.rows)
        places, new_squares = pick_among(points, found, n_selected + 1 - n_picked)
        n_far = len(places)
        if radius is not None:
            n_far = int((new_squares > enough).sum())  # the distances never increase
            n_far = max(n_far, min(len(places), at_least - n_picked))
        if n_far < len(places):  # the covering radius is reached: the first distance that is small enough
            picks.append(found.rows[places[:n_far]])
            squares.append(new_squares[: n_far + 1])
            break
        new = found.rows[places]
        farthest.add(rows.left[new, :-1], new)
        picks.append(new)
        squares.append(new_squares)
        n_picked += len(new)
        if on_pick is not None:
            on_pick(min(len(new), n_selected + len(new) - n_picked))
        if n_picked > n_selected:
            break
    # The radii of the given picks are known, except that of the last one.
    found_radii = np.sqrt(torch.cat(squares).cpu().numpy()) * rows.quantum if squares else np.zeros(0)
    all_radii = np.concatenate([radii[: n_given - 1], found_radii, np.zeros(1)])
    order = torch.cat(picks).cpu().numpy()[:n_selected]
    return order, all_radii[: len(order)]


def squared_units(radius: float, quantum: float) -> float:
    """Return a radius as a squared distance in units of the squared quantum, rounded up."""
    return (radius / quantum) ** 2 * (1 + 1e-12)


def pick_among(points: torch.Tensor, found: Candidates, n_wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the textbook loop among candidates, as long as the farthest candidate is the farthest of all rows.

    Parameters
    ----------
    points : tensor of shape (n_candidates, n_columns), float64
        The candidates themselves.
    found : Candidates
        Their row numbers, their squared distances from the earlier picks, and the bound of all other rows.
    n_wanted : int
        Maximum number of picks.

    Returns
    -------
    places : tensor of shape (n_picks,), int64
        Places of the picks among the candidates, in order of selection.
    squares : tensor of shape (n_picks,), float64
        Squared distance of each pick from its nearest earlier pick.
    """
    if points.device.type != "cpu":
        return pick_on_device(points, found, n_wanted)
    # Each pick is one matrix-vector product: |x|² + [x, 1]·[-2p, |p|²].
    norms = torch.linalg.vecdot(points, points)
    left = torch.cat([points, torch.ones_like(norms)[:, None]], dim=1)
    right = torch.cat([points * -2, norms[:, None]], dim=1)
    distances, product = found.squares.clone(), torch.empty_like(norms)
    n_wanted = min(n_wanted, len(points))
    order = torch.empty(n_wanted, dtype=torch.int64, device=points.device)
    squares = torch.empty(n_wanted, dtype=torch.float64, device=points.device)
    n_made = n_held = 0
    # The picks are checked only once per _N_UNASKED picks, and the invalid ones are dropped.
    while n_made < n_wanted and n_held == n_made:
        for i in range(n_made, min(n_made + _N_UNASKED, n_wanted)):
            squares[i], best = distances.max(0)  # the first one, if several candidates are equally far
            order[i] = best
            torch.mv(left, right[best], out=product)  # squared distances from the pick, without the candidates' norms
            torch.minimum(distances, product.add_(norms).clamp_min_(0), out=distances)
            distances[best] = -1.0  # never pick this candidate again
        n_made = min(n_made + _N_UNASKED, n_wanted)
        made = squares[:n_made]
        is_tie = (made == found.floor) & (found.rows[order[:n_made]] < found.first_tie)
        is_valid = (made >= 0) & ((made > found.floor) | is_tie)
        # The squared distances never increase, but of several ties, the valid ones come first.
        n_held = int(is_valid.to(torch.int64).cumprod(0).sum())
    return order[:n_held], squares[:n_held]
