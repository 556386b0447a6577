"""`RowTransform`: the fitted step between the extractor and the sampler, which transforms rows of patch features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from skpatchcore._utils.arrays import describe_beyond, first_beyond
from skpatchcore._utils.modes import default_modes
from skpatchcore.patches.model import check_channels
from skpatchcore.patches.patches import Patches

# Number of rows that `partial_fit` gets at once. It is at least the number of components of most transformers.
N_ROWS = 4096


class RowTransform:
    """Transforms the rows of patches with a fitted transformer, and checks the results.

    Parameters
    ----------
    transformer : Transformer
        A fitted transformer, see :class:`~skpatchcore.protocols.Transformer`.
    """

    def __init__(self, transformer: Any):
        self.transformer = transformer

    @default_modes()
    def of(self, patches: Patches, numbers: np.ndarray | None, limit: float | None) -> Patches:
        """Return patches with transformed rows.

        Parameters
        ----------
        patches : Patches
            Patches with the features of the extractor.
        numbers : array of int or None
            Numbers of the images in error messages. None if they are unknown: messages then name no image.
        limit : float or None
            Largest absolute value that is accepted. None accepts every finite value.

        Raises
        ------
        ValueError
            If the number of channels differs from that in the fit, or if the result is not a matrix of finite numbers
            with one row per patch.
        """
        rows = patches.rows
        if (n_channels := getattr(self.transformer, "n_features_in_", None)) is not None:
            check_channels(patches, n_channels)
        # A copy, because StandardScaler(copy=False) and others write the result to the rows.
        found = self.transformer.transform(rows.copy())
        name = type(self.transformer).__name__
        shape: tuple[int, ...] = getattr(found, "shape", ())
        if hasattr(found, "toarray") or len(shape) != 2 or shape[0] != len(rows) or not shape[1]:
            raise ValueError(
                f"transformer: {name}.transform returned {type(found).__name__} of shape {shape} for {len(rows)} rows. "
                f"Expected a dense array of shape ({len(rows)}, n_columns)."
            )
        found = np.ascontiguousarray(found, rows.dtype)
        largest = float(np.finfo(rows.dtype).max) if limit is None else limit
        if (beyond := first_beyond(found, largest)) is not None:
            row, column, value = beyond
            of_image = "" if numbers is None else f" for image {numbers[patches.image_of(row)]}"
            raise ValueError(
                f"transformer: the result of {name}{of_image} holds "
                f"{describe_beyond(value, f'column {column}', largest)}"
            )
        return patches.with_rows(found)


def equal_parts(batches: Iterable[np.ndarray], n_rows: int = N_ROWS) -> Iterator[np.ndarray]:
    """Yield the rows of all batches in matrices of `n_rows` rows. The last matrix has up to ``2 * n_rows - 1`` rows.

    The matrices do not depend on the division into batches. Each one is valid until the next one is yielded.
    """
    buffer, n = np.empty((0, 0), np.float32), 0
    for batch in batches:
        if not n:
            buffer = np.empty((2 * n_rows, batch.shape[1]), batch.dtype)
        done = 0
        while done < len(batch):
            n_new = min(len(batch) - done, 2 * n_rows - n)
            buffer[n : n + n_new] = batch[done : done + n_new]
            n, done = n + n_new, done + n_new
            if n == 2 * n_rows:
                yield buffer[:n_rows]
                buffer[:n_rows] = buffer[n_rows:]
                n = n_rows
    if n:
        yield buffer[:n]
