"""What labels and groups say about images, by scikit-learn's conventions."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_consistent_length


def is_nominal(y: Any, n_images: int) -> np.ndarray:
    """Return which images are good to learn from.

    Parameters
    ----------
    y : array of shape (n_images,) or None
        +1 good, -1 anomalous. Other labels are ignored, with a warning.
    n_images : int
        How many there must be.

    Returns
    -------
    array of shape (n_images,), bool

    Raises
    ------
    ValueError
        If the length differs or every image is anomalous.

    Warns
    -----
    UserWarning
        If there are other labels than +1 and -1.
    """
    everyone = np.ones(n_images, bool)
    if y is None:
        return everyone
    y = np.asarray(y)
    check_consistent_length(everyone, y)
    if not np.isin(y, (-1, 1)).all():
        warnings.warn(
            f"y holds {np.unique(y)[:5].tolist()}: the convention is +1 for good and -1 for anomalous images. "
            "These labels are ignored and all images are taken as good.",
            UserWarning,
            stacklevel=3,
        )
        return everyone
    if not (y == 1).any():
        raise ValueError("y labels every image anomalous (-1): there is no good image (+1) to learn from.")
    nominal: np.ndarray = y == 1
    return nominal


def group_codes(groups: Any, nominal: np.ndarray) -> np.ndarray:
    """Return the groups of nominal images as integers.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Numbers or texts, of all images.
    nominal : array of shape (n_images,), bool
        Which images are learnt from; the groups of others don't matter.

    Returns
    -------
    array of shape (n_nominal,), int

    Raises
    ------
    ValueError
        If the length differs or a nominal image has no group.
    """
    check_consistent_length(nominal, groups)
    codes, _ = pd.factorize(pd.Series(groups))  # an array of strings would spell a NaN out
    missing = nominal & (codes < 0)
    if missing.any():
        raise ValueError(f"groups: image {int(missing.argmax())} has none (NaN or None).")
    learnt: np.ndarray = codes[nominal]
    return learnt
