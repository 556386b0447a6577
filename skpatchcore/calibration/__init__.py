"""Calibration: thresholds and p-values from the scores of good images.

Names are imported on first use. Therefore p-values can be computed without importing torch.
"""

from typing import TYPE_CHECKING

from skpatchcore._utils.lazy import attach

if TYPE_CHECKING:
    from skpatchcore.calibration.conformal import conformal_p_values, conformal_threshold
    from skpatchcore.calibration.plan import plan_calibration

__all__ = ["conformal_p_values", "conformal_threshold", "plan_calibration"]

__getattr__, __dir__ = attach(
    __name__,
    submod_attrs={
        "conformal": ["conformal_p_values", "conformal_threshold"],
        "plan": ["plan_calibration"],
    },
)
