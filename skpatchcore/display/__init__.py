"""Figures of anomaly maps over images, of scores, of evidence of drift, and of the bank among the patch features."""

from skpatchcore.display.anomaly_map import AnomalyMapDisplay
from skpatchcore.display.coreset import CoresetDisplay
from skpatchcore.display.drift import DriftDisplay
from skpatchcore.display.overlay import outline_mask, overlay_anomaly_map
from skpatchcore.display.score_histogram import ScoreHistogramDisplay

__all__ = [
    "AnomalyMapDisplay",
    "CoresetDisplay",
    "DriftDisplay",
    "ScoreHistogramDisplay",
    "outline_mask",
    "overlay_anomaly_map",
]
