"""Comparison of detectors: DeLong's test, bootstrap intervals, ranks, and the tables of a comparison."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.metrics import average_precision_score, roc_auc_score

from skpatchcore.display import CriticalDifferenceDisplay
from skpatchcore.evaluation import CategoryResult, compare_detectors
from skpatchcore.evaluation.paired import (
    average_ranks,
    bootstrap_interval,
    critical_difference,
    delong,
    holm,
    resample_weights,
    wilcoxon_p_value,
)
from skpatchcore.evaluation.resampled import metrics_of_resamples
from skpatchcore.metrics import f1_max_score, pixel_metrics
from skpatchcore.metrics.counts import count_pixels, metrics_of_counts


def by_pairs(is_defective, scores):
    """Return areas and covariance of DeLong's estimator from all pairs of images, as in the definition."""
    bad, good = scores[:, is_defective], scores[:, ~is_defective]
    wins = (bad[:, :, None] > good[:, None, :]) + 0.5 * (bad[:, :, None] == good[:, None, :])
    of_bad, of_good = wins.mean(axis=2), wins.mean(axis=1)
    return wins.mean(axis=(1, 2)), np.cov(of_bad) / bad.shape[1] + np.cov(of_good) / good.shape[1]


@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 10_000), st.booleans())
def test_delong_equals_the_definition_by_pairs(n_bad, n_good, seed, has_ties):
    rng = np.random.default_rng(seed)
    is_defective = rng.permutation(np.arange(n_bad + n_good) < n_bad)
    scores = rng.normal(size=(3, n_bad + n_good)) + is_defective
    scores = scores.round() if has_ties else scores
    areas, covariance = by_pairs(is_defective, scores)
    found = delong(is_defective, scores)
    np.testing.assert_allclose(found.auroc, areas, atol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-12)
    assert found.auroc[0] == pytest.approx(roc_auc_score(is_defective, scores[0]))


def test_delong_p_values_of_equal_detectors_are_uniform():
    rng, is_defective, found = np.random.default_rng(0), np.arange(120) < 50, []
    for _ in range(600):
        common = rng.normal(size=120) + is_defective
        found.append(delong(is_defective, common + 0.7 * rng.normal(size=(2, 120))).p_value(0, 1))
    assert kstest(found, "uniform").pvalue > 0.01


def test_bootstrap_intervals_cover_the_true_area():
    rng, labels = np.random.default_rng(2), np.where(np.arange(150) < 60, -1, 1)
    weights = resample_weights(labels == -1, 300, 0)
    n_covered = 0
    for _ in range(300):
        values = metrics_of_resamples(result_of(-(rng.normal(size=150) + (labels == -1)), labels), weights)
        low, high = bootstrap_interval(values["image_auroc"])
        n_covered += low <= 0.7602499389065233 <= high
    assert n_covered / 300 == pytest.approx(0.95, abs=0.04)


def test_bootstrap_of_groups_is_wider_if_images_of_a_group_are_alike():
    rng = np.random.default_rng(3)
    labels, groups = np.where(np.arange(200) < 100, -1, 1), np.arange(200) // 10
    result = result_of(-(np.repeat(rng.normal(size=20), 10) + 0.1 * rng.normal(size=200) + (labels == -1)), labels)
    widths = []
    for given_ in (None, groups):
        drawn = metrics_of_resamples(result, resample_weights(labels == -1, 500, 0, given_))["image_auroc"]
        widths.append(np.ptp(bootstrap_interval(drawn)))
    assert widths[1] > 2 * widths[0]


def result_of(scores, labels, name="all", calibration=None, **more):
    return CategoryResult(
        name, {}, np.asarray(scores), labels, labels.astype(str), np.arange(len(labels)), -1.0, 1.0,
        np.zeros(0) if calibration is None else calibration, np.zeros((2, 2)), **more,
    )  # fmt: skip


def test_resampled_metrics_of_all_images_equal_the_exact_metrics():
    rng, labels = np.random.default_rng(4), np.where(np.arange(80) < 30, -1, 1)
    scores = -(rng.normal(size=80) + (labels == -1)).round(1)
    found = metrics_of_resamples(result_of(scores, labels, calibration=-rng.normal(size=99)), np.ones((1, 80)))
    assert found["image_auroc"][0] == pytest.approx(roc_auc_score(labels == -1, -scores))
    assert found["image_ap"][0] == pytest.approx(average_precision_score(labels == -1, -scores))
    assert found["image_f1_max"][0] == pytest.approx(f1_max_score(labels, scores).f1)
    assert 0 < found["found_at_05"][0] < found["found_at_10"][0] <= 1


@given(st.integers(0, 10_000))
def test_metrics_of_weights_equal_those_of_repeated_images(seed):
    rng, labels = np.random.default_rng(seed), np.where(np.arange(12) < 6, -1, 1)
    scores = rng.normal(size=12).round(1)
    weights = resample_weights(labels == -1, 3, seed)
    found = metrics_of_resamples(result_of(scores, labels), weights)
    for k, own in enumerate(weights.astype(int)):
        picked = np.repeat(np.arange(12), own)
        assert found["image_auroc"][k] == pytest.approx(roc_auc_score(labels[picked] == -1, -scores[picked]))


