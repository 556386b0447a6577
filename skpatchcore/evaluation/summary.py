"""describe_images, describe_result and advice: the images and the results of an evaluation in plain words."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from skpatchcore._utils.names import shown_name
from skpatchcore.evaluation.category import CategoryResult

# Kinds of defects that are named.
_N_KINDS = 8
# AUROC above which a threshold can separate good from defective images, and fractions of a good result.
_SEPARABLE, _FOUND, _FLAGGED = 0.85, 0.9, 0.2


def counted(n: int, noun: str) -> str:
    """Return a number and a noun, in the plural unless the number is 1."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def describe_images(dataset: Any) -> str:
    """Return which images a detector was fitted on and which it was tested on.

    Parameters
    ----------
    dataset : ImageFolder or TextureTask
        The data set.

    Returns
    -------
    str
        Two sentences. The kinds of defects are counted, the most frequent first.
    """
    n_train, labels = len(dataset.train_images), list(dataset.test_labels)
    n_good, n_defective = labels.count(1), labels.count(-1)
    kinds = Counter(str(kind) for kind, label in zip(dataset.test_defects, labels, strict=True) if label == -1)
    named = ", ".join(f"{n} {shown_name(kind)}" for kind, n in kinds.most_common(_N_KINDS))
    named += ", ..." if len(kinds) > _N_KINDS else ""
    split = getattr(dataset, "split", None)
    drawn = "" if split is None else f", drawn at random from {n_train + n_good} (seed {split['random_state']})"
    return (
        f"Fitted on {counted(n_train, 'good image')}{drawn}. Tested on {counted(n_good, 'other good image')} and "
        f"{counted(n_defective, 'defective image')} ({named})."
    )


def describe_result(result: CategoryResult) -> str:
    """Return how many defective and good images are flagged, and how well the scores separate them.

    Parameters
    ----------
    result : CategoryResult
        The result of one category.

    Returns
    -------
    str
        One sentence without its period. Without a threshold, it contains the AUROC only.
    """
    auroc = f"AUROC {result.row['image_auroc']:.3f}"
    if math.isnan(result.offset):
        return f"no threshold, because there was no calibration; {auroc}"
    flagged, is_good = result.scores < result.offset, result.labels == 1
    n_good, n_defective = int(is_good.sum()), int((~is_good).sum())
    return (
        f"finds {int(flagged[~is_good].sum())} of {counted(n_defective, 'defective image')} and flags "
        f"{int(flagged[is_good].sum())} of {counted(n_good, 'good image')}; {auroc}"
    )


def advice(auroc: float, defects_found: float, good_flagged: float) -> str:
    """Return what can improve a result, and why.

    Parameters
    ----------
    auroc : float
        Area under the ROC curve of the image scores.
    defects_found, good_flagged : float
        Fractions of the defective and of the good images that are flagged. NaN without a threshold.

    Returns
    -------
    str
        Sentences, or an empty text if most defects are found and few good images are flagged.
    """
    if auroc < _SEPARABLE:
        return (
            "The scores do not separate good from defective images well, and no threshold can. More good images, "
            "larger images or another network may help."
        )
    if good_flagged > _FLAGGED:
        return (
            "Many good images are flagged: they look unlike the images of the fit. More good images, taken on several "
            "days, may help."
        )
    if defects_found < _FOUND:
        return (
            "The scores separate the images better than the threshold does, because the threshold is cautious. More "
            "defects are found if more false alarms are accepted, e.g. with contamination=0.1. With n calibration "
            "images, only values of at least 2 / (n + 1) lower the threshold."
        )
    return ""
