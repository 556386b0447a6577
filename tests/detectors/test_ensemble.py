from __future__ import annotations

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, ShuffleSplit

from skpatchcore import OneClassSplit, PatchCoreEnsemble
from skpatchcore.model_selection import image_roc_auc_scorer
from tests.factories import detector


def ensemble(**parameters):
    members = [("first", detector()), ("second", detector("mobilenet_v2", n_neighbors=1))]
    return PatchCoreEnsemble(members, **parameters)


@pytest.fixture(scope="module")
def fitted(parts):
    return ensemble().fit(parts[0])


def test_scores_and_maps_are_averages_of_standardised_values(fitted, parts):
    _, good, bad = parts
    X = np.concatenate([good, bad])
    expected, expected_maps = 0, 0
    for _, member in fitted.estimators:
        own = clone(member).fit(parts[0])
        known, peaks = own.calibration_scores_, own.calibration_peaks_
        expected += (own.score_samples(X) - known.mean()) / known.std() / 2
        expected_maps += (own.segment(X) - peaks.mean()) / peaks.std() / 2
    np.testing.assert_allclose(fitted.score_samples(X), expected, rtol=1e-6)
    np.testing.assert_allclose(fitted.segment(X), expected_maps, rtol=1e-3, atol=1e-3)
    scores, maps = fitted.score_and_segment(X)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert maps.dtype == np.float32


def test_ensemble_predicts_and_recalibrates_like_a_detector(fitted, parts):
    train, good, bad = parts
    assert fitted.predict(bad).tolist() == [-1]
    assert fitted.predict(good).mean() > 0
    assert fitted.offset_ == fitted.calibration_scores_.min()
    assert fitted.p_values(bad)[0] == pytest.approx(1 / 11)
    assert fitted.predict_mask(bad)[0].any()
    assert (fitted.regions(bad)["image"] == 0).all()
    again = ensemble(contamination=0.2).fit(train)
    assert again.offset_ > fitted.offset_
    again.recalibrate(np.concatenate([train, good]))
    assert len(again.calibration_scores_) == 14


def test_ensemble_can_be_cloned_pickled_shown_and_searched(fitted, parts, tmp_path):
    train, good, bad = parts
    X = np.concatenate([good, bad])
    copy = clone(fitted)
    assert not hasattr(copy, "estimators_")
    copy.set_params(first__n_neighbors=3, second=detector(smoothing=1.0))
    assert copy.get_params()["first__n_neighbors"] == 3
    assert dict(copy.estimators)["second"].smoothing == 1.0
    joblib.dump(fitted, tmp_path / "ensemble.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "ensemble.joblib").score_samples(X), fitted.score_samples(X))
    assert "first" in fitted._repr_html_()
    y = np.array([1] * 10 + [-1] * 2)
    images = np.concatenate([train, bad, bad * 0.9])
    search = GridSearchCV(
        ensemble(), {"first__n_neighbors": [1, 9]}, cv=OneClassSplit(2), scoring=image_roc_auc_scorer
    ).fit(images, y)
    assert search.best_score_ > 0.9


def test_fit_predict_flags_the_defective_training_image(parts):
    train, _, bad = parts
    X = np.concatenate([train, bad])
    y = np.array([1] * 10 + [-1])
    assert ensemble().fit_predict(X, y).tolist() == [1] * 10 + [-1]
    assert ensemble(contamination=0.2).fit_predict(X).tolist()[-1] == -1


def test_ensemble_accepts_images_of_different_sizes(parts):
    rng = np.random.default_rng(0)
    images = [rng.normal(0.6, 0.03, (*size, 3)).clip(0, 1) for size in [(48, 64), (64, 48), (56, 56)] * 8]
    model = ensemble().fit(images)
    assert [anomaly_map.shape for anomaly_map in model.segment(images[:4])] == [x.shape[:2] for x in images[:4]]
    assert len(model.predict_mask(images)) == 24


def test_fit_refuses_members_with_different_calibration_images(parts):
    X = parts[0]
    splitter = ShuffleSplit(1, test_size=3, random_state=0)
    held_out = PatchCoreEnsemble([("a", detector(calibration=splitter)), ("b", detector(calibration=splitter))]).fit(X)
    assert len(held_out.calibration_scores_) == 3
    others = [("a", detector()), ("b", detector(calibration=ShuffleSplit(1, test_size=4, random_state=0)))]
    with pytest.raises(ValueError, match="'b' calibrates on other images than 'a'"):
        PatchCoreEnsemble(others).fit(X)
    with pytest.raises(ValueError, match="'a' has too few calibration scores"):
        PatchCoreEnsemble([("a", detector(calibration=None))]).fit(X)


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a__b"], ["contamination"]])
def test_fit_refuses_invalid_names(parts, names):
    with pytest.raises(ValueError, match="estimators has invalid names"):
        PatchCoreEnsemble([(name, detector()) for name in names]).fit(parts[0])
