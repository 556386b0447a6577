"""Tests of SPADE and PaDiM against direct computations, and of their differences from PatchCore."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist, mahalanobis

from skpatchcore import PaDiMDetector, PatchCoreDetector, PatchCoreEnsemble, SPADEDetector, TorchFeatureExtractor

BASELINES = [SPADEDetector, PaDiMDetector]


@pytest.fixture(scope="module")
def grids():
    """Patch features (n, 3, 4, 6) of 20 good training images, 4 good and 2 anomalous test images."""
    rng = np.random.default_rng(0)
    center = rng.normal(size=(3, 4, 6))
    found = center + 0.3 * rng.normal(size=(26, 3, 4, 6))
    found[24:, 1, 2] += 3
    return found[:20].astype(np.float32), found[20:24].astype(np.float32), found[24:].astype(np.float32)


def test_spade_equals_direct_computation(grids):
    train, good, bad = grids
    X = np.concatenate([good, bad])
    detector = SPADEDetector("precomputed", n_neighbors=3, smoothing=0).fit(train)
    scores, maps = detector.score_and_segment(X)
    for x, score, anomaly_map in zip(X, scores, maps, strict=True):
        to_images = cdist([x.mean(axis=(0, 1))], train.mean(axis=(1, 2)))[0]
        nearest = np.argsort(to_images)[:3]
        assert score == pytest.approx(-to_images[nearest].mean(), rel=1e-5)
        expected = cdist(x.reshape(-1, 6), train[nearest].reshape(-1, 6)).min(axis=1)
        np.testing.assert_allclose(anomaly_map.ravel(), expected, rtol=1e-5, atol=1e-5)


def test_padim_equals_direct_computation(grids):
    train, good, bad = grids
    X = np.concatenate([good, bad])
    detector = PaDiMDetector("precomputed", n_channels=4, random_state=0).fit(train)
    channels = detector.model_.channels
    assert len(set(channels)) == 4
    scores, maps = detector.score_and_segment(X)
    for x, score, anomaly_map in zip(X, scores, maps, strict=True):
        expected = np.empty((3, 4))
        for i in range(3):
            for j in range(4):
                here = train[:, i, j][:, channels].astype(np.float64)
                inverse = np.linalg.inv(np.cov(here.T) + 0.01 * np.eye(4))
                expected[i, j] = mahalanobis(x[i, j, channels], here.mean(axis=0), inverse)
        np.testing.assert_allclose(anomaly_map, expected, rtol=1e-4)
        assert score == pytest.approx(-expected.max(), rel=1e-4)
    other = PaDiMDetector("precomputed", n_channels=4, random_state=3).fit(train)
    assert (other.model_.channels != channels).any()


@pytest.mark.parametrize("baseline", BASELINES)
def test_calibration_scores_equal_scores_of_a_fit_without_the_image(grids, baseline):
    train = grids[0]
    left_out = baseline("precomputed", random_state=0).fit(train)
    without = baseline("precomputed", random_state=0).fit(train[1:])
    np.testing.assert_allclose(left_out.calibration_scores_[0], without.score_samples(train[:1])[0], rtol=1e-5)
    np.testing.assert_allclose(left_out.calibration_peaks_[0], without.segment(train[:1]).max(), rtol=1e-5)
    assert left_out.offset_ == left_out.calibration_scores_.min()

    groups = np.repeat(np.arange(5), 4)
    grouped = baseline("precomputed", random_state=0).fit(train, groups=groups)
    without = baseline("precomputed", random_state=0).fit(train[4:])
    np.testing.assert_allclose(grouped.calibration_scores_[:4], without.score_samples(train[:4]), rtol=1e-5)

    held = baseline("precomputed", calibration=0.3, random_state=0).fit(train)
    others = np.setdiff1d(np.arange(20), held.calibration_image_indices_)
    assert len(others) == 14
    only = baseline("precomputed", calibration=None, random_state=0).fit(train[others])
    X = np.concatenate(grids[1:])
    np.testing.assert_allclose(held.score_samples(train[held.calibration_image_indices_]), held.calibration_scores_)
    if baseline is SPADEDetector:  # PaDiM selects other channels, because `held` draws the held-out images first
        np.testing.assert_allclose(held.score_samples(X), only.score_samples(X))

    folds = baseline("precomputed", calibration=4, random_state=0).fit(train)
    assert folds.calibration_image_indices_.tolist() == list(range(20))
    assert folds.calibration_scores_.mean() <= left_out.calibration_scores_.mean() + 0.1


@pytest.mark.parametrize("baseline", BASELINES)
def test_fit_without_calibration_images_has_no_threshold(grids, baseline):
    with pytest.raises(ValueError, match="share one group"):
        baseline("precomputed").fit(grids[0], groups=np.zeros(20))
    with pytest.warns(UserWarning, match="could not be scored without their own patches"):
        detector = baseline("precomputed").fit(grids[0][:1])
    assert np.isnan(detector.calibration_scores_).tolist() == [True]
    with pytest.raises(ValueError, match="has no threshold"):
        detector.predict(grids[0])
    with pytest.raises(ValueError, match="fit_predict has no scores for them"):
        baseline("precomputed", calibration=None).fit_predict(grids[0])


@pytest.mark.parametrize("baseline", BASELINES)
def test_fit_excludes_anomalous_images(grids, baseline):
    train, good, bad = grids
    X, y = np.concatenate([train, bad]), np.array([1] * 20 + [-1] * 2)
    mixed, pure = baseline("precomputed", random_state=0).fit(X, y), baseline("precomputed", random_state=0).fit(train)
    np.testing.assert_array_equal(mixed.score_samples(good), pure.score_samples(good))
    assert baseline("precomputed", random_state=0).fit_predict(X, y)[:20].mean() > 0.5


def test_padim_refuses_grids_of_different_sizes(parts):
    train, good, _ = parts
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None)
    mixed = [*train[:5], train[5].transpose(1, 0, 2)]
    with pytest.raises(
        ValueError, match=r"image 5 has a grid of \[8, 6\] patches, other images have \[6, 8\]: PaDiM fits"
    ):
        PaDiMDetector(extractor).fit(mixed)
    fitted = PaDiMDetector(extractor, random_state=0).fit(train)
    with pytest.raises(ValueError, match="image 1 has a grid"):
        fitted.predict([good[0], good[1].transpose(1, 0, 2)])
    maps = SPADEDetector(extractor).fit(mixed).segment(mixed)
    assert [m.shape for m in maps] == [(48, 64)] * 5 + [(64, 48)]
    # Images of different sizes are accepted if image_size gives the network's input one size.
    fixed = TorchFeatureExtractor("resnet18", weights=None, image_size=(48, 64), crop_size=None)
    assert len(PaDiMDetector(fixed).fit(mixed).segment(mixed)) == 6


@pytest.mark.parametrize("baseline", BASELINES)
def test_score_samples_refuses_features_with_other_channels(grids, baseline):
    detector = baseline("precomputed").fit(grids[0])
    with pytest.raises(ValueError, match="have 5 channels, but the training features have 6"):
        detector.score_samples(grids[1][..., :5])


def test_all_detectors_find_the_defect_alone_and_in_an_ensemble(parts):
    train, good, bad = parts
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None)
    members = [("patchcore", PatchCoreDetector(extractor)), *((b.__name__, b(extractor)) for b in BASELINES)]
    for _, member in members:
        member.set_params(random_state=0).fit(train)
        assert member.predict(bad).tolist() == [-1]
        assert member.segment(bad)[0][16:28, 20:34].mean() > member.segment(bad)[0][:8].mean()
    ensemble = PatchCoreEnsemble(members).fit(train)
    assert ensemble.predict(np.concatenate([good, bad])).tolist()[-1] == -1


def test_spade_image_score_does_not_depend_on_the_other_images(grids):
    train, good, bad = grids
    detector = SPADEDetector("precomputed", n_neighbors=1).fit(train + 100)
    np.testing.assert_array_equal(detector.score_samples(train + 100), 0)
    new = np.concatenate([good, bad]) + 101
    alone = np.concatenate([detector.score_samples(new[i : i + 1]) for i in range(len(new))])
    np.testing.assert_array_equal(detector.score_samples(new), alone)
