"""Selection from rows that come in batches: from all of them at once, or shard by shard where memory does not do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from skpatchcore.coreset._rows import RowBuffer, Rows

# Bytes that selection takes whatever the number of rows: blocks of picks, of products, of rows on their way in.
SCRATCH_BYTES = 64 << 20
# Bytes for each row beside its columns: bounds, and the lists of rows that are compared.
_BOUND_BYTES = 64

# From rows, and their numbers among all rows, to the order of selection and the covering radius after each pick.
Select = Callable[[Rows, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass
class Summary:
    """Picks that stand for the rows which they were selected from.

    Attributes
    ----------
    left : tensor of shape (n_picks, n_columns + 1)
        The picks, in order; the last column means nothing.
    numbers : array of shape (n_picks,), int64
        Which rows they are.
    radii : array of shape (n_picks,), float64
        Bound of the distance of those rows from the picks up to and including each.
    """

    left: torch.Tensor
    numbers: np.ndarray
    radii: np.ndarray


def row_bytes(n_columns: int, itemsize: int = 4) -> int:
    """Return the bytes that selection takes for each row of `n_columns` columns."""
    return (n_columns + 3) * itemsize + _BOUND_BYTES


def peek(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Return the first batch, and all of them.

    Raises
    ------
    ValueError
        If there is none.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("there are no batches: at least one with one row is needed.")
    return first, chain([first], iterator)


def select_at_once(batches: Iterable[np.ndarray], n_samples: int, buffer: RowBuffer, select: Select) -> Summary:
    """Gather all rows, and select from them.

    Parameters
    ----------
    batches : iterable of arrays of shape (n_rows, n_features)
        The rows.
    n_samples : int
        How many are expected.
    buffer : RowBuffer
        Empty.
    select : callable
        Greedy selection.

    Returns
    -------
    Summary
    """
    buffer.reserve(n_samples)
    for batch in batches:
        buffer.extend(batch)
    return _reduce(*buffer.take(), select)


def select_from_shards(
    batches: Iterable[np.ndarray], capacity: int, n_selected: int, buffer: RowBuffer, select: Select
) -> Summary:
    """Reduce shards to their own picks, and the picks of all shards to the final ones.

    Parameters
    ----------
    batches : iterable of arrays of shape (n_rows, n_features)
        The rows.
    capacity : int
        Rows that fit in memory.
    n_selected : int
        How many are picked, from each shard too.
    buffer, select
        As for :func:`select_at_once`.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        If shards would be reduced to less than half only.

    Notes
    -----
    Greedy covers a shard within twice the smallest radius that as many centres could have, for that shard and so for
    all rows. Selecting once more among the shards' picks adds as much: every row lies within **4** times the smallest
    radius possible, where selection from all rows at once promises 2. If even the picks of all shards don't fit, they
    are merged more than once, and each time adds 2.

    References
    ----------
    Malkomes et al., "Fast distributed k-center clustering with outliers on massive data", NeurIPS 2015.
    """
    n_shard = capacity // 3  # a shard, the picks of those before it, and both of these while they are merged
    if n_shard < 2 * n_selected:
        raise ValueError(
            f"{n_selected} rows are to be selected, but only {capacity} fit in the memory that selection may use: "
            "select less, or allow more."
        )
    buffer.reserve(n_shard)
    summaries: list[Summary] = []

    def add_shard() -> None:
        summaries.append(_reduce(*buffer.take(), select))
        if sum(len(summary.numbers) for summary in summaries) + n_selected > n_shard:
            _merge(summaries, select)

    for batch in batches:
        while len(batch):
            n_left = n_shard - buffer.n_gathered
            buffer.extend(batch[:n_left])
            batch = batch[n_left:]
            if buffer.n_gathered == n_shard:
                add_shard()
    if buffer.n_gathered:
        add_shard()
    if len(summaries) > 1:
        _merge(summaries, select)
    return summaries[0]


def _merge(summaries: list[Summary], select: Select) -> None:
    """Replace summaries by one of them all."""
    radius = max(summary.radii[-1] for summary in summaries)
    numbers = np.concatenate([summary.numbers for summary in summaries])
    left = torch.cat([summary.left for summary in summaries])
    summaries.clear()  # before the selection: it needs memory too
    merged = _reduce(left, numbers, select)
    merged.radii += radius
    summaries.append(merged)


def _reduce(left: torch.Tensor, numbers: np.ndarray, select: Select) -> Summary:
    rows = Rows(left)
    order, radii = select(rows, numbers)
    picks = torch.from_numpy(order).to(left.device)
    return Summary(rows.as_they_came(picks), numbers[order], radii)
