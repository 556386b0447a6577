"""Feature extraction: images to grids of patch features (Equations 1 to 4 of the paper)."""

from skpatchcore.features._weights import WeightsError
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.features.scaling import LayerScaling
from skpatchcore.features.whitening import PatchWhitening

__all__ = ["LayerScaling", "PatchWhitening", "TorchFeatureExtractor", "WeightsError"]
