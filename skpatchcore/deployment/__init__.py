"""Files of fitted detectors: :func:`save` and :func:`load`, and :func:`export` to ONNX.

Names are imported on first use. Therefore importing this package imports neither torch nor scikit-learn.
"""

from typing import TYPE_CHECKING

import lazy_loader  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from skpatchcore.deployment.errors import ExportError, ModelFileError
    from skpatchcore.deployment.exporter import ExportReport, export
    from skpatchcore.deployment.files import TRUSTED_TYPES, load, save
    from skpatchcore.deployment.onnx_detector import OnnxDetector
    from skpatchcore.deployment.verification import Verification, verify

__all__ = [
    "TRUSTED_TYPES",
    "ExportError",
    "ExportReport",
    "ModelFileError",
    "OnnxDetector",
    "Verification",
    "export",
    "load",
    "save",
    "verify",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["ExportError", "ModelFileError"],
        "exporter": ["ExportReport", "export"],
        "files": ["TRUSTED_TYPES", "load", "save"],
        "onnx_detector": ["OnnxDetector"],
        "verification": ["Verification", "verify"],
    },
)
