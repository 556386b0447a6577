from __future__ import annotations

import numpy as np
import pytest

from skpatchcore.patches.patches import Patches


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((2, 3, 4)), "expected"),
        ([np.zeros((2, 2, 3)), np.zeros((2, 2, 4))], "image 1"),
        ([np.zeros((2, 3))], "image 0"),
        (np.zeros((0, 2, 2, 3)), "no patch features"),
        ([], "no patch features"),
        (np.stack([np.zeros((2, 2, 3)), np.full((2, 2, 3), np.nan)]), "image 1 hold NaN"),
        ([np.zeros((1, 2, 3)), np.zeros((3, 1, 3)), np.full((1, 1, 3), np.inf)], "image 2 hold NaN or infinity"),
    ],
)
def test_from_features_refuses_wrong_shapes_and_non_finite_values(features, message):
    with pytest.raises(ValueError, match=message):
        Patches.from_features(features)


@pytest.mark.parametrize("sizes", [[(2, 3)] * 7, [(2, 3), (4, 4), (1, 1), (9, 2), (2, 3), (5, 5), (7, 7)]])
@pytest.mark.parametrize("expected", [1, 20, 500])
def test_gathered_batches_equal_the_patches_of_all_features(sizes, expected):
    rng = np.random.default_rng(0)
    features = [rng.random((*size, 5)).astype(np.float32) for size in sizes]
    whole = Patches.from_features(features)
    gathered = Patches.gather((Patches.from_features([f]) for f in features), expected)
    np.testing.assert_array_equal(gathered.rows, whole.rows)
    np.testing.assert_array_equal(gathered.sizes, whole.sizes)
    for i, feature in enumerate(features):
        np.testing.assert_array_equal(gathered.subset(np.array([i])).rows, feature.reshape(-1, 5))
        np.testing.assert_array_equal(gathered.between(i, i + 1).rows, feature.reshape(-1, 5))
    some = np.arange(len(whole.rows))
    images, positions = whole.image_of(some), whole.positions_of(some)
    for row, image, (y, x) in zip(whole.rows, images, positions, strict=True):
        np.testing.assert_array_equal(row, features[image][y, x])
