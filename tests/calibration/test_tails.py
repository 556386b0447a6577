"""Calibration scores that look anomalous, and p-values among the calibration scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore.calibration.conformal import upper_tail_p_values
from skpatchcore.calibration.tails import anomalous_scores, left_out_p_values


def scores(n=100, seed=0):
    return np.exp(np.random.default_rng(seed).normal(1, 0.2, n))


def test_no_score_of_a_normal_distribution_is_anomalous():
    assert sum(len(anomalous_scores(scores(200, seed))) for seed in range(50)) == 0


@pytest.mark.parametrize("n_bad", [1, 5, 12])
def test_far_larger_scores_are_anomalous_the_largest_first(n_bad):
    found = scores()
    bad = np.random.default_rng(1).permutation(100)[:n_bad]
    found[bad] = 20 + np.arange(n_bad)
    assert anomalous_scores(found).tolist() == bad[::-1].tolist()


def test_nan_zero_and_infinite_scores_are_left_out():
    found = scores(30)
    found[[3, 4, 5]] = np.nan, 0, np.inf
    found[7] = 1e3
    assert anomalous_scores(found).tolist() == [7]
    assert anomalous_scores(np.zeros(50)).tolist() == []


def test_few_scores_and_nearly_equal_scores_are_not_judged():
    assert not len(anomalous_scores(np.append(np.ones(18), 50.0)))
    assert not len(anomalous_scores(np.append(np.full(40, 1.0), 1.1)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=20, max_size=60), st.floats(1e-3, 1e3))
def test_rule_does_not_depend_on_the_unit_of_the_scores(values, unit):
    found = np.array(values)
    lower, upper = np.quantile(np.log(found), [0.25, 0.75])
    fence = upper + 4 * max(upper - lower, 0.05)
    if np.abs(np.log(found) - fence).min() > 1e-9:  # rounding
        assert anomalous_scores(found * unit).tolist() == anomalous_scores(found).tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-9, 0), min_size=2, max_size=30))
def test_left_out_p_value_is_the_p_value_among_the_other_scores(values):
    found = np.array(values, float)
    expected = [upper_tail_p_values(-np.delete(found, i), -found[i : i + 1])[0] for i in range(len(found))]
    np.testing.assert_allclose(left_out_p_values(found), expected)


def test_left_out_p_value_of_nan_is_nan():
    np.testing.assert_array_equal(left_out_p_values(np.array([-1.0, np.nan, -2.0])), [1, np.nan, 0.5])
    assert np.isnan(left_out_p_values(np.full(3, np.nan))).all()
