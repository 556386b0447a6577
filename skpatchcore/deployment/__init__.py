"""Files of fitted detectors: :func:`save` and :func:`load`, and :func:`export` to ONNX.

Names are imported on first use. Therefore importing this package imports neither torch nor scikit-learn.
"""

from typing import TYPE_CHECKING

from skpatchcore._utils.lazy import attach

if TYPE_CHECKING:
    from skpatchcore.deployment.decisions import DecisionComparison
    from skpatchcore.deployment.errors import ExportError, ModelFileError
    from skpatchcore.deployment.exporter import ExportReport, export
    from skpatchcore.deployment.files import TRUSTED_TYPES, load, save
    from skpatchcore.deployment.golden import StageDifference
    from skpatchcore.deployment.onnx_detector import OnnxDetector
    from skpatchcore.deployment.verification import Check, Verification, verify

__all__ = [
    "TRUSTED_TYPES",
    "Check",
    "DecisionComparison",
    "ExportError",
    "ExportReport",
    "ModelFileError",
    "OnnxDetector",
    "StageDifference",
    "Verification",
    "export",
    "load",
    "save",
    "verify",
]

__getattr__, __dir__ = attach(
    __name__,
    submod_attrs={
        "decisions": ["DecisionComparison"],
        "errors": ["ExportError", "ModelFileError"],
        "exporter": ["ExportReport", "export"],
        "files": ["TRUSTED_TYPES", "load", "save"],
        "golden": ["StageDifference"],
        "onnx_detector": ["OnnxDetector"],
        "verification": ["Check", "Verification", "verify"],
    },
)
