"""The public detectors: PatchCore, PaDiM, SPADE, an ensemble of detectors, and their base classes."""

from skpatchcore.detectors._image_detector import ImageDetector
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.detectors._results import ImageResult
from skpatchcore.detectors.ensemble import PatchCoreEnsemble
from skpatchcore.detectors.padim import PaDiMDetector
from skpatchcore.detectors.patchcore import PatchCoreDetector
from skpatchcore.detectors.spade import SPADEDetector

__all__ = [
    "ImageDetector",
    "ImageResult",
    "PaDiMDetector",
    "PatchCoreDetector",
    "PatchCoreEnsemble",
    "PatchDetector",
    "SPADEDetector",
]
