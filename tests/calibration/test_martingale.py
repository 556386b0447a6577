from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skpatchcore.calibration.martingale import SLOPES, ConformalRanks, TestMartingale, bets

# The bets are linear in p, so that the mean over these two points is their integral over [0, 1].
ENDS = np.array([0.0, 1.0])


@given(
    reference=st.lists(st.integers(-5, 5), max_size=20),
    new=st.lists(st.tuples(st.integers(-6, 6), st.floats(0.01, 0.99)), min_size=1, max_size=20),
)
def test_conformal_ranks_count_larger_and_equal_values(reference, new):
    ranks, seen = ConformalRanks(np.array(reference, float)), list(reference)
    for value, tie in new:
        larger, equal = sum(v > value for v in seen), sum(v == value for v in seen)
        expected = (larger + tie * (1 + equal)) / (1 + len(seen))
        assert ranks.add(value, tie) == pytest.approx(expected)
        seen.append(value)


@pytest.mark.parametrize("n_reference", [0, 3, 20])
@pytest.mark.parametrize("draw", [lambda rng, size: rng.normal(size=size), lambda rng, size: rng.integers(0, 3, size)])
def test_p_values_of_exchangeable_values_are_uniform_and_uncorrelated(n_reference, draw):
    rng = np.random.default_rng(0)
    found = np.empty((4000, 4))
    for row in found:
        ranks = ConformalRanks(draw(rng, n_reference).astype(float))
        row[:] = [ranks.add(value, tie) for value, tie in zip(draw(rng, 4).astype(float), rng.random(4), strict=True)]
    for quantile in (0.05, 0.3, 0.5, 0.9):
        np.testing.assert_allclose((found <= quantile).mean(axis=0), quantile, atol=0.035)
    assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.06


def test_bets_have_the_expected_value_1_and_bounded_gain():
    factors = bets(ENDS)
    np.testing.assert_allclose(factors.mean(axis=0), 1)
    assert factors.shape == (2, 2 * len(SLOPES))
    assert factors.min() == 0
    assert factors.max() == 2
    middle = bets(np.array([0.25]))[0]
    np.testing.assert_allclose(middle, 0.75 * factors[0] + 0.25 * factors[1])  # linear in p


@given(share=st.floats(0, 0.5))
def test_bets_allow_for_defective_images(share):
    factors = bets(ENDS, share)
    for largest in (0, 1):  # all defective images are at the end with the largest factor
        mixed = (1 - share) * factors.mean(axis=0) + share * factors[largest]
        assert (mixed <= 1 + 1e-12).all()
    np.testing.assert_allclose((1 - share) * factors.mean(axis=0) + share * factors.max(axis=0), 1)


def test_bets_on_an_unknown_value_change_no_capital():
    np.testing.assert_array_equal(bets(np.array([math.nan]), 0.1), 1)


def test_capital_has_the_expected_value_1_at_each_step():
    weights = np.array([[0.1] * 6, [0.4 / 6] * 6])
    rng = np.random.default_rng(0)
    before = TestMartingale(weights)
    for _ in range(5):
        before.update(rng.random(2))
    capital, after = np.exp(before.log_capital()), []
    for p in ENDS:
        one = TestMartingale(weights)
        one.n, one._log_active = before.n, before._log_active.copy()
        log_evidence = one.update(np.array([p, p]))
        assert log_evidence == one.log_capital().max()
        after.append(np.exp(one.log_capital()))
    np.testing.assert_allclose(np.mean(after, axis=0), capital)
    np.testing.assert_allclose(np.exp(TestMartingale(weights).log_capital()), [0.6, 0.4])


def test_capital_is_the_average_over_all_starts():
    weights, p_values = np.full((1, 6), 1 / 6), np.random.default_rng(0).random(7)
    martingale = TestMartingale(weights)
    for p in p_values:
        log_capital = martingale.update(np.array([p]))
    factors = np.array([bets(np.array([p]))[0] for p in p_values])
    parts = [factors[i:].prod(axis=0).mean() / ((i + 1) * (i + 2)) for i in range(7)]
    assert math.exp(log_capital) == pytest.approx(sum(parts) + 1 / 8)


def test_capital_does_not_overflow():
    martingale = TestMartingale(np.full((1, 6), 1 / 6))
    for _ in range(3000):
        log_capital = martingale.update(np.array([1e-12]))
    assert 2000 < log_capital < 3000 * math.log(2)


def test_false_alarms_are_at_most_alpha():
    rng, highest = np.random.default_rng(0), []
    for _ in range(300):
        martingale = TestMartingale(np.full((1, 6), 1 / 6))
        highest.append(max(martingale.update(p) for p in rng.random((100, 1))))
    for alpha in (0.01, 0.1, 0.5):
        assert np.mean(np.array(highest) >= -math.log(alpha)) <= alpha + 3 * math.sqrt(alpha / 300)
    assert np.mean(np.array(highest) >= -math.log(0.5)) > 0.1
