"""Stand-in for the distributed selection: gather all rows, and select locally."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass
class ProjectedRows:
    """Rows of one shard, as the selection needs them."""

    values: np.ndarray
    images: np.ndarray
    n_features: int


@dataclass
class SelectionReport:
    """Report of a distributed selection."""

    mode: str
    n_shards: int
    n_rounds: int
    n_picks: int
    rows_sent: int
    bytes_sent: int
    covering_radius: float
    approximation_factor: float


class ShardGroup(Protocol):
    """Group of shards."""

    def map(
        self, name: str, function: Callable[..., Any], *held: Sequence[Any], common: Sequence[Any] = ()
    ) -> list[Any]:
        """Run a function for each shard."""

    def share(self, name: str, value: Any) -> Any:
        """Return a handle of a value."""

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Return the values of handles."""


def project_batches(sampler: Any, batches: Iterable[np.ndarray], images: Iterable[np.ndarray]) -> ProjectedRows:
    """Return the rows of a shard."""
    pairs = [(rows.copy(), numbers) for rows, numbers in zip(batches, images, strict=True)]
    values = np.concatenate([rows for rows, _ in pairs])
    return ProjectedRows(values, np.concatenate([numbers for _, numbers in pairs]), values.shape[1])


def fit_shards(
    sampler: Any,
    group: ShardGroup,
    projected: Sequence[Any],
    *,
    left_out: Sequence[np.ndarray] = (),
    mode: str = "exact",
    oversampling: float = 2.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[SelectionReport, list[np.ndarray]]:
    """Select from the rows of all shards."""
    parts = group.gather(group.map("skpatchcore-advance", _same, projected))
    values, images = (np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "images"))
    picks: list[np.ndarray] = []
    if len(left_out):
        picks = sampler.fit_folds([values], len(values), (np.flatnonzero(np.isin(images, some)) for some in left_out))
    else:
        sampler.fit(values)
        del sampler.components_
    if on_progress is not None:
        on_progress(len(sampler.component_indices_), 1)
    return SelectionReport(mode, len(parts), 1, len(sampler.component_indices_), 0, 0, 0.0, 2.0), picks


def _same(value: Any) -> Any:
    return value
