from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, KFold

from skpatchcore.calibration.conformal import conformal_p_values, conformal_threshold
from skpatchcore.calibration.plan import LeaveOneOut, hold_out, make_folds, plan_calibration
from skpatchcore.patches.stream import PatchStream


@given(
    scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60, unique=True),
    contamination=st.floats(0.01, 0.5),
)
def test_the_threshold_is_the_conformal_quantile(scores, contamination):
    scores, n = np.array(scores), len(scores)
    if contamination < 1 / (n + 1) - 1e-9:
        with pytest.warns(UserWarning, match=rf"1/{n + 1} = {1 / (n + 1):.3g}\. "):
            assert conformal_threshold(scores, contamination) == scores.max()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at the very limit, rounding decides
        threshold = conformal_threshold(scores, contamination)
    # The promise: a new exchangeable score is above with probability (images at or beyond it) / (n + 1).
    assert (1 + (scores > threshold).sum()) / (n + 1) <= contamination + 1e-6 or threshold == scores.max()
    # And no threshold below it would keep it.
    below = scores[scores < threshold]
    if len(below):
        assert (1 + (scores > below.max()).sum()) / (n + 1) > contamination - 1e-6


@given(scores=st.lists(st.floats(-10, 10), min_size=12, max_size=40))
def test_the_threshold_falls_as_contamination_grows(scores):
    shares = [0.1, 0.2, 0.3, 0.5]
    thresholds = [conformal_threshold(np.array(scores), share) for share in shares]
    assert thresholds == sorted(thresholds, reverse=True)


def test_fresh_images_are_flagged_as_promised():
    rng = np.random.default_rng(0)
    rates = [(rng.normal(size=500) > conformal_threshold(rng.normal(size=99), 0.1)).mean() for _ in range(200)]
    assert np.mean(rates) == pytest.approx(0.1, abs=0.01)


def test_auto_flags_no_calibration_image():
    scores = np.array([1.0, 5.0, np.nan, 3.0])
    assert conformal_threshold(scores, "auto") == 5.0


def test_nothing_to_calibrate_gives_no_threshold():
    assert math.isnan(conformal_threshold(np.array([np.nan]), "auto"))
    assert math.isnan(conformal_threshold(np.array([]), 0.1))


class Remembered:
    """A model of which image's patches it holds: an image scores the number of images that it is compared with."""

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


def calibrated(plan, n_images):
    """Return what a plan makes of images whose patch features are their own numbers."""
    numbers = np.repeat(np.arange(n_images), 4).astype(np.float32)
    features = np.stack([numbers, numbers], axis=1).reshape(n_images, 2, 2, 2)
    stream = PatchStream(None, features)
    learnt = stream if plan.learnt is None else stream.subset(plan.learnt)

    def learn(patches):
        return Remembered(int(row) for batch in patches for row in batch.rows[:, 0])

    return plan.calibrate(stream, learnt, learn(learnt), learn, lambda grid, view: grid.max())


