"""compare_detectors: intervals and tests for the metrics of several detectors on the same test images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import friedmanchisquare

from skpatchcore._utils.names import escape_name
from skpatchcore.evaluation.category import CategoryResult
from skpatchcore.evaluation.intervals import check_resampling, groups_of, interval_of
from skpatchcore.evaluation.paired import (
    DeLong,
    average_ranks,
    bootstrap_interval,
    critical_difference,
    delong,
    holm,
    resample_weights,
    wilcoxon_p_value,
)
from skpatchcore.evaluation.resampled import METRICS, values_and_resamples
from skpatchcore.evaluation.runs import Evaluation

_IMAGE_AUROC = "image_auroc"


@dataclass(frozen=True, eq=False)
class DetectorComparison:
    """Metrics of several detectors on the same test images, with intervals and tests.

    Attributes
    ----------
    metrics : DataFrame
        One row per category, detector and metric: ``value`` (**bigger = better**), and the ends ``low`` and ``high`` of
        its interval. NaN for a metric that only other detectors have, e.g. a pixel metric of a detector without maps.
    differences : DataFrame
        One row per category, metric and pair of detectors: ``difference`` (value of ``first`` minus value of
        ``second``), and ``low`` and ``high`` of its paired bootstrap interval. For ``image_auroc`` also ``p_value`` of
        DeLong's test (small = different), and ``p_holm``, adjusted for all pairs and categories by Holm's method; NaN
        for other metrics, and with fewer than two good or two defective test images.
    ranks : DataFrame
        Average ranks over the categories, 1 = best: one row per metric, one column per detector. NaN for a detector
        that has the metric in no category. In addition, ``critical_difference`` of Nemenyi's test, and ``friedman_p``,
        the p-value of Friedman's test that all detectors are equal. Empty with fewer than two categories.
    rank_tests : DataFrame
        One row per metric and pair: ``p_value`` of Wilcoxon's signed-rank test over the categories, and ``p_holm``,
        adjusted for the pairs. Empty with fewer than two categories.
    confidence : float
        Confidence of the intervals.
    """

    metrics: pd.DataFrame
    differences: pd.DataFrame
    ranks: pd.DataFrame
    rank_tests: pd.DataFrame
    confidence: float

    def table(self, metric: str = _IMAGE_AUROC, digits: int = 3) -> pd.DataFrame:
        """Return a metric as a table of texts such as ``"0.957 (0.941-0.971)"``: categories by detectors.

        Parameters
        ----------
        metric : str, default="image_auroc"
            Name of the metric.
        digits : int, default=3
            Number of digits after the point.

        Returns
        -------
        DataFrame
            One row per category, one column per detector. ``"not defined"`` for a metric that is NaN.
        """
        rows = self._of(self.metrics, metric)
        texts = [
            f"{row['value']:.{digits}f} ({row['low']:.{digits}f}-{row['high']:.{digits}f})"
            if np.isfinite(row["value"])
            else "not defined"
            for row in rows.to_dict("records")
        ]
        shown = rows.assign(text=texts).pivot(index="category", columns="detector", values="text")
        return shown.reindex(index=rows["category"].unique(), columns=rows["detector"].unique())

    def describe(self, metric: str = _IMAGE_AUROC) -> str:
        """Return in sentences which detectors differ in a metric.

        Parameters
        ----------
        metric : str, default="image_auroc"
            Name of the metric.

        Returns
        -------
        str
            One sentence per pair and category, and the result of the tests over the categories. "Is better" means
            that the interval of the difference is above 0 and, for the image AUROC, that the adjusted p-value is below
            1 minus the confidence. "May be better" means that only the first is the case. The intervals are not
            adjusted for the number of comparisons.
        """
        lines, percent = [], f"{100 * self.confidence:g} %"
        for row in self._of(self.differences, metric).to_dict("records"):
            if not np.isfinite(row["difference"]):
                continue
            names, ends, sign = (row["first"], row["second"]), (row["low"], row["high"]), 1
            if row["difference"] < 0:
                names, ends, sign = names[::-1], (-ends[1], -ends[0]), -1
            if ends == (0, 0):
                lines.append(
                    f"{row['category']}: {names[0]} and {names[1]} have the same {metric} in all resamples. The images "
                    "cannot tell them apart."
                )
                continue
            is_significant = not row["p_holm"] >= 1 - self.confidence  # also if there is no p-value
            verdict = "is not clearly different from"
            if ends[0] > 0:
                verdict = "is better than" if is_significant else "may be better than"
            test = ""
            if np.isfinite(row["p_value"]):
                test = f"; DeLong p = {row['p_value']:.2g}, adjusted {row['p_holm']:.2g}"
            lines.append(
                f"{row['category']}: {names[0]} {verdict} {names[1]} in {metric}: difference "
                f"{sign * row['difference']:.3f} ({percent} interval {ends[0]:.3f} to {ends[1]:.3f}{test})."
            )
        lines += self._describe_ranks(metric)
        return "\n".join(lines)

    def plot(self, metric: str = _IMAGE_AUROC, *, ax: Any = None) -> Any:
        """Draw the critical-difference diagram of a metric.

        Parameters
        ----------
        metric : str, default="image_auroc"
            Name of the metric.
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None creates a new figure.

        Returns
        -------
        CriticalDifferenceDisplay
            The display, which has been drawn.

        Raises
        ------
        ValueError
            If there are fewer than two categories: there are no average ranks then.
        """
        from skpatchcore.display import CriticalDifferenceDisplay

        if metric not in self.ranks.index:
            raise ValueError(
                f"there are no average ranks of {metric!r}: they need at least two categories in which all detectors "
                "have the metric."
            )
        row: Any = self.ranks.loc[metric]
        names = self._ranked(row)
        return CriticalDifferenceDisplay(
            {name: float(row[name]) for name in names},
            critical_difference=float(row["critical_difference"]),
            metric=metric,
        ).plot(ax=ax)

    def _describe_ranks(self, metric: str) -> list[str]:
        if metric not in self.ranks.index:
            return []
        row: Any = self.ranks.loc[metric]
        names = self._ranked(row)
        ordered = ", ".join(f"{name} {row[name]:.2f}" for name in sorted(names, key=row.__getitem__))
        lines = [f"Average ranks over the categories, 1 = best: {ordered}."]
        p = row["friedman_p"]
        friedman = "" if np.isnan(p) else f"Friedman's test that all are equal: p = {p:.2g}. "
        lines.append(
            f"{friedman}By Nemenyi's test, detectors differ if their average ranks differ by more than "
            f"{row['critical_difference']:.2f}."
        )
        tests = self._of(self.rank_tests, metric)
        different = [
            f"{test['first']} and {test['second']} (p = {test['p_holm']:.2g})"
            for test in tests.to_dict("records")
            if test["p_holm"] < 0.05
        ]
        lines.append(f"Pairs that differ by Wilcoxon's test with Holm's adjustment: {', '.join(different) or 'none'}.")
        return lines

    @staticmethod
    def _ranked(row: Any) -> list[Any]:
        """Return the names of the detectors with a rank."""
        return [name for name in row.index[row.notna()] if name not in ("critical_difference", "friedman_p")]

    @staticmethod
    def _of(table: pd.DataFrame, metric: str) -> pd.DataFrame:
        rows = table[table["metric"] == metric] if len(table) else table
        if len(table) and not len(rows):
            raise ValueError(f"metric={metric!r}: expected one of {sorted(table['metric'].unique())}.")
        return rows


def compare_detectors(
    results: Mapping[str, Any],
    *,
    groups: Mapping[str, Any] | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> DetectorComparison:
    """Compare detectors that were evaluated on the same test images.

    Parameters
    ----------
    results : mapping of str to Evaluation, CategoryResult or sequence of CategoryResult
        The results of each detector, by its name. All detectors have the same categories with the same test images, in
        the same order.
    groups : mapping of str to array of shape (n_test,) or None, default=None
        Group of each test image, e.g. its workpiece, by category. Images of one group are drawn together. Without
        groups, intervals are too narrow if several images show one workpiece. DeLong's test ignores groups.
    n_resamples : int, default=2000
        Number of bootstrap resamples. All detectors use the same resamples of a category.
    confidence : float, default=0.95
        Confidence of the intervals.
    random_state : int, default=0
        Seed of the resamples.

    Returns
    -------
    DetectorComparison
        Tables of the metrics, of their differences and of ranks.

    Raises
    ------
    ValueError
        If there is no result, if a detector has several results of a category, if categories or test images differ
        between detectors, or if a parameter is out of its range.

    Notes
    -----
    The intervals of metrics are those of :func:`~skpatchcore.evaluation.metric_intervals`, and the intervals of
    differences are percentile intervals of the paired bootstrap. They describe the choice of the test images: the
    training images and the random seeds of a fit are fixed.

    With few categories, the tests of ranks find only large differences: with 5 categories, the smallest possible
    p-value of Wilcoxon's test is 0.06.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988. Demšar, "Statistical comparisons of classifiers over
    multiple data sets", JMLR 7, 2006. Efron and Tibshirani, "An introduction to the bootstrap", 1993.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PaDiMDetector, PatchCoreDetector
    >>> from skpatchcore.datasets import make_textures
    >>> from skpatchcore.evaluation import compare_detectors, evaluate_category
    >>> from skpatchcore import TorchFeatureExtractor
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
    >>> data = make_textures("brick", n_views=2)
    >>> methods = {"PatchCore": PatchCoreDetector(extractor, random_state=0), "PaDiM": PaDiMDetector(extractor)}
    >>> results = {name: evaluate_category(detector, "brick", data)[0] for name, detector in methods.items()}
    >>> comparison = compare_detectors(results, n_resamples=200)
    >>> comparison.table("image_auroc").columns.tolist()
    ['PatchCore', 'PaDiM']
    """
    check_resampling(n_resamples, confidence)
    found = {name: _categories_of(name, given) for name, given in results.items()}
    _check_same(found)
    names = list(found)
    metric_rows: list[dict[str, Any]] = []
    pair_rows: list[dict[str, Any]] = []
    for k, category in enumerate(found[names[0]]):
        own = {name: found[name][category] for name in names}
        first = own[names[0]]
        group = groups_of(groups, first)
        weights = resample_weights(first.labels == -1, n_resamples, random_state + k, group)
        values, resampled = {}, {}
        for name, result in own.items():
            values[name], resampled[name] = values_and_resamples(result, weights)
        known = [metric for metric in METRICS if any(metric in values[name] for name in names)]
        for metric in known:
            for name in names:
                value = values[name].setdefault(metric, np.nan)
                drawn = resampled[name].setdefault(metric, np.full(n_resamples, np.nan))
                low, high = interval_of(own[name], metric, value, drawn, confidence, group)
                row = {"category": escape_name(category), "detector": name, "metric": metric}
                metric_rows.append({**row, "value": value, "low": low, "high": high})
        pair_rows += _pair_rows(own, known, values, resampled, confidence)
    metrics = pd.DataFrame(metric_rows)
    columns = ["category", "metric", "first", "second", "difference", "low", "high", "p_value"]
    differences = pd.DataFrame(pair_rows, columns=columns)
    differences["p_holm"] = holm(differences["p_value"].to_numpy(float))
    return DetectorComparison(metrics, differences, *_ranks_of(metrics, names), confidence)


def _pair_rows(
    own: Mapping[str, CategoryResult],
    metrics: Sequence[str],
    values: Mapping[str, Mapping[str, float]],
    resampled: Mapping[str, Mapping[str, np.ndarray]],
    confidence: float,
) -> list[dict[str, Any]]:
    """Return the rows of the table of differences for one category."""
    names, first, rows = list(own), next(iter(own.values())), []
    areas = _areas_of(first.labels == -1, np.stack([-own[name].scores for name in names]))
    for metric in metrics:
        for i, j in combinations(range(len(names)), 2):
            a, b = names[i], names[j]
            low, high = bootstrap_interval(resampled[a][metric] - resampled[b][metric], confidence)
            rows.append(
                {
                    "category": escape_name(first.category),
                    "metric": metric,
                    "first": a,
                    "second": b,
                    "difference": values[a][metric] - values[b][metric],
                    "low": low,
                    "high": high,
                    "p_value": areas.p_value(i, j) if areas is not None and metric == _IMAGE_AUROC else np.nan,
                }
            )
    return rows


def _areas_of(is_defective: np.ndarray, anomaly_scores: np.ndarray) -> DeLong | None:
    """Return the areas under the ROC curves; None if there are too few images for DeLong's test."""
    is_known = min(is_defective.sum(), (~is_defective).sum()) > 1
    return delong(is_defective, anomaly_scores) if is_known else None


