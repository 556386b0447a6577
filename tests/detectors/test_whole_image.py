"""Detectors of whole images: scores by hand, no maps, and the report, the evaluation and the search without maps."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import GridSearchCV

from skpatchcore import (
    DN2Detector,
    MahalanobisDetector,
    MultiLightDetector,
    MultiProductDetector,
    OneClassSplit,
    PatchCoreEnsemble,
    SPADEDetector,
    evaluate,
    load,
    save,
)
from skpatchcore.cli.main import main
from skpatchcore.datasets import make_textures
from skpatchcore.reports import read_predictions, write_prediction_report, write_predictions
from tests.factories import extractor
from tests.reports.pages import cards_of, photo

DETECTORS = [MahalanobisDetector, DN2Detector]


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(30, 4, 5, 6)).astype(np.float32)


def test_dn2_is_the_mean_distance_to_the_nearest_images(features):
    new = features[:3] + 1
    detector = DN2Detector("precomputed", n_neighbors=2).fit(features)
    means = features.mean(axis=(1, 2), dtype=np.float64)
    distances = np.linalg.norm(new.mean(axis=(1, 2), dtype=np.float64)[:, None] - means, axis=2)
    np.testing.assert_allclose(-detector.score_samples(new), np.sort(distances, axis=1)[:, :2].mean(axis=1), rtol=1e-6)


def test_dn2_calibration_leaves_each_image_out(features):
    detector = DN2Detector("precomputed", n_neighbors=1).fit(features)
    means = features.mean(axis=(1, 2), dtype=np.float64)
    distances = np.linalg.norm(means[:, None] - means, axis=2) + np.diag(np.full(30, np.inf))
    np.testing.assert_allclose(-detector.calibration_scores_, distances.min(axis=1), rtol=1e-6)


def test_dn2_of_a_training_image_is_zero_and_does_not_depend_on_the_other_images(features):
    detector = DN2Detector("precomputed", n_neighbors=1).fit(features + 100)
    np.testing.assert_array_equal(detector.score_samples(features + 100), 0)
    new = features + 101
    alone = np.concatenate([detector.score_samples(new[i : i + 1]) for i in range(30)])
    np.testing.assert_array_equal(detector.score_samples(new), alone)


class TwoLevels(TransformerMixin, BaseEstimator):
    """Extractor of images that are features already, of two levels."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return np.asarray(X)

    def layer_channels(self):
        return (2, 4)


def test_mahalanobis_is_the_sum_of_the_distances_of_the_levels(features):
    new = features[:3] + 0.5
    detector = MahalanobisDetector(TwoLevels(), calibration=None).fit(features)
    means, of_new = (x.mean(axis=(1, 2), dtype=np.float64) for x in (features, new))
    expected = np.zeros(3)
    for level in (slice(0, 2), slice(2, 6)):
        expected += np.sqrt(LedoitWolf().fit(means[:, level]).mahalanobis(of_new[:, level]))
    np.testing.assert_allclose(-detector.score_samples(new), expected, rtol=1e-6)


def test_mahalanobis_without_levels_is_one_gaussian(features):
    detector = MahalanobisDetector("precomputed", calibration=None).fit(features)
    means = features.mean(axis=(1, 2), dtype=np.float64)
    expected = np.sqrt(LedoitWolf().fit(means).mahalanobis(means))
    np.testing.assert_allclose(-detector.score_samples(features), expected, rtol=1e-6)


def test_mahalanobis_of_equal_images_is_finite():
    same = np.ones((8, 2, 2, 3), np.float32)
    detector = MahalanobisDetector("precomputed", calibration=None).fit(same)
    assert np.isfinite(detector.score_samples(same + 1)).all()


@pytest.mark.parametrize("repeats", [1, 2])
def test_mahalanobis_of_two_different_images_uses_the_mean_variance(features, repeats):
    detector = MahalanobisDetector("precomputed", calibration=None).fit(np.repeat(features[:2], repeats, axis=0))
    one, other = features[:2].mean(axis=(1, 2), dtype=np.float64)
    variance = ((one - other) ** 2).mean() / 4
    expected = np.linalg.norm(features[2:].mean(axis=(1, 2)) - (one + other) / 2, axis=1) / np.sqrt(variance)
    np.testing.assert_allclose(-detector.score_samples(features[2:]), expected, rtol=1e-5)


def test_mahalanobis_calibration_of_three_images_has_the_scale_of_the_scores(features):
    detector = MahalanobisDetector("precomputed").fit(features[:3])
    assert detector.predict(features[3:4] + 100) == -1


def test_mahalanobis_does_not_calibrate_with_a_covariance_of_one_image(features):
    with pytest.raises(ValueError, match="leaves one of 2 training images"):
        MahalanobisDetector("precomputed").fit(features[:2])
    with pytest.warns(UserWarning, match="2 of 2 training images could not be scored"):
        detector = MahalanobisDetector("precomputed", calibration="leave-one-out").fit(features[:2])
    assert np.isnan(detector.offset_)


