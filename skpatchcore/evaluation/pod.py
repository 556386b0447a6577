"""fit_pod: probability of detection (POD) as a function of the size of a defect, from hits and misses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import chi2

# Slopes of the logistic curve that are searched, per standard deviation of log(size). The largest is a step.
_SLOPES = np.concatenate([[0.0], np.geomspace(0.02, 300, 44)])
_N_FINE = 64
# Beyond this distance, in logits, a probability is 0 or 1.
_FAR = 18.0
# Firth's penalty is this multiple of the logarithm of the determinant of the Fisher information.
_PENALTY = 0.5
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False)
class PodCurve:
    """Probability of detection (POD) as a function of size, with confidence bounds; made by :func:`fit_pod`.

    Attributes
    ----------
    sizes : array of shape (n_trials,), float64
        Size of the defect of each trial.
    hits : array of shape (n_trials,), bool
        Whether the defect was found.
    a90 : float
        Size at which the estimated POD is 0.9. Infinite if the POD does not reach 0.9 within the tested sizes. NaN if
        the POD is above 0.9 at all tested sizes: a90 is then below the smallest tested size.
    a90_95 : float
        Upper confidence bound of a90 at the one-sided level `confidence`: the size at which the lower bound of the POD
        is 0.9. Infinite if the bound does not reach 0.9 within the tested sizes. Never below the smallest tested size.
    state : str
        ``"fitted"``; ``"all found"`` or ``"none found"`` without a miss or a hit; ``"separated"`` if every found defect
        is larger than every missed one; ``"not reached"`` or ``"always reached"`` if a90
        is above or below all tested sizes.
    false_alarm_rate : float
        Probability of a hit without any detection, which is not part of the POD.
    confidence : float
        One-sided confidence level of each bound.
    inflation : float
        Factor, at least 1, by which the likelihood-ratio limit was raised because trials on one image are similar.
    intercept, slope : float
        The curve is ``expit(intercept + slope * log(size))``.
    """

    sizes: np.ndarray
    hits: np.ndarray
    a90: float
    a90_95: float
    state: str
    false_alarm_rate: float
    confidence: float
    inflation: float
    intercept: float
    slope: float
    # Boundary of the set of plausible curves: slopes, and the lowest and highest intercept for each slope.
    _boundary: tuple[np.ndarray, np.ndarray, np.ndarray] = field(repr=False)

    def at(self, sizes: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the probability of detection (POD) at given sizes, and its lower and upper confidence bounds.

        Parameters
        ----------
        sizes : array of shape (n_sizes,)
            Positive sizes.

        Returns
        -------
        pod : array of shape (n_sizes,), float64
            Estimated probabilities of detection.
        lower, upper : arrays of shape (n_sizes,), float64
            Each bound is one-sided at the level `confidence`, so both together have the level ``2 * confidence - 1``.
        """
        x = np.log(np.asarray(sizes, np.float64))[:, None]
        slopes, low, high = self._boundary
        pod = expit(self.intercept + self.slope * x[:, 0])
        with np.errstate(over="ignore", invalid="ignore"):
            lower, upper = (low + slopes * x).min(axis=1), (high + slopes * x).max(axis=1)
        return pod, np.minimum(expit(lower), pod), np.maximum(expit(upper), pod)