def pictures(seed, n=20):
    """Return masks and maps of images; every second image has one or two defects."""
    rng, masks, maps = np.random.default_rng(seed), [], []
    for i in range(n):
        mask = np.zeros((40, 50), bool)
        for _ in range(rng.integers(1, 3) if i % 2 else 0):
            top, left = rng.integers(0, 30, 2)
            mask[top : top + rng.integers(2, 9), left : left + rng.integers(2, 9)] = True
        scored = rng.normal(size=mask.shape) + 1.5 * mask
        scored[:2] = np.nan
        masks.append(mask)
        maps.append(scored)
    return masks, maps


def test_pixel_metrics_of_counts_are_close_to_the_exact_ones():
    masks, maps = pictures(0)
    exact, _ = pixel_metrics(masks, maps)
    found = metrics_of_counts(count_pixels(masks, maps), np.ones((1, len(masks))))
    assert {name: float(values[0]) for name, values in found.items()} == pytest.approx(exact, abs=5e-3)


def test_pixel_metrics_of_weights_are_close_to_those_of_repeated_images():
    masks, maps = pictures(1)
    own = np.array([2, 0, 1, 3] * 5)
    picked = np.repeat(np.arange(len(own)), own)
    exact, _ = pixel_metrics([masks[i] for i in picked], [maps[i] for i in picked])
    found = metrics_of_counts(count_pixels(masks, maps), own[None])
    assert {name: float(values[0]) for name, values in found.items()} == pytest.approx(exact, abs=1e-2)


def test_ranks_share_ties_and_the_best_is_one():
    values = np.array([[0.9, 0.8, 0.8], [0.9, 0.95, 0.7]])
    np.testing.assert_allclose(average_ranks(values), [1.5, 1.75, 2.75])


@pytest.mark.parametrize(("n", "q"), [(2, 1.960), (5, 2.728), (10, 3.164)])
def test_critical_difference_has_the_published_quantiles(n, q):
    # Table 5 (a) of Demšar, 2006
    assert critical_difference(n, 14) == pytest.approx(q * np.sqrt(n * (n + 1) / (6 * 14)), abs=2e-3)


def test_holm_adjusts_in_steps_and_leaves_out_nan():
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06])
    assert (holm([0.5, 0.9]) <= 1).all()


def test_wilcoxon_of_equal_values_is_one():
    assert wilcoxon_p_value([0.9, 0.8], [0.9, 0.8]) == 1
    assert wilcoxon_p_value(np.arange(10) / 10 + 0.1, np.arange(10) / 10) == pytest.approx(2 / 1024)


def detectors(n_categories=6, seed=0):
    """Return results of three detectors, from the best to the worst."""
    rng, labels = np.random.default_rng(seed), np.where(np.arange(100) < 50, -1, 1)
    found = {"good": [], "fair": [], "poor": []}
    for k in range(n_categories):
        noise = rng.normal(size=100)
        for name, shift in (("good", 3.0), ("fair", 1.0), ("poor", 0.0)):
            scores = -(noise + 0.3 * rng.normal(size=100) + shift * (labels == -1))
            result = result_of(scores, labels, f"category {k}")
            result.row = {"image_auroc": roc_auc_score(labels == -1, -scores)}
            found[name].append(result)
    return found


def test_comparison_finds_the_better_detector():
    comparison = compare_detectors(detectors(), n_resamples=300)
    rows = comparison.differences.query("metric == 'image_auroc'")
    assert len(rows) == 6 * 3
    assert (rows["low"] > 0).all()
    assert (rows["p_holm"] < 0.05).all()
    assert comparison.ranks.loc["image_auroc", ["good", "fair", "poor"]].tolist() == [1, 2, 3]
    assert comparison.ranks.loc["image_auroc", "friedman_p"] < 0.01
    text = comparison.describe()
    assert "category 0: good is better than fair in image_auroc" in text
    assert "Average ranks over the categories, 1 = best: good 1.00, fair 2.00, poor 3.00." in text


def test_difference_that_is_not_significant_after_adjustment_may_be_one():
    comparison = compare_detectors(detectors(1), n_resamples=200)
    assert "good is better than fair" in comparison.describe()
    weaker = replace(comparison, differences=comparison.differences.assign(p_holm=0.06))
    assert "good may be better than fair" in weaker.describe()
    assert "is better" not in weaker.describe()


def test_comparison_of_equal_detectors_finds_no_difference():
    found = detectors(3)
    comparison = compare_detectors({"one": found["fair"], "other": found["fair"]}, n_resamples=100)
    rows = comparison.differences.query("metric == 'image_auroc'")
    assert (rows[["difference", "low", "high"]] == 0).all().all()
    assert (rows["p_value"] == 1).all()
    assert "one and other have the same image_auroc in all resamples" in comparison.describe()


