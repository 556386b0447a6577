"""fit_pod: recovers known curves, covers a90, and handles hits and misses without an estimate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from skpatchcore.evaluation.pod import fit_pod

SIZES = np.geomspace(1, 40, 60)


def hits_of(rng, sizes, middle=6.0, slope=4.0, shift=0.0):
    """Return hits of a logistic curve with the probability 0.5 at a size."""
    return rng.random(len(sizes)) < expit(slope * np.log(sizes / middle) + shift)


def test_curve_agrees_with_unpenalised_logistic_regression_for_many_trials():
    sizes = np.tile(SIZES, 20)
    hits = hits_of(np.random.default_rng(0), sizes)
    curve = fit_pod(sizes, hits)
    model = LogisticRegression(C=np.inf, tol=1e-10).fit(np.log(sizes)[:, None], hits)
    assert curve.slope == pytest.approx(model.coef_[0, 0], rel=0.03)
    assert curve.intercept == pytest.approx(model.intercept_[0], rel=0.03)
    assert curve.a90 == pytest.approx(6 * 9**0.25, rel=0.1)
    assert curve.a90 < curve.a90_95 < 1.1 * curve.a90


def test_bound_covers_the_true_a90_and_is_finite():
    true, rng = 6 * 9**0.25, np.random.default_rng(1)
    bounds = np.array([fit_pod(SIZES, hits_of(rng, SIZES)).a90_95 for _ in range(40)])
    assert (bounds >= true).mean() >= 0.9
    assert np.isfinite(bounds).mean() > 0.9
    assert np.median(bounds) < 2 * true


def test_bound_is_the_size_at_which_the_lower_bound_of_the_curve_is_90_percent():
    curve = fit_pod(SIZES, hits_of(np.random.default_rng(3), SIZES))
    assert curve.at([curve.a90])[0][0] == pytest.approx(0.9)
    assert curve.at([curve.a90_95])[1][0] == pytest.approx(0.9, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31), st.floats(0, 0.2))
def test_curves_rise_and_lie_within_their_bounds(n, seed, rate):
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(0.5, 50, n)
    curve = fit_pod(sizes, rng.random(n) < rng.random(), false_alarm_rate=rate)
    pod, low, high = curve.at(np.geomspace(0.5, 50, 20))
    assert (np.diff(pod) >= 0).all()
    assert (np.diff(low) >= -1e-9).all()
    assert ((0 <= low) & (low <= pod) & (pod <= high) & (high <= 1)).all()
    assert math.isnan(curve.a90) or curve.a90_95 >= curve.a90 or curve.state == "always reached"
    for value in (curve.a90, curve.a90_95):
        assert not math.isfinite(value) or sizes.min() <= value <= sizes.max() * (1 + 1e-9)


def test_scale_of_the_sizes_only_scales_the_result():
    hits = hits_of(np.random.default_rng(4), SIZES)
    one, other = fit_pod(SIZES, hits), fit_pod(1000 * SIZES, hits)
    assert other.a90 == pytest.approx(1000 * one.a90, rel=1e-6)
    assert other.a90_95 == pytest.approx(1000 * one.a90_95, rel=1e-6)


@pytest.mark.parametrize(
    ("hits", "state"),
    [
        (SIZES > 0, "all found"),
        (SIZES < 0, "none found"),
        (SIZES > 6, "separated"),
        (SIZES < 6, "not reached"),
        (np.arange(60) % 2 == 0, "not reached"),
        (np.arange(60) != 30, "always reached"),
    ],
)
def test_state_names_why_there_is_no_estimate(hits, state):
    curve = fit_pod(SIZES, hits)
    assert curve.state == state
    if state in ("none found", "not reached"):
        assert curve.a90 == curve.a90_95 == math.inf
    elif state in ("all found", "always reached"):
        assert math.isnan(curve.a90)
        assert 1 <= curve.a90_95 <= 40
    else:
        assert 6 < curve.a90 < curve.a90_95 < 20


def test_few_hits_without_a_miss_give_no_bound():
    assert fit_pod(SIZES[:8], np.ones(8, bool)).a90_95 == math.inf


def test_hits_by_false_alarms_are_not_capability():
    rng = np.random.default_rng(5)
    sizes = np.tile(SIZES, 10)
    flagged = hits_of(rng, sizes) | (rng.random(len(sizes)) < 0.2)
    with_floor, without = fit_pod(sizes, flagged, false_alarm_rate=0.2), fit_pod(sizes, flagged)
    assert with_floor.at([1.5])[0][0] < 0.05 < without.at([1.5])[0][0]
    assert with_floor.a90 == pytest.approx(6 * 9**0.25, rel=0.15)


def test_similar_trials_of_one_group_widen_the_bound():
    rng = np.random.default_rng(6)
    sizes, groups = np.tile(SIZES, 2), np.arange(120) % 8
    hits = hits_of(rng, sizes, shift=1.5 * rng.standard_normal(8)[groups])
    curve, independent = fit_pod(sizes, hits, groups=groups), fit_pod(sizes, hits)
    assert curve.a90 == independent.a90
    assert curve.inflation > 1.1
    assert curve.a90_95 > independent.a90_95
    assert fit_pod(sizes, hits, groups=np.arange(120)).inflation == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [], "hits": []}, "expected one of each per trial"),
        ({"sizes": [1, 2], "hits": [True]}, "expected one of each per trial"),
        ({"sizes": [1, 0], "hits": [True, False]}, "positive and finite"),
        ({"sizes": [1, np.nan], "hits": [True, False]}, "positive and finite"),
        ({"false_alarm_rate": 1}, "false_alarm_rate=1"),
        ({"confidence": 0.2}, "confidence=0.2"),
        ({"groups": [1]}, "1 groups for 60 trials"),
    ],
)
def test_fit_pod_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_pod(**{"sizes": SIZES, "hits": SIZES > 5, **arguments})
