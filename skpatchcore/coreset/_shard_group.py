"""ShardGroup: the processes of a distributed selection; and what is requested from them, and returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class ShardGroup(Protocol):
    """Protocol of a group of shards: objects that belong to the same shard are held by the same process.

    A handle stands for an object of one shard. It is valid as long as it is referenced.
    """

    def map(
        self, name: str, function: Callable[..., Any], *held: Sequence[Any], common: Sequence[Any] = ()
    ) -> list[Any]:
        """Run ``function(held[0][i], held[1][i], ..., *common)`` for each shard i, and return a handle per result.

        Parameters
        ----------
        name : str
            Name of the work, for displays of progress.
        function : callable
            Pure function of picklable arguments: the same arguments always give the same result.
        *held : lists of handles
            Arguments that differ between the shards. All lists have one handle per shard.
        common : sequence
            Arguments that are the same for all shards: values, or handles of :meth:`share`.
        """

    def share(self, name: str, value: Any) -> Any:
        """Return a handle of a value that can be an item of `common`."""

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Return the objects of handles. Raise the error of a function that failed."""


class InProcessGroup:
    """Group of shards in this process. A handle is the object itself."""

    def map(
        self, name: str, function: Callable[..., Any], *held: Sequence[Any], common: Sequence[Any] = ()
    ) -> list[Any]:
        """Run the function for each shard, as described in :class:`ShardGroup`."""
        return [function(*own, *common) for own in zip(*held, strict=True)]

    def share(self, name: str, value: Any) -> Any:
        """Return the value."""
        return value

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Return the handles, which are the objects."""
        return list(handles)


@dataclass
class Request:
    """Selection to make: its start, its number of rows, and the images that it leaves out.

    Attributes
    ----------
    direction : array of shape (n_columns,) or None
        Direction along which the first pick is the farthest row. None starts at the row `start`.
    start : int
        Row number of the first pick if `direction` is None. If this row is left out, the first row that is not left out
        is picked.
    check : callable
        ``check(n_rows)`` raises a ValueError if the request is not possible for this number of rows in all shards.
    count : callable
        ``count(n_rows)`` returns the number of rows to select from `n_rows` rows.
    left_out : sequence of arrays of int
        Images that each selection leaves out. There is one selection per item.
    """

    direction: np.ndarray | None
    start: int
    check: Callable[[int], None]
    count: Callable[[int], int]
    left_out: Sequence[np.ndarray]


@dataclass
class Selection:
    """Result of one selection.

    Attributes
    ----------
    order : array of shape (n_selected,), int64
        Row numbers of the picks, counted over all shards, in order of selection.
    radii : array of shape (n_selected,), float64
        Covering radius after each pick; an upper bound in ``"merge"`` mode, except for the last one.
    """

    order: np.ndarray
    radii: np.ndarray
