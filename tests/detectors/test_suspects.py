"""The parameter `suspect_share`: patches of training images that are not learnt."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import IncrementalPCA
from sklearn.kernel_approximation import Nystroem

from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, load, save
from skpatchcore.bank.budget import MemoryEstimate
from tests import factories

RNG = np.random.default_rng(0)
GOOD = [np.clip(0.5 + RNG.normal(0, 0.03, (48, 64, 3)), 0, 1).astype(np.float32) for _ in range(20)]
# Cells of 8 pixels: 48 cells an image, and a spot of 2 x 2 of them.
SHARE = 4 / (48 * 20)


def spotted(image, value=0.1):
    image = image.copy()
    image[16:32, 24:40] = value
    return image


IMAGES = [spotted(image) if i == 4 else image for i, image in enumerate(GOOD)]
NEW = [spotted(image) for image in GOOD[:1]]


def detector(**parameters):
    given = {"extractor": factories.CellMeans(), "sampler": GreedyCoresetSampler(0.3), "random_state": 0}
    return PatchCoreDetector(**{**given, "suspect_share": SHARE, **parameters})


def holds_spot(fitted):
    return bool((fitted.memory_bank_[:, :3].max(axis=1) < 0.2).any())


@pytest.mark.parametrize("calibration", [None, "leave-one-out", "auto", 4, 0.2])
@pytest.mark.parametrize("way", ["at once", "two passes"])
def test_bank_has_no_suspicious_patches(monkeypatch, calibration, way):
    monkeypatch.setattr(MemoryEstimate, "way", lambda *args: way)
    unclean = detector(suspect_share=None, calibration=calibration).fit(IMAGES)
    clean = detector(calibration=calibration, suspect_share=0.006).fit(IMAGES)
    if 4 in unclean.bank_image_indices_:
        assert holds_spot(unclean)
    assert not holds_spot(clean)
    assert (clean.score_samples(NEW) < -0.2).all()


@pytest.mark.parametrize("parameters", [{}, {"transformer": IncrementalPCA(3)}, {"roi": (0.0, 0.0, 1.0, 0.8)}])
def test_fit_from_a_stream_equals_fit_in_memory(monkeypatch, parameters):
    fitted = {}
    for way in ("at once", "two passes"):
        monkeypatch.setattr(MemoryEstimate, "way", lambda *args, way=way: way)
        fitted[way] = detector(**parameters, suspect_share=0.02).fit(IMAGES)
        assert "transformer" in parameters or not holds_spot(fitted[way])
    held, streamed = fitted.values()
    np.testing.assert_array_equal(held.memory_bank_, streamed.memory_bank_)
    np.testing.assert_array_equal(held.bank_image_indices_, streamed.bank_image_indices_)
    np.testing.assert_array_equal(held.bank_positions_, streamed.bank_positions_)
    np.testing.assert_array_equal(held.calibration_scores_, streamed.calibration_scores_)


def test_calibration_scores_whole_images():
    fitted = detector(calibration=4).fit(IMAGES)
    assert fitted.suspect_image_indices_.tolist() == [4]  # its score would be as good as any without the spot
    assert fitted.suspect_scores_[0] < -0.2


def test_turned_views_of_suspicious_patches_are_left_out():
    assert holds_spot(detector(augment="rotations", suspect_share=None, calibration=None).fit(IMAGES))
    fitted = detector(augment="rotations", calibration=None, sampler=GreedyCoresetSampler(1.0)).fit(IMAGES)
    assert len(fitted.memory_bank_) == 4 * (48 * 20 - 4)
    assert not holds_spot(fitted)


def test_images_of_a_group_do_not_vouch_for_each_other():
    images = [spotted(image) if i < 11 else image for i, image in enumerate(GOOD)]
    parameters = {"suspect_share": 11 * SHARE, "calibration": None}
    groups = ["one piece"] * 11 + [str(i) for i in range(9)]
    assert not holds_spot(detector(**parameters).fit(images, groups=groups))
    assert holds_spot(detector(**parameters).fit(images))


def test_table_with_one_patch_per_image_leaves_out_whole_images():
    X = np.random.default_rng(0).normal(size=(60, 5))
    X[7] += 20
    fitted = PatchCoreDetector(
        "precomputed", sampler=GreedyCoresetSampler(1.0), suspect_share=1 / 60, random_state=0
    ).fit(X)
    assert sorted(fitted.bank_image_indices_) == [i for i in range(60) if i != 7]
    assert fitted.predict(X[7:8] + 0.1) == [-1]


def test_sampler_that_needs_all_rows_gets_no_suspicious_rows():
    fitted = detector(sampler=Nystroem(n_components=300, random_state=0), calibration=None).fit(IMAGES)
    assert not holds_spot(fitted)


def test_fit_repeats_with_random_state_and_without_share_equals_the_default():
    first, second = (detector().fit(IMAGES) for _ in range(2))
    np.testing.assert_array_equal(first.memory_bank_, second.memory_bank_)
    assert PatchCoreDetector().suspect_share is None
    assert clone(first).suspect_share == SHARE


def test_fitted_detector_survives_saving(tmp_path):
    fitted = detector().fit(IMAGES, groups=np.repeat(np.arange(10), 2))
    with pytest.warns(UserWarning, match="CellMeans"):
        save(fitted, tmp_path / "model.skops")
    loaded = load(tmp_path / "model.skops", trusted=["tests.factories.CellMeans"])
    assert loaded.suspect_share == SHARE
    assert loaded.training_groups_ == [i // 2 for i in range(20)]
    np.testing.assert_array_equal(loaded.score_samples(NEW), fitted.score_samples(NEW))


@pytest.mark.parametrize("share", [0.0, 0.5, -0.1, 1, "much"])
def test_fit_refuses_invalid_share(share):
    with pytest.raises(ValueError, match="suspect_share"):
        detector(suspect_share=share).fit(IMAGES)


def test_fit_refuses_a_single_image():
    with pytest.raises(ValueError, match="suspect_share compares patches with patches of other images"):
        detector(calibration=None).fit(IMAGES[:1])


def test_estimate_memory_counts_the_copy():
    image, n = IMAGES[0], 100
    more, less = (detector(suspect_share=share).estimate_memory(n, image).features for share in (0.05, None))
    assert more - less == n * 48 * 6 * 4
