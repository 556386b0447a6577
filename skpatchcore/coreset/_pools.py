"""cover_of_images: the pool, a few rows of each image, from which the banks of calibration folds are selected.

A calibration fold needs a selection from the rows of most images. The greedy algorithm would compare all these rows
with all picks, once per fold. Instead, a few rows of each image are selected first, such that they cover all rows of
the image with a fraction of the covering radius of the memory bank. The rows of a fold are then selected from the rows
of the other images in this pool. For patch features of images and small ratios, the pool has a few times as many rows
as the memory bank. Therefore, one fold takes a fraction of the time. If the pool has more than half of all rows, it
saves too little, and folds are selected from all rows.

The pool of an image depends on the rows of this image, and on the covering radius of the memory bank. This radius is
the only number by which the bank of a fold depends on the rows that the fold leaves out. The covering radius of the
bank of a fold is at most the covering radius with respect to the pool, plus the fraction above.

A fixed number of rows per image would not depend on other images at all. It was measured and is worse: some images need
many more rows than others, and with 6 times the ratio of each image, scores of one network were 7 % lower.

References
----------
Indyk, Mahabadi, Mahdian and Mirrokni, "Composable core-sets for diversity and coverage maximization", PODS 2014.
"""

from __future__ import annotations

import numpy as np
import torch

from skpatchcore._utils.threads import one_thread
from skpatchcore.coreset._k_center import k_center_greedy, squared_units
from skpatchcore.coreset._rows import Rows

# The rows of the pool cover all rows of their image with this fraction of the covering radius of the memory bank.
_FINENESS = 0.8
# A pool of more than this fraction of the rows saves too little: the folds are then selected from all rows.
_LARGEST = 0.5
# Images with at most this many rows are covered by the textbook loop, which is faster for few rows.
_N_LOOP = 4096
# Maximum number of candidates of a selection from the pool.
_N_CANDIDATES = 256


def is_useful(n_pool: int, n_rows: int) -> bool:
    """Return whether folds are selected from a pool of `n_pool` of `n_rows` rows."""
    return n_pool <= _LARGEST * n_rows


def rows_for_fold(pool: np.ndarray | None, left_out: np.ndarray, n_wanted: int) -> np.ndarray | None:
    """Return the rows from which a fold is selected, in ascending order; None if it is selected from all rows.

    Parameters
    ----------
    pool : array of int or None
        Rows of the pool, in ascending order. None means that there is no pool.
    left_out : array of int
        Rows that the fold leaves out.
    n_wanted : int
        Number of rows to select.
    """
    if pool is None:
        return None
    kept = pool[~np.isin(pool, left_out)]
    return kept if len(kept) >= n_wanted else None


def select_from_pool(rows: Rows, others: np.ndarray, n_wanted: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Select rows greedily from all rows except `others`, from the row `start` on. Return the order and the radii."""
    left_out = torch.from_numpy(others).to(rows.left.device)
    return k_center_greedy(rows, n_wanted, start, left_out=left_out, n_candidates=_N_CANDIDATES)


def cover_of_images(rows: Rows, images: np.ndarray, radius: float, n_rows: int) -> np.ndarray | None:
    """Select rows of each image that cover all rows of this image.

    Parameters
    ----------
    rows : Rows
        The rows, on any device.
    images : array of shape (n_rows,), int64
        Image of each row.
    radius : float
        Covering radius of the memory bank.
    n_rows : int
        Number of rows of all processes.

    Returns
    -------
    array of int64 or None
        Selected rows, in ascending order. None if they are too many of all rows.
    """
    enough = _FINENESS * radius
    order = np.argsort(images, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(images[order])) + 1) if len(order) else []
    found, n_found = [np.zeros(0, np.int64)], 0
    for own in members:
        found.append(own[_cover(rows, own, enough)])
        n_found += len(found[-1])
        if not is_useful(n_found, n_rows):
            return None
    return np.sort(np.concatenate(found))


def _cover(rows: Rows, members: np.ndarray, radius: float) -> np.ndarray:
    """Select rows of one image greedily until they cover all its rows. Return places in `members`."""
    own = torch.from_numpy(members).to(rows.left.device)
    if len(members) > _N_LOOP:
        image = Rows.from_rounded(rows.left[own, :-1], rows.quantum, rows.centre)
        return k_center_greedy(image, len(image), 0, radius=radius)[0]
    with one_thread(True):
        return _loop(rows.exactly(own).cpu(), squared_units(radius, rows.quantum))


def _loop(points: torch.Tensor, enough: float) -> np.ndarray:
    """Run the textbook loop until all points are within the squared radius `enough` of a pick."""
    # All coordinates are integers, so that all squared distances are exact in float64, in any order of summation.
    norms = torch.linalg.vecdot(points, points)
    squares, new = torch.full_like(norms, torch.inf), torch.empty_like(norms)
    doubled = points * -2
    picks, best = [], 0
    for _ in range(len(points)):
        picks.append(best)
        torch.addmv(norms, points, doubled[best], out=new)
        torch.minimum(squares, new.add_(norms[best]), out=squares)
        squares[best] = -1.0  # never pick this point again
        best = int(squares.argmax())  # the first one, if several points are equally far
        if float(squares[best]) <= enough:
            break
    return np.array(picks, np.int64)
