from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, KFold

from skpatchcore import PatchCoreDetector
from skpatchcore.calibration.folds import extrapolation_factor, growth_slope, make_folds
from skpatchcore.calibration.new_images import recent_scores
from skpatchcore.calibration.plan import plan_calibration
from skpatchcore.calibration.plans import LeaveOneOut, hold_out
from skpatchcore.calibration.sketches import sketch_of_map
from skpatchcore.patches.stream import PatchStream


class Remembered:
    """Model that stores the indices of its images; the score of an image is the number of stored images."""

    def __init__(self, images):
        self.images = set(images)

    def score(self, patches, with_patch_scores=True):
        own = patches.rows[:, 0].astype(int)
        assert not self.images & set(own)
        scores = np.full(len(patches), float(len(self.images)))
        return scores, patches.as_grids(np.full(len(patches.rows), 7.0))

    def without(self, images):
        left = self.images - set(images)
        return Remembered(left) if left else None


def calibrated(plan, n_images, n_folds=5):
    """Return the calibration scores of a plan for images whose patch features are the index of the image."""
    numbers = np.repeat(np.arange(n_images), 4).astype(np.float32)
    features = np.stack([numbers, numbers], axis=1).reshape(n_images, 2, 2, 2)
    stream = PatchStream(None, features)
    learnt = stream if plan.learnt is None else stream.subset(plan.learnt)

    def learn(patches):
        return Remembered(int(row) for batch in patches for row in batch.rows[:, 0])

    plan = plan.resolved(lambda: n_folds)
    everything = np.arange(n_images)
    fold_models = [learn(stream.subset(np.setdiff1d(everything, images))) for images in plan.left_out]
    lists = [fold_models[i : i + 3] for i in range(0, len(fold_models), 3)]
    return plan.calibrate(stream, learnt, learn(learnt), lists, lambda grid, view, mask: sketch_of_map(grid))


