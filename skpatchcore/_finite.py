"""Which row is to blame when numbers are not numbers."""

from __future__ import annotations

import numpy as np
import torch

from skpatchcore._device import as_tensor


def first_not_finite(rows: np.ndarray) -> int | None:
    """Return the first of `rows`, an array of 2 dimensions, that holds NaN or infinity; None where all are finite."""
    # NaN or infinity anywhere shows in the sum, which is cheap
    if bool(as_tensor(rows, torch.device("cpu")).sum().isfinite()):
        return None
    for i in range(0, len(rows), 4096):  # a mask of all rows could be more than there is memory for
        bad = ~np.isfinite(rows[i : i + 4096]).all(axis=1)
        if bad.any():
            return i + int(bad.argmax())
    return None  # only the sum was too large
