"""DecisionComparison: how many decisions of an exported file differ from those of the detector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from skpatchcore.deployment.golden import MARGIN


@dataclass(frozen=True)
class DecisionComparison:
    """Decisions of an exported file and of the detector for the same images. ``print(comparison)`` shows them.

    Attributes
    ----------
    n_images : int
        Number of images.
    n_flipped : int
        Number of images with another label, without those of `n_near`.
    n_near : int
        Number of images with another label because of rounding only: both scores are finite, and both are within
        `margin` of the threshold, or their difference is at most `margin`.
    largest_difference : float
        Largest difference of a score, divided by the threshold. Infinity if one of both scores is not finite.
    auroc_original, auroc : float
        Area under the ROC curve of the scores of the detector and of the file. NaN without labels of both kinds.
    margin : float
        Largest difference that counts as rounding, as a fraction of the threshold: 1e-5 for the same precision.
    """

    n_images: int
    n_flipped: int
    n_near: int
    largest_difference: float
    auroc_original: float = math.nan
    auroc: float = math.nan
    margin: float = MARGIN

    def __str__(self) -> str:
        margin = np.format_float_scientific(self.margin, trim="-", exp_digits=1)
        text = (
            f"{self.n_flipped} of {self.n_images} decisions flipped, and {self.n_near} within {margin} of the "
            f"threshold. Largest difference of a score: {self.largest_difference:.1e} of the threshold."
        )
        if not math.isnan(self.auroc):
            change = self.auroc - self.auroc_original
            text += f" AUROC: {self.auroc:.4f}, the detector has {self.auroc_original:.4f} ({change:+.4f})."
        return text


def compared_decisions(
    original: np.ndarray,
    exported: np.ndarray,
    offset: float,
    y: Any = None,
    *,
    labels: np.ndarray | None = None,
    margin: float = MARGIN,
) -> DecisionComparison:
    """Compare the decisions of an exported file with those of the detector.

    An image is flipped if both have another label, or if one of both decisions is not finite.

    Parameters
    ----------
    original, exported : arrays of shape (n_images,)
        Values of the decision function, negative = anomalous.
    offset : float
        Threshold of the scores.
    y : array of shape (n_images,) or None, default=None
        +1 for good images, -1 for defective images. 0, NaN and None mark images without a label, which are left out of
        the AUROC. None computes no AUROC.
    labels : array of shape (n_images,) or None, default=None
        Labels of the file: +1 or -1. None computes them from `exported`.
    margin : float, default=1e-5
        Largest difference that counts as rounding, as a fraction of the threshold.

    Returns
    -------
    DecisionComparison

    Raises
    ------
    ValueError
        If `y` has another length, or contains other values.
    """
    unit = abs(offset) or 1.0
    is_finite = np.isfinite(original) & np.isfinite(exported)
    is_missing = np.isfinite(original) != np.isfinite(exported)
    found = np.where(exported >= 0, 1, -1) if labels is None else labels  # NaN >= 0 is False: anomalous
    differs = (np.where(original >= 0, 1, -1) != found) | is_missing
    differences = np.abs(np.where(is_finite, original, 0) - np.where(is_finite, exported, 0)) / unit
    at_threshold = np.maximum(np.abs(original), np.abs(exported)) <= margin * unit
    # A label that contradicts the decision of the file is never rounding, unless the decision is at the threshold.
    is_near = is_finite & (at_threshold | ((differences <= margin) & (found == np.where(exported >= 0, 1, -1))))
    largest = math.inf if is_missing.any() else float(np.max(differences, initial=0.0))
    areas = (math.nan, math.nan)
    if y is not None:
        known = checked_labels(y, len(original), "y")
        areas = _auroc(original, known), _auroc(exported, known)
    return DecisionComparison(
        len(original),
        int(np.count_nonzero(differs & ~is_near)),
        int(np.count_nonzero(differs & is_near)),
        largest,
        *areas,
        margin=margin,
    )


def checked_labels(y: Any, n_images: int, name: str) -> np.ndarray:
    """Return labels as +1 (good), -1 (defective) or 0 (unknown).

    Raises
    ------
    ValueError
        If the number of labels is not `n_images`, or if a label has another value. The message names the convention.
    """
    from skpatchcore._utils.labels import image_labels  # needs pandas and scikit-learn

    if len(y) != n_images:
        raise ValueError(f"{name}: there are {len(y)} labels for {n_images} images. Pass one label per image.")
    try:
        return image_labels(y, n_images)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _auroc(decisions: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve; NaN if a kind of images is missing or a decision is not finite."""
    from sklearn.metrics import roc_auc_score

    is_labelled = labels != 0
    if len(np.unique(labels[is_labelled])) < 2 or not np.isfinite(decisions).all():
        return math.nan
    return float(roc_auc_score(labels[is_labelled] == -1, -decisions[is_labelled]))
