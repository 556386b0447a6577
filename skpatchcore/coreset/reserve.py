"""ReserveRequest: selects the reserve, from which a coreset is refilled after some images were forgotten.

If the rows of an image are dropped from a coreset, patches of other images can lose the row that covered them. These
patches are not stored, so the holes cannot be found later. Therefore, two things are computed when the coreset is
selected:

1. The reserve: rows with which each image covers itself. A row is added until each row of the image is within the
   covering radius of a selected row, or of a row of the reserve, of the same image.
2. The supports: a row that is not covered by the coreset's rows of its own image is represented by the nearest row of
   the reserve of its image. If its cover comes from few other images only, these images are stored. If all of them are
   forgotten, the row of the reserve is needed.

If the needed rows of the reserve are added, each row is covered by a row of its own image, or by a row of an image that
is not forgotten. Rows whose cover comes from many images are not stored. They lose it only if many images are forgotten
together. For this case, rows of the reserve that are no longer covered themselves are added, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from skpatchcore.coreset._k_center import squared_units
from skpatchcore.coreset._rows import Rows

# A row is stored with the images that cover it if there are at most so many of them.
N_SUPPORTS = 3
# Number of squared distances that are computed at once.
_BLOCK = 1 << 20
# Number of rows whose covering images are counted together.
_ROWS = 1 << 16
# Smallest number of picks with which all rows are compared first.
_FIRST_PICKS = 256


@dataclass
class ReserveRequest:
    """Request to select a reserve together with a coreset. A sampler fills in the result.

    Attributes
    ----------
    images : iterable of arrays of shape (n_rows,)
        Index of the image of each row, per batch of rows. It is read after the last batch.
    known : array of shape (n_known,), int64
        Image of each row that was selected before; empty in a new fit.
    most_rows : callable or None, default=None
        ``most_rows(n_selected)`` returns the maximum size of the reserve, for a number of selected rows. If the reserve
        would be larger, none is selected. None sets no maximum.
    is_too_large : bool
        Result: whether no reserve was selected because it would be larger than the maximum.
    rows : array of shape (n_reserve,), int64, or None
        Result: the row numbers of the reserve, counted over the rows of the batches. None if no reserve was selected.
    row_images : array of shape (n_reserve,), int64
        Result: the image of each of these rows.
    supports : array of shape (n_supports, 1 + N_SUPPORTS), int32
        Result: place of a row in the reserve, followed by the images without which this row is needed, filled up by -1.
    """

    images: Iterable[np.ndarray]
    known: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    most_rows: Callable[[int], int] | None = None
    is_too_large: bool = False
    rows: np.ndarray | None = None
    row_images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    supports: np.ndarray = field(default_factory=lambda: np.zeros((0, 1 + N_SUPPORTS), np.int32))

    def select(self, rows: Rows, picks: np.ndarray, radius: float) -> None:
        """Select the reserve.

        Parameters
        ----------
        rows : Rows
            The rows that were selected before, followed by the rows of the batches.
        picks : array of int64
            All selected rows.
        radius : float
            Covering radius of the selected rows.
        """
        n_known = len(self.known)
        images = np.concatenate([self.known, *self.images])
        is_picked = np.zeros(len(rows), bool)
        is_picked[picks] = True
        enough = squared_units(radius, rows.quantum)
        reserve: list[np.ndarray] = []
        uncovered: list[np.ndarray] = []  # rows that no selected row of their own image covers
        places: list[np.ndarray] = []  # place in the reserve of the row that represents each of them
        n_reserve, most = 0, len(rows) if self.most_rows is None else self.most_rows(len(picks))
        for members in _of_each_image(images, n_known):
            found, lacking, nearest = _own_cover(rows.exactly(_tensor(members, rows)), is_picked[members], enough)
            reserve.append(members[found])
            uncovered.append(members[lacking])
            places.append(n_reserve + nearest)
            n_reserve += len(found)
            if n_reserve > most:
                self.is_too_large = True
                return
        nothing = np.zeros(0, np.int64)
        picked = np.concatenate([nothing, *reserve])
        self.rows, self.row_images = picked - n_known, images[picked]
        self.supports = _supports(
            rows, np.concatenate([nothing, *uncovered]), np.concatenate([nothing, *places]), picks, images, enough
        )


def _of_each_image(images: np.ndarray, first: int) -> Iterator[np.ndarray]:
    """Yield the row numbers of each image, among the rows from `first` on. The images are in ascending order."""
    order = first + np.argsort(images[first:], kind="stable")
    if len(order):
        yield from np.split(order, np.flatnonzero(np.diff(images[order])) + 1)


def _own_cover(points: torch.Tensor, is_picked: np.ndarray, enough: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Select the reserve of one image.

    Parameters
    ----------
    points : tensor of shape (n_points, n_columns), float64
        The rows of the image.
    is_picked : array of shape (n_points,), bool
        Whether each row belongs to the coreset.
    enough : float
        Squared covering radius.

    Returns
    -------
    found : array of int64
        The rows of the reserve, in greedy order.
    lacking : array of int64
        The rows that are not covered by rows of the coreset.
    nearest : array of int64
        For each of them, the nearest row of the reserve, as a place in `found`.
    """
    # All coordinates are integers, so that all squared distances are exact in float64, in any order of summation.
    norms = torch.linalg.vecdot(points, points)

    def squares_from(point: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = norms + torch.dot(point, point) - 2 * (points @ point)
        return found.clamp_min_(0)

    squares = torch.full_like(norms, torch.inf)
    picked = torch.from_numpy(np.flatnonzero(is_picked)).to(points.device)
    n_at_once = max(1, _BLOCK // len(points))
    for first in range(0, len(picked), n_at_once):
        some = picked[first : first + n_at_once]
        products = norms[some] - 2 * (points @ points[some].T)
        torch.minimum(squares, (norms + products.amin(dim=1)).clamp_min_(0), out=squares)
    squares[picked] = 0  # distances between rows with huge values are not exact
    lacking = torch.nonzero(squares > enough)[:, 0]
    found: list[int] = []
    own = torch.full_like(norms, torch.inf)  # squared distances from the nearest row of the reserve
    nearest = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for _ in range(len(points)):
        best = int(squares.argmax())
        if float(squares[best]) <= enough:
            break
        if not found and not is_picked.any():  # start in the middle, from where most rows are covered
            middle = points.mean(dim=0).round_()
            best = int((norms - 2 * (points @ middle)).argmin())
        new = squares_from(points[best])
        nearest[new < own] = len(found)
        torch.minimum(own, new, out=own)
        torch.minimum(squares, new, out=squares)
        squares[best] = 0
        found.append(best)
    return np.array(found, np.int64), lacking.cpu().numpy(), nearest[lacking].cpu().numpy()


def _supports(
    rows: Rows, uncovered: np.ndarray, places: np.ndarray, picks: np.ndarray, images: np.ndarray, enough: float
) -> np.ndarray:
    """Return which rows of the reserve are needed if which images are forgotten, as ``ReserveRequest.supports``.

    `uncovered` are rows that no selected row of their own image covers, and `places` the places in the reserve of the
    rows that represent them.
    """
    by_image = picks[np.argsort(images[picks], kind="stable")]
    chosen, steps = _tensor(by_image, rows), list(_steps(images[by_image]))
    found = [np.zeros((0, 1 + N_SUPPORTS), np.int64)]
    for first in range(0, len(uncovered), _ROWS):
        some = uncovered[first : first + _ROWS]
        covering = np.full((len(some), N_SUPPORTS), -1, np.int64)
        counts = np.zeros(len(some), np.int64)
        remaining = np.arange(len(some))
        for start, stop in steps:
            # Most rows are covered from many images. They are not stored, so the other picks need not be compared.
            for of_row, image in _covering_images(rows, some[remaining], chosen[start:stop], images, enough):
                row = remaining[of_row]
                # The position of each pair among the pairs of its row, which follow each other.
                position = counts[row] + np.arange(len(row)) - np.searchsorted(row, row)
                is_kept = position < N_SUPPORTS
                covering[row[is_kept], position[is_kept]] = image[is_kept]
                counts += np.bincount(row, minlength=len(some))
            remaining = np.flatnonzero(counts <= N_SUPPORTS)
        entries = np.column_stack([places[first : first + _ROWS], covering])
        found.append(np.unique(entries[remaining], axis=0))
    return np.unique(np.concatenate(found), axis=0).astype(np.int32)


def _steps(of_picks: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield where to divide picks that are sorted by image. No image is divided, and each part is 4 times as large."""
    starts = np.r_[0, np.flatnonzero(np.diff(of_picks)) + 1, len(of_picks)]
    start, size = 0, _FIRST_PICKS
    while start < len(of_picks):  # ends: each part has at least one image
        stop = int(starts[np.searchsorted(starts, min(start + size, len(of_picks)))])
        yield start, stop
        start, size = stop, 4 * size


def _covering_images(
    rows: Rows, some: np.ndarray, chosen: torch.Tensor, images: np.ndarray, enough: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of pairs of a row and an image with a pick that covers it, sorted by row, then by image.

    Parameters
    ----------
    rows : Rows
        All rows.
    some : array of int64
        Row numbers of some rows.
    chosen : tensor of int64
        Row numbers of picks, sorted by image.
    images : array of int64
        Image of each row.
    enough : float
        Squared covering radius.

    Yields
    ------
    of_row, image : arrays of int64
        Positions in `some`, and the images.
    """
    points, lengths = rows.left[chosen, :-1], rows.norms[chosen]
    of_picks = images[chosen.cpu().numpy()]
    n_at_once = max(1, _BLOCK // len(of_picks))
    for first in range(0, len(some), n_at_once):
        block = _tensor(some[first : first + n_at_once], rows)
        of_row, pick = _within(rows, block, chosen, points, lengths, enough)
        covering = of_picks[pick]
        is_first = (np.diff(of_row, prepend=-1) > 0) | (np.diff(covering, prepend=-1) != 0)
        yield first + of_row[is_first], covering[is_first]


def _within(
    rows: Rows, some: torch.Tensor, picks: torch.Tensor, points: torch.Tensor, lengths: torch.Tensor, enough: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of a row and a pick that are within the covering radius, exactly.

    float32 decides about most pairs. Only pairs whose distance is within the rounding error of the radius are compared
    again in float64, where all distances are exact.

    Parameters
    ----------
    rows : Rows
        All rows.
    some, picks : tensors of int64
        Row numbers of the rows and of the picks.
    points : tensor of shape (n_picks, n_columns), float32
        The picks.
    lengths : tensor of shape (n_picks,), float32
        Squared lengths of the picks.
    enough : float
        Squared covering radius.

    Returns
    -------
    of_row, pick : arrays of int64
        Positions in `some` and in `picks`, sorted by row, then by pick.
    """
    norms = rows.norms[some].double()
    # |x - p|² <= enough, if and only if |p|² - 2 x·p <= enough - |x|².
    products = torch.addmm(lengths, rows.left[some, :-1], points.T, alpha=-2)
    limits = enough - norms
    bounds = 4 * (points.shape[1] + 4) * 2.0**-24 * (norms.sqrt() + float(lengths.max().sqrt())).square()
    bounds += 2.0**-22 * limits.abs()
    is_near = (products <= (limits + bounds).float()[:, None]).cpu().numpy()
    of_row, pick = np.divmod(np.flatnonzero(is_near), len(picks))
    rounded = products.cpu().numpy()[of_row, pick]
    is_unsure = np.flatnonzero(rounded >= (limits - bounds).float().cpu().numpy()[of_row])
    is_within = np.ones(len(of_row), bool)
    for first in range(0, len(is_unsure), 8192):
        part = is_unsure[first : first + 8192]
        differences = rows.exactly(some[_tensor(of_row[part], rows)]) - rows.exactly(picks[_tensor(pick[part], rows)])
        is_within[part] = (torch.linalg.vecdot(differences, differences) <= enough).cpu().numpy()
    return of_row[is_within], pick[is_within]


def _tensor(numbers: np.ndarray, rows: Rows) -> torch.Tensor:
    """Return row numbers as a tensor on the device of the rows."""
    return torch.from_numpy(numbers).to(rows.left.device)
