"""ProjectingSampler: base class of the sampler that selects among projected rows, with the draws of a fit."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from skpatchcore.coreset._base import SubsetSampler
from skpatchcore.coreset._projection import gaussian_projection, lemma_projections, sparse_projection

PROJECTIONS = {"gaussian": gaussian_projection, "sparse": sparse_projection}


class ProjectingSampler(SubsetSampler):
    """Base class of the parts of :class:`~skpatchcore.GreedyCoresetSampler`."""

    ratio: float
    n_projections: int | str | None
    projection: str
    start: str | int
    device: str
    verbose: int
    component_indices_: np.ndarray
    selection_distances_: np.ndarray
    covering_radius_: float
    radius_: float
    ratio_: float
    n_beyond_ratio_: int
    seed_: int | None
    n_features_in_: int
    n_projections_: int
    n_samples_seen_: int

    def _remember(self, seed: int, n_features: int, n_columns: int, n_samples: int) -> None:
        """Set the fitted attributes with which the selection can go on. The order and the radii must be set."""
        self.seed_, self.n_features_in_, self.n_projections_ = seed, n_features, n_columns
        self.n_samples_seen_, self.n_beyond_ratio_ = n_samples, 0
        self.ratio_ = int(self.ratio) / n_samples if isinstance(self.ratio, Integral) else float(self.ratio)
        self.radius_ = self.covering_radius_ = float(self.selection_distances_[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "selection_distances_" in state and "radius_" not in state:  # fitted by an older version
            state = {**state, **_older_attributes(state)}
        super().__setstate__(state)

    def _n_columns(self, n_samples: int, n_features: int) -> int:
        """Return the number of columns after the projection."""
        if self.n_projections == "auto":
            return lemma_projections(n_samples, n_features)
        return n_features if self.n_projections is None else min(n_features, int(self.n_projections))

    def _check_start(self, n_samples: int) -> None:
        if self.start != "random" and int(self.start) >= n_samples:
            raise ValueError(f"start={self.start} is beyond the {n_samples} rows of X: use a smaller index.")

    def _draw(
        self, n_features: int, n_columns: int, rng: np.random.RandomState
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Draw the projection matrix, and the direction along which the first pick is the farthest row."""
        matrix = None
        if n_columns < n_features:
            matrix = PROJECTIONS[self.projection](n_features, n_columns, rng)
        # The direction is drawn after the projection matrix. All shards use the same direction.
        direction = rng.standard_normal(n_columns) if self.start == "random" else None
        return matrix, direction


def _older_attributes(state: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that the state of a fitted sampler of an older version lacks.

    The seed is None if the projection cannot be drawn again.
    """
    n_features, n_columns = state["n_features_in_"], state["n_projections"]
    order, seed, radius = state["component_indices_"], state["random_state"], float(state["selection_distances_"][-1])
    is_known = isinstance(seed, Integral) and n_columns != "auto"
    is_whole = n_columns is None or (n_columns != "auto" and n_columns >= n_features)
    seen = max(int(order.max()) + 1, len(order))
    return {
        "seed_": int(seed) if is_known else None,
        "n_projections_": n_features if is_whole else 0 if n_columns == "auto" else n_columns,
        "n_samples_seen_": seen,
        "n_beyond_ratio_": 0,
        "ratio_": len(order) / seen if isinstance(state["ratio"], Integral) else float(state["ratio"]),
        "radius_": radius,
        "covering_radius_": radius,
    }