def test_mahalanobis_leave_one_out_fits_without_the_image(features):
    detector = MahalanobisDetector("precomputed", calibration="leave-one-out").fit(features)
    means = features.mean(axis=(1, 2), dtype=np.float64)
    expected = [np.sqrt(LedoitWolf().fit(np.delete(means, i, 0)).mahalanobis(means[i : i + 1]))[0] for i in range(30)]
    np.testing.assert_allclose(-detector.calibration_scores_, expected, rtol=1e-6)


@pytest.mark.parametrize("make", DETECTORS)
@pytest.mark.parametrize("method", ["segment", "score_and_segment", "predict_mask", "regions"])
def test_methods_that_need_maps_raise_with_the_reason(make, method, features):
    detector = make("precomputed").fit(features)
    with pytest.raises(NotImplementedError, match=f"{make.__name__}.{method}: .*no anomaly maps"):
        getattr(detector, method)(features)


@pytest.mark.parametrize("make", DETECTORS)
def test_results_have_no_map_and_thresholds_of_pixels_are_nan(make, features):
    detector = make("precomputed", contamination=0.2).fit(features)
    (result,) = detector.iter_results(features[:1] + 9)
    assert (result.label, result.anomaly_map, result.error) == (-1, None, None)
    assert 0 < result.p_value <= 0.2
    assert np.isnan([detector.pixel_offset_, detector.min_area_]).all()


@pytest.mark.parametrize("make", DETECTORS)
def test_recalibrate_sets_the_threshold_from_other_images(make, features):
    detector = make("precomputed").fit(features)
    before = detector.offset_
    detector.recalibrate(features + 3, contamination=0.2)
    assert detector.offset_ < before
    assert len(detector.calibration_scores_) == 30
    assert detector.calibration_plan_ == "other good images"


@pytest.mark.parametrize("make", DETECTORS)
def test_saved_detector_scores_the_same(make, features, tmp_path):
    detector = make("precomputed", random_state=0).fit(features)
    save(detector, tmp_path / "parts.skops")
    again = load(tmp_path / "parts.skops")
    np.testing.assert_array_equal(again.score_samples(features + 1), detector.score_samples(features + 1))


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "good").mkdir()
    return [photo(tmp_path / "good" / f"{i}.png", 100 + i, (64, 64)) for i in range(12)]


@pytest.mark.parametrize("make", DETECTORS)
def test_report_shows_the_images_without_maps(make, paths, tmp_path):
    detector = make(extractor(), contamination=0.2, random_state=0).fit(paths)
    bad = photo(tmp_path / "bad.png", 250, (64, 64), dark=(10, 10, 40, 40))
    written = write_predictions(detector, [paths[0], bad], tmp_path / "out", layers=True)
    assert [(p.label, p.picture, p.problem) for p in written] == [(1, None, ""), (-1, None, "")]
    assert [p.score for p in read_predictions(tmp_path / "out")] == [p.score for p in written]
    page = write_prediction_report(written, detector, tmp_path / "out", embed=None)
    first = cards_of(page)[0]
    assert first["decision"] == "Anomalous: the anomaly score is above the image threshold. There is no anomaly map."
    assert (tmp_path / "out" / first["thumb"]).is_file()
    assert not {"map", "outline", "inspected", "disagrees"} & set(first)


def test_command_line_predicts_without_maps(paths, tmp_path, capsys):
    save(DN2Detector(extractor(), contamination=0.2, random_state=0).fit(paths), tmp_path / "parts.skops")
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path / "parts.skops"), *paths[:2], "-o", str(out), "--report"]) == 0
    assert "2 images scored" in capsys.readouterr().out
    assert (out / "report.html").is_file()


def test_evaluation_has_image_metrics_only():
    data = make_textures("brick", n_views=2)
    row = evaluate(DN2Detector(extractor(), random_state=0), {"brick": data}).loc["brick"]
    assert 0 <= row["image_auroc"] <= 1
    assert row[["pixel_auroc", "aupro", "aupimo", "inspected"]].isna().all()
    assert row["n_masks"] == 0


def test_search_over_neighbours(features):
    X = np.concatenate([features, features[:5] + 2])
    y = np.r_[np.ones(30), -np.ones(5)]
    search = GridSearchCV(
        DN2Detector("precomputed", calibration=None), {"n_neighbors": [1, 3]}, scoring="roc_auc",
        cv=OneClassSplit(3),
    )  # fmt: skip
    assert search.fit(X, y).best_score_ == 1


@pytest.mark.parametrize("make", DETECTORS)
def test_detectors_without_maps_are_not_combined(make, features):
    message = f"'.*' is a {make.__name__}, which has no anomaly maps"
    with pytest.raises(ValueError, match=message):
        PatchCoreEnsemble([("patches", SPADEDetector("precomputed")), ("whole", make("precomputed"))]).fit(features)
    with pytest.raises(ValueError, match=message):
        MultiLightDetector(make(extractor())).fit(np.zeros((3, 2, 32, 32, 3)))
    with pytest.raises(ValueError, match=message):
        MultiProductDetector(make("precomputed")).fit(features, products=["bolt", "nut"] * 15)
