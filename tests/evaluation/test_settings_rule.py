"""Statistics of select_settings: found shares, standard errors and the rule of the choice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from skpatchcore.evaluation._settings_rule import Comparison, choose, compare, found_shares, largest_rate, needed_errors


def test_largest_rate_is_twice_the_contamination_but_never_below_three_steps():
    assert largest_rate(0.05, 1000) == pytest.approx(0.1)
    assert largest_rate(0.01, 29) == pytest.approx(3 / 30)
    assert largest_rate(0.5, 100) == 1.0
    assert largest_rate(0.05, 1) == 1.0


def test_found_shares_are_the_fractions_of_rates_at_which_a_defect_is_found():
    good = np.arange(9.0)  # p-values are multiples of 1 / 10
    shares = found_shares(good, np.array([8.5, 7.5, 6.5, -1.0]), 0.3)[:, 0]
    np.testing.assert_allclose(shares, [1.0, 0.5, 0.0, 0.0], atol=1e-12)


def test_ties_with_good_images_do_not_count_as_found():
    assert found_shares(np.ones(9), np.ones(1), 0.3)[0, 0] == 0


@given(st.integers(0, 10_000), st.integers(20, 80))
def test_mean_of_found_shares_is_the_partial_area_under_the_roc_curve(seed, n_good):
    rng = np.random.default_rng(seed)
    good, defects = rng.normal(size=n_good), rng.normal(1, size=50)
    # The defect is found at the rates of at least (1 + number of good images with a higher score) / (n_good + 1).
    rates, recalls, _ = roc_curve([0] * n_good + [1] * 50, [*good, *defects], drop_intermediate=False)
    shifted = (1 + rates * n_good) / (n_good + 1)
    rate = 0.2
    grid = np.linspace(1 / (n_good + 1), rate, 4001)
    at = np.array([recalls[shifted <= r + 1e-12].max(initial=0) for r in grid])
    assert found_shares(good, defects, rate).mean() == pytest.approx(at.mean(), abs=2e-3)


def test_a_gain_of_all_kinds_has_a_small_error_and_a_gain_of_one_kind_a_large_one():
    rng = np.random.default_rng(0)
    n_good, n_kinds, n_each = 60, 8, 30
    kinds, images = np.repeat(np.arange(n_kinds), n_each), rng.integers(0, n_good, n_kinds * n_each)
    good = np.tile(rng.normal(size=n_good), (3, 1))
    base = rng.normal(1.2, 1, n_kinds * n_each)
    everywhere = base + 0.5
    once = base + 6.0 * (kinds == 0)
    comparison = compare(good, np.array([base, everywhere, once]), kinds, images, 0.1, 0)
    gains, errors = comparison.gains_over(0)
    assert gains[0] == errors[0] == 0
    assert min(gains[1:]) > 0.05
    assert errors[1] < gains[1] / 3
    assert errors[2] > gains[2] / 2
    assert comparison.by_kind.shape == (3, n_kinds)
    np.testing.assert_allclose(comparison.found, comparison.by_kind.mean(axis=1))


def test_comparison_is_reproducible_and_depends_on_the_seed():
    rng = np.random.default_rng(1)
    arguments = (rng.normal(size=(2, 20)), rng.normal(1, size=(2, 40)), np.arange(40) % 4, np.arange(40) % 20, 0.2)
    first, again, other = (compare(*arguments, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.draws, again.draws)
    assert not np.array_equal(first.draws, other.draws)
    np.testing.assert_array_equal(first.found, other.found)


def made(found, spreads, seed=0):
    """Return a comparison with given means, whose differences from setting 0 have given standard errors."""
    noise = np.random.default_rng(seed).standard_normal((len(found), 2000))
    noise[0] = 0
    draws = np.array(found)[:, None] + np.array(spreads)[:, None] * noise
    return Comparison(np.array(found), np.zeros((len(found), 1)), draws)


def test_given_setting_is_kept_unless_the_best_one_is_clearly_better():
    assert choose(made([0.5, 0.55], [0, 0.05]), np.array([0, 1]), 0.9) == 0
    assert choose(made([0.5, 0.60], [0, 0.05]), np.array([0, 1]), 0.9) == 1
    assert choose(made([0.5, 0.40], [0, 0.01]), np.array([0, 1]), 0.9) == 0
    assert choose(made([0.5, 0.60], [0, 0.05]), np.array([0, 1]), 0.99) == 0
    assert choose(made([0.5, 0.5], [0, 0]), np.array([0, 1]), 0.9) == 0


def test_more_settings_need_more_standard_errors():
    few, many = (needed_errors(made([0.5] * n, [0, *[0.05] * (n - 1)]), 0.9) for n in (2, 25))
    assert few == pytest.approx(1.28, abs=0.12)  # the 90 % quantile of a normal distribution
    assert many == pytest.approx(2.62, abs=0.15)  # its quantile of 0.9 ** (1 / 24)


def test_equal_settings_are_rarely_told_apart():
    rng = np.random.default_rng(0)
    n_wrong = 0
    for seed in range(40):
        kinds, images = np.repeat(np.arange(8), 20), rng.integers(0, 40, 160)
        good, defects = rng.normal(size=(1, 40)), rng.normal(1.5, 1, (1, 160))
        good = good + rng.normal(0, 0.4, (10, 40))
        defects = defects + rng.normal(0, 0.4, (10, 160))
        n_wrong += choose(compare(good, defects, kinds, images, 0.1, seed), np.arange(10), 0.9) != 0
    assert n_wrong <= 9  # expected: 4; more than 9 have a probability below 1 %


def test_groups_of_equal_images_have_larger_errors():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 8)
    good = rng.normal(size=(2, 8))[:, groups]
    defects = rng.normal(1, 1, (2, 8))[:, groups]
    arguments = (good, defects, np.arange(64) % 4, np.arange(64), 0.2, 0)
    (_, alone), (_, grouped) = (compare(*arguments, some).gains_over(0) for some in (None, groups))
    assert grouped[1] > 1.5 * alone[1]


def test_fewest_changes_win_within_one_standard_error_of_the_best():
    comparison = made([0.5, 0.68, 0.70, 0.55], [0, 0.02, 0.02, 0.02])
    assert choose(comparison, np.array([0, 1, 3, 1]), 0.9) == 1
    assert choose(comparison, np.array([0, 3, 1, 1]), 0.9) == 2
    clear = made([0.5, 0.62, 0.70], [0, 0.02, 0.02])
    assert choose(clear, np.array([0, 1, 3]), 0.9) == 2