@given(groups=st.lists(st.integers(0, 6), min_size=2, max_size=40))
@settings(deadline=None)
def test_leave_one_out_scores_each_image_without_its_group(groups):
    groups = np.array(groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = calibrated(LeaveOneOut(groups), len(groups))
    others = np.array([(groups != group).sum() for group in groups], float)
    np.testing.assert_array_equal(found.scores, np.where(others > 0, others, np.nan))
    np.testing.assert_array_equal(found.peaks, np.where(others > 0, 7.0, np.nan))
    assert found.images.tolist() == list(range(len(groups)))


@pytest.mark.parametrize("calibration", [0.3, 4, KFold(3), "leave-one-out"])
@pytest.mark.parametrize("groups", [None, np.arange(20) // 2])
def test_plans_name_the_images_that_they_score(calibration, groups):
    if isinstance(calibration, KFold) and groups is not None:
        calibration = GroupKFold(3)
    plan = plan_calibration(calibration, groups, 20, np.random.RandomState(0))
    found = calibrated(plan, 20)
    np.testing.assert_array_equal(found.images, plan.images())
    assert (np.diff(found.images) > 0).all()
    assert np.isfinite(found.scores).all()
    assert len(found.images) == (6 if calibration == 0.3 else 20)


@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 99), n_groups=st.integers(2, 12))
def test_whole_groups_are_held_out(share, seed, n_groups):
    groups = np.random.default_rng(seed).permutation(np.arange(30) % n_groups)
    if np.ceil(share * n_groups) == n_groups:
        with pytest.raises(ValueError, match="train set will be empty"):
            hold_out(groups, share, np.random.RandomState(seed))
        return
    learnt, held = hold_out(groups, share, np.random.RandomState(seed))
    assert sorted([*learnt, *held]) == list(range(30))
    assert not set(groups[learnt]) & set(groups[held])
    assert len(np.unique(groups[held])) == np.ceil(share * n_groups)


@given(cv=st.integers(2, 6), seed=st.integers(0, 99))
def test_folds_score_each_image_once_and_keep_groups_together(cv, seed):
    groups = np.random.default_rng(seed).permutation(np.arange(25) % 8)
    scored = []
    for learnt, test in make_folds(25, groups, cv, np.random.RandomState(seed)):
        assert not set(groups[learnt]) & set(groups[test])
        scored += test.tolist()
    assert sorted(scored) == list(range(25))


class Given:
    """A splitter with the folds that it is given."""

    def __init__(self, *folds):
        self.folds = folds

    def split(self, X, y, groups):
        self.seen = X.shape, y.tolist(), groups
        yield from self.folds


@pytest.mark.parametrize("groups", [None, np.array(["a", "b", "c", "a"])])
def test_a_splitter_sees_good_images_and_its_folds_are_put_in_order(groups):
    splitter = Given(([3, 1, 0], [2]), ([2], [3, 0]))
    folds = make_folds(4, groups, splitter, np.random.RandomState(0))
    assert [(learnt.tolist(), scored.tolist()) for learnt, scored in folds] == [([0, 1, 3], [2]), ([2], [0, 3])]
    assert splitter.seen == ((4, 1), [1, 1, 1, 1], groups)


def test_one_image_that_is_scored_is_enough_and_none_is_refused():
    ((learnt, scored),) = make_folds(3, None, Given(([0, 1], [2])), np.random.RandomState(0))
    assert (learnt.tolist(), scored.tolist()) == ([0, 1], [2])
    for nothing in (Given(), Given(([0, 1, 2], []))):
        with pytest.raises(ValueError, match="must not all be empty"):
            make_folds(3, None, nothing, np.random.RandomState(0))


@pytest.mark.parametrize("groups", [None, np.arange(12) // 2])
def test_folds_of_a_number_are_shuffled_by_the_seed(groups):
    drawn = [
        [scored.tolist() for _, scored in make_folds(12, groups, 3, np.random.RandomState(seed))] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(scored) for scored in drawn[0]] == [4, 4, 4]


@given(
    calibration=st.lists(st.integers(-20, 20), min_size=1, max_size=40),
    scores=st.lists(st.integers(-25, 25), min_size=1, max_size=10),
)
def test_p_values_count_calibration_scores_that_are_at_most_the_score(calibration, scores):
    values = conformal_p_values([*calibration, np.nan], scores)
    expected = [(1 + sum(c <= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    np.testing.assert_allclose(values, expected)
    assert (values > 0).all()
    of_objects = conformal_p_values(np.array(calibration, object), np.array(scores, object))
    np.testing.assert_array_equal(of_objects, values)


@pytest.mark.parametrize("n", [9, 50])
@pytest.mark.parametrize("draw", [lambda rng, size: rng.normal(size=size), lambda rng, size: rng.integers(0, 4, size)])
def test_p_values_of_exchangeable_scores_are_super_uniform(n, draw):
    rng = np.random.default_rng(0)
    values = np.array([conformal_p_values(s[:-1], s[-1:])[0] for s in draw(rng, (20000, n + 1)).astype(float)])
    for level in (0.02, 0.1, 0.3, 0.7):
        assert (values <= level).mean() <= level + 3 * np.sqrt(level / 20000)


def test_p_values_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no calibration scores"):
        conformal_p_values([np.nan], [1.0])
    with pytest.raises(ValueError, match="score 1 is NaN"):
        conformal_p_values([1.0, 2.0], [0.0, np.nan])
