from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from skpatchcore.calibration.conformal import (
    adjusted_p_values,
    conformal_p_values,
    conformal_threshold,
    likely_rate,
)


@given(
    scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60, unique=True),
    contamination=st.floats(0.01, 0.5),
)
def test_conformal_threshold_is_the_conformal_quantile(scores, contamination):
    scores, n = np.array(scores), len(scores)
    if contamination < 1 / (n + 1) - 1e-9:
        with pytest.warns(UserWarning, match=rf"1/{n + 1} = {1 / (n + 1):.3g}\. "):
            assert conformal_threshold(scores, contamination) == scores.max()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at exactly 1 / (n + 1), rounding decides whether a warning is raised
        threshold = conformal_threshold(scores, contamination)
    # A new exchangeable score is above the threshold with probability (1 + number of scores above it) / (n + 1).
    assert (1 + (scores > threshold).sum()) / (n + 1) <= contamination + 1e-6 or threshold == scores.max()
    # The next lower score would exceed `contamination`.
    below = scores[scores < threshold]
    if len(below):
        assert (1 + (scores > below.max()).sum()) / (n + 1) > contamination - 1e-6


@given(scores=st.lists(st.floats(-10, 10), min_size=12, max_size=40))
def test_conformal_threshold_decreases_as_contamination_increases(scores):
    shares = [0.1, 0.2, 0.3, 0.5]
    thresholds = [conformal_threshold(np.array(scores), share) for share in shares]
    assert thresholds == sorted(thresholds, reverse=True)


def test_conformal_threshold_flags_the_fraction_contamination_of_new_scores():
    rng = np.random.default_rng(0)
    rates = [(rng.normal(size=500) > conformal_threshold(rng.normal(size=99), 0.1)).mean() for _ in range(200)]
    assert np.mean(rates) == pytest.approx(0.1, abs=0.01)


def test_conformal_threshold_auto_is_the_largest_score():
    scores = np.array([1.0, 5.0, np.nan, 3.0])
    assert conformal_threshold(scores, "auto") == 5.0


def test_conformal_threshold_without_scores_is_nan():
    assert math.isnan(conformal_threshold(np.array([np.nan]), "auto"))
    assert math.isnan(conformal_threshold(np.array([]), 0.1))


@given(
    calibration=st.lists(st.integers(-20, 20), min_size=1, max_size=40),
    scores=st.lists(st.integers(-25, 25), min_size=1, max_size=10),
)
def test_conformal_p_values_count_the_calibration_scores_up_to_the_score(calibration, scores):
    values = conformal_p_values([*calibration, np.nan], scores)
    expected = [(1 + sum(c <= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    np.testing.assert_allclose(values, expected)
    assert (values > 0).all()
    of_objects = conformal_p_values(np.array(calibration, object), np.array(scores, object))
    np.testing.assert_array_equal(of_objects, values)


@pytest.mark.parametrize("n", [9, 50])
@pytest.mark.parametrize("draw", [lambda rng, size: rng.normal(size=size), lambda rng, size: rng.integers(0, 4, size)])
def test_conformal_p_values_of_exchangeable_scores_are_super_uniform(n, draw):
    rng = np.random.default_rng(0)
    values = np.array([conformal_p_values(s[:-1], s[-1:])[0] for s in draw(rng, (20000, n + 1)).astype(float)])
    for level in (0.02, 0.1, 0.3, 0.7):
        assert (values <= level).mean() <= level + 3 * np.sqrt(level / 20000)


def test_conformal_p_values_refuses_missing_calibration_scores_and_nan():
    with pytest.raises(ValueError, match="no calibration scores"):
        conformal_p_values([np.nan], [1.0])
    with pytest.raises(ValueError, match="score 1 is NaN"):
        conformal_p_values([1.0, 2.0], [0.0, np.nan])


@pytest.mark.parametrize(("n", "contamination"), [(28, 0.01), (99, 0.05), (200, 0.1)])
def test_one_threshold_in_twenty_exceeds_the_likely_rate(n, contamination):
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thresholds = [conformal_threshold(rng.random(n), contamination) for _ in range(4000)]
    rates = 1 - np.array(thresholds)  # the scores are uniform
    assert (rates > likely_rate(n, contamination)).mean() == pytest.approx(0.05, abs=0.012)


@given(values=st.lists(st.floats(0.001, 1), min_size=1, max_size=30), method=st.sampled_from(["bh", "by"]))
def test_adjusted_p_values_equal_those_of_scipy(values, method):
    p_values = np.array([*values, values[0]])  # with a tie
    expected = false_discovery_control(p_values, method=method)
    np.testing.assert_allclose(adjusted_p_values(p_values, method), expected, rtol=1e-12)
    assert adjusted_p_values(p_values, None) is p_values
