"""The numbers of a review: counts, intervals, rates over all parts, and proposed thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from skpatchcore._utils.answers import ANSWERS
from skpatchcore.calibration.conformal import conformal_p_values, conformal_threshold
from skpatchcore.evaluation.reviewing import (
    ReviewCounts,
    count_review,
    reviewed_rates,
    share_interval,
    threshold_candidates,
)


def counts_of(flagged, passed):
    """Return counts from (parts, defects, fine) of each stratum."""
    columns = np.array([flagged, passed]).T
    decisions = np.array([True, False])
    return ReviewCounts(decisions, decisions, columns[0], columns[1], columns[2], np.zeros(2, int))


PARTS = st.lists(st.tuples(st.booleans(), st.sampled_from(ANSWERS)), max_size=40)


@given(PARTS)
def test_counts_add_up_to_all_parts(parts):
    flagged, answers = (np.array(column, object) for column in zip(*parts, strict=True)) if parts else ([], [])
    counts = count_review(flagged, answers)
    assert counts.n_parts.sum() == len(parts)
    np.testing.assert_array_equal(counts.n_known + counts.n_unsure + counts.n_open, counts.n_parts)
    assert counts.n_defect[0] == sum(flag and answer == "defect" for flag, answer in parts)
    assert counts.n_fine[1] == sum(not flag and answer == "fine" for flag, answer in parts)


def test_unknown_answer_is_an_error_that_names_its_place():
    with pytest.raises(ValueError, match="answer 1 is 'maybe'"):
        count_review([True, False], ["fine", "maybe"])
    with pytest.raises(ValueError, match="shape"):
        count_review([True], ["fine", "fine"])


@given(st.integers(0, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_share_interval_is_the_one_of_scipy(pair):
    k, n = pair
    low, high = share_interval(k, n)
    assert 0 <= low <= high <= 1
    if n:
        known = binomtest(k, n).proportion_ci(0.95, method="exact")
        assert (low, high) == (pytest.approx(known.low), pytest.approx(known.high))
        assert low <= k / n <= high
    else:
        assert (low, high) == (0, 1)


def test_share_interval_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="k=4"):
        share_interval(4, 3)


STRATUM = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 200)).map(
    lambda some: (sum(some), some[0], some[1])
)


@settings(max_examples=60)
@given(STRATUM, STRATUM)
def test_rates_lie_in_their_intervals_or_state_what_is_missing(flagged, passed):
    counts = counts_of(flagged, passed)
    for rate in reviewed_rates(counts, n_draws=500):
        if rate.reason:
            assert all(map(math.isnan, rate[:3]))
        else:
            assert 0 <= rate.low <= rate.value <= rate.high <= 1
    unreviewed = [n > 0 and k + f == 0 for n, k, f in (flagged, passed)]
    reasons = {rate.reason for rate in reviewed_rates(counts, n_draws=10)}
    if any(unreviewed):
        assert reasons == {"passed" if unreviewed[1] else "flagged"}
    else:
        assert reasons <= {"", "defect", "fine"}


def test_rates_weight_the_strata_with_their_numbers_of_parts():
    # 40 of 50 flagged parts are defects. 1 of 100 reviewed parts of the 900 that are not flagged is one: 9 of all.
    counts = counts_of((50, 40, 10), (900, 1, 99))
    false_alarm, miss = reviewed_rates(counts)
    assert false_alarm.value == pytest.approx(10 / (10 + 891))
    assert miss.value == pytest.approx(9 / (40 + 9))
    assert miss.low < 0.05
    assert miss.high > 0.4
    assert reviewed_rates(counts) == reviewed_rates(counts)
    assert reviewed_rates(counts, random_state=1) != reviewed_rates(counts)


def test_changed_decisions_are_strata_of_their_own():
    # All 20 flagged parts were reviewed, and 10 of 100 others. The new threshold flags 10 fewer.
    was = np.arange(120) < 20
    now = np.arange(120) < 10
    given_answers = ["defect"] * 9 + ["fine"] + ["defect"] * 4 + ["fine"] * 6 + ["defect"] + ["fine"] * 9
    answers = np.array(given_answers + [""] * 90)
    counts = count_review(now, answers.astype(object), was)
    assert counts.is_flagged.tolist() == [True, False, False]
    assert counts.was_flagged.tolist() == [True, False, True]
    assert counts.n_parts.tolist() == [10, 100, 10]
    false_alarm, miss = reviewed_rates(counts)
    assert false_alarm.value == pytest.approx(1 / (1 + 6 + 90))
    assert miss.value == pytest.approx((4 + 10) / (9 + 4 + 10))  # 14 of 20 without the strata: 42 instead of 14 misses
    answers[10:20] = ""
    assert {rate.reason for rate in reviewed_rates(count_review(now, answers.astype(object), was))} == {"changed"}


def test_more_answers_make_the_interval_narrower():
    misses = [reviewed_rates(counts_of((60, 30, 30), (900, n // 50, n))).miss for n in (50, 400)]
    assert misses[1].high - misses[1].low < misses[0].high - misses[0].low


def test_rates_without_a_defect_or_without_a_flagged_part():
    false_alarm, miss = reviewed_rates(counts_of((0, 0, 0), (100, 0, 50)))
    assert false_alarm[:2] == (0, 0)
    assert 0 < false_alarm.high < 0.1
    assert miss.reason == "defect"
    false_alarm, miss = reviewed_rates(counts_of((20, 20, 0), (100, 0, 50)))
    assert miss[:2] == (0, 0)
    assert 0 < miss.high < 0.5
    assert false_alarm[:2] == (0, 0)


@pytest.mark.parametrize(
    ("defect_rate", "recall", "alarm_rate", "n_passed"),
    [(0.1, 0.8, 0.05, 200), (0.05, 0.9, 0.02, 150), (0.3, 0.6, 0.2, 80)],
)
def test_intervals_cover_the_true_rates_in_simulations(defect_rate, recall, alarm_rate, n_passed):
    """All flagged parts and a random sample of the others are reviewed. 95 % of 400 intervals should cover."""
    rng, n_runs, n_parts = np.random.default_rng(0), 400, 800
    covered = np.zeros(2)
    for run in range(n_runs):
        is_bad = rng.random(n_parts) < defect_rate
        is_flagged = rng.random(n_parts) < np.where(is_bad, recall, alarm_rate)
        answers = np.where(is_bad, "defect", "fine").astype(object)
        passed = np.flatnonzero(~is_flagged)
        answers[rng.permutation(passed)[n_passed:]] = ""
        rates = reviewed_rates(count_review(is_flagged, answers), n_draws=1000, random_state=run)
        truth = alarm_rate, 1 - recall
        covered += [rate.low <= true <= rate.high for rate, true in zip(rates, truth, strict=True)]
    # The standard error of each fraction is 1.1 %.
    assert (covered / n_runs > 0.92).all()
    assert (covered / n_runs < 0.995).all()


SCORES = st.lists(st.one_of(st.integers(0, 30).map(float), st.just(math.nan)), min_size=1, max_size=30)


@settings(max_examples=100)
@given(SCORES, st.lists(st.integers(0, 30), min_size=1, max_size=40), st.data())
def test_candidates_do_what_their_names_say(scores, calibration, data):
    scores, known = np.array(scores), np.array(calibration, float)
    answers = np.array([data.draw(st.sampled_from(ANSWERS)) for _ in scores], object)
    found = threshold_candidates(scores, answers, known, 10.0, 0.05)
    by_name = {one.name: one for one in found}
    n_defects, n_unread = int((answers == "defect").sum()), np.isnan(scores)
    assert found[0].name == "current"
    assert found[0].n_fine_flagged == int(((answers == "fine") & ~(scores <= 10)).sum())
    for one in found:
        if not math.isnan(one.contamination):
            assert one.threshold == conformal_threshold(known, one.contamination)
            assert 1 / (len(known) + 1) <= one.promised_rate <= 0.5
    if "all defects" in by_name:
        best = by_name["all defects"]
        assert best.n_defects_found == n_defects
        worst = -scores[(answers == "defect") & ~n_unread]
        assert best.promised_rate == pytest.approx(conformal_p_values(-known, worst).max())
    if "no fine part" in by_name:
        assert by_name["no fine part"].n_fine_flagged == int(((answers == "fine") & n_unread).sum())


def test_lowest_threshold_without_false_alarms_would_flag_a_fine_part_one_step_lower():
    known = np.arange(1.0, 100.0)
    answers = np.array(["fine", "fine", "defect"], object)
    (one,) = [c for c in threshold_candidates([50.0, 80.5, 95.5], answers, known, 60.0) if c.name == "no fine part"]
    assert one.threshold == 81
    assert one.promised_rate == pytest.approx(0.19)
    (above,) = [c for c in threshold_candidates([50.0, 200.0, 95.5], answers, known, 60.0) if c.name == "no fine part"]
    assert above.threshold == 200
    (tied,) = [c for c in threshold_candidates([50.0, 80.0, 95.5], answers, known, 60.0) if c.name == "no fine part"]
    assert tied.threshold == 80
    assert math.isnan(above.contamination)
    assert above.n_defects_found == 0


def test_only_rates_that_can_be_promised_are_proposed():
    answers = np.array([""], object)
    found = threshold_candidates([1.0], answers, np.arange(30.0), 5.0)
    assert [one.promised_rate for one in found if one.name == "promised"] == [0.05, 0.1]
    assert [c.name for c in threshold_candidates([1.0], answers, np.zeros(0), 5.0)] == ["current"]
