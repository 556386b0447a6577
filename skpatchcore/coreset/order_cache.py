"""Selection orders on disk: a smaller selection is read off a larger one, a larger one goes on from a smaller one."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.utils.validation import check_memory


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
        location = check_memory(memory).location
        self.path: Path | None = None
        if location is not None:
            digest = joblib.hash((rows.cpu().numpy(), start), hash_name="sha1")
            self.path = Path(location) / "skpatchcore-orders" / f"{digest}.npz"

    def read(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the order and the radii that were kept, None where there are none or the file is damaged."""
        if self.path is None:
            return None
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return arrays["order"], arrays["radii"]
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
            return None  # selected anew, and written again

    def write(self, order: np.ndarray, radii: np.ndarray) -> None:
        """Keep an order, in one step: a reader finds the whole file or none."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, order=order, radii=radii)
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
