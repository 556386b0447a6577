"""Tests of the parameter `image_score`: how patch scores become image scores, in all methods and calibration plans."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PaDiMDetector, PatchCoreDetector, PatchCoreEnsemble, SPADEDetector
from skpatchcore.detectors._image_scores import n_top, top_mean
from tests.factories import CellMeans

SCORES = ["reweighted", "max", "map-max", 0.1]


def images(n, seed, sizes=((48, 64),)):
    rng = np.random.default_rng(seed)
    return [rng.normal(0.5, 0.1, (*sizes[i % len(sizes)], 3)).clip(0, 1) for i in range(n)]


def make(kind=PatchCoreDetector, **parameters):
    own = {"sampler": GreedyCoresetSampler(0.1)} if kind is PatchCoreDetector else {}
    return kind(CellMeans(), random_state=0, **{**own, **parameters})


def expected_score(image_score, patch_scores, anomaly_map):
    """Return an image score from its definition."""
    if image_score == "map-max":
        return np.nanmax(anomaly_map)
    known = np.sort(patch_scores[~np.isnan(patch_scores)])[::-1]
    return known[0] if image_score == "max" else known[: math.ceil(image_score * len(known))].mean()


@pytest.mark.parametrize("roi", [None, (0.2, 0.1, 0.6, 0.7)])
@pytest.mark.parametrize("kind", [PatchCoreDetector, PaDiMDetector])
@pytest.mark.parametrize("image_score", ["max", "map-max", 0.1, 1.0])
def test_image_score_is_that_of_its_definition(kind, image_score, roi):
    detector = make(kind, image_score=image_score, roi=roi).fit(images(12, 0))
    X = images(5, 1)
    # The maps of precomputed features are the patch scores.
    cells = CellMeans()
    same = make(kind, roi=roi).set_params(extractor="precomputed").fit(np.array(cells.transform(images(12, 0))))
    grids = same.segment(np.array(cells.transform(X)))
    maps = detector.segment(X)
    expected = [expected_score(image_score, grid, some) for grid, some in zip(grids, maps, strict=True)]
    np.testing.assert_allclose(-detector.score_samples(X), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [PatchCoreDetector, PaDiMDetector])
@pytest.mark.parametrize("image_score", ["max", "map-max", 0.1])
def test_all_methods_return_the_same_score(kind, image_score):
    sizes = ((48, 64),) if kind is PaDiMDetector else ((48, 64), (64, 80))
    detector = make(kind, image_score=image_score).fit(images(12, 0, sizes))
    X = images(6, 1, sizes)
    scores = detector.score_samples(X)
    np.testing.assert_array_equal(detector.score_and_segment(X)[0], scores)
    for with_maps in (False, True):
        np.testing.assert_array_equal([r.score for r in detector.iter_results(X, with_maps=with_maps)], scores)
    np.testing.assert_array_equal(np.concatenate([detector.score_samples([image]) for image in X]), scores)
    np.testing.assert_array_equal(detector.predict(X), np.where(scores >= detector.offset_, 1, -1))


@pytest.mark.parametrize("calibration", ["auto", "leave-one-out", 0.3, 4])
@pytest.mark.parametrize("image_score", ["map-max", 0.2])
def test_calibration_scores_are_those_of_the_image_score(image_score, calibration):
    X = images(20, 0)
    detector = make(image_score=image_score, calibration=calibration).fit(X)
    largest = make(image_score="max", calibration=calibration).fit(X)
    np.testing.assert_array_equal(detector.memory_bank_, largest.memory_bank_)
    np.testing.assert_array_equal(detector.calibration_peaks_, largest.calibration_peaks_)
    if image_score == "map-max":
        np.testing.assert_allclose(-detector.calibration_scores_, detector.calibration_peaks_, rtol=1e-5)
    else:
        assert (detector.calibration_scores_ > largest.calibration_scores_).all()


@pytest.mark.parametrize("image_score", SCORES)
def test_held_out_images_are_scored_as_new_images(image_score):
    X = images(20, 0)
    detector = make(image_score=image_score, calibration=0.3).fit(X)
    held = [X[i] for i in detector.calibration_image_indices_]
    np.testing.assert_allclose(detector.score_samples(held), detector.calibration_scores_, rtol=1e-12)
    detector.recalibrate(held)
    np.testing.assert_allclose(detector.score_samples(held), detector.calibration_scores_, rtol=1e-12)


def test_reweighted_is_the_default_and_max_turns_the_weight_off():
    X, new = images(12, 0), images(4, 1)
    default = make().fit(X)
    np.testing.assert_array_equal(default.score_samples(new), make(image_score="reweighted").fit(X).score_samples(new))
    largest = make(image_score="max").fit(X).score_samples(new)
    np.testing.assert_array_equal(largest, make(n_neighbors=1).fit(X).score_samples(new))
    assert (largest < default.score_samples(new)).all()


def test_smoothed_maximum_counts_a_large_defect_more_than_one_patch():
    good = images(12, 0)
    detector = make(image_score="map-max", smoothing=8).fit(good)
    small, large = good[0].copy(), good[0].copy()
    small[16:24, 16:24], large[16:40, 16:40] = 0, 0
    scores = detector.score_samples([small, large])
    assert scores[1] < scores[0]
    np.testing.assert_allclose(detector.segment([small]).max(), -scores[0])


@pytest.mark.parametrize("image_score", ["map-max", 0.25])
def test_precomputed_features_have_no_map_to_smooth(image_score):
    X = np.random.default_rng(0).random((12, 4, 4, 5))
    detector = PatchCoreDetector("precomputed", image_score=image_score, random_state=0).fit(X)
    grids = detector.segment(X[:3] + 1)
    expected = [expected_score("max" if image_score == "map-max" else 0.25, grid, grid) for grid in grids]
    np.testing.assert_allclose(-detector.score_samples(X[:3] + 1), expected, rtol=1e-6)


@pytest.mark.parametrize("image_score", ["mean", 0.0, 1.5, -1, None])
def test_fit_refuses_other_image_scores(image_score):
    with pytest.raises(ValueError, match="The 'image_score' parameter"):
        make(image_score=image_score).fit(images(4, 0))


def test_padim_has_no_weight_and_spade_no_image_score():
    with pytest.raises(ValueError, match="The 'image_score' parameter"):
        make(PaDiMDetector, image_score="reweighted").fit(images(4, 0))
    with pytest.raises(TypeError, match="image_score"):
        SPADEDetector(image_score="max")


def test_changed_image_score_of_a_fitted_detector_warns_of_its_thresholds():
    detector = make().fit(images(12, 0))
    with pytest.warns(UserWarning, match="image_score changes the scores of a fitted detector, but not its thresholds"):
        detector.set_params(image_score="map-max")
    new = images(8, 3)
    detector.recalibrate(new)
    np.testing.assert_array_equal(detector.calibration_scores_, detector.score_samples(new))


@pytest.mark.parametrize("image_score", SCORES)
def test_saved_detector_keeps_its_image_score(tmp_path, image_score):
    X = np.random.default_rng(0).random((12, 4, 4, 5))
    detector = PatchCoreDetector("precomputed", image_score=image_score, random_state=0).fit(X)
    skpatchcore.save(detector, tmp_path / "model.skops")
    loaded = skpatchcore.load(tmp_path / "model.skops")
    assert loaded.image_score == image_score
    np.testing.assert_array_equal(loaded.score_samples(X + 1), detector.score_samples(X + 1))


def test_model_without_an_image_score_loads_as_reweighted():
    detector = make().fit(images(12, 0))
    state = {name: value for name, value in detector.__getstate__().items() if name != "image_score"}
    older = PatchCoreDetector.__new__(PatchCoreDetector)
    older.__setstate__(state)
    assert older.image_score == "reweighted"
    np.testing.assert_array_equal(older.score_samples(images(3, 1)), detector.score_samples(images(3, 1)))


def test_members_of_an_ensemble_bring_their_own_image_scores():
    members = [("map", make(image_score="map-max")), ("mean", make(image_score=0.1))]
    ensemble = PatchCoreEnsemble(members).fit(images(12, 0))
    for (_, own), fitted in zip(members, ensemble.estimators_, strict=True):
        alone = own.fit(images(12, 0))
        np.testing.assert_array_equal(fitted.score_samples(images(3, 1)), alone.score_samples(images(3, 1)))


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 200), share=st.floats(1e-6, 1.0), seed=st.integers(0, 9))
def test_top_mean_is_between_mean_and_maximum_and_counts_at_least_one_patch(n, share, seed):
    values = np.random.default_rng(seed).random(n)
    found = top_mean(np.append(values, np.nan), share)
    assert values.mean() - 1e-12 <= found <= values.max()
    assert 1 <= n_top(share, n) <= n
    np.testing.assert_allclose(found, np.sort(values)[n - n_top(share, n) :].mean())


@pytest.mark.parametrize(("share", "n", "expected"), [(0.1, 30, 3), (0.1, 31, 4), (1e-9, 7, 1), (1.0, 7, 7)])
def test_n_top_rounds_up_but_ignores_rounding_errors(share, n, expected):
    assert n_top(share, n) == expected


@pytest.mark.parametrize("value", ["mapmax", 0.0, 1.5, True])
def test_wrong_image_score_of_a_fitted_detector_is_named(value):
    features = np.random.default_rng(0).random((12, 3, 3, 4))
    detector = PatchCoreDetector("precomputed", random_state=0).fit(features)
    with pytest.warns(UserWarning, match="image_score changes the scores"):
        detector.set_params(image_score=value)
    with pytest.raises(ValueError, match="image_score="):
        detector.score_samples(features)


def test_smoothing_of_a_fitted_detector_with_map_max_warns_of_the_thresholds():
    features = np.random.default_rng(0).random((12, 3, 3, 4))
    detector = PatchCoreDetector("precomputed", image_score="map-max", random_state=0).fit(features)
    with pytest.warns(UserWarning, match="smoothing changes the scores"):
        detector.set_params(smoothing=1.0)
