"""Calibration: thresholds and p-values from the scores of good images."""

from skpatchcore.calibration.conformal import conformal_p_values, conformal_threshold
from skpatchcore.calibration.plan import plan_calibration

__all__ = ["conformal_p_values", "conformal_threshold", "plan_calibration"]