@given(groups=st.lists(st.integers(0, 6), min_size=2, max_size=40))
@settings(deadline=None)
def test_leave_one_out_scores_each_image_without_its_group(groups):
    groups = np.array(groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = calibrated(LeaveOneOut(groups), len(groups))
    others = np.array([(groups != group).sum() for group in groups], float)
    np.testing.assert_array_equal(found.scores, np.where(others > 0, others, np.nan))
    np.testing.assert_array_equal(found.sketches[:, 0, 0], np.where(others > 0, 7.0, np.nan))
    assert found.images.tolist() == list(range(len(groups)))


@pytest.mark.parametrize("calibration", [0.3, 4, KFold(3), "leave-one-out", "auto"])
@pytest.mark.parametrize("groups", [None, np.arange(20) // 2])
def test_plan_images_are_the_images_with_calibration_scores(calibration, groups):
    if isinstance(calibration, KFold) and groups is not None:
        calibration = GroupKFold(3)
    plan = plan_calibration(calibration, groups, 20, np.random.RandomState(0))
    found = calibrated(plan, 20)
    np.testing.assert_array_equal(found.images, plan.images())
    assert (np.diff(found.images) > 0).all()
    assert np.isfinite(found.scores).all()
    assert len(found.images) == (6 if calibration == 0.3 else 20)


@pytest.mark.parametrize(("n_folds", "n_groups", "expected"), [(8, 20, 8), (40, 20, 20), (8, 3, 3), (0, 20, None)])
def test_automatic_plan_has_at_most_as_many_folds_as_groups(n_folds, n_groups, expected):
    groups = np.arange(20) % n_groups
    plan = plan_calibration("auto", groups, 20, np.random.RandomState(0)).resolved(lambda: n_folds)
    assert plan.description == ("leave-one-out" if expected is None else f"{expected} folds")
    assert np.isfinite(calibrated(plan, 20).scores).all()
    assert len(plan.left_out) == {None: 0, 3: 3}.get(expected, (expected or 0) + 3)
    for images in plan.left_out:
        assert not set(groups[images]) & set(np.delete(groups, images))


@given(slope=st.floats(-1, 1), n_folds=st.integers(4, 40), seed=st.integers(0, 99))
def test_extrapolation_factor_is_exact_if_log_scores_are_linear_in_the_fraction_left_out(slope, n_folds, seed):
    final = np.random.default_rng(seed).uniform(1, 9, 30)
    fine, coarse = 1 / n_folds, 1 / 3
    scores = [final * np.exp(slope * share) for share in (fine, coarse)]
    factor = extrapolation_factor(*scores, fine, coarse)
    np.testing.assert_allclose(scores[0] * factor, final, rtol=1e-9)


@pytest.mark.parametrize("slope", [0.02, 0.3])
def test_growth_slope_is_exact_for_a_power_of_the_number_of_images(slope):
    scores = np.random.default_rng(0).random(50) + 1
    fine, coarse = (scores * (1 - share) ** -slope for share in (0.1, 0.4))
    assert growth_slope(fine, coarse, 0.1, 0.4) == pytest.approx(slope)
    assert growth_slope(coarse, fine, 0.1, 0.4) == 0  # scores do not grow with more images
    assert growth_slope(fine, coarse, 0.4, 0.4) == 0
    assert growth_slope(fine * 0, coarse, 0.1, 0.4) == 0
    assert growth_slope(fine, fine * 4, 0.1, 0.4) == 0  # faster than 1 / n is not plausible


def test_extrapolation_factor_ignores_scores_that_have_no_logarithm():
    fine, coarse = np.array([2.0, 0.0, np.nan, 3.0]), np.array([2.5, 5.0, 6.0, 0.0])
    assert extrapolation_factor(fine, coarse, 0.25, 0.5) == pytest.approx(0.8)
    assert extrapolation_factor(fine[1:2], coarse[1:2], 0.25, 0.5) == 1
    assert extrapolation_factor(fine, coarse, 0.5, 0.5) == 1


def test_extrapolation_factor_is_1_if_coarse_models_do_not_cover_what_all_images_share():
    """Distances to the nearest of n points fall at most as 1 / n."""
    fine = np.full(12, 0.3)
    assert extrapolation_factor(fine, fine * 1.28, 1 / 12, 1 / 3) == pytest.approx(1.28 ** (-1 / 3))
    assert extrapolation_factor(fine, fine * 4, 1 / 12, 1 / 3) == 1


def test_images_with_a_structure_of_many_rows_are_not_flagged_after_a_fit_on_few_images():
    """Each of the 64 positions has its own mean. Coarse folds have 52 rows, fewer than positions."""
    rng = np.random.default_rng(0)
    means = rng.normal(0, 1, (1, 8, 8, 32))
    good, new = (means + rng.normal(0, 0.05, (n, 8, 8, 32)) for n in (12, 40))
    detector = PatchCoreDetector("precomputed", random_state=0).fit(good)
    assert detector.calibration_plan_ == "12 folds"
    assert np.mean(detector.predict(new) == -1) < 0.3  # 1/13 is promised


def test_automatic_plan_extrapolates_scores_and_maps_to_all_images():
    """The scores of `Remembered` are numbers of images, so the extrapolated scores are larger than those of folds."""
    plan = plan_calibration("auto", None, 20, np.random.RandomState(0))
    found = calibrated(plan, 20, n_folds=5)
    scores = np.full(20, 16.0), np.array([13.0] * 14 + [14.0] * 6)  # coarse folds of 7, 7 and 6 images
    factor = extrapolation_factor(*scores, 4 / 20, (14 * 7 + 6 * 6) / 20 / 20)
    np.testing.assert_allclose(found.scores, 16 * factor)
    assert 1.05 < factor < 1.4
    np.testing.assert_array_equal(found.sketches[:, 0], 7)  # the maps do not depend on the number of images


@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 99), n_groups=st.integers(2, 12))
def test_hold_out_keeps_groups_together(share, seed, n_groups):
    groups = np.random.default_rng(seed).permutation(np.arange(30) % n_groups)
    if np.ceil(share * n_groups) == n_groups:
        with pytest.raises(ValueError, match="would hold out all"):
            hold_out(groups, share, np.random.RandomState(seed))
        return
    learnt, held = hold_out(groups, share, np.random.RandomState(seed))
    assert sorted([*learnt, *held]) == list(range(30))
    assert not set(groups[learnt]) & set(groups[held])
    assert len(np.unique(groups[held])) == np.ceil(share * n_groups)


@given(cv=st.integers(2, 6), seed=st.integers(0, 99))
def test_make_folds_scores_each_image_once_and_keeps_groups_together(cv, seed):
    groups = np.random.default_rng(seed).permutation(np.arange(25) % 8)
    scored = []
    for learnt, test in make_folds(25, groups, cv, np.random.RandomState(seed)):
        assert not set(groups[learnt]) & set(groups[test])
        scored += test.tolist()
    assert sorted(scored) == list(range(25))


class Given:
    """Splitter that returns the given folds."""

    def __init__(self, *folds):
        self.folds = folds

    def split(self, X, y, groups):
        self.seen = X.shape, y.tolist(), groups
        yield from self.folds


@pytest.mark.parametrize("groups", [None, np.array(["a", "b", "c", "a"])])
def test_make_folds_passes_good_labels_to_a_splitter_and_sorts_its_folds(groups):
    splitter = Given(([3, 1, 0], [2]), ([2], [3, 0]))
    folds = make_folds(4, groups, splitter, np.random.RandomState(0))
    assert [(learnt.tolist(), scored.tolist()) for learnt, scored in folds] == [([0, 1, 3], [2]), ([2], [0, 3])]
    assert splitter.seen == ((4, 1), [1, 1, 1, 1], groups)


def test_make_folds_accepts_one_scored_image_and_refuses_none():
    ((learnt, scored),) = make_folds(3, None, Given(([0, 1], [2])), np.random.RandomState(0))
    assert (learnt.tolist(), scored.tolist()) == ([0, 1], [2])
    for nothing in (Given(), Given(([0, 1, 2], []))):
        with pytest.raises(ValueError, match="must not all be empty"):
            make_folds(3, None, nothing, np.random.RandomState(0))


@pytest.mark.parametrize("groups", [None, np.arange(12) // 2])
def test_make_folds_with_a_number_shuffles_by_random_state(groups):
    drawn = [
        [scored.tolist() for _, scored in make_folds(12, groups, 3, np.random.RandomState(seed))] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(scored) for scored in drawn[0]] == [4, 4, 4]


def test_scores_of_much_smaller_models_are_left_out_if_enough_others_are_left():
    sizes, scores = np.repeat([100, 200], [80, 120]), np.ones(200)
    assert recent_scores(sizes, 200, scores, 0.05).all()  # a model of half of the images is large enough
    np.testing.assert_array_equal(recent_scores(sizes, 300, scores, 0.05), sizes == 200)
    scores[100:130] = np.nan
    assert recent_scores(sizes, 300, scores, 0.05).all()  # 90 scores are too few for 5 %
    assert not recent_scores(sizes, 300, scores, 0.1).all()
    assert recent_scores(sizes, 300, scores, "auto").all()
