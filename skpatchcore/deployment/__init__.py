"""Files of fitted detectors: :func:`save` and :func:`load`, and :class:`OnnxDetector`, which needs no torch.

Names are imported on first use. Therefore importing this package imports neither torch nor scikit-learn.
"""

from typing import TYPE_CHECKING

import lazy_loader  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from skpatchcore.deployment.errors import ModelFileError
    from skpatchcore.deployment.files import TRUSTED_TYPES, load, save
    from skpatchcore.deployment.onnx_detector import OnnxDetector

__all__ = ["TRUSTED_TYPES", "ModelFileError", "OnnxDetector", "load", "save"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["ModelFileError"],
        "files": ["TRUSTED_TYPES", "load", "save"],
        "onnx_detector": ["OnnxDetector"],
    },
)
