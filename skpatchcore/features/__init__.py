"""Feature extraction: images to grids of patch features (Equations 1 to 4 of the paper)."""

from skpatchcore.features._weights import WeightsError
from skpatchcore.features.extractor import TorchFeatureExtractor

__all__ = ["TorchFeatureExtractor", "WeightsError"]
