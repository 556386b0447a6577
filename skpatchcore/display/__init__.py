"""Figures of anomaly maps, scores, memory banks, drift, detection capability, settings, ranks and timelines.

Names are imported on first use. Therefore an anomaly map can be drawn over an image without importing torch.
"""

from typing import TYPE_CHECKING

from skpatchcore._utils.lazy import attach

if TYPE_CHECKING:
    from skpatchcore.display.anomaly_map import AnomalyMapDisplay
    from skpatchcore.display.capability import DetectionCapabilityDisplay
    from skpatchcore.display.coreset import CoresetDisplay
    from skpatchcore.display.drift import DriftDisplay
    from skpatchcore.display.inspection import InspectionDisplay
    from skpatchcore.display.overlay import outline_mask, overlay_anomaly_map
    from skpatchcore.display.ranks import CriticalDifferenceDisplay
    from skpatchcore.display.score_histogram import ScoreHistogramDisplay
    from skpatchcore.display.settings import SettingsDisplay
    from skpatchcore.display.timeline import ScoreTimelineDisplay

__all__ = [
    "AnomalyMapDisplay",
    "CoresetDisplay",
    "CriticalDifferenceDisplay",
    "DetectionCapabilityDisplay",
    "DriftDisplay",
    "InspectionDisplay",
    "ScoreHistogramDisplay",
    "ScoreTimelineDisplay",
    "SettingsDisplay",
    "outline_mask",
    "overlay_anomaly_map",
]

__getattr__, __dir__ = attach(
    __name__,
    submod_attrs={
        "anomaly_map": ["AnomalyMapDisplay"],
        "capability": ["DetectionCapabilityDisplay"],
        "coreset": ["CoresetDisplay"],
        "drift": ["DriftDisplay"],
        "inspection": ["InspectionDisplay"],
        "overlay": ["outline_mask", "overlay_anomaly_map"],
        "ranks": ["CriticalDifferenceDisplay"],
        "score_histogram": ["ScoreHistogramDisplay"],
        "settings": ["SettingsDisplay"],
        "timeline": ["ScoreTimelineDisplay"],
    },
)
