"""Compare results with arrays that both reference implementations computed, through public names only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.neighbors import NearestNeighbors
from torch import nn

from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor


class Recorded(nn.Module):
    """A layer that returns recorded arrays: index 0 for dark images and index 1 for bright images."""

    def __init__(self, maps):
        super().__init__()
        self.register_buffer("maps", torch.from_numpy(maps))

    def forward(self, is_bright):
        return self.maps[is_bright]


class Network(nn.Module):
    """A network with two recorded layers."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = Recorded(first), Recorded(second)

    def forward(self, x):
        is_bright = (x.mean((1, 2, 3)) > 0).long()
        return self.first(is_bright), self.second(is_bright)


class Replay(TransformerMixin, BaseEstimator):
    """An extractor that returns recorded grids: each image's first pixel value is the index of its grid."""

    def __init__(self, grids=None):
        self.grids = grids

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return np.stack([self.grids[int(image[0, 0, 0])] for image in X])


@pytest.mark.parametrize(("case", "n_channels"), [("small", None), ("odd", None), ("wide", None), ("wide", 1024)])
def test_features_equal_the_references(golden, case, n_channels):
    arrays = golden("aggregation")
    maps = [arrays[f"{case}_map{i}"] for i in (0, 1)]
    expected = arrays[f"{case}_concat_p3" if n_channels is None else f"{case}_reference_p3_s1_10241024"]
    height, width = maps[0].shape[2:]
    extractor = TorchFeatureExtractor(
        lambda: Network(*maps), layers=("first", "second"), n_channels=n_channels, image_size=None, crop_size=None
    )
    images = np.zeros((len(expected), 8 * height, 8 * width, 3), np.float32)
    images[1:] = 1
    np.testing.assert_allclose(extractor.fit_transform(images), expected, atol=1e-5)


@pytest.mark.parametrize("index", ["exact", NearestNeighbors()], ids=["exact", "scikit-learn's"])
@pytest.mark.parametrize("b", [1, 3, 9])
def test_scores_equal_the_references(golden, b, index):
    arrays = golden("scoring")
    detector = PatchCoreDetector(
        "precomputed", sampler=GreedyCoresetSampler(1.0), index=index, n_neighbors=b, calibration=None, random_state=0
    ).fit(arrays["bank"][:, None, None])
    X = arrays["queries"].reshape(3, 4, 4, 12)
    np.testing.assert_allclose(-detector.score_samples(X), arrays[f"eq7_b{b}"], atol=1e-5)
    np.testing.assert_allclose(detector.segment(X).reshape(3, 16), arrays["patch_distance"], atol=1e-5)


def test_anomaly_maps_equal_the_reference(golden):
    arrays = golden("scoring")
    # The bank holds zeros and each feature has one channel, so distances equal the reference's patch scores.
    grids = np.concatenate([arrays["patch_grid"], np.zeros((1, 8, 6), np.float32)])[..., None]
    assert (grids >= 0).all()
    images = np.zeros((3, 64, 48, 3), np.float64)
    images += np.arange(3)[:, None, None, None]
    detector = PatchCoreDetector(Replay(grids), calibration=None, random_state=0).fit(images[2:])
    np.testing.assert_allclose(detector.segment(images[:2]), arrays["reference_map_64x48"], atol=1e-5)
