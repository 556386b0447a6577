"""The public detectors: PatchCore, PaDiM, SPADE, detectors that combine others, and their base classes.

Names are imported on first use. Therefore the results of a detector can be read without importing torch.
"""

from typing import TYPE_CHECKING

from skpatchcore._utils.lazy import attach

if TYPE_CHECKING:
    from skpatchcore.detectors._image_detector import ImageDetector
    from skpatchcore.detectors._patch_detector import PatchDetector
    from skpatchcore.detectors._results import ImageResult
    from skpatchcore.detectors.ensemble import PatchCoreEnsemble
    from skpatchcore.detectors.lights import MultiLightDetector
    from skpatchcore.detectors.padim import PaDiMDetector
    from skpatchcore.detectors.patchcore import PatchCoreDetector
    from skpatchcore.detectors.products import MultiProductDetector
    from skpatchcore.detectors.spade import SPADEDetector

__all__ = [
    "ImageDetector",
    "ImageResult",
    "MultiLightDetector",
    "MultiProductDetector",
    "PaDiMDetector",
    "PatchCoreDetector",
    "PatchCoreEnsemble",
    "PatchDetector",
    "SPADEDetector",
]

__getattr__, __dir__ = attach(
    __name__,
    submod_attrs={
        "_image_detector": ["ImageDetector"],
        "_patch_detector": ["PatchDetector"],
        "_results": ["ImageResult"],
        "ensemble": ["PatchCoreEnsemble"],
        "lights": ["MultiLightDetector"],
        "padim": ["PaDiMDetector"],
        "patchcore": ["PatchCoreDetector"],
        "products": ["MultiProductDetector"],
        "spade": ["SPADEDetector"],
    },
)
