"""OrderCache: orders of selection on disk, which smaller selections reuse and larger selections continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from skpatchcore._utils.files import cache_folder, read_arrays, write_arrays
from skpatchcore._utils.warning import warn_user


class OrderCache:
    """Cache of the selection order for given rows and a given start.

    A smaller selection is a prefix of the cached order. A larger selection continues from the cached order.

    Parameters
    ----------
    memory : str, joblib.Memory or None
        Location of the cache, as in scikit-learn's `memory` parameters. None disables the cache.
    rows : tensor of shape (n_samples, n_features)
        Rows to select from, on any device. Their values are part of the name of the cache file.
    start : int
        Index of the first pick. It is part of the name of the cache file.
    """

    def __init__(self, memory: Any, rows: torch.Tensor, start: int):
        folder = cache_folder(memory, "skpatchcore-orders")
        self.path: Path | None = None
        if folder is not None:
            self.path = folder / f"{joblib.hash((rows.cpu().numpy(), start), hash_name='sha1')}.npz"

    def read(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the cached order and radii, or None if the file does not exist or is damaged."""
        found = None if self.path is None else read_arrays(self.path)
        # If this method returns None, the caller selects the rows again and overwrites the file.
        return (found["order"], found["radii"]) if found is not None and {"order", "radii"} <= set(found) else None

    def write(self, order: np.ndarray, radii: np.ndarray) -> None:
        """Write the order and the radii to the cache. Warn if the file cannot be written."""
        if self.path is None:
            return
        try:
            write_arrays(self.path, order=order, radii=radii)
        except OSError as error:  # a full or read-only disk must not stop the fit
            warn_user(
                f"memory: the selection order cannot be written to {str(self.path.parent)!r} ({error}); "
                "the next fit will select the rows again."
            )
