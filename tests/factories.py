"""Factories of the small estimators that most tests use, with a seed and without pretrained weights."""

from __future__ import annotations

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor


def extractor(backbone="resnet18", **parameters):
    """Return an extractor without pretrained weights that does not resize or crop images."""
    return TorchFeatureExtractor(backbone, **{"weights": None, "image_size": None, "crop_size": None, **parameters})


def detector(backbone="resnet18", **parameters):
    """Return a seeded PatchCoreDetector with the extractor of :func:`extractor`."""
    return PatchCoreDetector(**{"extractor": extractor(backbone), "random_state": 0, **parameters})
