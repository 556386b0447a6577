"""Selection of a coreset from rows that are divided among several processes.

:func:`select_exactly` selects the same rows, in the same order, as a selection in one process.
:func:`select_merged` needs only two rounds, but covers the rows a little less well. Both describe what they
did in a :class:`SelectionReport`.

The rows of one process are called a shard. The process that divides the work is called the coordinator. A
:class:`ShardGroup` runs a function on every shard, and hides how the processes communicate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.modes import default_modes
from skpatchcore.coreset._farthest import Candidates
from skpatchcore.coreset._grid import centre_of, quantum_of
from skpatchcore.coreset._k_center import k_center_greedy, pick_among
from skpatchcore.coreset._pools import is_useful
from skpatchcore.coreset._rows import Rows
from skpatchcore.coreset._shard_group import InProcessGroup, Request, Selection, ShardGroup
from skpatchcore.coreset._shard_pools import Pooled, pool_of_shard, select_folds, size_of
from skpatchcore.coreset._shard_work import (
    Found,
    Measures,
    ProjectedRows,
    Reduced,
    advance,
    begin,
    checksum_of,
    counts_of_rows,
    farthest_from,
    first_pick,
    images_of,
    measure,
    message_of,
    reduce_shard,
    rounded,
    sum_of_rows,
)

__all__ = [
    "InProcessGroup",
    "ProjectedRows",
    "Request",
    "Selection",
    "SelectionReport",
    "ShardGroup",
    "select_exactly",
    "select_merged",
]

# Number of candidates of all shards together, and the smallest number per shard.
_N_CANDIDATES, _FEWEST = 2048, 128
# Bytes per row that a selection holds on a shard, in addition to the rows: bounds, exact distances and counts.
_STATE_BYTES = 24


@dataclass(frozen=True)
class SelectionReport:
    """Work, communication and quality of a distributed selection.

    Attributes
    ----------
    mode : {"exact", "merge"}
        Kind of selection.
    n_shards : int
        Number of shards.
    n_selections : int
        Number of selections: one for the coreset, and one per fold of the calibration.
    n_rounds : int
        Number of times that the shards sent distances or rows to the coordinator, except for the grid and the first
        picks. In ``"exact"`` mode, one round serves all folds that are selected from the pool.
    n_picks : int
        Number of selected rows, over all selections.
    n_rows_sent : int
        Number of projected rows that the shards sent to the coordinator.
    n_bytes_sent : int
        Number of bytes that the shards and the coordinator sent for the selection.
    covering_radius : float
        Largest distance from any row to the nearest row of the coreset, measured between projected rows.
    approximation_factor : float
        The covering radius is at most this factor times the smallest possible covering radius of as many rows. In
        ``"exact"`` mode, it is 2. In ``"merge"`` mode, it is computed from k + 1 rows with a smallest distance d: no k
        rows cover them with a radius below d / 2. It is infinite if all known distances are 0.
    """

    mode: str
    n_shards: int
    n_selections: int
    n_rounds: int
    n_picks: int
    n_rows_sent: int
    n_bytes_sent: int
    covering_radius: float
    approximation_factor: float


@dataclass
class _Counter:
    """Communication so far."""

    n_rounds: int = 0
    n_rows_sent: int = 0
    n_bytes_sent: int = 0


class _Shards:
    """The rounded rows of all shards, and the functions that are the same in both modes.

    Parameters
    ----------
    group : ShardGroup
        The shards.
    projected : list of handles
        The :class:`ProjectedRows` of each shard. The list is emptied, so that the group can free their memory.
    """

    def __init__(self, group: ShardGroup, projected: list[Any]):
        self.group = group
        found: list[Measures] = group.gather(group.map("skpatchcore-measure", measure, projected))
        n_columns = found[0].n_columns
        if len(numbers := {own.n_features for own in found}) > 1:
            raise ValueError(f"shards have rows of {sorted(numbers)} features: expected one number.")
        self.images, self.counts = [own.images for own in found], [own.counts for own in found]
        self.n_rows, self._checksums = [int(own.counts.sum()) for own in found], [own.checksum for own in found]
        self.first_rows = [0, *np.cumsum(self.n_rows).tolist()[:-1]]
        if not sum(self.n_rows):
            raise ValueError("there are no rows to select from: pass at least one image with at least one patch.")
        # All shards use the same grid, as a selection in one process does.
        coarse = quantum_of(np.sum([own.exponents for own in found], axis=0), n_columns)
        total = sum(group.gather(group.map("skpatchcore-measure", sum_of_rows, projected, common=(coarse,))))
        centre = centre_of(total, sum(self.n_rows), coarse)
        counts = sum(group.gather(group.map("skpatchcore-measure", counts_of_rows, projected, common=(centre,))))
        self.grid = quantum_of(counts, n_columns), centre
        self.rows = group.map("skpatchcore-round", rounded, projected, common=self.grid)
        self.row_images = group.map("skpatchcore-round", images_of, projected)
        projected.clear()

    def check(self) -> None:
        """Raise a RuntimeError if rows were computed again during the selection, and differ from the first ones."""
        found = self.group.gather(self.group.map("skpatchcore-check", checksum_of, self.rows))
        for i, (before, after) in enumerate(zip(self._checksums, found, strict=True)):
            if before != after:
                raise RuntimeError(
                    f"the patch features of the images {self.images[i].min()} to {self.images[i].max()} were computed "
                    "again, because a process stopped, and the results differ. Either an image has changed, or the "
                    "machines differ in their hardware. Fit again on images that do not change, and on machines of one "
                    "kind."
                )

    def n_left(self, left_out: np.ndarray) -> int:
        """Return the number of rows that a selection does not leave out."""
        pairs = zip(self.images, self.counts, strict=True)
        return sum(int(counts[~np.isin(images, left_out)].sum()) for images, counts in pairs)

    def first_picks(self, request: Request) -> list[tuple[int, np.ndarray]]:
        """Return the row number and the rounded row of the first pick of each selection."""
        common = (request.direction, request.start, list(request.left_out))
        parts = self.group.map(
            "skpatchcore-start", first_pick, self.rows, self.row_images, self.first_rows, common=common
        )
        best: list[tuple[float, int, np.ndarray]] = []
        for found in zip(*self.group.gather(parts), strict=True):
            # The first of the rows that are farthest along the direction.
            best.append(min((one for one in found if one is not None), key=lambda one: (-one[0], one[1])))
        return [(row, point) for _, row, point in best]


def select_exactly(
    group: ShardGroup,
    projected: list[Any],
    request: Request,
    n_candidates: int | None = None,
    on_progress: Callable[[int, int], Any] | None = None,
) -> tuple[list[Selection], SelectionReport]:
    """Select the same rows as a selection from all rows in one process.

    Parameters
    ----------
    group : ShardGroup
        The shards.
    projected : list of handles
        The :class:`ProjectedRows` of each shard, in the order of the rows. The list is emptied, so that the group can
        free their memory.
    request : Request
        What is to be selected.
    n_candidates : int or None, default=None
        Number of rows that a shard sends per round and selection. None chooses a number from the number of shards.
    on_progress : callable or None, default=None
        Called after each round with the number of new picks and the number of rounds so far.

    Returns
    -------
    selections : list of Selection
        One per item of ``request.left_out``.
    report : SelectionReport
        Work, communication and quality. The quality is that of the first selection.

    Notes
    -----
    The first selection is made from all rows. The others, the folds, are made from the pool of the first one (see
    :mod:`skpatchcore.coreset._pools`), if it is useful, and otherwise from all rows.

    Distances to the nearest pick only fall, so a distance computed some rounds ago is an upper bound. In each round,
    every shard sends its farthest rows with their exact distances, and an upper bound of the distances of all its other
    rows. The coordinator runs the greedy algorithm among these rows as long as the farthest one is farther than the
    largest of the bounds. The picks are sent to all shards, which lower their distances. All distances that decide
    about a pick are exact, and ties are broken by the row number. Therefore the picks do not depend on the shards.
    """
    shards, sent = _Shards(group, projected), _Counter()
    request.check(sum(shards.n_rows))
    wanted = [request.count(shards.n_left(images)) for images in request.left_out]
    starts = shards.first_picks(request)
    n_asked = n_candidates or max(_FEWEST, _N_CANDIDATES // len(shards.rows))
    n_columns = len(shards.grid[1])
    n_at_once = max(1, 4 * n_columns // _STATE_BYTES)  # the selections of a group need at most as much as the rows

    def select(numbers: list[int]) -> Iterator[tuple[int, Selection]]:
        """Yield the numbers of some selections, and the selections."""
        for i in range(0, len(numbers), n_at_once):
            some = numbers[i : i + n_at_once]
            left_out = [request.left_out[k] for k in some]
            parts = [wanted[k] for k in some], [starts[k] for k in some], left_out
            yield from zip(some, _select_together(shards, *parts, n_asked, sent, on_progress), strict=True)

    found = dict(select([0]))
    radius = float(found[0].radii[-1])
    folds = list(range(1, len(wanted)))
    if folds:  # as `GreedyCoresetSampler.fit_folds`: from a pool if possible, otherwise from all rows
        pool = _pool_of(shards, radius, sent)
        if pool is not None:
            found |= select_folds(pool, shards.grid, request, folds, wanted)
        if on_progress is not None:
            on_progress(sum(wanted[fold] for fold in folds if fold in found), sent.n_rounds)
        found |= select([fold for fold in folds if fold not in found])
    selections = [found[i] for i in range(len(wanted))]
    shards.check()
    report = _report("exact", shards, selections, sent, radius, 1.0 if radius == 0 else 2.0)
    return selections, report


def _pool_of(shards: _Shards, radius: float, sent: _Counter) -> list[Pooled] | None:
    """Return the pool of the images of each shard, or None if the pool has too many rows to be useful.

    See :mod:`skpatchcore.coreset._pools`. The rows are gathered only if they are used.
    """
    group, n_rows = shards.group, sum(shards.n_rows)
    handles = group.map(
        "skpatchcore-pool", pool_of_shard, shards.rows, shards.row_images, shards.first_rows, common=(radius, n_rows)
    )
    sizes = group.gather(group.map("skpatchcore-pool", size_of, handles))
    sent.n_rounds += 1
    if None in sizes or not is_useful(sum(sizes), n_rows):
        return None
    parts: list[Pooled] = group.gather(handles)
    sent.n_rows_sent += sum(sizes)
    sent.n_bytes_sent += sum(array.nbytes for part in parts for array in part)
    return parts


def _select_together(
    shards: _Shards,
    wanted: list[int],
    starts: list[tuple[int, np.ndarray]],
    left_out: Sequence[np.ndarray],
    n_asked: int,
    sent: _Counter,
    on_progress: Callable[[int, int], Any] | None,
) -> list[Selection]:
    """Run several selections at the same time, so that they share their rounds."""
    group = shards.group
    orders = [[row] for row, _ in starts]
    squares: list[list[float]] = [[] for _ in starts]
    picks = {i: (np.array([row]), point[None]) for i, (row, point) in enumerate(starts)}
    known: dict[int, np.ndarray] = {}  # all rows that shards have sent, by row number
    states = group.map("skpatchcore-begin", begin, shards.rows, shards.row_images, common=(list(left_out),))
    # Each round makes at least one pick per selection. One more pick than requested is made: its distance from the
    # others is the last covering radius.
    for _ in range(max(wanted) + 1):
        shared = group.share("skpatchcore-picks", picks)
        sent.n_bytes_sent += len(shards.rows) * sum(rows.nbytes + points.nbytes for rows, points in picks.values())
        states = group.map(
            "skpatchcore-advance", advance, shards.rows, states, shards.first_rows, common=(shared, n_asked)
        )
        answers = group.gather(group.map("skpatchcore-candidates", message_of, states))
        sent.n_rounds += 1
        sent.n_rows_sent += sum(len(answer.numbers) for answer in answers)
        sent.n_bytes_sent += sum(answer.nbytes() for answer in answers)
        known.update(
            (number, point) for a in answers for number, point in zip(a.numbers.tolist(), a.points, strict=True)
        )
        picks, n_new = {}, 0
        for i in list(answers[0].found):
            made = _picks_of([answer.found[i] for answer in answers], known, wanted[i] + 1 - len(orders[i]))
            if made is None:  # every row is picked
                continue
            rows, points, distances = made
            n_before = len(orders[i])
            orders[i] += rows.tolist()
            squares[i] += distances.tolist()
            n_new += min(len(orders[i]), wanted[i]) - min(n_before, wanted[i])
            if len(orders[i]) <= wanted[i]:
                picks[i] = rows, points
        if on_progress is not None:
            on_progress(n_new, sent.n_rounds)
        if not picks:
            break
    found = []
    for order, own_squares, n in zip(orders, squares, wanted, strict=True):
        if len(order) < n:
            raise RuntimeError(f"the shards have selected {len(order)} of {n} rows: rows have been lost.")
        radii = np.sqrt(np.array([*own_squares, 0.0])) * shards.grid[0]
        found.append(Selection(np.array(order[:n], np.int64), radii[:n]))
    return found


def select_merged(
    group: ShardGroup,
    projected: list[Any],
    request: Request,
    oversampling: float = 2.0,
    on_progress: Callable[[int, int], Any] | None = None,
) -> tuple[list[Selection], SelectionReport]:
    """Select rows from each shard, and select the final rows from the rows of all shards.

    Parameters
    ----------
    group, projected, request, on_progress
        As for :func:`select_exactly`.
    oversampling : float, default=2.0
        For k rows and m shards, each shard selects ``oversampling * k / m`` rows.

    Returns
    -------
    selections, report
        As for :func:`select_exactly`. The radii are upper bounds, except for the last one, which is measured.

    References
    ----------
    Malkomes et al., "Fast distributed k-center clustering with outliers on massive data", NeurIPS 2015. Ceccarello et
    al., "Solving k-center clustering (with outliers) in MapReduce and streaming, almost as accurately as sequentially",
    VLDB 2019.
    """
    shards, sent = _Shards(group, projected), _Counter()
    request.check(sum(shards.n_rows))
    wanted = [request.count(shards.n_left(images)) for images in request.left_out]
    per_shard = [
        _per_shard(shards, images, n, oversampling) for images, n in zip(request.left_out, wanted, strict=True)
    ]
    starts = shards.first_picks(request)
    common: tuple[Any, ...] = (request.direction, list(request.left_out), per_shard)
    answers = group.gather(
        group.map("skpatchcore-reduce", reduce_shard, shards.rows, shards.row_images, shards.first_rows, common=common)
    )
    made, bounds_of_shards = [], []
    for parts, n, (row, point) in zip(zip(*answers, strict=True), wanted, starts, strict=True):
        numbers = np.concatenate([own.numbers for own in parts])
        sent.n_rows_sent += len(numbers)
        sent.n_bytes_sent += sum(own.points.nbytes + own.numbers.nbytes for own in parts)
        made.append(_selected_from_union(parts, n, row, point, shards.grid))
        bounds_of_shards.append(max(own.radius for own in parts))
    points = [own_points for _, own_points, _ in made]
    sent.n_bytes_sent += len(shards.rows) * sum(some.nbytes for some in points)
    common = (group.share("skpatchcore-picks", points), list(request.left_out))
    covers = group.gather(group.map("skpatchcore-cover", farthest_from, shards.rows, shards.row_images, common=common))
    sent.n_rounds = 2
    selections = []
    for (numbers, _, radii), of_shards, *distances in zip(made, bounds_of_shards, *covers, strict=True):
        # A row is at most the radius of its shard away from a row of the union. The last radius is measured.
        bounds = np.maximum(radii + of_shards, max(distances))
        bounds[-1] = max(distances)
        selections.append(Selection(numbers, bounds))
    if on_progress is not None:
        on_progress(sum(wanted), sent.n_rounds)
    shards.check()
    # Two choices of k + 1 rows: the picks and the next pick of the union, or the picks and the farthest of all rows.
    radius, radii = float(selections[0].radii[-1]), made[0][2]
    apart = max(float(radii[-1]), min(float(radii[-2]) if len(radii) > 1 else math.inf, radius))
    factor = 1.0 if radius == 0 else 2 * radius / apart if apart else math.inf  # no bound from equal rows
    return selections, _report("merge", shards, selections, sent, radius, factor)


def _per_shard(shards: _Shards, left_out: np.ndarray, wanted: int, oversampling: float) -> int:
    """Return the number of rows that each shard selects."""
    pairs = zip(shards.images, shards.counts, strict=True)
    n_rows = [int(counts[~np.isin(images, left_out)].sum()) for images, counts in pairs]
    n_per_shard = math.ceil(oversampling * wanted / len(n_rows))
    while sum(min(n, n_per_shard) for n in n_rows) < wanted:  # small shards may have fewer rows than their part
        n_per_shard *= 2
    return n_per_shard


def _selected_from_union(
    parts: Sequence[Reduced], wanted: int, first_row: int, first_point: np.ndarray, grid: tuple[float, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Select from the rows that the shards have selected. Return row numbers, rounded rows and radii of the picks."""
    numbers, points = np.concatenate([own.numbers for own in parts]), np.concatenate([own.points for own in parts])
    if first_row not in numbers:
        numbers, points = np.append(numbers, first_row), np.concatenate([points, first_point[None]])
    sorting = numbers.argsort()
    numbers, points = numbers[sorting], points[sorting]
    union = Rows.from_rounded(torch.from_numpy(points), *grid)
    with default_modes():
        order, radii = k_center_greedy(union, wanted, int(np.searchsorted(numbers, first_row)))
    return numbers[order], points[order], radii


