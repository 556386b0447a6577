"""The public detectors: PatchCore, six baselines, detectors that combine others, and their base classes.

Names are imported on first use. Therefore the results of a detector can be read without importing torch.
"""

from typing import TYPE_CHECKING

from skpatchcore._utils.lazy import attach

if TYPE_CHECKING:
    from skpatchcore.detectors._image_detector import ImageDetector
    from skpatchcore.detectors._patch_detector import PatchDetector
    from skpatchcore.detectors._results import ImageResult
    from skpatchcore.detectors.autoencoder import AutoencoderDetector
    from skpatchcore.detectors.dn2 import DN2Detector
    from skpatchcore.detectors.ensemble import PatchCoreEnsemble
    from skpatchcore.detectors.gan import GANDetector
    from skpatchcore.detectors.lights import MultiLightDetector
    from skpatchcore.detectors.mahalanobis import MahalanobisDetector
    from skpatchcore.detectors.padim import PaDiMDetector
    from skpatchcore.detectors.patchcore import PatchCoreDetector
    from skpatchcore.detectors.products import MultiProductDetector
    from skpatchcore.detectors.spade import SPADEDetector

__all__ = [
    "AutoencoderDetector",
    "DN2Detector",
    "GANDetector",
    "ImageDetector",
    "ImageResult",
    "MahalanobisDetector",
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
        "autoencoder": ["AutoencoderDetector"],
        "dn2": ["DN2Detector"],
        "ensemble": ["PatchCoreEnsemble"],
        "gan": ["GANDetector"],
        "lights": ["MultiLightDetector"],
        "mahalanobis": ["MahalanobisDetector"],
        "padim": ["PaDiMDetector"],
        "patchcore": ["PatchCoreDetector"],
        "products": ["MultiProductDetector"],
        "spade": ["SPADEDetector"],
    },
)