def _ranks_of(metrics: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the average ranks and the tests of ranks over the categories."""
    rank_rows, test_rows = {}, []
    for metric in metrics["metric"].unique():
        wide = metrics[metrics["metric"] == metric].pivot(index="category", columns="detector", values="value")
        wide = wide[list(names)].dropna(axis="columns", how="all").dropna()
        own = wide.columns.tolist()
        if len(wide) < 2 or len(own) < 2:
            continue
        values = wide.to_numpy(float)
        p = np.nan
        if len(own) > 2 and np.ptp(values, axis=1).any():
            p = float(friedmanchisquare(*values.T).pvalue)
        rank_rows[metric] = {
            **dict.fromkeys(names, np.nan),
            **dict(zip(own, average_ranks(values), strict=True)),
            "critical_difference": critical_difference(len(own), len(wide)),
            "friedman_p": p,
        }
        pairs = list(combinations(range(len(own)), 2))
        p_values = np.array([wilcoxon_p_value(values[:, i], values[:, j]) for i, j in pairs])
        test_rows += [
            {"metric": metric, "first": own[i], "second": own[j], "p_value": p, "p_holm": adjusted}
            for (i, j), p, adjusted in zip(pairs, p_values.tolist(), holm(p_values).tolist(), strict=True)
        ]
    ranks = pd.DataFrame.from_dict(rank_rows, orient="index").rename_axis("metric")
    return ranks, pd.DataFrame(test_rows, columns=["metric", "first", "second", "p_value", "p_holm"])


def _categories_of(name: str, given: Any) -> dict[str, CategoryResult]:
    """Return the results of a detector by category."""
    if isinstance(given, Evaluation):
        return {one.run.category: one.result for one in given.runs}
    some = [given] if isinstance(given, CategoryResult) else list(given)
    if not some or not all(isinstance(result, CategoryResult) for result in some):
        raise ValueError(f"results[{name!r}]: expected an Evaluation, or CategoryResult objects.")
    names = [result.category for result in some]
    if len(set(names)) < len(names):
        twice = sorted({category for category in names if names.count(category) > 1})
        raise ValueError(f"results[{name!r}]: there is more than one result of {', '.join(twice)}. Choose one of them.")
    return {result.category: result for result in some}


def _check_same(found: Mapping[str, Mapping[str, CategoryResult]]) -> None:
    """Raise a ValueError if detectors have other categories or test images."""
    if not found:
        raise ValueError("there are no results to compare.")
    (first, expected), *others = found.items()
    for name, own in others:
        if set(own) != set(expected):
            different = sorted(set(own) ^ set(expected))
            raise ValueError(f"{first!r} and {name!r} have different categories: {', '.join(different)}.")
        for category, result in own.items():
            if len(result.labels) != len(expected[category].labels):
                raise ValueError(
                    f"category {category!r}: {first!r} has {len(expected[category].labels)} test images, and {name!r} "
                    f"has {len(result.labels)}."
                )
            is_other = (result.labels != expected[category].labels) | (
                _names(result.paths) != _names(expected[category].paths)
            )
            if is_other.any():
                i = int(is_other.argmax())
                raise ValueError(
                    f"category {category!r}: test image {i} is {os.fspath(str(expected[category].paths[i]))!r} for "
                    f"{first!r}, and {str(result.paths[i])!r} for {name!r}. Both must have the same images."
                )


def _names(paths: np.ndarray) -> np.ndarray:
    """Return the names of files without their folders, so that the data may have been moved between evaluations."""
    return np.array([Path(str(path)).name for path in paths])