def fit_pod(
    sizes: Any, hits: Any, *, false_alarm_rate: float = 0.0, groups: Any = None, confidence: float = 0.95
) -> PodCurve:
    """Return the probability of detection as a logistic function of log(size), fitted to hits and misses.

    The probability of a hit is ``f + (1 - f) * POD(size)``, where ``f`` is `false_alarm_rate`: an image can also be
    flagged although its defect is not noticed, and such hits are not capability. The POD never falls with the size.

    Parameters
    ----------
    sizes : array of shape (n_trials,)
        Size of each defect, positive.
    hits : array of shape (n_trials,), bool
        Whether each defect was found.
    false_alarm_rate : float in [0, 1), default=0.0
        Probability that an image without a noticeable defect is flagged. Use 0 if images that are flagged without their
        defect were excluded.
    groups : array of shape (n_trials,) or None, default=None
        Group of each trial, e.g. the image on which the defect was drawn. Trials of one group need not be independent.
        The confidence bounds become wider if trials of one group are similar. None means independent trials.
    confidence : float in (0.5, 1), default=0.95
        One-sided confidence level of the bounds.

    Returns
    -------
    PodCurve
        The curve, its confidence bounds, a90 and a90/95.

    Raises
    ------
    ValueError
        If there are no trials, if the lengths differ, if a size is not positive and finite, or if a parameter is out of
        its range.

    Notes
    -----
    The likelihood is penalised as proposed by Firth. The estimate is then finite also if all found defects are larger
    than all missed ones. The bounds are profile-likelihood bounds: a curve is plausible if twice the difference of its
    penalised log-likelihood to the maximum is at most the quantile of chi-squared with one degree of freedom. The
    bounds of the POD at a size are the extremes over all plausible curves. Without the penalty, the bound of a90 is
    below the true a90 too often if few trials lie in the transition from missed to found sizes. If all defects are
    found, a90/95 is at most the 29th smallest size at the level 95 %: 29 hits in 29 trials exclude a POD below 0.9.

    With `groups`, the limit is multiplied by the ratio of the robust to the plain variance of log(a90), as proposed by
    Chandler and Bate, but never by less than 1.

    References
    ----------
    MIL-HDBK-1823A, "Nondestructive Evaluation System Reliability Assessment", 2009. ASTM E2862, "Standard Practice for
    Probability of Detection Analysis for Hit/Miss Data". Berens, "NDE Reliability Data Analysis", ASM Handbook 17,
    1989. Heinze and Schemper, "A solution to the problem of separation in logistic regression", Statistics in Medicine
    21, 2002 (profiles of Firth's penalised likelihood). Chandler and Bate, "Inference for clustered data using the
    independence loglikelihood", Biometrika 94, 2007.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.evaluation import fit_pod
    >>> sizes = np.geomspace(1, 30, 60)
    >>> hits = np.random.default_rng(0).random(60) < 1 / (1 + (5 / sizes) ** 4)
    >>> curve = fit_pod(sizes, hits)
    >>> curve.state, 5 < curve.a90 < curve.a90_95 < 20
    ('fitted', True)
    """
    sizes, hits = np.asarray(sizes, np.float64), np.asarray(hits, bool)
    if sizes.ndim != 1 or sizes.shape != hits.shape or not len(sizes):
        raise ValueError(
            f"sizes of shape {sizes.shape} and hits of shape {hits.shape}: expected one of each per trial."
        )
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError("sizes must be positive and finite.")
    if not 0 <= false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate={false_alarm_rate!r}: expected a number in [0, 1).")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: expected a number in (0.5, 1).")
    # Slopes are searched per standard deviation of log(size), from its mean: then one grid fits all data.
    center, scale = float(np.log(sizes).mean()), float(np.log(sizes).std()) or 1.0
    data = _Data((np.log(sizes) - center) / scale, hits, false_alarm_rate)
    best_intercepts, values = data.best_intercepts(_SLOPES)
    intercept, slope, most = data.maximum(best_intercepts, values)
    inflation = 1.0 if groups is None else data.inflation(intercept, slope, np.asarray(groups))
    limit = most - inflation * float(chi2.ppf(2 * confidence - 1, 1)) / 2
    slopes = _plausible(values >= limit, slope)
    low, high, is_plausible = data.intercepts_above(slopes, limit)
    slopes, low, high = slopes[is_plausible], low[is_plausible], high[is_plausible]
    a90, a90_95, state = _capability(sizes, hits, intercept, slope, (slopes, low), center, scale, confidence)
    return PodCurve(
        sizes, hits, a90, a90_95, state, false_alarm_rate, confidence, inflation,
        intercept - slope * center / scale, slope / scale,
        (slopes / scale, low - slopes * center / scale, high - slopes * center / scale),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Data:
    """Hits and misses at standardised log sizes `x`, with the likelihood of logistic curves."""

    x: np.ndarray
    hits: np.ndarray
    floor: float

    def log_likelihood(self, intercepts: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Return the penalised log-likelihood of each pair of intercept and slope."""
        eta = intercepts[:, None] + slopes[:, None] * self.x
        soft = np.logaddexp(0, eta)  # minus the logarithm of the probability of a miss, without false alarms
        log_pod = eta - soft
        pod = np.exp(log_pod)
        of_hits = np.log(self.floor + (1 - self.floor) * pod) if self.floor else log_pod
        total = np.where(self.hits, of_hits, math.log1p(-self.floor) - soft).sum(axis=1)
        weight = self._information(pod)
        # einsum and not a matrix product: the arrays are too small for several threads.
        first, second = np.einsum("ij,j->i", weight, self.x), np.einsum("ij,j->i", weight, self.x**2)
        determinant = weight.sum(axis=1) * second - first**2
        likelihood: np.ndarray = total + _PENALTY * np.log(np.maximum(determinant, 1e-300))
        return likelihood

    def _information(self, pod: np.ndarray) -> np.ndarray:
        """Return the Fisher information of each trial about its logit."""
        weight: np.ndarray = (1 - self.floor) * pod * (1 - pod)
        return weight if not self.floor else weight * pod / (self.floor + (1 - self.floor) * pod)

    def _ends(self, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return intercepts at which the curve is 0, or 1, at all sizes."""
        return -slopes * self.x.max() - _FAR, -slopes * self.x.min() + _FAR

    def best_intercepts(self, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the most likely intercept of each slope, and its log-likelihood, by golden-section search."""
        low, high = self._ends(slopes)
        inner = np.stack([high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)])
        values = np.stack([self.log_likelihood(place, slopes) for place in inner])
        for _ in range(44):
            is_left = values[0] >= values[1]
            low, high = np.where(is_left, low, inner[0]), np.where(is_left, inner[1], high)
            new = np.where(is_left, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
            value = self.log_likelihood(new, slopes)
            inner = np.where(is_left, [new, inner[0]], [inner[1], new])
            values = np.where(is_left, [value, values[0]], [values[1], value])
        middle = (low + high) / 2
        return middle, self.log_likelihood(middle, slopes)

    def maximum(self, intercepts: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
        """Return the most likely intercept and slope, and the log-likelihood, starting from the best of the grid."""
        best = int(values.argmax())

        def loss(pair: np.ndarray) -> float:
            return -float(self.log_likelihood(pair[:1], pair[1:])[0])

        found = minimize(
            loss, (intercepts[best], _SLOPES[best]), method="L-BFGS-B", bounds=((None, None), (0, _SLOPES[-1]))
        )
        if -found.fun >= values[best]:
            return float(found.x[0]), float(found.x[1]), -float(found.fun)
        return float(intercepts[best]), float(_SLOPES[best]), float(values[best])

    def intercepts_above(self, slopes: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the lowest and highest intercept of each slope with at least the likelihood `limit`, by bisection.

        The third array states for which slopes there are such intercepts.
        """
        middle, values = self.best_intercepts(slopes)
        bounds = []
        for end in self._ends(slopes):
            inside, outside = middle.copy(), end.copy()
            for _ in range(36):
                tried = (inside + outside) / 2
                is_inside = self.log_likelihood(tried, slopes) >= limit
                inside, outside = np.where(is_inside, tried, inside), np.where(is_inside, outside, tried)
            bounds.append(outside)
        return bounds[0], bounds[1], values >= limit

    def inflation(self, intercept: float, slope: float, groups: np.ndarray) -> float:
        """Return the ratio of the robust to the plain variance of log(a90); 1 if the ratio is smaller or unknown."""
        if len(groups) != len(self.x):
            raise ValueError(f"{len(groups)} groups for {len(self.x)} trials: expected one per trial.")
        _, number = np.unique(groups, return_inverse=True)
        n_groups = int(number.max()) + 1
        if n_groups == len(groups) or n_groups < 2 or slope <= 0:
            return 1.0
        pod = expit(intercept + slope * self.x)
        flagged = self.floor + (1 - self.floor) * pod
        design = np.stack([np.ones_like(self.x), self.x], axis=1)
        change = (1 - self.floor) * pod * (1 - pod)  # of the probability of a hit per logit
        residuals = (self.hits - flagged) * change / (flagged * (1 - flagged)).clip(1e-12)
        scores = design * residuals[:, None]
        information = (design * self._information(pod)[:, None]).T @ design
        sums = np.zeros((n_groups, 2))
        np.add.at(sums, number, scores)
        gradient = np.array([1.0, (logit(0.9) - intercept) / slope])  # of log(a90), up to a factor
        if np.linalg.cond(information) > 1e12:
            return 1.0
        direction = np.linalg.solve(information, gradient)
        robust = float(((sums @ direction) ** 2).sum()) * n_groups / (n_groups - 1)
        return max(1.0, robust / float(gradient @ direction))


def _plausible(is_plausible: np.ndarray, slope: float) -> np.ndarray:
    """Return a fine grid of slopes that covers the plausible ones among the coarse grid, and the best slope."""
    chosen = np.flatnonzero(is_plausible)
    first = max(int(chosen.min()) - 1, 0) if len(chosen) else int(np.searchsorted(_SLOPES, slope)) - 1
    last = min(int(chosen.max()) + 1, len(_SLOPES) - 1) if len(chosen) else first + 1
    first = max(first, 0)
    fine = np.geomspace(max(_SLOPES[first], 1e-3), _SLOPES[last], _N_FINE)
    return np.unique(np.concatenate([fine, [slope], [0.0] if first == 0 else []]))


def _capability(
    sizes: np.ndarray,
    hits: np.ndarray,
    intercept: float,
    slope: float,
    lowest: tuple[np.ndarray, np.ndarray],
    center: float,
    scale: float,
    confidence: float,
) -> tuple[float, float, str]:
    """Return a90, a90/95 and the state; sizes outside the tested range are never stated."""
    smallest, largest = float(sizes.min()), float(sizes.max())
    if not hits.any():
        return math.inf, math.inf, "none found"
    slopes, low = lowest
    target = float(logit(0.9))
    # The lower bound of the POD is 0.9 at the largest size at which one of the plausible curves is 0.9.
    is_flat = slopes <= 0
    if (low[is_flat] < target).any():
        bound = math.inf
    else:
        bound = _size_at(float(((target - low[~is_flat]) / slopes[~is_flat]).max()), center, scale)
    bound = max(bound, smallest) if bound <= largest else math.inf
    if hits.all():
        # If the POD were below 0.9 up to a size, all of the n smaller defects would be found with probability 0.9**n.
        n_enough = math.ceil(math.log(1 - confidence) / math.log(0.9))
        if len(sizes) >= n_enough:
            bound = min(bound, float(np.sort(sizes)[n_enough - 1]))
        return math.nan, bound, "all found"
    place = (target - intercept) / slope if slope > 0 else math.copysign(math.inf, target - intercept)
    a90 = _size_at(place, center, scale)
    if a90 > largest:
        return math.inf, math.inf, "not reached"
    if a90 < smallest:
        return math.nan, bound, "always reached"
    return a90, bound, "separated" if sizes[hits].min() > sizes[~hits].max() else "fitted"


def _size_at(place: float, center: float, scale: float) -> float:
    """Return the size at a standardised log size."""
    return math.exp(min(center + scale * place, 700.0))
