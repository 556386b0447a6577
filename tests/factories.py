"""Estimators that most tests need: small, without pretrained weights, seeded."""

from __future__ import annotations

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor


def extractor(backbone="resnet18", **parameters):
    """Return an extractor that sees images as they are."""
    return TorchFeatureExtractor(backbone, **{"weights": None, "image_size": None, "crop_size": None, **parameters})


def detector(backbone="resnet18", **parameters):
    """Return a seeded PatchCoreDetector with such an extractor."""
    return PatchCoreDetector(**{"extractor": extractor(backbone), "random_state": 0, **parameters})
