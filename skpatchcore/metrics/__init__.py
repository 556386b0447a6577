"""Metrics of image scores and anomaly maps: AUPRO, AUPIMO, ROC AUC, average precision and maximum F1 score.

All metrics are exact: every distinct score is a threshold. NaN in a map marks a pixel that is not inspected. All
metrics leave out such pixels, and defects without other pixels.
"""

from skpatchcore.metrics._sorted import F1Max
from skpatchcore.metrics.aupimo import aupimo_scores
from skpatchcore.metrics.images import f1_max_score
from skpatchcore.metrics.pixels import (
    aupro_score,
    pixel_average_precision_score,
    pixel_f1_max_score,
    pixel_metrics,
    pixel_roc_auc_score,
    pro_curve,
)

__all__ = [
    "F1Max",
    "aupimo_scores",
    "aupro_score",
    "f1_max_score",
    "pixel_average_precision_score",
    "pixel_f1_max_score",
    "pixel_metrics",
    "pixel_roc_auc_score",
    "pro_curve",
]
