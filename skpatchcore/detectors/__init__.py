"""The public detectors: PatchCore, PaDiM, SPADE, detectors that combine others, and their base classes."""

from skpatchcore.detectors._image_detector import ImageDetector
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.detectors._results import ImageResult
from skpatchcore.detectors.ensemble import PatchCoreEnsemble
from skpatchcore.detectors.lights import MultiLightDetector
from skpatchcore.detectors.padim import PaDiMDetector
from skpatchcore.detectors.patchcore import PatchCoreDetector
from skpatchcore.detectors.spade import SPADEDetector

__all__ = [
    "ImageDetector",
    "ImageResult",
    "MultiLightDetector",
    "PaDiMDetector",
    "PatchCoreDetector",
    "PatchCoreEnsemble",
    "PatchDetector",
    "SPADEDetector",
]
