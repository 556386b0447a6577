"""The report on training images, and the display of a training image."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from skpatchcore import (
    AnomalyMapDisplay,
    GreedyCoresetSampler,
    ImageError,
    PatchCoreDetector,
    PatchCoreEnsemble,
    SuspectImageWarning,
    load,
    save,
)
from tests import factories

RNG = np.random.default_rng(0)
IMAGES = [np.clip(0.5 + RNG.normal(0, 0.03, (48, 64, 3)), 0, 1).astype(np.float32) for _ in range(12)]
for i, (row, column) in {4: (16, 24), 9: (0, 8)}.items():
    IMAGES[i][row : row + 16, column : column + 16] = 0.1 if i == 4 else 0.9


def detector(**parameters):
    given = {"extractor": factories.CellMeans(), "sampler": GreedyCoresetSampler(0.3), "random_state": 0}
    return PatchCoreDetector(**{**given, "smoothing": 2.0, **parameters})


@pytest.fixture
def paths(tmp_path):
    for i, image in enumerate(IMAGES):
        Image.fromarray((image * 255).round().astype(np.uint8)).save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(len(IMAGES))]


@pytest.mark.parametrize("calibration", ["auto", "leave-one-out", 4])
def test_report_lists_defective_images_first_with_their_regions(calibration):
    report = detector(calibration=calibration).fit(IMAGES).training_report(IMAGES)
    assert len(report) == 12
    assert set(report["image"][:2]) == {4, 9}
    np.testing.assert_allclose(report["p_value"], np.arange(1, 13) / 12)
    assert (np.diff(report["score"]) >= 0).all()
    for image, (top, left) in {4: (16, 24), 9: (0, 8)}.items():
        row = report[report["image"] == image].iloc[0]
        assert row["top"] < top + 8 < row["top"] + row["height"]
        assert row["left"] < left + 8 < row["left"] + row["width"]
        assert row["nominal_image"] not in (-1, image)
        assert row["nominal_height"] == row["nominal_width"] == 8
    assert report["path"].isna().all()


def test_distance_is_that_to_the_nearest_row_of_another_image():
    fitted = detector(sampler=GreedyCoresetSampler(1.0)).fit(IMAGES)
    report = fitted.training_report(IMAGES).set_index("image")
    features = [grid.reshape(-1, 6) for grid in factories.CellMeans().transform(IMAGES)]
    for image in (0, 4, 11):
        others = np.concatenate([some for i, some in enumerate(features) if i != image])
        nearest = np.linalg.norm(features[image][:, None] - others, axis=2).min(axis=1)
        np.testing.assert_allclose(report.loc[image, "distance"], nearest.max(), rtol=1e-4)


def test_rows_of_the_group_do_not_count():
    images = [*IMAGES, IMAGES[4]]
    groups = ["a" if i in (4, 12) else f"b{i}" for i in range(13)]
    fitted = detector(sampler=GreedyCoresetSampler(1.0))
    alone = fitted.fit(images).training_report(images).set_index("image")
    grouped = fitted.fit(images, groups=groups).training_report(images).set_index("image")
    assert alone.loc[4, "distance"] == pytest.approx(0, abs=1e-5)
    assert alone.loc[4, "nominal_image"] == 12
    assert grouped.loc[4, "distance"] > 0.3


@pytest.mark.parametrize("has_groups", ["first", "second"])
def test_images_without_a_group_are_compared_with_each_other(has_groups):
    X = np.random.default_rng(0).random((60, 4, 4, 8), np.float32)
    first, second = PatchCoreDetector("precomputed", random_state=0), PatchCoreDetector("precomputed", random_state=0)
    groups = {"first": np.arange(40), "second": None}[has_groups], {"first": None, "second": np.arange(20)}[has_groups]
    first.fit(X[:40], groups=groups[0]).partial_fit(X[40:], groups=groups[1])
    second.fit(X[:40]).partial_fit(X[40:])
    found, expected = (d.training_report(X).set_index("image").sort_index() for d in (first, second))
    np.testing.assert_array_equal(found["nominal_image"], expected["nominal_image"])
    np.testing.assert_array_equal(found["distance"], expected["distance"])


def test_report_reads_images_from_their_paths_also_after_loading(paths, tmp_path):
    fitted = detector().fit(paths)
    report = fitted.training_report()
    assert report["path"].tolist() == [str(paths[i]) for i in report["image"]]
    assert report["nominal_path"].tolist() == [str(paths[i]) for i in report["nominal_image"]]
    with pytest.warns(UserWarning, match="CellMeans"):
        save(fitted, tmp_path / "model.skops")
    loaded = load(tmp_path / "model.skops", trusted=["tests.factories.CellMeans"])
    assert loaded.training_report().equals(report)
    assert loaded.training_report(n_images=3).equals(report[:3])


def test_small_report_reads_only_its_images(paths):
    fitted = detector().fit(paths)
    paths[0].unlink()
    assert set(fitted.training_report(n_images=2)["image"]) == {4, 9}
    with pytest.raises(ImageError, match=r"image 0 .*0\.png"):
        fitted.training_report()


def test_report_without_images_warns_and_has_scores_only():
    fitted = detector().fit(IMAGES)
    with pytest.warns(UserWarning, match="Pass the images of the fit as X"):
        report = fitted.training_report()
    assert set(report["image"][:2]) == {4, 9}
    assert report["score"].notna().all()
    assert report[["distance", "top", "nominal_top"]].isna().all(axis=None)
    assert (report["nominal_image"] == -1).all()


def test_images_that_y_leaves_out_have_no_row():
    y = np.where(np.arange(12) == 9, -1, 1)
    report = detector().fit(IMAGES, y).training_report(IMAGES)
    assert sorted(report["image"]) == [i for i in range(12) if i != 9]
    assert report["image"][0] == 4


def test_report_without_calibration_is_sorted_by_distance():
    for fitted in (detector(calibration=None).fit(IMAGES), detector().fit(IMAGES).recalibrate(IMAGES[:3])):
        report = fitted.training_report(IMAGES, n_images=4)
        assert set(report["image"][:2]) == {4, 9}
        assert report[["score", "p_value"]].isna().all(axis=None)
        assert (np.diff(report["distance"]) <= 0).all()


def test_report_after_recalibration_and_growth_has_scores_of_the_new_images():
    X = np.random.default_rng(0).random((80, 4, 4, 8), np.float32)
    fitted = PatchCoreDetector("precomputed", random_state=0).fit(X[:40]).recalibrate(X[60:]).partial_fit(X[40:50])
    report = fitted.training_report(X[:50])
    assert sorted(report["image"]) == list(range(50))
    scored = report[report["score"].notna()]
    assert sorted(scored["image"]) == list(range(40, 50))
    np.testing.assert_array_equal(scored["score"], np.sort(fitted.calibration_scores_[20:]))
    fitted.forget([0, 45])
    scored = fitted.training_report(X[:50]).dropna(subset="score")
    assert sorted(scored["image"]) == [i for i in range(40, 50) if i != 45]


def test_held_out_images_come_first_with_their_scores():
    report = detector(calibration=0.25).fit(IMAGES).training_report(IMAGES)
    assert report["score"].notna().tolist() == [True] * 3 + [False] * 9
    assert report["distance"].notna().all()


def test_report_of_precomputed_features_has_no_cells():
    X = np.random.default_rng(0).normal(size=(12, 3, 4, 5))
    X[7, 1, 1] += 9
    report = PatchCoreDetector("precomputed", random_state=0).fit(X).training_report(X)
    assert report["image"][0] == 7
    assert report["distance"].notna().all()
    assert report[["top", "nominal_width"]].isna().all(axis=None)


def test_region_of_interest_is_respected():
    rois = [(0, 0, 16, 64) if i == 4 else (0, 0, 48, 64) for i in range(12)]
    fitted = detector().fit(IMAGES, roi=rois)
    report = fitted.training_report(IMAGES, roi=rois)
    assert report["image"][0] == 9
    row = report[report["image"] == 4].iloc[0]
    assert row["top"] + row["height"] <= 16


def test_report_refuses_other_images():
    fitted = detector().fit(IMAGES)
    with pytest.raises(ValueError, match="X has 5 images, but the detector was fitted on 12"):
        fitted.training_report(IMAGES[:5])
    with pytest.raises(ValueError, match="n_images=0"):
        fitted.training_report(IMAGES, n_images=0)


def test_display_shows_the_defect_of_a_training_image(paths):
    pytest.importorskip("matplotlib").use("agg")
    fitted = detector().fit(paths)
    display = AnomalyMapDisplay.from_training_image(fitted, 4)
    assert "training image 4, score" in display.titles[0]
    (shown,) = display.anomaly_maps
    assert shown.shape == (48, 64)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert 16 <= row < 32
    assert 24 <= column < 40
    assert shown.max() > 2 * fitted.segment(paths[4:5])[0].max()
    np.testing.assert_array_equal(AnomalyMapDisplay.from_training_image(fitted, 4, paths).anomaly_maps[0], shown)


def test_display_refuses_unknown_images():
    pytest.importorskip("matplotlib").use("agg")
    fitted = detector().fit(IMAGES)
    with pytest.raises(ValueError, match="image 12 is no training image"):
        AnomalyMapDisplay.from_training_image(fitted, 12, IMAGES)
    with pytest.raises(ValueError, match="path of image 3 is unknown"):
        AnomalyMapDisplay.from_training_image(fitted, 3)


def test_image_whose_group_has_all_rows_has_no_distance():
    fitted = detector(calibration=None).fit(IMAGES[:2], groups=["a", "a"])
    report = fitted.training_report(IMAGES[:2])
    assert report["distance"].isna().all()
    with pytest.raises(ValueError, match="cannot be compared"):
        AnomalyMapDisplay.from_training_image(fitted, 1, IMAGES[:2])


def many_images(n_bad, n=30):
    images = [np.clip(0.5 + RNG.normal(0, 0.03, (48, 64, 3)), 0, 1).astype(np.float32) for _ in range(n)]
    for i in range(n_bad):
        images[3 * i][16:32, 16:32] = [0.05 + 0.9 * (i >> bit & 1) for bit in range(3)]  # a colour of its own
    return images


def test_fit_warns_of_anomalous_training_images(tmp_path):
    images = many_images(2)
    with pytest.warns(SuspectImageWarning, match=r"2 of 30 training images look anomalous: image \d, image \d\."):
        detector(calibration=5).fit(images)
    for i, image in enumerate(images):
        Image.fromarray((image * 255).round().astype(np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.warns(SuspectImageWarning, match=r"anomalous: .*[03]\.png, .*[03]\.png\. Look at .*training_report"):
        detector(calibration=5).fit([tmp_path / f"{i}.png" for i in range(30)])


def test_fit_does_not_warn_of_good_images_or_without_calibration():
    with warnings.catch_warnings():
        warnings.simplefilter("error", SuspectImageWarning)
        detector(calibration=5).fit(many_images(0))
        detector(calibration=None).fit(many_images(2))


def test_warning_names_at_most_five_images():
    images = many_images(7, 60)
    with pytest.warns(SuspectImageWarning, match=r"7 of 60 .*(image \d+, ){4}image \d+ and 2 more\."):
        detector(calibration=5).fit(images)


def test_thresholds_leave_out_anomalous_images_with_suspect_share_only():
    images = many_images(2)
    with pytest.warns(SuspectImageWarning, match="thresholds are computed without their scores"):
        cleared = detector(calibration=5, suspect_share=0.01).fit(images)
    with pytest.warns(SuspectImageWarning):
        fitted = detector(calibration=5).fit(images)
    assert sorted(cleared.suspect_image_indices_) == sorted(fitted.suspect_image_indices_) == [0, 3]
    assert len(fitted.calibration_scores_) == 30
    assert sorted(cleared.calibration_image_indices_) == [i for i in range(30) if i not in (0, 3)]
    assert (cleared.suspect_scores_ < cleared.offset_).all()
    assert fitted.offset_ == fitted.suspect_scores_[0]
    for one in (cleared, fitted):  # the log contains the thresholds in force
        assert one.updates_[0]["offset"] == [None, one.offset_]
        assert one.updates_[0]["pixel_offset"] == [None, one.pixel_offset_]
        assert one.updates_[0]["promised_rate"] == [None, one.promised_rate_]
    report = cleared.training_report(images)
    assert set(report["image"][:2]) == {0, 3}
    assert report["score"].notna().all()
    assert cleared.recalibrate(contamination=0.1).predict(images[:1]) == [-1]


def test_fit_predict_labels_anomalous_training_images():
    images = many_images(2)
    with pytest.warns(SuspectImageWarning):
        labels = detector(calibration=5, suspect_share=0.01, contamination=0.05).fit_predict(images)
    assert labels.shape == (30,)
    assert labels[[0, 3]].tolist() == [-1, -1]
    assert labels.sum() >= 30 - 2 * 4


def test_ensemble_is_calibrated_on_the_images_of_all_members():
    images = many_images(2)
    members = [("clear", detector(calibration=5, suspect_share=0.01)), ("plain", detector(calibration=5))]
    with pytest.warns(SuspectImageWarning):
        fitted = PatchCoreEnsemble(members).fit(images)
    assert fitted.calibration_image_indices_.tolist() == [i for i in range(30) if i not in (0, 3)]
    assert len(fitted.calibration_scores_) == len(fitted.calibration_sketches_) == 28
    assert fitted.predict(images[:1]) == [-1]
