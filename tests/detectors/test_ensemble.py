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


def test_maximum_combines_standardised_values_and_peaks_exactly(fitted, parts):
    train, good, bad = parts
    X = np.concatenate([good, bad])
    largest = ensemble(aggregate="max").fit(train)
    scores, maps = [], []
    for member in fitted.estimators_:
        known, peaks = member.calibration_scores_, member.calibration_peaks_
        scores.append((member.score_samples(X) - known.mean()) / known.std())
        maps.append((member.segment(X) - peaks.mean()) / peaks.std())
    np.testing.assert_allclose(largest.score_samples(X), np.min(scores, axis=0), rtol=1e-6)  # bigger = more normal
    found = largest.segment(X)
    np.testing.assert_allclose(found, np.max(maps, axis=0), rtol=1e-3, atol=1e-3)
    peaks = [
        (m.calibration_peaks_ - m.calibration_peaks_.mean()) / m.calibration_peaks_.std() for m in fitted.estimators_
    ]
    np.testing.assert_allclose(largest.calibration_peaks_, np.max(peaks, axis=0))
    np.testing.assert_allclose(largest.calibration_sketches_[:, 0, 0], largest.calibration_peaks_, rtol=1e-5)
    assert largest.predict(bad).tolist() == [-1]
    assert largest.predict_mask(bad, pixel_contamination=0.01, min_area="auto")[0].any()
    largest.recalibrate(np.concatenate([train, good]))
    assert largest.calibration_peaks_.max() == largest.segment(np.concatenate([train, good])).max()


def test_at_image_sizes_copies_one_detector(parts):
    own = detector(contamination=0.2, n_neighbors=3)
    sized = PatchCoreEnsemble.at_image_sizes(own, [32, (48, 64), None], aggregate="max", pixel_contamination=0.01)
    assert [name for name, _ in sized.estimators] == ["size_32", "size_48x64", "size_own"]
    assert [member.extractor.image_size for _, member in sized.estimators] == [32, (48, 64), None]
    assert (sized.aggregate, sized.contamination, sized.pixel_contamination) == ("max", 0.2, 0.01)
    assert own.extractor.image_size is None
    assert {member.n_neighbors for _, member in sized.estimators} == {3}
    sized.fit(parts[0])
    assert sized.segment(parts[2]).shape == (1, 48, 64)
    assert sized.predict(parts[2]).tolist() == [-1]
    assert clone(sized).get_params()["size_32__extractor__image_size"] == 32


@pytest.mark.parametrize("sizes", [[], [32, 32]])
def test_at_image_sizes_refuses_no_and_equal_sizes(sizes):
    with pytest.raises(ValueError, match="expected at least one size, and each size once"):
        PatchCoreEnsemble.at_image_sizes(detector(), sizes)


def test_at_image_sizes_refuses_detectors_without_image_size():
    with pytest.raises(ValueError, match="has no parameter image_size"):
        PatchCoreEnsemble.at_image_sizes(detector(extractor="precomputed"), [32])


def test_states_of_older_versions_have_the_mean(fitted, parts):
    state = fitted.__getstate__()
    del state["aggregate"]
    older = PatchCoreEnsemble.__new__(PatchCoreEnsemble)
    older.__setstate__(state)
    np.testing.assert_array_equal(older.score_samples(parts[1]), fitted.score_samples(parts[1]))


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


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a__b"], ["contamination"], ["aggregate"]])
def test_fit_refuses_invalid_names(parts, names):
    with pytest.raises(ValueError, match="estimators has invalid names"):
        PatchCoreEnsemble([(name, detector()) for name in names]).fit(parts[0])
