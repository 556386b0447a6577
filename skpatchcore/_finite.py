"""Which row is to blame when numbers are not numbers."""

from __future__ import annotations

import numpy as np


def first_not_finite(rows: np.ndarray) -> int | None:
    """Return the first of `rows`, an array of 2 dimensions, that holds NaN or infinity; None where all are finite."""
    if np.isfinite(rows.sum(dtype=np.float64)):  # cheap, and NaN or infinity anywhere shows in it
        return None
    for i in range(0, len(rows), 4096):  # a mask of all rows could be more than there is memory for
        bad = ~np.isfinite(rows[i : i + 4096]).all(axis=1)
        if bad.any():
            return i + int(bad.argmax())
    return None  # only the sum was too large
