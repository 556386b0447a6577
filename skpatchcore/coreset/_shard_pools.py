"""Pool: the rows from which the folds are selected if the rows of all images are divided among several processes.

The same rows are selected as in one process; see :mod:`skpatchcore.coreset._pools`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from skpatchcore._utils.modes import default_modes
from skpatchcore.coreset._pools import cover_of_images, rows_for_fold, select_from_pool
from skpatchcore.coreset._rows import Rows
from skpatchcore.coreset._shard_group import Request, Selection


class Pooled(NamedTuple):
    """Rows of the pool from one shard.

    Attributes
    ----------
    numbers : array of shape (n_pooled,), int64
        Row numbers, counted over all shards, ascending.
    images : array of shape (n_pooled,), int64
        Images of the rows.
    points : array of shape (n_pooled, n_columns), float32
        The rounded rows.
    """

    numbers: np.ndarray
    images: np.ndarray
    points: np.ndarray


@default_modes()
def pool_of_shard(rows: Rows, images: np.ndarray, first_row: int, radius: float, n_rows: int) -> Pooled | None:
    """Return the pool of the images of one shard; None if it has too many of the `n_rows` rows of all shards.

    `radius` is the covering radius of the memory bank.
    """
    chosen = cover_of_images(rows, images, radius, n_rows)
    if chosen is None:
        return None
    return Pooled(chosen + first_row, images[chosen], rows.left[torch.from_numpy(chosen), :-1].numpy())


def size_of(pool: Pooled | None) -> int | None:
    """Return the number of rows of the pool of a shard; None if there is no pool."""
    return None if pool is None else len(pool.numbers)


@default_modes()
def select_folds(
    parts: Sequence[Pooled],
    grid: tuple[float, np.ndarray],
    request: Request,
    folds: Sequence[int],
    wanted: Sequence[int],
) -> dict[int, Selection]:
    """Select the rows of folds from the pool.

    Parameters
    ----------
    parts : sequence of Pooled
        Rows of the pool from each shard.
    grid : (float, array of shape (n_columns,))
        Quantum and centre of the rows.
    request : Request
        The selections to make.
    folds : sequence of int
        Numbers of the selections that are folds.
    wanted : sequence of int
        Number of rows of each selection.

    Returns
    -------
    dict of int to Selection
        Selections of the folds, by their numbers. Folds that must be selected from all rows are missing.
    """
    numbers, images, points = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    rows = Rows.from_rounded(torch.from_numpy(points), *grid)
    if request.direction is None:
        along = (numbers == request.start).astype(np.float64)
    else:
        along = rows.along(request.direction).numpy()
    found = {}
    for fold in folds:
        is_left_out = np.isin(images, request.left_out[fold])
        if rows_for_fold(numbers, numbers[is_left_out], wanted[fold]) is None:
            continue
        start = int(np.where(is_left_out, -np.inf, along).argmax())
        order, radii = select_from_pool(rows, np.flatnonzero(is_left_out), wanted[fold], start)
        found[fold] = Selection(numbers[order], radii)
    return found
