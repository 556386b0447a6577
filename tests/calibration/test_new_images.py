"""Tests of HeldOutScores: new images are scored before a model is extended by them."""

from __future__ import annotations

import numpy as np
import pytest

from skpatchcore.calibration.new_images import HeldOutScores
from skpatchcore.calibration.sketches import sketch_of_scores
from skpatchcore.patches.patches import Patches


class Nearest:
    """Model of one patch per image: the distance to the nearest image that is not left out."""

    def __init__(self, values, left_out=()):
        self.values, self.left_out = values, tuple(left_out)

    def score(self, patches, with_patch_scores=True):
        known = np.delete(self.values, self.left_out)
        scores = np.array([np.abs(known - row[0]).min() for row in patches.rows])
        return scores, [np.full((1, 1), score) for score in scores]

    def without(self, images):
        return None if len(images) == len(self.values) else Nearest(self.values, images)


def sketch_of(scores, view, mask):
    return sketch_of_scores(scores, view, mask, 4.0)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_images_are_scored_without_the_earlier_images_of_their_group(batch):
    values = np.array([0.0, 1.0, 2.0])
    new = Patches.from_features(np.array([[0.0], [0.0], [5.0], [1.0], [9.0]]))  # the last one is a turned view
    numbers = np.array([3, 4, 6, 7])
    kin = {4: np.array([0]), 6: np.array([0, 1, 2]), 7: np.array([1])}
    scores = HeldOutScores(Nearest(values), sketch_of, numbers, kin)
    for first in range(0, 5, batch):
        scores.add(new.between(first, min(first + batch, 5)), first)
    found = scores.found()
    assert found.images.tolist() == numbers.tolist()
    np.testing.assert_array_equal(found.scores, [0, 1, np.nan, 1])
    np.testing.assert_array_equal(found.sketches[:, 0, 0], [0, 1, np.nan, 1])