def test_a_metric_that_a_detector_does_not_have_is_compared_between_the_others():
    found, (masks, maps) = detectors(3), pictures(0, 100)
    for k in range(3):
        for name in ("good", "fair"):
            some = (
                maps if name == "good" else [scored + np.random.default_rng(k).normal(size=(40, 50)) for scored in maps]
            )
            row = {"aupro": pixel_metrics(masks, some)[0]["aupro"]}
            found[name][k] = replace(found[name][k], row=row, pixel_counts=count_pixels(masks, some))
    comparison = compare_detectors(found, n_resamples=20)
    assert comparison.table("aupro")["poor"].tolist() == ["not defined"] * 3
    assert comparison.describe("aupro").count("good is better than fair in aupro") == 3
    assert "poor" not in comparison.describe("aupro")
    assert comparison.ranks.loc["aupro", ["good", "fair"]].tolist() == [1, 2]
    assert comparison.ranks.loc["aupro", "critical_difference"] == pytest.approx(critical_difference(2, 3))
    assert set(comparison.plot("aupro").ranks) == {"good", "fair"}


def test_delong_p_values_are_nan_with_one_defective_image():
    labels = np.array([-1, 1, 1, 1])
    one = replace(result_of(-np.array([2.0, 1.0, 1.0, 0.5]), labels), row={"image_auroc": 1.0})
    rows = compare_detectors({"a": one, "b": one}, n_resamples=20).differences
    assert rows[["p_value", "p_holm"]].isna().all().all()
    assert (rows.query("metric == 'image_auroc'")["difference"] == 0).all()


def test_table_shows_values_with_intervals_in_the_order_of_the_detectors():
    table = compare_detectors(detectors(2), n_resamples=50).table(digits=2)
    assert table.columns.tolist() == ["good", "fair", "poor"]
    assert table.index.tolist() == ["category 0", "category 1"]
    assert table.map(lambda text: pd.Series(text).str.fullmatch(r"\d\.\d\d \(\d\.\d\d-\d\.\d\d\)")[0]).all().all()


def test_comparison_is_reproducible():
    first, again = (compare_detectors(detectors(2), n_resamples=50).metrics for _ in range(2))
    pd.testing.assert_frame_equal(first, again)


def test_comparison_of_one_category_has_no_ranks():
    comparison = compare_detectors(detectors(1), n_resamples=50)
    assert comparison.ranks.empty
    assert "Average ranks" not in comparison.describe()
    with pytest.raises(ValueError, match="at least two categories"):
        comparison.plot()


def test_diagram_joins_detectors_within_the_critical_difference():
    display = compare_detectors(detectors(), n_resamples=20).plot()
    assert isinstance(display, CriticalDifferenceDisplay)
    assert display.groups() == [("good", "fair"), ("fair", "poor")]
    texts = [text.get_text().strip() for text in display.ax_.texts]
    assert {"good (1.00)", "fair (2.00)", "poor (3.00)"} <= set(texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {}, "no results"),
        (lambda f: {"a": f["good"], "b": f["fair"][:1]}, "different categories: category 1"),
        (lambda f: {"a": f["good"], "b": [shorter(r) for r in f["fair"]]}, "100 test images, and 'b' has 99"),
        (lambda f: {"a": f["good"], "b": [renamed(r) for r in f["fair"]]}, "test image 0 is '0'"),
        (lambda f: {"a": "good"}, "expected an Evaluation"),
        (lambda f: {"a": [*f["good"], *f["good"][1:]]}, "more than one result of category 1"),
    ],
)
def test_results_that_do_not_match_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        compare_detectors(change(detectors(2)))


def shorter(result):
    return replace(result, labels=result.labels[1:], scores=result.scores[1:], paths=result.paths[1:])


def renamed(result):
    return replace(result, paths=result.paths + 1)


@pytest.mark.parametrize(("name", "value"), [("confidence", 1.0), ("n_resamples", 1)])
def test_parameters_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        compare_detectors(detectors(1), **{name: value})


@pytest.mark.parametrize("missing", [None, np.nan])
def test_images_without_a_group_are_not_one_group(missing):
    with pytest.raises(ValueError, match="test image 1 has no group"):
        compare_detectors(detectors(1), groups={"category 0": [1, missing, missing, *range(97)]})
    with pytest.raises(ValueError, match=r"has shape \(100, 1\): expected \(100,\)"):
        compare_detectors(detectors(1), groups={"category 0": np.zeros((100, 1))})


def test_groups_must_fit_the_test_images():
    with pytest.raises(ValueError, match="expected one group for each of 100 test images, found 3"):
        compare_detectors(detectors(1), groups={"category 0": [1, 2, 3]})


def test_names_of_categories_that_are_no_text_are_escaped():
    found = {name: [replace(some[0], category="caf\udce9")] for name, some in detectors(1).items()}
    comparison = compare_detectors(found, n_resamples=20)
    assert comparison.metrics["category"].unique().tolist() == ["caf\\xe9"]
    assert comparison.differences["category"].unique().tolist() == ["caf\\xe9"]
