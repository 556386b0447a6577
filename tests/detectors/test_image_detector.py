"""Tests of calibration, thresholds, p-values, masks, regions and nearest patches through the public methods."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import label
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, ShuffleSplit, StratifiedKFold

from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, RandomSampler, conformal_p_values
from skpatchcore.bank.folds import FoldBanks
from skpatchcore.calibration.sketches import fractions_above, largest_areas
from tests.factories import detector, extractor

WAYS = ["auto", "leave-one-out", 0.25, 5, KFold(4), StratifiedKFold(3)]


def on_table(**parameters):
    """Return a detector for tables (one patch per image) that keeps all patches in the bank."""
    return PatchCoreDetector(
        **{"extractor": "precomputed", "sampler": GreedyCoresetSampler(1.0), "random_state": 0, **parameters}
    )


@pytest.fixture(scope="module")
def fitted(parts):
    return detector().fit(parts[0])


@pytest.mark.parametrize("calibration", WAYS, ids=str)
def test_predict_finds_the_defect_with_every_calibration(parts, calibration):
    train, good, bad = parts
    model = detector(calibration=calibration).fit(train)
    assert model.predict(bad).tolist() == [-1]
    assert model.predict(good).mean() > 0
    held = model.calibration_image_indices_
    assert len(model.calibration_scores_) == len(model.calibration_peaks_) == len(held)
    assert len(held) == (3 if calibration == 0.25 else 10)
    assert np.isfinite(model.calibration_scores_).all()
    assert model.offset_ == model.calibration_scores_.min()
    assert model.pixel_offset_ == model.calibration_peaks_.max()


def test_held_out_images_are_not_in_the_bank_and_scored_like_new_images(parts):
    train = parts[0]
    y = np.array([-1, *[1] * 9])
    model = detector(calibration=0.3).fit(train, y)
    held = model.calibration_image_indices_
    assert len(held) == 3
    assert not np.isin(model.bank_image_indices_, [0, *held]).any()
    assert set(model.bank_image_indices_) <= set(range(1, 10)) - set(held)
    np.testing.assert_allclose(model.score_samples(train[held]), model.calibration_scores_, rtol=1e-5)
    peaks = model.segment(train[held]).max(axis=(1, 2))
    np.testing.assert_allclose(peaks, model.calibration_peaks_, rtol=1e-5)
    features = extractor().transform(train)
    for row, image, (y_, x_) in zip(model.memory_bank_, model.bank_image_indices_, model.bank_positions_, strict=True):
        np.testing.assert_allclose(row, features[image, y_, x_], atol=1e-5)


@pytest.mark.parametrize("max_memory", ["auto", None])
def test_folds_are_scored_against_banks_of_the_other_folds(parts, max_memory):
    features = extractor().transform(parts[0])
    model = PatchCoreDetector("precomputed", calibration=KFold(5), max_memory=max_memory, random_state=0).fit(features)
    for learnt, scored in KFold(5).split(features):
        own = PatchCoreDetector("precomputed", calibration=None, sampler=clone(model.sampler_)).fit(features[learnt])
        np.testing.assert_allclose(model.calibration_scores_[scored], own.score_samples(features[scored]), rtol=1e-6)
    whole = PatchCoreDetector("precomputed", calibration=None, random_state=0).fit(features)
    np.testing.assert_array_equal(model.memory_bank_, whole.memory_bank_)


@pytest.mark.parametrize("ratio", [0.1, 25])
def test_automatic_folds_are_scored_against_banks_without_the_fold(parts, ratio):
    """The corrected scores differ from those of refitted detectors by one common factor."""
    features = extractor().transform(parts[0])
    sampler = GreedyCoresetSampler(ratio)
    model = PatchCoreDetector("precomputed", sampler=sampler, random_state=0).fit(features)
    assert model.calibration_plan_ == "10 folds"  # as many as images
    ratios = []
    for i in range(10):
        others = np.delete(np.arange(10), i)
        own = PatchCoreDetector("precomputed", calibration=None, sampler=clone(model.sampler_)).fit(features[others])
        ratios.append(model.calibration_scores_[i] / own.score_samples(features[i : i + 1])[0])
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)
    assert 0.8 < ratios[0] < 1.02
    assert (
        len(PatchCoreDetector("precomputed", sampler=sampler, random_state=0).fit(features[:3]).calibration_scores_)
        == 3
    )


@pytest.mark.parametrize("sampler", [GreedyCoresetSampler(1.0), RandomSampler(0.5)])
def test_automatic_calibration_leaves_one_out_where_this_needs_no_new_selection(parts, sampler):
    features = extractor().transform(parts[0])
    models = [
        PatchCoreDetector("precomputed", sampler=sampler, calibration=calibration, random_state=0).fit(features)
        for calibration in ("auto", "leave-one-out")
    ]
    assert models[0].calibration_plan_ == models[1].calibration_plan_ == "leave-one-out"
    np.testing.assert_array_equal(models[0].calibration_scores_, models[1].calibration_scores_)


def test_automatic_calibration_does_not_change_the_memory_bank(parts):
    features = extractor().transform(parts[0])
    models = [
        PatchCoreDetector("precomputed", calibration=calibration, random_state=0).fit(features)
        for calibration in ("auto", None, "leave-one-out", 0.2)
    ]
    for model in models[1:3]:
        np.testing.assert_array_equal(model.memory_bank_, models[0].memory_bank_)
        np.testing.assert_array_equal(model.bank_image_indices_, models[0].bank_image_indices_)


@pytest.mark.parametrize("capacity", [0, 1000, 4000])
def test_automatic_folds_in_two_passes_equal_folds_in_memory(parts, monkeypatch, capacity):
    """Whatever the number of banks that fit in memory together."""
    held = detector().fit(parts[0])
    monkeypatch.setattr("skpatchcore.bank.budget.MemoryEstimate.way", lambda *args: "two passes")
    monkeypatch.setattr("skpatchcore.bank.collect.FoldBanks", lambda *args: FoldBanks(*args[:-1], capacity=capacity))
    streamed = detector().fit(parts[0])
    assert streamed.calibration_plan_ == held.calibration_plan_ == "10 folds"
    for name in ("memory_bank_", "calibration_scores_", "calibration_sketches_", "offset_", "pixel_offset_"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(held, name))


def test_folds_in_two_passes_equal_folds_in_memory(parts, monkeypatch):
    X = parts[0]
    held = detector(calibration=KFold(2)).fit(X)
    monkeypatch.setattr("skpatchcore.bank.budget.MemoryEstimate.way", lambda *args: "two passes")
    streamed = detector(calibration=KFold(2)).fit(X)
    np.testing.assert_array_equal(streamed.memory_bank_, held.memory_bank_)
    np.testing.assert_array_equal(streamed.bank_boxes_, held.bank_boxes_)
    np.testing.assert_allclose(streamed.calibration_scores_, held.calibration_scores_, rtol=1e-5)
    np.testing.assert_allclose(streamed.calibration_peaks_, held.calibration_peaks_, rtol=1e-5)


@pytest.mark.parametrize("calibration", ["auto", "leave-one-out", 0.3, 4, GroupKFold(4), LeaveOneGroupOut()], ids=str)
def test_calibration_scores_exclude_the_image_and_its_group(calibration):
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(12, 5)) * 10
    X = np.repeat(parts, 3, axis=0) + rng.normal(size=(36, 5)) * 0.01  # three photographs of each part
    groups = np.repeat([f"part {i}" for i in range(12)], 3)
    told = on_table(calibration=calibration).fit(X, groups=groups)
    # The distance between two parts is about 20, and between two photographs of one part about 0.01. A score of less
    # than -1 is therefore the distance to another part.
    assert told.calibration_scores_.max() < -1
    calibrated = groups[told.calibration_image_indices_]
    if calibration == 0.3:
        assert not np.isin(calibrated, groups[np.unique(told.bank_image_indices_)]).any()
        assert len(calibrated) == 12
    else:
        assert len(calibrated) == 36
    if calibration == "leave-one-out":
        alone = on_table().fit(X)
        assert alone.calibration_scores_.min() > -1


def test_fit_refuses_a_single_group_and_too_few_groups(parts):
    for calibration in WAYS:
        with pytest.raises(ValueError, match="share one group"):
            detector(calibration=calibration).fit(parts[0], groups=np.zeros(10))
    detector(calibration=None).fit(parts[0], groups=np.zeros(10))
    with pytest.raises(ValueError, match="share one group"):
        detector().fit(parts[0], [-1, *[1] * 9], groups=["other", *["same"] * 9])
    with pytest.raises(ValueError, match="there are only 3 images or groups for 5 folds"):
        detector(calibration=5).fit(parts[0], groups=np.arange(10) % 3)


def test_fit_refuses_splitters_that_divide_groups(parts):
    with (
        pytest.warns(UserWarning, match="groups parameter is ignored"),
        pytest.raises(ValueError, match=r"sets of a fold share groups\. Use a splitter such as GroupKFold"),
    ):
        detector(calibration=KFold(5)).fit(parts[0], groups=np.arange(10) % 5)


def test_fit_warns_of_too_few_groups_for_the_contamination(parts):
    for calibration in ("leave-one-out", 5):
        with pytest.warns(UserWarning, match=r"come from 5 groups only: about 1/6 = 0.167 may be flagged"):
            detector(calibration=calibration, contamination=0.1).fit(parts[0], groups=np.arange(10) // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector(contamination=0.2).fit(parts[0], groups=np.arange(10) // 2)


def test_fit_ignores_groups_of_anomalous_images(parts):
    groups = np.array([None, *"aabbccdde"], object)
    model = detector().fit(parts[0], [-1, *[1] * 9], groups=groups)
    assert len(model.calibration_scores_) == 9


def test_predict_flags_extreme_features_and_nan_scores():
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    model = on_table().fit(X)
    far = np.full((1, 3), 1e25, np.float32)
    assert model.score_samples(far)[0] < -1e20
    assert model.predict(far).tolist() == [-1]
    assert model.p_values(far)[0] == pytest.approx(1 / 21)
    model.score_samples = lambda X, **options: np.array([np.nan])
    assert model.predict(far).tolist() == [-1]


def test_fit_refuses_splitters_with_overlapping_sets(parts):
    with pytest.raises(ValueError, match="must not overlap"):
        detector(calibration=ShuffleSplit(4, test_size=0.5, random_state=0)).fit(parts[0])

    class Peeking(KFold):
        def split(self, X, y=None, groups=None):
            for train, test in super().split(X, y, groups):
                yield np.append(train, test[0]), test

    with pytest.raises(ValueError, match="training and test sets of a fold share images"):
        detector(calibration=Peeking(2)).fit(parts[0])


def test_fit_predict_refuses_calibrations_of_a_part_of_the_images(parts):
    X = np.concatenate([parts[0], parts[2]])
    assert detector(calibration=5, contamination=0.2).fit_predict(X).tolist()[-1] == -1
    with pytest.raises(ValueError, match="choose 'auto', 'leave-one-out' or a number of folds"):
        detector(calibration=0.2).fit_predict(X)
    with pytest.raises(ValueError, match="a part of the training images"):
        detector(calibration=ShuffleSplit(1, test_size=3, random_state=0)).fit_predict(X)


def test_same_seed_holds_out_the_same_images():
    X = np.random.default_rng(0).normal(size=(40, 3))
    for calibration in (0.2, 4):
        first, again, other = (on_table(calibration=calibration, random_state=s).fit(X) for s in (0, 0, 1))
        np.testing.assert_array_equal(first.calibration_scores_, again.calibration_scores_)
        assert not np.array_equal(first.calibration_scores_, other.calibration_scores_)


@pytest.mark.parametrize(("n_train", "expected"), [(9, 0.1), (49, 0.02), (299, 0.01)])
def test_auto_contamination_promises_one_percent_or_the_smallest_possible_rate(n_train, expected):
    rng = np.random.default_rng(0)
    rates = []
    for seed in range(30):
        model = on_table(random_state=seed).fit(rng.normal(size=(n_train, 4)))
        assert model.promised_rate_ == pytest.approx(expected)
        rates.append((model.predict(rng.normal(size=(300, 4))) == -1).mean())
    assert expected / 2.5 < np.mean(rates) < expected * 1.4


def test_false_positive_rate_of_a_coreset_matches_contamination_better_than_leave_one_out():
    """Rows of an image that are removed without replacement make its score too high."""
    rng = np.random.default_rng(0)
    rates = {"auto": [], "leave-one-out": []}
    for seed in range(8):
        # each image has its own style, which all its patches share
        styles = rng.normal(size=(360, 1, 1, 6))
        X = (styles * 0.6 + rng.normal(size=(360, 5, 5, 6))).astype(np.float32)
        for calibration, found in rates.items():
            sampler = GreedyCoresetSampler(0.05)
            model = PatchCoreDetector(
                "precomputed", sampler=sampler, calibration=calibration, contamination=0.1, random_state=seed
            ).fit(X[:90])
            found.append((model.predict(X[90:]) == -1).mean())
    assert 0.075 < np.mean(rates["auto"]) < 0.125
    assert np.mean(rates["leave-one-out"]) < np.mean(rates["auto"]) - 0.01


@pytest.mark.parametrize("calibration", ["leave-one-out", 0.5, 5])
def test_false_positive_rate_of_new_good_images_matches_contamination(calibration):
    rng = np.random.default_rng(0)
    rates, values = [], []
    for seed in range(30):
        X = rng.normal(size=(79 if calibration != 0.5 else 158, 4))
        model = on_table(calibration=calibration, contamination=0.1, n_neighbors=3, random_state=seed).fit(X)
        fresh = rng.normal(size=(300, 4))
        rates.append((model.predict(fresh) == -1).mean())
        values.append(model.p_values(fresh))
    # With 79 calibration images, the expected rate is exactly 0.1. The standard error of the mean of 30 seeds is 0.006.
    assert np.mean(rates) < 0.12
    if calibration == 0.5:
        assert np.mean(rates) > 0.08
    values = np.concatenate(values)
    for level in (0.05, 0.1, 0.25, 0.5):
        assert (values <= level).mean() < level + 0.025


def test_p_values_agree_with_predict():
    rng = np.random.default_rng(1)
    X, new = rng.normal(size=(60, 3)), rng.normal(size=(200, 3)) * 1.5
    for share in (0.02, 0.1, 0.25):
        model = on_table(contamination=share).fit(X)
        np.testing.assert_array_equal(model.p_values(new) <= share, model.predict(new) == -1)
    values = model.p_values(new)
    np.testing.assert_array_equal(values, conformal_p_values(model.calibration_scores_, model.score_samples(new)))
    assert (np.diff(values[model.score_samples(new).argsort()]) >= 0).all()


def test_adjusted_p_values_bound_the_false_discovery_rate():
    rng = np.random.default_rng(0)
    shares = []
    for seed in range(25):
        model = on_table(calibration=0.5, random_state=seed).fit(rng.normal(size=(400, 2)))
        good, bad = rng.normal(size=(90, 2)), rng.normal(size=(10, 2)) + 30
        picked = model.p_values(np.concatenate([good, bad]), adjust="bh") <= 0.2
        assert picked[90:].all()
        shares.append(picked[:90].sum() / picked.sum())
    assert 0 < np.mean(shares) < 0.25
    raw, bh, by = (model.p_values(good, adjust=adjust) for adjust in (None, "bh", "by"))
    assert (raw <= bh).all()
    assert (bh <= by).all()
    with pytest.raises(ValueError, match="adjust='fdr'"):
        model.p_values(good, adjust="fdr")


def test_recalibrate_changes_only_the_thresholds(parts):
    train, good, bad = parts
    model = detector().fit(train)
    bank = model.memory_bank_.copy()
    darker = np.concatenate([train, good])[:9] * 0.8
    assert (model.predict(darker) == -1).all()
    assert model.recalibrate(darker) is model
    assert model.calibration_plan_ == "other good images"
    assert (model.predict(darker) == 1).all()
    assert model.calibration_image_indices_.tolist() == list(range(9))
    np.testing.assert_array_equal(model.calibration_scores_, model.score_samples(darker))
    np.testing.assert_array_equal(model.calibration_peaks_, model.segment(darker).max(axis=(1, 2)))
    assert model.predict(bad).tolist() == [-1]
    np.testing.assert_array_equal(model.memory_bank_, bank)
    strict = model.offset_
    model.recalibrate(contamination=0.5)
    assert model.offset_ > strict
    assert model.contamination == "auto"
    with pytest.warns(UserWarning, match="cannot be promised with 9 calibration images"):
        model.recalibrate(contamination=0.01)
    for wrong in (0, 0.6, "none"):
        with pytest.raises(ValueError, match="contamination="):
            model.recalibrate(contamination=wrong)


def test_recalibrate_on_training_images_warns_that_their_scores_look_too_normal(parts, tmp_path):
    paths = []
    for i, image in enumerate(parts[0]):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray((image * 255).astype(np.uint8)).save(paths[-1])
    model = detector().fit(paths)
    honest, calibration_scores = model.offset_, model.calibration_scores_
    assert (model.score_samples(paths) > calibration_scores).all()  # bigger = more normal
    with pytest.warns(UserWarning, match=r"10 of 10 images are training images.* look too normal \(too high\)"):
        model.recalibrate(paths)
    assert model.offset_ > honest  # more new good images are below this threshold


def test_recalibrate_sets_a_missing_threshold(parts):
    train, good, bad = parts
    model = detector(calibration=None).fit(train)
    for method in (model.p_values, model.predict_mask, model.regions):
        with pytest.raises(ValueError, match="pass other good images to recalibrate"):
            method(good)
    with pytest.raises(ValueError, match="no threshold"):
        model.recalibrate()
    model.recalibrate(good)
    assert model.predict(np.concatenate([good, bad])).tolist() == [1] * 4 + [-1]
    for method in ("p_values", "predict_mask", "regions", "nearest_patches", "recalibrate"):
        with pytest.raises(NotFittedError):
            getattr(detector(), method)(good)


def test_thresholds_are_monotonic_in_contamination():
    X = np.random.default_rng(0).normal(size=(50, 3))
    model = on_table().fit(X)
    offsets, pixel_offsets = [], []
    for share in (0.02, 0.05, 0.1, 0.3, 0.5):
        model.recalibrate(contamination=share)
        offsets.append(model.offset_)
        pixel_offsets.append(model.pixel_offset_)
    assert offsets == sorted(offsets)
    assert pixel_offsets == sorted(pixel_offsets, reverse=True)
    assert len(set(offsets)) == 5


def test_predict_mask_and_regions_locate_the_defect(fitted, parts):
    _, good, bad = parts
    X = np.concatenate([good, bad])
    masks, maps = fitted.predict_mask(X), fitted.segment(X)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, maps > fitted.pixel_offset_)
    found = fitted.regions(X)
    assert found["image"].dtype == np.int64
    assert set(found["image"]) == set(np.flatnonzero(masks.any(axis=(1, 2))))
    for i in range(len(X)):
        own = found[found["image"] == i]
        assert len(own) == label(masks[i], np.ones((3, 3)))[1]
        assert own["area"].sum() == masks[i].sum()
        assert own["peak"].is_monotonic_decreasing
    worst = found[found["image"] == 4].iloc[0]
    assert worst["peak"] == maps[4].max() == maps[4][int(worst["peak_row"]), int(worst["peak_column"])]
    assert worst["top"] <= 22 < worst["bottom"]
    assert worst["left"] <= 27 < worst["right"]
    assert worst["p_value"] == pytest.approx(1 / 11)
    assert masks[4][int(worst["top"]) : int(worst["bottom"]), int(worst["left"]) : int(worst["right"])].any()
    large = fitted.regions(X, min_area=int(worst["area"]) + 1)
    assert worst["area"] not in large["area"].to_numpy()
    with pytest.raises(ValueError, match="min_area=0"):
        fitted.regions(X, min_area=0)


def test_pixel_contamination_bounds_the_fraction_of_pixels_of_good_images(parts):
    train, good, bad = parts
    model = detector(pixel_contamination=0.01).fit(train)
    by_image = detector().fit(train)
    assert model.offset_ == by_image.offset_
    assert model.pixel_offset_ < by_image.pixel_offset_
    assert fractions_above(model.calibration_sketches_, model.pixel_offset_).mean() <= 0.01
    np.testing.assert_array_equal(model.predict_mask(bad), by_image.predict_mask(bad, pixel_contamination=0.01))
    by_image.recalibrate(pixel_contamination=0.01)
    assert by_image.pixel_offset_ == model.pixel_offset_
    assert by_image.pixel_contamination is None
    fractions = [model.predict_mask(good, pixel_contamination=share).mean() for share in (0.001, 0.01, 0.1, 0.5)]
    assert fractions == sorted(fractions)
    for wrong in (0, 0.7, "auto"):
        with pytest.raises(ValueError, match="pixel_contamination="):
            model.predict_mask(good, pixel_contamination=wrong)
    with pytest.warns(UserWarning, match="pixel_contamination has no effect on the thresholds of a fitted"):
        model.set_params(pixel_contamination=0.1)


def test_min_area_auto_removes_small_regions_of_good_images(parts):
    train, good, bad = parts
    model = detector(pixel_contamination=0.05).fit(train)
    areas = largest_areas(model.calibration_sketches_, model.pixel_offset_)
    assert model.min_area_ == areas.max() > 0  # 10 images promise 1 / 11, which is the largest area
    seen = np.concatenate([train, good])  # of the training images, the maps are lower than those of calibration
    plain = model.predict_mask(seen, pixel_contamination=0.4)
    cleaned = model.predict_mask(seen, pixel_contamination=0.4, min_area="auto")
    assert cleaned.sum() < plain.sum()
    assert (cleaned <= plain).all()
    cleaned = model.predict_mask(good, min_area="auto")
    least = int(model.min_area_ * plain[0].size) + 1
    for mask in cleaned:
        regions, n_regions = label(mask, np.ones((3, 3)))
        assert all((regions == i).sum() >= least for i in range(1, n_regions + 1))
    assert model.predict_mask(bad, min_area="auto").any()
    found = model.regions(np.concatenate([good, bad]), min_area="auto")
    assert (found["area"] >= least).all()
    assert 4 in found["image"].tolist()
    with pytest.raises(ValueError, match="min_area='large'"):
        model.predict_mask(good, min_area="large")


def test_models_of_older_versions_have_thresholds_but_no_sketches(parts):
    """They were saved without the attributes and the parameter of thresholds for pixels."""
    train, good, bad = parts
    model = detector().fit(train)
    state = {
        name: value
        for name, value in model.__getstate__().items()
        if name not in ("calibration_sketches_", "promised_rate_", "min_area_", "calibration_plan_")
        and name != "pixel_contamination"
    }
    older = detector()
    older.__setstate__(state)
    assert older.promised_rate_ == pytest.approx(1 / 11)
    np.testing.assert_array_equal(older.predict_mask(bad), model.predict_mask(bad))
    older.recalibrate(contamination=0.2)
    with pytest.raises(ValueError, match="needs sketches of the calibration images"):
        older.predict_mask(bad, pixel_contamination=0.01)
    with pytest.raises(ValueError, match="min_area='auto' needs sketches"):
        older.regions(bad, min_area="auto")
    older.recalibrate(good, pixel_contamination=0.01)
    assert older.predict_mask(bad, min_area="auto").any()


def test_regions_without_anomalous_pixels_is_an_empty_table(fitted, parts):
    quiet = clone(fitted).fit(parts[0])
    quiet.recalibrate(np.concatenate(parts[:2]))
    found = quiet.regions(parts[1])
    assert len(found) == 0
    assert list(found.columns) == list(fitted.regions(parts[2]).columns)
    assert found["image"].dtype == np.int64


def test_predict_mask_accepts_images_of_different_sizes(fitted, parts):
    bad = parts[2][0]
    masks = fitted.predict_mask([bad, bad[:40], bad[:, :56]])
    assert [mask.shape for mask in masks] == [(48, 64), (40, 64), (48, 56)]


def test_nearest_patches_returns_the_nearest_bank_row(fitted, parts):
    train, good, bad = parts
    X = np.concatenate([good, bad])
    found = fitted.nearest_patches(X, n_patches=3)
    assert found["image"].tolist() == np.repeat(np.arange(5), 3).tolist()
    assert found["rank"].tolist() == [0, 1, 2] * 5
    features = extractor().transform(X)
    for row in found.itertuples():
        patch = features[row.image, int(row.top // 8), int(row.left // 8)]
        distances = np.linalg.norm(fitted.memory_bank_ - patch, axis=1)
        assert row.distance == pytest.approx(distances.min(), rel=1e-4)
        assert row.bank_row == distances.argmin()
        assert row.nominal_image == fitted.bank_image_indices_[row.bank_row]
        y, x = fitted.bank_positions_[row.bank_row]
        assert (row.nominal_top, row.nominal_left) == (y * 8, x * 8)
        assert row.height == row.nominal_width == 8
    assert found.groupby("image")["distance"].apply(lambda d: d.is_monotonic_decreasing).all()
    worst = found[found["image"] == 4].iloc[0]
    assert 8 <= worst["top"] <= 28
    assert 12 <= worst["left"] <= 34
    # With n_neighbors=1, the score is the distance of Equation 6: the distance of the patch of rank 0.
    plain = detector(n_neighbors=1).fit(train)
    first = plain.nearest_patches(X)
    np.testing.assert_allclose(first["distance"], -plain.score_samples(X), rtol=1e-6)
    assert len(fitted.nearest_patches(good[:1], n_patches=1000)) == 48
    with pytest.raises(ValueError, match="n_patches=0"):
        fitted.nearest_patches(X, n_patches=0)


def test_nearest_patches_returns_cells_in_pixels_of_the_image(parts, tmp_path):
    _, _, bad = parts
    path = str(tmp_path / "bad.png")
    Image.fromarray((bad[0] * 255).astype(np.uint8)).save(path)
    model = detector(extractor=extractor(image_size=96, crop_size=80)).fit(parts[0])
    found = model.nearest_patches([path]).iloc[0]
    # The image of 48 × 64 pixels is resized to twice its size and cropped to the central 80 × 80 pixels. A cell of 8
    # pixels of the network's input is therefore 4 pixels of the image.
    assert (found["height"], found["width"]) == (4, 4)
    assert 8 <= found["top"] <= 32
    assert 12 <= found["left"] <= 38
    assert model.bank_boxes_[:, 0].min() >= 4
    assert model.bank_boxes_[:, 1].max() <= 12 + 40 - 4


def test_nearest_patches_of_precomputed_features_have_nan_cells(parts):
    features = extractor().transform(parts[0])
    model = PatchCoreDetector("precomputed", random_state=0).fit(features)
    assert np.isnan(model.bank_boxes_).all()
    found = model.nearest_patches(features)
    assert found[["top", "nominal_left"]].isna().all().all()
    assert (found["nominal_image"] < 10).all()
    assert isinstance(found, pd.DataFrame)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [(wrong, "'calibration' parameter") for wrong in (0.0, 1.0, 1, "in-sample", "none", b"5")],
)
def test_fit_refuses_calibrations_out_of_range(parts, calibration, message):
    with pytest.raises(ValueError, match=message):
        detector(calibration=calibration).fit(parts[0])


def test_fit_reports_too_few_images_for_the_calibration(parts):
    with pytest.warns(UserWarning, match=r"contamination=0.05 cannot be promised with 2 calibration images.* 1/3"):
        detector(calibration=0.2, contamination=0.05).fit(parts[0])
    with pytest.raises(ValueError, match="would hold out all"):
        detector(calibration=0.5).fit(parts[0][:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector(calibration=0.2).fit(parts[0])  # "auto" states no false-positive rate, so it does not warn
