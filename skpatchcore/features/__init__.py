"""Pixels to grids of patch features (Eq. 1-4)."""

from skpatchcore.features._backbones import WeightsError
from skpatchcore.features.extractor import TorchFeatureExtractor

__all__ = ["TorchFeatureExtractor", "WeightsError"]
