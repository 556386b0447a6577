"""Checks of the labels and groups of images, which follow scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_consistent_length

from skpatchcore._utils.warning import warn_user

_CONVENTION = "the convention is +1 for good and -1 for anomalous images, and 0, NaN or None for unlabelled images"

# Words for good and for anomalous images in other conventions, in lower case.
_GOOD = frozenset({"good", "ok", "normal", "nominal", "pass", "inlier"})
_BAD = frozenset({"bad", "ng", "nok", "ko", "defect", "defective", "anomaly", "anomalous", "abnormal", "fail", "-1"})
# With more different labels than these, they are probably scores, and there is no advice.
_N_VALUES = 20


class LabelError(ValueError):
    """Raised if labels do not follow the convention of scikit-learn's outlier detectors (+1 good, -1 anomalous)."""


def image_labels(y: Any, n_images: int) -> np.ndarray:
    """Check labels and return them as +1 (good), -1 (anomalous) or 0 (unknown).

    Parameters
    ----------
    y : array of shape (n_images,) or None
        Labels: +1 for good and -1 for anomalous images. An item that is 0, NaN, None or NA means that the label of this
        image is unknown. If `y` itself is None, all images are good, and the result is +1 for each image.
    n_images : int
        Expected number of labels.

    Returns
    -------
    array of shape (n_images,), int
        +1, -1 or 0 per image.

    Raises
    ------
    ValueError
        If the number of labels is not `n_images`.
    LabelError
        If `y` has several columns, or contains bools, texts, or numbers other than +1, -1 and 0. The error is also
        raised if `y` contains 0 and 1 but no -1, because these labels probably follow another convention.
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
            raise LabelError(f"y[{index}] is {value!r}: {_CONVENTION}.{_advice(known, value, is_missing.any())}")
    labels = np.zeros(n_images, np.int64)
    labels[~is_missing] = known.to_numpy(np.int64)
    if set(known) == {0, 1}:
        raise LabelError(f"y holds 0 and 1, and no -1: {_CONVENTION}.{_advice(known, 0, is_missing.any())}")
    return labels


def _advice(known: pd.Series, odd: Any, has_missing: Any) -> str:
    """Return code of one line that maps labels of another convention to +1 and -1.

    Parameters
    ----------
    known : Series
        The labels that are not missing.
    odd : object
        A label that does not follow the convention.
    has_missing : bool
        Whether there are missing labels. The code then maps them to None.

    Returns
    -------
    str
        Sentences with a space in front, or an empty text. If one of two labels may stand for good images, the code is
        given for both.
    """
    values: list[Any] = []
    for value in known:
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, int | str | float):  # bool is an int
            return ""
        if plain not in values:
            values.append(plain)
        if len(values) > _N_VALUES:
            return ""
    if -1 in values:  # the convention is known, and one label is wrong
        return f" Replace {odd!r} with one of these labels."
    if any(isinstance(value, bool) for value in values):
        values = [True, False]
    good = [value for value in values if isinstance(value, str) and value.casefold() in _GOOD]
    bad = [value for value in values if isinstance(value, str) and value.casefold() in _BAD]
    if len(good) != 1 and len(values) == 2 and len(bad) == 1:
        good = [value for value in values if value not in bad]
    if len(good) != 1:
        good = sorted(values, key=repr) if len(values) == 2 else values[:1]
    return "".join(f" If {value!r} stands for good images, pass {_mapping(value, has_missing)}." for value in good)


def _mapping(good: Any, has_missing: Any) -> str:
    """Return the code that maps one label to +1 and all others to -1, also if `y` is a list."""
    if has_missing:
        return f"[None if pd.isna(label) else 1 if label == {good!r} else -1 for label in y]"
    return f"np.where(np.asarray(y) == {good!r}, 1, -1)"


def is_nominal(y: Any, n_images: int, *, is_table: bool = False, warn: bool = True) -> np.ndarray:
    """Return a mask of the good images. A detector is fitted on these images only.

    Parameters
    ----------
    y : array of shape (n_images,) or None
        Labels, as for :func:`image_labels`.
    n_images : int
        Expected number of labels.
    is_table : bool, default=False
        Whether `X` is a 2-D table of features. If True, labels of another convention do not raise an error: they are
        ignored with a warning. scikit-learn's outlier detectors ignore any `y`, and its estimator checks rely on this.
    warn : bool, default=True
        Whether to warn about unknown labels and about ignored labels.

    Returns
    -------
    array of shape (n_images,), bool
        True for each good image.

    Raises
    ------
    ValueError
        If the number of labels is not `n_images`, or if no image has the label +1.
    LabelError
        If `is_table` is False and the labels do not follow the convention of :func:`image_labels`.

    Warns
    -----
    UserWarning
        If `warn` is True and some labels are unknown: the images with unknown labels are left out.
    UserWarning
        If `warn` is True and the labels of a table are ignored.
    """
    try:
        labels = image_labels(y, n_images)
    except LabelError as error:
        if not is_table:
            raise
        if warn:
            warn_user(f"{error} The labels of a table are ignored: all rows are taken as good.")
        return np.ones(n_images, bool)
    n_good, n_unknown = int((labels == 1).sum()), int((labels == 0).sum())
    if not n_good:
        raise ValueError(
            f"y labels {n_images - n_unknown} images anomalous (-1) and {n_unknown} unknown: there is no good image "
            "(+1). Pass at least one good image."
        )
    if n_unknown and warn:
        warn_user(f"y labels {n_unknown} of {n_images} images neither good nor anomalous: they are left out.")
    nominal: np.ndarray = labels == 1
    return nominal


def group_codes(groups: Any, nominal: np.ndarray) -> np.ndarray:
    """Return the groups of the nominal images as integers.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image, a number or a text.
    nominal : array of shape (n_images,), bool
        True for each nominal image. The groups of all other images are ignored.

    Returns
    -------
    array of shape (n_nominal,), int
        Group code of each nominal image.

    Raises
    ------
    ValueError
        If `groups` and `nominal` differ in length, or if the group of a nominal image is NaN or None.
    """
    check_consistent_length(nominal, groups)
    codes, _ = pd.factorize(pd.Series(groups))  # not an array of strings, where NaN would become the text "nan"
    missing = nominal & (codes < 0)
    if missing.any():
        raise ValueError(f"groups: image {int(missing.argmax())} has no group (NaN or None). Give every image a group.")
    learnt: np.ndarray = codes[nominal]
    return learnt
