"""select_at_once and select_from_shards: selection from batches of rows, in one pass or shard by shard.

Shards bound the memory of the selection if the projected rows do not fit in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from skpatchcore.coreset._order_cache import SelectionCache
from skpatchcore.coreset._rows import RowBuffer, Rows

# Memory that selection needs for any number of rows, in bytes: blocks of picks, of products and of incoming rows.
SCRATCH_BYTES = 64 << 20
# Memory per row in addition to its columns, in bytes: bounds and lists of row indices.
_BOUND_BYTES = 64

# Selection function. Arguments: the rows and their indices among all rows. Returns: the order of selection and the
# covering radius after each pick.
Select = Callable[[Rows, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass
class Summary:
    """Picked rows of a shard, which represent all rows of the shard.

    Attributes
    ----------
    left : tensor of shape (n_picks, n_columns + 1)
        The picked rows in order of selection. The last column is arbitrary.
    numbers : array of shape (n_picks,), int64
        Index of each pick among all rows.
    radii : array of shape (n_picks,), float64
        Upper bound of the covering radius after each pick: the largest distance from a represented row to the nearest
        of the picks made so far is at most this value.
    """

    left: torch.Tensor
    numbers: np.ndarray
    radii: np.ndarray


def row_bytes(n_columns: int, itemsize: int = 4) -> int:
    """Return the memory that selection needs per row of `n_columns` columns, in bytes."""
    return (n_columns + 3) * itemsize + _BOUND_BYTES


def peek(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Return the first batch, and an iterator over all batches that includes the first.

    Raises
    ------
    ValueError
        If there is no batch.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("there are no batches of rows: pass at least one batch with at least one row.")
    return first, chain([first], iterator)


def select_at_once(
    batches: Iterable[np.ndarray],
    n_samples: int,
    buffer: RowBuffer,
    select: Select,
    cache: SelectionCache | None = None,
) -> Summary:
    """Collect all rows in memory and select from them once.

    Parameters
    ----------
    batches : iterable of arrays of shape (n_rows, n_features)
        The rows.
    n_samples : int
        Expected number of rows. It determines the memory that is allocated at first.
    buffer : RowBuffer
        Empty buffer that collects the rows.
    select : callable
        Greedy selection. The function takes `Rows` and the indices of these rows, and returns the order of selection
        and the radii.
    cache : SelectionCache or None, default=None
        Cache of the projected rows. If they are there, the batches are not read. None always reads the batches.

    Returns
    -------
    Summary
        The picks of all rows.
    """
    buffer.reserve(n_samples)
    known = None if cache is None else cache.read_rows()
    if known is not None:
        buffer.fill(known)
        return _reduce(*buffer.take(), select)
    for batch in batches:
        buffer.extend(batch)
    left, numbers = buffer.take()
    if cache is not None:
        cache.write_rows(left[:, :-1].cpu().numpy())
    return _reduce(left, numbers, select)


def select_from_shards(
    batches: Iterable[np.ndarray], capacity: int, n_selected: int, buffer: RowBuffer, select: Select
) -> Summary:
    """Select from each shard, then select from the picks of all shards.

    Parameters
    ----------
    batches : iterable of arrays of shape (n_rows, n_features)
        The rows.
    capacity : int
        Number of rows that fit in memory.
    n_selected : int
        Number of rows to select. The same number is selected from each shard.
    buffer, select
        See :func:`select_at_once`.

    Returns
    -------
    Summary
        The final picks. Their radii are upper bounds of the covering radii.

    Raises
    ------
    ValueError
        If `capacity` is less than ``6 * n_selected``.

    Notes
    -----
    Let ``r`` be the smallest possible covering radius of `n_selected` picks for all rows. Greedy selection covers each
    shard within ``2 r``. The selection among the picks of all shards adds at most ``2 r``. Therefore every row lies
    within **4** ``r`` of its nearest pick. Selection from all rows at once guarantees ``2 r``. If the picks of all
    shards do not fit in memory, they are merged several times. Each additional merge adds ``2 r``.

    References
    ----------
    Malkomes et al., "Fast distributed k-center clustering with outliers on massive data", NeurIPS 2015.
    """
    # The algorithm is a merge-and-reduce over the stream of batches:
    #   1. Fill a shard with rows. Reduce the shard to its own greedy picks, and keep only these picks (a summary).
    #   2. If the summaries leave no space for one more, merge them: select again among their picks.
    #   3. After the last batch, merge the remaining summaries into one.
    # A third of the memory is for the shard, a third for the summaries, and a third for their copy during a merge.
    n_shard = capacity // 3
    # A merge needs two summaries, and both must fit in a third of the memory.
    if n_shard < 2 * n_selected:
        raise ValueError(
            f"{n_selected} rows are to be selected, but only {capacity} fit in the memory that selection may use, "
            "and 6 times the selected rows must fit: select fewer rows or allow more memory."
        )
    buffer.reserve(n_shard)
    summaries: list[Summary] = []

    def add_shard() -> None:
        """Reduce the rows in the buffer to a summary, and merge the summaries if the next one would not fit."""
        summaries.append(_reduce(*buffer.take(), select))
        if sum(len(summary.numbers) for summary in summaries) + n_selected > n_shard:
            _merge(summaries, select)

    for batch in batches:
        while len(batch):  # a batch may span several shards
            n_left = n_shard - buffer.n_gathered
            buffer.extend(batch[:n_left])
            batch = batch[n_left:]
            if buffer.n_gathered == n_shard:
                add_shard()
    if buffer.n_gathered:  # the last shard may be smaller
        add_shard()
    if len(summaries) > 1:
        _merge(summaries, select)
    return summaries[0]


def _merge(summaries: list[Summary], select: Select) -> None:
    """Replace the summaries in the list by one summary of all rows that they represent."""
    # A row is at most `radius` away from a pick of its shard. That pick is at most `merged.radii` away from a final
    # pick. By the triangle inequality, the sum bounds the distance from the row to its nearest final pick.
    radius = max(summary.radii[-1] for summary in summaries)
    numbers = np.concatenate([summary.numbers for summary in summaries])
    left = torch.cat([summary.left for summary in summaries])
    summaries.clear()  # release the memory before the selection, which needs memory too
    merged = _reduce(left, numbers, select)
    merged.radii += radius
    summaries.append(merged)


def _reduce(left: torch.Tensor, numbers: np.ndarray, select: Select) -> Summary:
    """Select from the given rows, and return a summary of them."""
    rows = Rows(left)
    order, radii = select(rows, numbers)
    picks = torch.from_numpy(order).to(left.device)
    return Summary(rows.as_they_came(picks), numbers[order], radii)
