"""metric_intervals: confidence intervals of the metrics of an evaluation, for other test images of the same kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from skpatchcore._utils.names import escape_name
from skpatchcore._utils.warning import warn_user
from skpatchcore.evaluation.category import CategoryResult
from skpatchcore.evaluation.paired import auroc_interval, bootstrap_interval, resample_weights
from skpatchcore.evaluation.resampled import PROPORTIONS, values_and_resamples

# With fewer groups of a kind, the bootstrap of groups underestimates the variation.
_FEW_GROUPS = 10


def metric_intervals(
    results: CategoryResult | Iterable[CategoryResult],
    *,
    groups: Mapping[str, Any] | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> pd.DataFrame:
    """Return the confidence intervals of all metrics of an evaluation.

    Parameters
    ----------
    results : CategoryResult or iterable of CategoryResult
        Results of categories, as returned by :func:`~skpatchcore.evaluation.evaluate_category`, or
        ``[one.result for one in evaluation.runs]`` of :func:`~skpatchcore.evaluation.run_evaluation`.
    groups : mapping of str to array of shape (n_test,) or None, default=None
        Group of each test image, e.g. its workpiece, by category. Images of one group are drawn together. Without
        groups, intervals are too narrow if several images show one workpiece.
    n_resamples : int, default=2000
        Number of bootstrap resamples.
    confidence : float, default=0.95
        Confidence of the intervals.
    random_state : int, default=0
        Seed of the resamples.

    Returns
    -------
    DataFrame
        One row per category and metric: ``category``, ``metric`` (names as in :func:`~skpatchcore.evaluate`),
        ``value``, and the ends ``low`` and ``high`` of its interval. Metrics that are not defined are left out.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or `groups` does not match the test images.

    Warns
    -----
    UserWarning
        If there are fewer than 10 groups of good or of defective images.

    Notes
    -----
    Percentile intervals of the bootstrap: good and defective test images are drawn again separately, with replacement.
    Fractions of images, such as ``found_at_05``, have exact binomial intervals (Clopper and Pearson) instead, unless
    groups are given. With fewer than 10 groups of a kind, intervals are too narrow, and a warning is issued. Thresholds
    stay as they are, because they come from training images.

    The intervals describe the choice of the test images. Another training set or another random seed changes the
    results as well.

    If all defective images have higher anomaly scores than all good images, every resample has an AUROC of 1. The
    interval is then that of Newcombe, with groups in the place of images if they are given. Other metrics of such
    images have an interval without width: there are too few images to state how far below 1 the metric may be.

    References
    ----------
    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2", Statistics
    in Medicine 25, 2006.
    Efron and Tibshirani, "An introduction to the bootstrap", 1993. Clopper and Pearson, Biometrika 26, 1934.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.datasets import make_textures
    >>> from skpatchcore.evaluation import evaluate_category, metric_intervals
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0)
    >>> result, _ = evaluate_category(detector, "brick", make_textures("brick", n_views=2))
    >>> intervals = metric_intervals(result, n_resamples=200).set_index("metric")
    >>> intervals.columns.tolist()
    ['category', 'value', 'low', 'high']
    """
    check_resampling(n_resamples, confidence)
    some = [results] if isinstance(results, CategoryResult) else list(results)
    rows = []
    for k, result in enumerate(some):
        group, name = groups_of(groups, result), escape_name(result.category)
        weights = resample_weights(result.labels == -1, n_resamples, random_state + k, group)
        values, resampled = values_and_resamples(result, weights)
        for metric, value in values.items():
            if not math.isnan(value):
                low, high = interval_of(result, metric, value, resampled[metric], confidence, group)
                rows.append({"category": name, "metric": metric, "value": value, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["category", "metric", "value", "low", "high"])


def interval_of(
    result: CategoryResult,
    metric: str,
    value: float,
    resampled: np.ndarray,
    confidence: float,
    group: np.ndarray | None,
) -> tuple[float, float]:
    """Return the interval of a metric in [0, 1].

    Parameters
    ----------
    result : CategoryResult
        The result. Binomial intervals need its numbers of images.
    metric : str
        Name of the metric.
    value : float
        Its value for all test images. If it is NaN, so are the ends.
    resampled : array of shape (n_resamples,)
        Its values for the resamples.
    confidence : float
        Confidence of the interval.
    group : array of shape (n_test,) or None
        Group of each image, if groups were drawn. A fraction of images has a binomial interval only without groups, or
        if it is 0 or 1: then each group counts like one image.

    Returns
    -------
    low, high : float
        Ends of the interval.
    """
    n_of = {label: _number_of(result.labels == label, group) for label in (-1, 1)}
    if metric in PROPORTIONS and (group is None or value in (0, 1)) and not math.isnan(value):
        n = n_of[PROPORTIONS[metric]]
        exact = binomtest(round(value * n), n).proportion_ci(confidence, "exact")
        return float(exact.low), float(exact.high)
    if metric == "image_auroc" and value in (0, 1):
        return auroc_interval(value, n_of[-1], n_of[1], confidence)
    low, high = bootstrap_interval(resampled, confidence)
    return max(low, 0.0), min(high, 1.0)


def _number_of(is_chosen: np.ndarray, group: np.ndarray | None) -> int:
    """Return the number of the chosen images, or of their groups."""
    return int(is_chosen.sum()) if group is None else len(np.unique(group[is_chosen]))


def check_resampling(n_resamples: int, confidence: float) -> None:
    """Raise a ValueError if a parameter of the bootstrap is out of its range."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1.")
    if n_resamples < 2:
        raise ValueError(f"n_resamples={n_resamples}: expected at least 2.")


def groups_of(groups: Mapping[str, Any] | None, result: CategoryResult) -> np.ndarray | None:
    """Return the group of each test image of a category; None without groups. Warn if there are few groups."""
    if groups is None:
        return None
    category, n_test = result.category, len(result.labels)
    if not isinstance(groups, Mapping):
        raise TypeError(f"groups is a {type(groups).__name__}: expected a dict from each category to its groups.")
    if category not in groups or len(groups[category]) != n_test:
        n = len(groups[category]) if category in groups else 0
        raise ValueError(f"groups[{category!r}]: expected one group for each of {n_test} test images, found {n}.")
    group = np.asarray(groups[category])
    if group.ndim != 1:
        raise ValueError(f"groups[{category!r}] has shape {group.shape}: expected ({n_test},).")
    if (is_missing := pd.isna(group)).any():
        raise ValueError(
            f"groups[{category!r}]: test image {int(is_missing.argmax())} has no group. Give it a group of its own."
        )
    for label, kind in ((1, "good"), (-1, "defective")):
        if (n := len(np.unique(group[result.labels == label]))) < _FEW_GROUPS:
            warn_user(
                f"groups[{category!r}]: the {kind} test images are of {n} groups only. Intervals are too narrow with "
                f"fewer than {_FEW_GROUPS} groups."
            )
    return group
