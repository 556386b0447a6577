"""Statistics of :func:`~skpatchcore.select_settings`: how many synthetic defects each setting finds, and the choice.

All functions are pure functions of arrays. Scores are anomaly scores: bigger = more anomalous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Number of bootstrap samples.
N_DRAWS = 400
# Number of false-alarm rates that a comparison covers at least.
_LEAST_RATES = 3


def largest_rate(contamination: float, n_good: int) -> float:
    """Return the largest false-alarm rate of a comparison: twice the contamination, or more with few good images."""
    return min(max(2 * contamination, _LEAST_RATES / (n_good + 1)), 1.0)


def found_shares(good: np.ndarray, defects: np.ndarray, rate: float, weights: np.ndarray | None = None) -> np.ndarray:
    """Return for each defect the fraction of the false-alarm rates at which it is found.

    The false-alarm rates are those from ``1 / (n_good + 1)``, the smallest that `n_good` images can promise, to `rate`.
    The mean over defects is the normalised partial area under the ROC curve. It varies less between samples of good
    images than the probability of detection at a single rate.

    Parameters
    ----------
    good : array of shape (n_good,)
        Scores of good images by models that were fitted without them.
    defects : array of shape (n_defects,)
        Scores of images with a defect.
    rate : float
        Largest false-alarm rate.
    weights : array of shape (n_good, n_samples) or None, default=None
        How often each good image occurs in each bootstrap sample. None counts each image once.

    Returns
    -------
    array of shape (n_defects, n_samples), float64
        Values from 0 to 1. One column if `weights` is None.
    """
    weights = np.ones((len(good), 1)) if weights is None else weights
    least = 1 / (len(good) + 1)
    p_values = (1 + (good >= defects[:, None]).astype(np.float64) @ weights) * least
    if rate <= least:
        return (p_values <= rate).astype(np.float64)
    return ((rate - p_values) / (rate - least)).clip(0, 1)


@dataclass(frozen=True)
class Comparison:
    """Fraction of the synthetic defects that each setting finds.

    Attributes
    ----------
    found : array of shape (n_settings,)
        Mean over the kinds of the fraction of defects that are found.
    by_kind : array of shape (n_settings, n_kinds)
        The same for each kind.
    draws : array of shape (n_settings, n_draws)
        `found` of bootstrap samples. Good images are drawn with their defects, and kinds are drawn, too.
    """

    found: np.ndarray
    by_kind: np.ndarray
    draws: np.ndarray

    def gains_over(self, setting: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how much more each setting finds than a given setting, and the standard errors of the differences."""
        differences = self.draws - self.draws[setting]
        return self.found - self.found[setting], differences.std(axis=1)


def compare(
    good: np.ndarray,
    defects: np.ndarray,
    kinds: np.ndarray,
    images: np.ndarray,
    rate: float,
    seed: int,
    groups: np.ndarray | None = None,
) -> Comparison:
    """Compare settings by the defects that they find, with standard errors.

    Parameters
    ----------
    good : array of shape (n_settings, n_good)
        Scores of good images by models that were fitted without them.
    defects : array of shape (n_settings, n_defects)
        Scores of the same images with a defect.
    kinds : array of shape (n_defects,), int
        Kind of each defect: 0, 1, 2 and so on.
    images : array of shape (n_defects,), int
        Index of the good image on which each defect is drawn.
    rate : float
        Largest false-alarm rate, see :func:`found_shares`.
    seed : int
        Seed of the bootstrap samples.
    groups : array of shape (n_good,), int, or None, default=None
        Group of each good image: 0, 1, 2 and so on. The bootstrap draws groups. None draws images.

    Returns
    -------
    Comparison

    Notes
    -----
    The kinds of synthetic defects are a sample of all kinds of defects that a part can have. A setting that finds more
    defects of a few kinds only may find fewer real defects. Therefore, a bootstrap sample draws the kinds as well as
    the images: a gain that depends on a few kinds has a large standard error. All settings use the same samples. The
    bootstrap variance over `k` kinds is too small by the factor ``(k - 1) / k``, which is corrected.
    """
    n_good, n_kinds = good.shape[1], int(kinds.max()) + 1
    groups = np.arange(n_good) if groups is None else groups
    n_groups = int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    of_groups = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), N_DRAWS).T.astype(np.float64)
    of_images = of_groups[groups]
    of_kinds = rng.multinomial(n_kinds, np.full(n_kinds, 1 / n_kinds), N_DRAWS).T.astype(np.float64)
    of_images, of_kinds = (np.hstack([np.ones((len(some), 1)), some]) for some in (of_images, of_kinds))
    of_defects = of_images[images]
    members = [np.flatnonzero(kinds == kind) for kind in range(n_kinds)]
    counts = [of_defects[own].sum(axis=0) for own in members]
    # A sample without any defect of a kind has no value for this kind.
    of_kinds *= np.array(counts) > 0
    means = np.empty((len(good), n_kinds, of_images.shape[1]))
    for i in range(len(good)):
        shares = found_shares(good[i], defects[i], rate, of_images) * of_defects
        for kind, own in enumerate(members):
            means[i, kind] = shares[own].sum(axis=0) / np.maximum(counts[kind], 1)
    found = (means * of_kinds).sum(axis=1) / np.maximum(of_kinds.sum(axis=0), 1)
    draws = found[:, :1] + (found[:, 1:] - found[:, :1]) * np.sqrt(n_kinds / max(n_kinds - 1, 1))
    return Comparison(found[:, 0], means[:, :, 0], draws)


def needed_errors(comparison: Comparison, confidence: float) -> float:
    """Return by how many standard errors the best setting must be better than the given one, setting 0.

    If all settings were equal, the largest of the gains, divided by their standard errors, would be at most this
    number with the probability `confidence`. The number grows with the number of settings, because the best of many
    is often better by chance.
    """
    gains, errors = comparison.gains_over(0)
    varies = errors > 0
    if not varies.any():
        return 0.0
    noise = (comparison.draws - comparison.draws[0])[varies] - gains[varies, None]
    return float(np.quantile((noise / errors[varies, None]).max(axis=0), confidence))


def choose(comparison: Comparison, n_changes: np.ndarray, confidence: float) -> int:
    """Return the chosen setting; setting 0 is the given one and is kept unless the evidence against it is clear.

    Parameters
    ----------
    comparison : Comparison
        The comparison. Setting 0 is the given setting.
    n_changes : array of shape (n_settings,)
        Number of parameters in which each setting differs from the given one.
    confidence : float
        Another setting is chosen only if the best setting finds more defects than the given one with this confidence,
        see :func:`needed_errors`.

    Returns
    -------
    int
        0 if the given setting is kept. Otherwise, a setting that is clearly better than the given one, and at most one
        standard error of the difference below the best setting. Of several such settings, the one with the fewest
        changes is chosen, and of these the one that finds most defects.

    References
    ----------
    Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984, section 3.4.3: the rule of one
    standard error.
    """
    gains, errors = comparison.gains_over(0)
    best = int(gains.argmax())
    is_better = gains > needed_errors(comparison, confidence) * errors
    if not is_better[best]:
        return 0
    behind, errors_to_best = comparison.gains_over(best)
    near = np.flatnonzero(is_better & (-behind <= errors_to_best))
    return int(min(near, key=lambda i: (n_changes[i], -gains[i])))
