"""Selection orders on disk: a smaller selection is read off a larger one, a larger one goes on from a smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from skpatchcore._utils.files import cache_folder, read_arrays, write_arrays
from skpatchcore._utils.warning import warn_user


class OrderCache:
    """The order of selection for given rows and a given start.

    Parameters
    ----------
    memory : str, joblib.Memory or None
        Where orders are kept, as scikit-learn's `memory` parameters have it; None keeps nothing.
    rows : tensor of shape (n_samples, n_features)
        What is selected from, on any device.
    start : int
        The first pick.
    """

    def __init__(self, memory: Any, rows: torch.Tensor, start: int):
        folder = cache_folder(memory, "skpatchcore-orders")
        self.path: Path | None = None
        if folder is not None:
            self.path = folder / f"{joblib.hash((rows.cpu().numpy(), start), hash_name='sha1')}.npz"

    def read(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the order and the radii that were kept, None where there are none or the file is damaged."""
        found = None if self.path is None else read_arrays(self.path)
        # what is missing is selected anew, and written again
        return (found["order"], found["radii"]) if found is not None and {"order", "radii"} <= set(found) else None

    def write(self, order: np.ndarray, radii: np.ndarray) -> None:
        """Keep an order."""
        if self.path is None:
            return
        try:
            write_arrays(self.path, order=order, radii=radii)
        except OSError as error:  # a full or a read-only disk is no reason to stop the work
            warn_user(f"memory: the order can't be kept in {str(self.path.parent)!r} ({error}).")
