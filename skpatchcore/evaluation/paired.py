"""Statistics of a comparison of detectors: DeLong's test, paired bootstrap, average ranks and tests of ranks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, rankdata, studentized_range, wilcoxon


class DeLong(NamedTuple):
    """Areas under the ROC curves of several detectors on the same images, and their covariance.

    Attributes
    ----------
    auroc : array of shape (n_detectors,)
        Areas under the ROC curves, bigger = better.
    covariance : array of shape (n_detectors, n_detectors)
        Covariance of the estimated areas.
    """

    auroc: np.ndarray
    covariance: np.ndarray

    def p_value(self, first: int, second: int) -> float:
        """Return the two-sided p-value of the hypothesis that two detectors have the same area, small = different."""
        difference = self.auroc[first] - self.auroc[second]
        c = self.covariance
        variance = c[first, first] + c[second, second] - 2 * c[first, second]
        if variance <= 0:
            return 1.0 if difference == 0 else 0.0
        return float(2 * norm.sf(abs(difference) / math.sqrt(variance)))


def delong(is_defective: np.ndarray, anomaly_scores: np.ndarray) -> DeLong:
    """Return the areas under the ROC curves of several detectors on the same images, with their covariance.

    Parameters
    ----------
    is_defective : array of shape (n_images,), bool
        True for defective images.
    anomaly_scores : array of shape (n_detectors, n_images)
        Scores, bigger = more anomalous. Equal scores of a defective and of a good image count one half.

    Returns
    -------
    DeLong

    Raises
    ------
    ValueError
        If there are fewer than two good or two defective images: the variance is unknown then.

    Notes
    -----
    The fast algorithm with mid-ranks: the sum over all pairs of images follows from three rankings per detector.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves: a nonparametric approach", Biometrics 44, 1988. Sun and Xu, "Fast implementation of DeLong's
    algorithm for comparing the areas under correlated receiver operating characteristic curves", IEEE Signal Processing
    Letters 21, 2014.
    """
    is_defective = np.asarray(is_defective, bool)
    scores = np.atleast_2d(np.asarray(anomaly_scores, float))
    n_bad, n_good = int(is_defective.sum()), int((~is_defective).sum())
    if min(n_bad, n_good) < 2:
        raise ValueError(f"{n_good} good and {n_bad} defective images: DeLong's test needs at least two of each kind.")
    bad, good = scores[:, is_defective], scores[:, ~is_defective]
    both = rankdata(np.concatenate([bad, good], axis=1), axis=1)
    # placements: for each defective image the fraction of good images below it, and the other way round
    of_bad = (both[:, :n_bad] - rankdata(bad, axis=1)) / n_good
    of_good = 1 - (both[:, n_bad:] - rankdata(good, axis=1)) / n_bad
    covariance = np.atleast_2d(np.cov(of_bad)) / n_bad + np.atleast_2d(np.cov(of_good)) / n_good
    return DeLong(of_bad.mean(axis=1), covariance)


def resample_weights(is_defective: np.ndarray, n_resamples: int, seed: int, groups: Any = None) -> np.ndarray:
    """Return how often each image is in each resample of a bootstrap.

    Good and defective images are drawn separately, with replacement. Detectors that are compared use the same
    resamples (paired bootstrap).

    Parameters
    ----------
    is_defective : array of shape (n_images,), bool
        True for defective images.
    n_resamples : int
        Number of resamples.
    seed : int
        Seed.
    groups : array of shape (n_images,) or None, default=None
        Group of each image, e.g. its workpiece. Whole groups are drawn, among those with a good image and among those
        with a defective image. None means that each image is a group of its own.

    Returns
    -------
    array of shape (n_resamples, n_images), uint16
    """
    is_defective = np.asarray(is_defective, bool)
    rng = np.random.default_rng(seed)
    weights = np.zeros((n_resamples, len(is_defective)), np.uint16)
    for kind in (True, False):
        images = np.flatnonzero(is_defective == kind)
        own = images if groups is None else np.asarray(groups)[images]
        names, of_image = np.unique(own, return_inverse=True)
        if len(names):
            chances = np.full(len(names), 1 / len(names))
            for row in weights:  # row by row: draws of all rows at once would need four times the memory
                row[images] = rng.multinomial(len(names), chances)[of_image]
    return weights


def bootstrap_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap values; NaN values are left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def auroc_interval(auroc: float, n_defective: int, n_good: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return a score-type confidence interval of an area under the ROC curve, which has a width also at 0 and 1.

    Parameters
    ----------
    auroc : float
        The area.
    n_defective, n_good : int
        Numbers of images, at least 1.
    confidence : float, default=0.95
        Confidence of the interval.

    Returns
    -------
    low, high : float
        Ends of the interval: areas from which `auroc` differs by as many standard errors as the confidence allows.

    References
    ----------
    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2: asymptotic
    methods and evaluation", Statistics in Medicine 25, 2006 (method 5).
    """
    z, n_mean = norm.ppf(0.5 + confidence / 2), (n_defective + n_good) / 2 - 1

    def lower_end(estimate: float) -> float:
        def excess(area: float) -> float:
            spread = 1 + n_mean * ((1 - area) / (2 - area) + area / (1 + area))
            return float((area - estimate) ** 2 - z**2 * area * (1 - area) * spread / (n_defective * n_good))

        # For an estimate of 1, the area 1 is a second root.
        return 0.0 if estimate == 0 else float(brentq(excess, 0.0, min(estimate, 1 - 1e-9)))

    return lower_end(auroc), 1 - lower_end(1 - auroc)


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return the mean rank of each detector over data sets, 1 = best; equal values share their ranks.

    Parameters
    ----------
    values : array of shape (n_datasets, n_detectors)
        A metric, bigger = better.
    """
    return np.asarray(rankdata(-np.asarray(values, float), axis=1).mean(axis=0))


def critical_difference(n_detectors: int, n_datasets: int, alpha: float = 0.05) -> float:
    """Return the difference of average ranks above which two detectors differ by Nemenyi's test.

    Parameters
    ----------
    n_detectors, n_datasets : int
        Numbers of detectors (at least 2) and of data sets.
    alpha : float, default=0.05
        Bound on the probability that any pair of equal detectors is called different.

    References
    ----------
    Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.
    """
    q = studentized_range.ppf(1 - alpha, n_detectors, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(n_detectors * (n_detectors + 1) / (6 * n_datasets)))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values adjusted by Holm's method, small = significant. NaN stays NaN.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    p_values = np.asarray(p_values, float)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    adjusted = np.full(p_values.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def wilcoxon_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 if all differences are zero."""
    differences = np.asarray(first, float) - np.asarray(second, float)
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences, zero_method="pratt").pvalue)
