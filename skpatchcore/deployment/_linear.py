"""linear_map_of: the matrix of a fitted transformer of patch features, for the exported graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skpatchcore.deployment._graph import Value
from skpatchcore.features.scaling import LayerScaling
from skpatchcore.features.whitening import PatchWhitening

# Transformers whose result is an affine function of each row.
_LINEAR = (LayerScaling, PatchWhitening, PCA, IncrementalPCA, StandardScaler)


@dataclass(frozen=True)
class LinearMap:
    """The function ``(rows - centre) @ matrix + shift``.

    Attributes
    ----------
    centre : array of shape (n_channels,), float32
        Vector near the rows. It is subtracted first, because products of large numbers round more.
    matrix : array of shape (n_channels, n_columns), float32
        The matrix.
    shift : array of shape (n_columns,), float32
        Result for `centre`.
    """

    centre: np.ndarray
    matrix: np.ndarray
    shift: np.ndarray

    def applied(self, rows: Value) -> Value:
        """Return transformed rows, for rows of shape (n_images, n_patches, n_channels)."""
        centred = rows - self.centre
        # Not stored in float16: the memory bank was transformed with the float32 values.
        is_diagonal = self.matrix.shape[0] == self.matrix.shape[1] and not np.any(
            self.matrix[~np.eye(len(self.matrix), dtype=bool)]
        )
        found = centred * np.diag(self.matrix) if is_diagonal else centred @ rows.graph.constant(self.matrix)
        return found + self.shift


def linear_map_of(transformer: Any) -> LinearMap | None:
    """Return the linear map of a fitted transformer; None if it is not known to be linear."""
    steps = [step for _, step in transformer.steps] if isinstance(transformer, Pipeline) else [transformer]
    if not all(type(step) in _LINEAR for step in steps):
        return None
    n_channels = transformer.n_features_in_
    centre = np.zeros(n_channels)
    if (mean := getattr(steps[0], "mean_", None)) is not None:
        centre = np.asarray(mean, np.float64)
    shift = np.asarray(transformer.transform(centre[None]))[0]
    # The rows of the matrix are the changes of the result if one channel changes by 1.
    matrix = np.asarray(transformer.transform(centre + np.eye(n_channels))) - shift
    return LinearMap(centre.astype(np.float32), matrix.astype(np.float32), shift.astype(np.float32))
