"""Functions that run on shards of rows, and what they return; see :mod:`skpatchcore.coreset.distributed`.

All functions are pure: they change none of their arguments, and the same arguments always give the same result. A
cluster can therefore run them again, e.g. after the loss of a process.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor
from skpatchcore._utils.modes import default_modes
from skpatchcore.coreset._farthest import FarthestRows
from skpatchcore.coreset._grid import exponent_counts, sum_of
from skpatchcore.coreset._k_center import k_center_greedy
from skpatchcore.coreset._rows import Rows


@dataclass
class ProjectedRows:
    """Projected rows of a shard.

    Attributes
    ----------
    values : array of shape (n_rows, n_columns), float32 or float64
        The rows.
    images : array of shape (n_rows,), int64
        Index of the image of each row.
    n_features : int
        Number of columns before the projection.
    checksum : int
        Checksum of `values`, set by the class.
    """

    values: np.ndarray
    images: np.ndarray
    n_features: int
    checksum: int = field(init=False)

    def __post_init__(self) -> None:
        self.checksum = zlib.crc32(np.ascontiguousarray(self.values).view(np.uint8).data)

    def __sizeof__(self) -> int:
        return int(self.values.nbytes + self.images.nbytes)


@dataclass
class Found:
    """Candidates of one selection on one shard. The row numbers are counted over all shards."""

    numbers: np.ndarray
    squares: np.ndarray
    floor: float
    first_tie: float


@dataclass
class Message:
    """Candidates that a shard sends: per selection, and the rounded rows that it has not sent in an earlier round."""

    numbers: np.ndarray
    points: np.ndarray
    found: dict[int, Found | None]

    def nbytes(self) -> int:
        """Return the size of the arrays in bytes."""
        parts = sum(one.numbers.nbytes + one.squares.nbytes + 16 for one in self.found.values() if one is not None)
        return int(self.numbers.nbytes + self.points.nbytes + parts)


@dataclass
class State:
    """State of the selections on a shard, without the rows.

    Attributes
    ----------
    farthest : dict of int to FarthestRows
        The selections that are not finished.
    sent : array of int64
        Row numbers of all rows that were sent so far, ascending.
    message : Message or None
        Candidates of the last round; None before the first round.
    """

    farthest: dict[int, FarthestRows]
    sent: np.ndarray
    message: Message | None = None

    def __sizeof__(self) -> int:
        parts = sum(one.nbytes() for one in self.farthest.values())
        return int(parts + self.sent.nbytes + (self.message.nbytes() if self.message else 0))


class Measures(NamedTuple):
    """Size, images and checksum of the rows of a shard, which the coordinator needs.

    Attributes
    ----------
    n_features, n_columns : int
        Number of columns before and after the projection.
    images, counts : arrays of shape (n_images,), int64
        The images, and the number of rows of each image.
    exponents : array of int64
        Number of rows by exponent, as :func:`~skpatchcore.coreset._grid.exponent_counts` returns it.
    checksum : int
        Checksum of the rows.
    """

    n_features: int
    n_columns: int
    images: np.ndarray
    counts: np.ndarray
    exponents: np.ndarray
    checksum: int


@default_modes()
def measure(projected: ProjectedRows) -> Measures:
    """Return the measures of a shard."""
    images, counts = np.unique(projected.images, return_counts=True)
    exponents, n_columns = exponent_counts(_tensor(projected.values)), projected.values.shape[1]
    return Measures(projected.n_features, n_columns, images, counts, exponents, projected.checksum)


@default_modes()
def sum_of_rows(projected: ProjectedRows, quantum: float) -> np.ndarray:
    return sum_of(_tensor(projected.values), quantum)


@default_modes()
def counts_of_rows(projected: ProjectedRows, centre: np.ndarray) -> np.ndarray:
    return exponent_counts(_tensor(projected.values), _tensor(centre))


@default_modes()
def rounded(projected: ProjectedRows, quantum: float, centre: np.ndarray) -> Rows:
    # The extra column and the copy are needed, because the rows are rounded in place.
    values = _tensor(projected.values)
    left = values.new_empty((len(values), values.shape[1] + 1))
    left[:, :-1] = values
    rows = Rows(left, (quantum, centre))
    rows.checksum = projected.checksum
    return rows


def checksum_of(rows: Rows) -> int:
    return rows.checksum


def features_of(projected: ProjectedRows) -> int:
    return projected.n_features


def images_of(projected: ProjectedRows) -> np.ndarray:
    return projected.images


@default_modes()
def first_pick(
    rows: Rows,
    images: np.ndarray,
    first_row: int,
    direction: np.ndarray | None,
    start: int,
    left_out: Sequence[np.ndarray],
) -> list[tuple[float, int, np.ndarray] | None]:
    """Return the position along the direction, the row number and the row of the best first pick per selection."""
    if direction is None:
        positions = (np.arange(first_row, first_row + len(rows)) == start).astype(np.float64)
    else:
        positions = rows.along(direction).numpy()
    found: list[tuple[float, int, np.ndarray] | None] = []
    for some in left_out:
        kept = np.flatnonzero(~np.isin(images, some))
        if not len(kept):
            found.append(None)
            continue
        best = int(kept[positions[kept].argmax()])
        found.append((float(positions[best]), first_row + best, rows.left[best, :-1].numpy()))
    return found


@default_modes()
def begin(rows: Rows, images: np.ndarray, left_out: Sequence[np.ndarray]) -> State:
    """Return the state of the selections before the first pick."""
    farthest = {i: _without_rows(_farthest_rows(rows, images, some)) for i, some in enumerate(left_out)}
    return State(farthest, np.zeros(0, np.int64))


@default_modes()
def advance(rows: Rows, state: State, first_row: int, picks: dict[int, Any], n_asked: int) -> State:
    """Add picks, and find the next candidates. Selections without new picks are finished."""
    farthest: dict[int, FarthestRows] = {}
    found: dict[int, Found | None] = {}
    for i, (numbers, points) in picks.items():
        one = state.farthest[i].copy()
        one.rows = rows
        own = numbers[(numbers >= first_row) & (numbers < first_row + len(rows))] - first_row
        one.add(_tensor(points), _tensor(own))
        candidates = one.candidates(n_asked, n_asked // 2) if len(rows) else None
        farthest[i], found[i] = _without_rows(one), None
        if candidates is not None:
            found[i] = Found(
                candidates.rows.numpy() + first_row, candidates.squares.numpy(), candidates.floor,
                candidates.first_tie + first_row if candidates.first_tie >= 0 else -1,
            )  # fmt: skip
    numbers_of = [one.numbers for one in found.values() if one is not None]
    new = np.setdiff1d(np.concatenate(numbers_of), state.sent) if numbers_of else np.zeros(0, np.int64)
    points = rows.left[_tensor(new - first_row), :-1].numpy()
    return State(farthest, np.union1d(state.sent, new), Message(new, points, found))


def message_of(state: State) -> Message | None:
    return state.message


class Reduced(NamedTuple):
    """Rows that are selected from one shard in merge mode.

    Attributes
    ----------
    numbers : array of shape (n_selected,), int64
        Row numbers, counted over all shards.
    points : array of shape (n_selected, n_columns), float32
        The rounded rows.
    radius : float
        Covering radius of the rows in their shard.
    """

    numbers: np.ndarray
    points: np.ndarray
    radius: float


@default_modes()
def reduce_shard(
    rows: Rows,
    images: np.ndarray,
    first_row: int,
    direction: np.ndarray | None,
    left_out: Sequence[np.ndarray],
    wanted: Sequence[int],
) -> list[Reduced]:
    """Select rows from one shard, for each selection."""
    found = []
    for start, some, n_wanted in zip(
        first_pick(rows, images, 0, direction, 0, left_out), left_out, wanted, strict=True
    ):
        if start is None:  # all rows are left out
            found.append(Reduced(np.zeros(0, np.int64), rows.left[:0, :-1].numpy(), 0.0))
            continue
        excluded = np.flatnonzero(np.isin(images, some))
        n_selected = min(n_wanted, len(rows) - len(excluded))
        order, radii = k_center_greedy(rows, n_selected, start[1], left_out=_tensor(excluded))
        found.append(Reduced(order + first_row, rows.left[_tensor(order), :-1].numpy(), float(radii[-1])))
    return found


@default_modes()
def farthest_from(
    rows: Rows, images: np.ndarray, picks: Sequence[np.ndarray], left_out: Sequence[np.ndarray]
) -> list[float]:
    """Return the largest distance from a row to the nearest pick, for each selection."""
    distances = []
    for points, some in zip(picks, left_out, strict=True):
        farthest = _farthest_rows(rows, images, some)
        farthest.add(_tensor(points), torch.zeros(0, dtype=torch.int64))
        found = farthest.candidates(1) if len(rows) else None
        distances.append(0.0 if found is None else math.sqrt(float(found.squares.max())) * rows.quantum)
    return distances


def _farthest_rows(rows: Rows, images: np.ndarray, left_out: np.ndarray) -> FarthestRows:
    return FarthestRows(rows, _tensor(np.flatnonzero(np.isin(images, left_out))))


def _without_rows(farthest: FarthestRows) -> FarthestRows:
    """Return the search without its rows, which are held by the group already."""
    del farthest.rows
    return farthest


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Return a tensor that shares the memory of an array, which may be read-only after its transport."""
    return as_tensor(array, torch.device("cpu"))