def _report(
    mode: str, shards: _Shards, selections: list[Selection], sent: _Counter, radius: float, factor: float
) -> SelectionReport:
    n_picks = sum(len(selection.order) for selection in selections)
    return SelectionReport(
        mode, len(shards.rows), len(selections), sent.n_rounds, n_picks, sent.n_rows_sent, sent.n_bytes_sent, radius,
        factor,
    )  # fmt: skip


def _picks_of(
    answers: list[Found | None], known: dict[int, np.ndarray], n_wanted: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the row numbers, the rounded rows and the squared distances of the next picks; None if no row is left."""
    parts = [one for one in answers if one is not None]
    if not parts:
        return None
    floor = max(one.floor for one in parts)
    first_tie = min(one.first_tie for one in parts if one.floor == floor)
    # Candidates below the floor cannot be picked in this round.
    kept = [one.squares >= floor for one in parts]
    numbers = np.concatenate([one.numbers[some] for one, some in zip(parts, kept, strict=True)])
    squares = np.concatenate([one.squares[some] for one, some in zip(parts, kept, strict=True)])
    points = np.stack([known[number] for number in numbers.tolist()])
    with default_modes():
        candidates = Candidates(torch.from_numpy(numbers), torch.from_numpy(squares), floor, first_tie)
        places, distances = pick_among(torch.from_numpy(points).to(torch.float64), candidates, n_wanted)
    made = places.numpy()
    return numbers[made], points[made], distances.numpy()
