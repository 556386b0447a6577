"""Factories of the small estimators that most tests use, with a seed and without pretrained weights."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.images import View, load_image
from skpatchcore.images.containers import as_image_sequence


def extractor(backbone="resnet18", **parameters):
    """Return an extractor without pretrained weights that does not resize or crop images."""
    return TorchFeatureExtractor(backbone, **{"weights": None, "image_size": None, "crop_size": None, **parameters})


def detector(backbone="resnet18", **parameters):
    """Return a seeded PatchCoreDetector with the extractor of :func:`extractor`."""
    return PatchCoreDetector(**{"extractor": extractor(backbone), "random_state": 0, **parameters})


class CellMeans(TransformerMixin, BaseEstimator):
    """Fast extractor: the features of a patch are mean and standard deviation of the colours in its cell of 8 pixels.

    A patch does not depend on pixels outside its cell.
    """

    batch_size = 4

    def fit(self, X=None, y=None):
        """Return the extractor itself."""
        return self

    def transform(self, X):
        """Return one grid per image."""
        return [grid for features, _ in self.iter_transform(X) for grid in features]

    def iter_transform(self, X):
        """Yield the grid and the view of one image after the other."""
        for i, image in enumerate(as_image_sequence(X)):
            pixels = load_image(image, i)
            height, width = (n // 8 for n in pixels.shape[:2])
            cells = pixels[: 8 * height, : 8 * width].reshape(height, 8, width, 8, -1)
            features = np.concatenate([cells.mean(axis=(1, 3)), cells.std(axis=(1, 3))], axis=-1)
            view = View(pixels.shape[:2], (0.0, 0.0, 8.0 * height, 8.0 * width), pixels.shape[:2])
            yield features[None].astype(np.float32), [view]

    def __sklearn_is_fitted__(self):
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags
