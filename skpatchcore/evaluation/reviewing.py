"""Numbers of a review: how often a detector is right, from the answers of a person about some of its parts.

:func:`count_review`, :func:`reviewed_rates` and :func:`threshold_candidates` are functions of arrays. The parts have
two strata, because different fractions of them are reviewed: the parts that the detector flags, and the others.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from skpatchcore._utils.answers import ANSWERS, DEFECT, FINE, UNSURE
from skpatchcore.calibration.conformal import conformal_threshold, promised_rate

#: Promised false-positive rates whose thresholds are proposed.
PROMISES = (0.001, 0.01, 0.02, 0.05, 0.1)
# Largest false-positive rate that `recalibrate` accepts.
_MOST = 0.5


@dataclass(frozen=True, eq=False)
class ReviewCounts:
    """Numbers of parts in each stratum. Each stratum has one decision of the detector.

    Attributes
    ----------
    is_flagged : array of shape (n_strata,), bool
        Decision of the detector about the parts of the stratum.
    was_flagged : array of shape (n_strata,), bool
        Decision by which the parts were chosen for the review.
    n_parts, n_defect, n_fine, n_unsure : array of shape (n_strata,), int
        Number of all parts, and of the parts with each answer.
    """

    is_flagged: np.ndarray
    was_flagged: np.ndarray
    n_parts: np.ndarray
    n_defect: np.ndarray
    n_fine: np.ndarray
    n_unsure: np.ndarray

    @property
    def n_known(self) -> np.ndarray:
        """Number of parts that are marked as a defect or as fine. Array of shape (n_strata,)."""
        known: np.ndarray = self.n_defect + self.n_fine
        return known

    @property
    def n_open(self) -> np.ndarray:
        """Number of parts without an answer. Array of shape (n_strata,)."""
        n_open: np.ndarray = self.n_parts - self.n_known - self.n_unsure
        return n_open


class Estimate(NamedTuple):
    """A rate with an interval.

    Attributes
    ----------
    value, low, high : float
        The rate and the limits of its interval. NaN if the rate cannot be estimated.
    reason : {"", "flagged", "passed", "changed", "defect", "fine"}
        What is missing for an estimate: a reviewed part that is flagged, that is not flagged ("passed") or whose
        decision has changed, or a reviewed part that is a defect or fine. Empty if there is an estimate.
    """

    value: float
    low: float
    high: float
    reason: str = ""


class ReviewedRates(NamedTuple):
    """Rates over all parts, as returned by :func:`reviewed_rates`.

    Attributes
    ----------
    false_alarm : Estimate
        Fraction of the good parts that are flagged.
    miss : Estimate
        Fraction of the defective parts that are not flagged.
    """

    false_alarm: Estimate
    miss: Estimate


class ThresholdCandidate(NamedTuple):
    """A proposed threshold and its effect on the reviewed parts.

    Attributes
    ----------
    name : {"current", "promised", "all defects", "no fine part"}
        Origin of the threshold.
    threshold : float
        Threshold for anomaly scores: a part with a score **above** it is flagged.
    promised_rate : float
        Bound on the fraction of good parts that are flagged, on average over calibrations. NaN if there is none.
    contamination : float
        Value with which ``recalibrate(contamination=...)`` sets this threshold. NaN if there is none.
    n_defects_found, n_fine_flagged : int
        Number of confirmed defects and of confirmed fine parts that are flagged at this threshold.
    """

    name: str
    threshold: float
    promised_rate: float
    contamination: float
    n_defects_found: int
    n_fine_flagged: int


def count_review(is_flagged: np.ndarray, answers: np.ndarray, was_flagged: np.ndarray | None = None) -> ReviewCounts:
    """Count the answers in the strata.

    Parameters
    ----------
    is_flagged : array of shape (n_parts,), bool
        Decision of the detector: True = flagged, also for a part that could not be read.
    answers : array of shape (n_parts,)
        "defect", "fine", "unsure", or an empty text for a part that was not reviewed.
    was_flagged : array of shape (n_parts,), bool, or None, default=None
        Decision that the reviewer saw, if it may differ from `is_flagged`, e.g. because the threshold was moved since.
        Usually, most of the parts that were flagged are reviewed, and few others. Parts whose decision has changed are
        then strata of their own.

    Returns
    -------
    ReviewCounts
        The counts of the strata [flagged, not flagged], followed by the strata of changed decisions that have parts.

    Raises
    ------
    ValueError
        If the shapes differ, or if an answer is none of these.
    """
    is_flagged, answers = np.asarray(is_flagged, bool), np.asarray(answers, object)
    if is_flagged.shape != answers.shape or is_flagged.ndim != 1:
        raise ValueError(f"is_flagged has the shape {is_flagged.shape}, answers {answers.shape}: expected (n_parts,).")
    was_flagged = is_flagged if was_flagged is None else np.asarray(was_flagged, bool)
    if was_flagged.shape != is_flagged.shape:
        raise ValueError(f"was_flagged has the shape {was_flagged.shape}, expected {is_flagged.shape}.")
    for i, answer in enumerate(answers.tolist()):
        if answer not in ANSWERS:
            raise ValueError(f"answer {i} is {answer!r}: expected one of {', '.join(map(repr, ANSWERS))}.")
    strata = [(True, True), (False, False), (True, False), (False, True)]
    members = [(is_flagged == now) & (was_flagged == before) for now, before in strata]
    kept = [i for i, chosen in enumerate(members) if i < 2 or chosen.any()]

    def counted(wanted: Any) -> np.ndarray:
        return np.array([int(np.count_nonzero(wanted & members[i])) for i in kept])

    now, before = (np.array([strata[i][k] for i in kept]) for k in (0, 1))
    every = np.ones(len(answers), bool)
    return ReviewCounts(now, before, counted(every), *(counted(answers == a) for a in (DEFECT, FINE, UNSURE)))


def share_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a probability after `k` successes in `n` trials.

    Parameters
    ----------
    k, n : int
        Numbers of successes and of trials.
    confidence : float in (0, 1), default=0.95
        The interval covers the probability at least this often.

    Returns
    -------
    low, high : float
        Limits of the interval. (0, 1) if `n` is 0.

    Raises
    ------
    ValueError
        If `k` is not in ``0, ..., n``.
    """
    from scipy.stats import beta

    if not 0 <= k <= n:
        raise ValueError(f"k={k}: expected a number from 0 to n={n}.")
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - tail, k + 1, n - k))
    return low, high


def reviewed_rates(
    counts: ReviewCounts, *, confidence: float = 0.95, n_draws: int = 20_000, random_state: int = 0
) -> ReviewedRates:
    """Estimate the false-alarm rate and the miss rate over all parts from the reviewed ones.

    Parameters
    ----------
    counts : ReviewCounts
        Result of :func:`count_review`.
    confidence : float in (0, 1), default=0.95
        Probability of the intervals.
    n_draws : int, default=20_000
        Number of random draws for the intervals.
    random_state : int, default=0
        Seed of the draws.

    Returns
    -------
    ReviewedRates
        The rates with their intervals.

    Notes
    -----
    Let w be the fractions of all parts that are in each stratum, and d the fractions of defects in the strata. The
    false-alarm rate is the sum of ``w (1 - d)`` over the flagged strata, divided by the sum over all strata. The miss
    rate is the sum of ``w d`` over the strata that are not flagged, divided by the sum over all strata. The estimates
    use the observed fractions. The limits are quantiles of these expressions over independent draws from the Jeffreys
    posteriors: a Dirichlet distribution for w, and a beta distribution for each d. w is drawn, too, so that the
    interval is about future parts of the same kind and not only about the counted ones. If an estimate is 0 or 1, this
    is also the limit on that side, as usual for Jeffreys intervals.

    The intervals are valid if the reviewed parts were chosen at random among the flagged parts, and among the parts
    that were not flagged. The two fractions that are reviewed may differ.
    """
    n, known, k = counts.n_parts, counts.n_known, counts.n_defect
    is_flagged = counts.is_flagged
    unreviewed = np.flatnonzero((n > 0) & (known == 0))
    if len(unreviewed):
        is_changed = bool((is_flagged != counts.was_flagged)[unreviewed].all())
        name = "changed" if is_changed else "flagged" if is_flagged[unreviewed].all() else "passed"
        missing = Estimate(math.nan, math.nan, math.nan, name)
        return ReviewedRates(missing, missing)
    rng = np.random.default_rng(random_state)
    weights = rng.dirichlet(n + 0.5, n_draws)
    bad = rng.beta(k + 0.5, known - k + 0.5, (n_draws, len(n)))
    share = np.divide(k, known, out=np.zeros(len(n)), where=known > 0)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]

    def estimate(numbers: np.ndarray, draws: np.ndarray, chosen: np.ndarray, reason: str) -> Estimate:
        """Return the fraction of the parts that are in the chosen strata. `draws` has the shape (n_draws, n_strata)."""
        if numbers.sum() == 0:
            return Estimate(math.nan, math.nan, math.nan, reason)
        value = float(numbers[chosen].sum() / numbers.sum())
        low, high = np.quantile(draws[:, chosen].sum(axis=1) / draws.sum(axis=1), tails)
        low, high = min(float(low), value), max(float(high), value)
        return Estimate(value, 0.0 if value == 0 else low, 1.0 if value == 1 else high)

    return ReviewedRates(
        estimate(n * np.where(known > 0, 1 - share, 0), weights * (1 - bad), is_flagged, FINE),
        estimate(n * share, weights * bad, ~is_flagged, DEFECT),
    )


def threshold_candidates(
    anomaly_scores: np.ndarray,
    answers: np.ndarray,
    calibration_scores: np.ndarray,
    threshold: float,
    current_rate: float = math.nan,
) -> list[ThresholdCandidate]:
    """Return thresholds with their effect on the reviewed parts; all scores are **bigger = more anomalous**.

    Parameters
    ----------
    anomaly_scores : array of shape (n_parts,)
        Anomaly scores of the parts. NaN is a part that could not be read: it is flagged at each threshold.
    answers : array of shape (n_parts,)
        As for :func:`count_review`.
    calibration_scores : array of shape (n_calibration,)
        Anomaly scores of the calibration images. NaN is left out.
    threshold : float
        The current threshold.
    current_rate : float, default=NaN
        False-positive rate that the current threshold promises.

    Returns
    -------
    list of ThresholdCandidate
        The current threshold; the thresholds of promised rates that the calibration scores can promise; "all defects":
        the calibration score with the smallest promised rate at which all confirmed defects are flagged; and "no fine
        part": the lowest calibration score at which no confirmed fine part is flagged, or the score of the most
        anomalous fine part if it is above all calibration scores. The last two are left out if there is no such part.

    Notes
    -----
    The promised rate of "all defects" is the largest conformal p-value of the defects, as in ``update
    --move-threshold``. The last two thresholds were chosen by the reviewed parts, so that their counts on the same
    parts are too good.
    """
    scores, answers = np.asarray(anomaly_scores, np.float64), np.asarray(answers, object)
    known = np.sort(np.asarray(calibration_scores, np.float64))
    known = known[~np.isnan(known)]
    n = len(known)

    def candidate(name: str, value: float, promised: float, contamination: float) -> ThresholdCandidate:
        is_flagged = np.isnan(scores) | (scores > value)
        found, alarms = (int(np.count_nonzero(is_flagged & (answers == answer))) for answer in (DEFECT, FINE))
        return ThresholdCandidate(name, float(value), promised, contamination, found, alarms)

    found = [candidate("current", threshold, current_rate, math.nan)]
    if not n:
        return found
    smallest = promised_rate(n, 0.0)
    for rate in PROMISES:
        if rate >= smallest:
            found.append(candidate("promised", _quiet_threshold(known, rate), rate, rate))
    defects, fine = (scores[(answers == answer) & ~np.isnan(scores)] for answer in (DEFECT, FINE))
    if len(defects):
        lowest = defects.min()
        rate = float(1 + np.count_nonzero(known >= lowest)) / (n + 1)
        is_useful = rate <= _MOST
        value = _quiet_threshold(known, rate) if is_useful else np.nextafter(lowest, -np.inf)
        found.append(candidate("all defects", value, rate, rate if is_useful else math.nan))
    if len(fine):
        highest = fine.max()
        place = int(np.searchsorted(known, highest, side="left"))  # index of the first score that is not below it
        rate = min((n - place) / (n + 1), _MOST)
        if place == n:
            found.append(candidate("no fine part", highest, smallest, math.nan))
        else:
            found.append(candidate("no fine part", _quiet_threshold(known, rate), rate, rate))
    return found


def _quiet_threshold(known: np.ndarray, rate: float) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the calibration scores can promise these rates
        return conformal_threshold(known, rate)
