"""Evaluation of detectors on whole data sets: metrics, studies and stored results."""

from skpatchcore.evaluation.capability import capability_of_defects, detection_capability
from skpatchcore.evaluation.capability_result import DetectionCapability
from skpatchcore.evaluation.category import CategoryResult, evaluate, evaluate_category, with_mean
from skpatchcore.evaluation.comparison import DetectorComparison, compare_detectors
from skpatchcore.evaluation.intervals import metric_intervals
from skpatchcore.evaluation.pod import PodCurve, fit_pod
from skpatchcore.evaluation.presets import make_detector
from skpatchcore.evaluation.runs import Evaluation, FinishedRun, means_of, run_evaluation
from skpatchcore.evaluation.settings import select_settings
from skpatchcore.evaluation.settings_grid import default_grid
from skpatchcore.evaluation.settings_result import SelectedSettings
from skpatchcore.evaluation.studies import ablation, low_shot_curve, named_grid

__all__ = [
    "CategoryResult",
    "DetectionCapability",
    "DetectorComparison",
    "Evaluation",
    "FinishedRun",
    "PodCurve",
    "SelectedSettings",
    "ablation",
    "capability_of_defects",
    "compare_detectors",
    "default_grid",
    "detection_capability",
    "evaluate",
    "evaluate_category",
    "fit_pod",
    "low_shot_curve",
    "make_detector",
    "means_of",
    "metric_intervals",
    "named_grid",
    "run_evaluation",
    "select_settings",
    "with_mean",
]
