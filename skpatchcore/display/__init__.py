"""Figures of anomaly maps, scores, memory banks, evidence of drift, detection capability and inspected pixels."""

from skpatchcore.display.anomaly_map import AnomalyMapDisplay
from skpatchcore.display.capability import DetectionCapabilityDisplay
from skpatchcore.display.coreset import CoresetDisplay
from skpatchcore.display.drift import DriftDisplay
from skpatchcore.display.inspection import InspectionDisplay
from skpatchcore.display.overlay import outline_mask, overlay_anomaly_map
from skpatchcore.display.score_histogram import ScoreHistogramDisplay

__all__ = [
    "AnomalyMapDisplay",
    "CoresetDisplay",
    "DetectionCapabilityDisplay",
    "DriftDisplay",
    "InspectionDisplay",
    "ScoreHistogramDisplay",
    "outline_mask",
    "overlay_anomaly_map",
]
