"""Turned views of training images together with a transformer of patch features."""

from __future__ import annotations

import numpy as np
import pytest

from skpatchcore import PatchCoreDetector, PatchWhitening
from tests import factories


@pytest.mark.parametrize("calibration", [3, 0.3, "leave-one-out"])
@pytest.mark.filterwarnings("ignore:leave-one-out", "ignore:contamination")
def test_transformer_is_fitted_on_the_views_and_the_calibration_scores_originals(calibration):
    images = np.random.default_rng(0).random((9, 48, 48, 3)).astype(np.float32)
    detector = PatchCoreDetector(
        factories.extractor(image_size=None, layers=["layer1"]),
        transformer=PatchWhitening(n_components=8),
        augment="rotations",
        calibration=calibration,
        random_state=0,
    ).fit(images)
    n_learnt = 9 - len(detector.calibration_scores_) if calibration == 0.3 else 9
    assert len(detector.calibration_scores_) == (3 if calibration == 0.3 else 9)
    assert detector.transformer_.n_samples_seen_ == n_learnt * 4 * 12 * 12
    assert detector.memory_bank_.shape[1] == 8
    assert detector.bank_image_indices_.max() < 9
    turned = np.rot90(images, axes=(1, 2))
    # A turned training image is as normal as the image itself: its patches were learnt, too.
    np.testing.assert_allclose(detector.score_samples(turned).mean(), detector.score_samples(images).mean(), rtol=0.15)
