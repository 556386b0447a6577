"""What labels and groups say about images, by scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_consistent_length

from skpatchcore._utils.warning import warn_user

_CONVENTION = "the convention is +1 for good and -1 for anomalous images, and 0, NaN or None for unlabelled ones"


class LabelError(ValueError):
    """Labels of another convention than that of scikit-learn's outlier detectors."""


def image_labels(y: Any, n_images: int) -> np.ndarray:
    """Return labels by the convention of scikit-learn's outlier detectors.

    Parameters
    ----------
    y : array of shape (n_images,) or None
        +1 good, -1 anomalous; 0, NaN, None and NA unknown. None labels all images good.
    n_images : int
        Expected length.

    Returns
    -------
    array of shape (n_images,), int
        +1, -1 or 0.

    Raises
    ------
    ValueError
        If the length differs.
    LabelError
        If `y` has several columns or holds other labels: bool, texts, other numbers, or 0 and 1 without any -1, which
        is another convention.
    """
    if y is None:
        return np.ones(n_images, np.int64)
    check_consistent_length(np.empty(n_images), y)
    array = y.to_numpy(object) if isinstance(y, pd.Series) else np.asarray(y, dtype=object)
    if array.ndim > 1 and array.shape[1:] != (1,):
        raise LabelError(f"y has shape {array.shape}, expected one label per image: {_CONVENTION}.")
    values = pd.Series(array.ravel())
    is_missing = values.isna().to_numpy()
    known = values[~is_missing]
    for index, value in known.items():
        is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not is_number or value not in (-1, 0, 1):
            hint = (
                f" If {value!r} is good, pass np.where(y == {value!r}, 1, -1)." if isinstance(value, bool | str) else ""
            )
            raise LabelError(f"y[{index}] is {value!r}: {_CONVENTION}.{hint}")
    labels = np.zeros(n_images, np.int64)
    labels[~is_missing] = known.to_numpy(np.int64)
    if set(known) == {0, 1}:
        raise LabelError(
            f"y holds 0 and 1, and no -1: {_CONVENTION}. If 1 stands for anomalous, pass np.where(y == 1, -1, 1); if 0 "
            "does, pass np.where(y == 0, -1, 1)."
        )
    return labels


def is_nominal(y: Any, n_images: int, *, is_table: bool = False, warn: bool = True) -> np.ndarray:
    """Return which images are good, and therefore used for training.

    Parameters
    ----------
    y : array of shape (n_images,) or None
        As of :func:`image_labels`.
    n_images : int
        Expected length.
    is_table : bool, default=False
        Whether `X` is a 2-D table of features. scikit-learn's outlier detectors take any `y` with these and ignore it,
        and its checks of estimators rely on that. So other labels are ignored with a warning then.
    warn : bool, default=True
        Whether to warn of images with unknown labels.

    Returns
    -------
    array of shape (n_images,), bool

    Raises
    ------
    ValueError, LabelError
        As :func:`image_labels`; also if no image is good.

    Warns
    -----
    UserWarning
        If labels are unknown: these images are left out. If the labels of a table are ignored.
    """
    try:
        labels = image_labels(y, n_images)
    except LabelError as error:
        if not is_table:
            raise
        if warn:
            warn_user(f"{error} These labels of a table are ignored, and all its rows are taken as good.")
        return np.ones(n_images, bool)
    n_good, n_unknown = int((labels == 1).sum()), int((labels == 0).sum())
    if not n_good:
        raise ValueError(
            f"y labels {n_images - n_unknown} images anomalous (-1) and {n_unknown} unknown: there is no good image "
            "(+1) to learn from."
        )
    if n_unknown and warn:
        warn_user(f"y labels {n_unknown} of {n_images} images neither good nor anomalous: they are left out.")
    nominal: np.ndarray = labels == 1
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
