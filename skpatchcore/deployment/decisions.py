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
        Number of images with another label whose score is so near to the threshold that rounding changes the label:
        nearer than 1e-5 of the threshold.
    largest_difference : float
        Largest difference of a score, divided by the threshold.
    auroc_original, auroc : float
        Area under the ROC curve of the scores of the detector and of the file. NaN without labels of both kinds.
    """

    n_images: int
    n_flipped: int
    n_near: int
    largest_difference: float
    auroc_original: float = math.nan
    auroc: float = math.nan

    def __str__(self) -> str:
        text = (
            f"{self.n_flipped} of {self.n_images} decisions flipped, and {self.n_near} within 1e-5 of the threshold. "
            f"Largest difference of a score: {self.largest_difference:.1e} of the threshold."
        )
        if not math.isnan(self.auroc):
            change = self.auroc - self.auroc_original
            text += f" AUROC: {self.auroc:.4f}, the detector has {self.auroc_original:.4f} ({change:+.4f})."
        return text


def compared_decisions(original: np.ndarray, exported: np.ndarray, offset: float, y: Any = None) -> DecisionComparison:
    """Compare the decisions of an exported file with those of the detector.

    Parameters
    ----------
    original, exported : arrays of shape (n_images,)
        Values of the decision function, negative = anomalous.
    offset : float
        Threshold of the scores.
    y : array of shape (n_images,) or None, default=None
        +1 for good images, -1 for defective images. Other values are left out of the AUROC. None computes no AUROC.

    Returns
    -------
    DecisionComparison

    Raises
    ------
    ValueError
        If the number of labels is not the number of images.
    """
    if y is not None and len(y) != len(original):
        raise ValueError(f"there are {len(y)} labels for {len(original)} images: pass one label per image.")
    unit = abs(offset) or 1.0
    differs = (original >= 0) != (exported >= 0)  # NaN >= 0 is False: anomalous
    is_near = np.abs(original) <= MARGIN * unit
    difference = float(np.max(np.abs(original - exported), initial=0.0)) / unit
    areas = (math.nan, math.nan) if y is None else (_auroc(original, y), _auroc(exported, y))
    return DecisionComparison(
        len(original),
        int(np.count_nonzero(differs & ~is_near)),
        int(np.count_nonzero(differs & is_near)),
        difference,
        *areas,
    )


def _auroc(decisions: np.ndarray, y: Any) -> float:
    """Return the area under the ROC curve; NaN if a kind of images is missing or a decision is NaN."""
    from sklearn.metrics import roc_auc_score

    labels = np.asarray(y)
    is_labelled = np.isin(labels, (-1, 1))
    if len(np.unique(labels[is_labelled])) < 2 or np.isnan(decisions).any():
        return math.nan
    return float(roc_auc_score(labels[is_labelled] == -1, -decisions[is_labelled]))
