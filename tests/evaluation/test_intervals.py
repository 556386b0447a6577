"""Confidence intervals of the metrics of an evaluation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from skpatchcore.evaluation import CategoryResult, metric_intervals
from skpatchcore.evaluation.paired import auroc_interval
from skpatchcore.evaluation.resampled import PROPORTIONS, metrics_of_resamples

LABELS = np.where(np.arange(60) < 25, -1, 1)


def result_of(scores, labels=LABELS, offset=-1.0):
    """Return a result whose row has the metrics of its scores."""
    result = CategoryResult(
        "bolt", {}, np.asarray(scores), labels, labels.astype(str), np.arange(len(labels)), offset, np.nan,
        -np.linspace(0, 2, 99), np.zeros((2, 2)),
    )  # fmt: skip
    result.row.update({name: v[0] for name, v in metrics_of_resamples(result, np.ones((1, len(labels)))).items()})
    return result


def scores_of(seed, shift=1.0, labels=LABELS):
    return -(np.random.default_rng(seed).normal(size=len(labels)) + shift * (labels == -1))


def test_intervals_contain_the_values_of_all_image_metrics():
    result = result_of(scores_of(0))
    found = metric_intervals(result, n_resamples=200)
    assert found.columns.tolist() == ["category", "metric", "value", "low", "high"]
    assert {"image_auroc", "image_ap", "image_f1_max", *PROPORTIONS} == set(found["metric"])
    assert (found["low"] <= found["value"]).all()
    assert (found["value"] <= found["high"]).all()
    assert (found["low"] < found["high"]).all()
    own = found.set_index("metric").loc["image_auroc"]
    assert own["value"] == pytest.approx(roc_auc_score(LABELS == -1, -result.scores))


def test_fractions_of_images_have_exact_binomial_intervals():
    scores = np.where(LABELS == -1, -2.0, 0.0)  # all defects are found, and no good image is flagged
    found = metric_intervals(result_of(scores), n_resamples=10).set_index("metric")
    assert found.loc["defects_found", ["value", "high"]].tolist() == [1, 1]
    assert found.loc["defects_found", "low"] == pytest.approx(0.025 ** (1 / 25))  # all of 25
    assert found.loc["good_flagged", "high"] == pytest.approx(1 - 0.025 ** (1 / 35))  # none of 35
    some = result_of(scores_of(1))
    k = int((some.scores[LABELS == -1] < some.offset).sum())
    exact = binomtest(k, 25).proportion_ci(0.9)
    row = metric_intervals(some, n_resamples=10, confidence=0.9).set_index("metric").loc["defects_found"]
    assert (row["low"], row["high"]) == (exact.low, exact.high)


def test_perfect_auroc_has_an_interval_with_a_width():
    found = metric_intervals(result_of(np.where(LABELS == -1, -2.0, 0.0)), n_resamples=10).set_index("metric")
    assert found.loc["image_auroc", ["value", "high"]].tolist() == [1, 1]
    assert 0.85 < found.loc["image_auroc", "low"] < 0.97


@pytest.mark.parametrize("auroc", [0, 0.02, 0.5, 0.9, 1])
def test_auroc_interval_is_symmetric_and_narrower_with_more_images(auroc):
    low, high = auroc_interval(auroc, 17, 6)
    assert 0 <= low <= auroc <= high <= 1
    assert (1 - high, 1 - low) == pytest.approx(auroc_interval(1 - auroc, 17, 6), abs=1e-9)
    more = auroc_interval(auroc, 170, 60)
    assert more[1] - more[0] < 0.6 * (high - low)


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_auroc_intervals_cover_the_true_area(shift):
    rng, truth, n_covered = np.random.default_rng(0), norm.cdf(shift / np.sqrt(2)), 0
    for _ in range(400):
        bad, good = rng.normal(shift, 1, 17), rng.normal(0, 1, 12)
        low, high = auroc_interval((bad[:, None] > good).mean(), 17, 12)
        n_covered += low <= truth <= high
    assert n_covered / 400 == pytest.approx(0.95, abs=0.03)


def test_intervals_of_fractions_are_wider_with_groups_of_equal_images():
    labels, groups = np.where(np.arange(200) < 100, -1, 1), np.arange(200) // 10
    scores = -np.repeat(np.random.default_rng(2).normal(1, 1, 20), 10)
    result = result_of(scores, labels)
    alone = metric_intervals(result, n_resamples=300).set_index("metric")
    together = metric_intervals(result, groups={"bolt": groups}, n_resamples=300).set_index("metric")
    for metric in ("defects_found", "good_flagged", "image_auroc"):
        assert np.ptp(together.loc[metric, ["low", "high"]]) > 1.5 * np.ptp(alone.loc[metric, ["low", "high"]])


def test_metrics_that_are_not_defined_are_left_out():
    result = result_of(scores_of(3), offset=np.nan)
    result.row.update({"defects_found": np.nan, "good_flagged": np.nan})
    assert not {"defects_found", "good_flagged"} & set(metric_intervals(result, n_resamples=10)["metric"])


def test_intervals_of_several_categories_are_reproducible():
    results = [result_of(scores_of(4)), result_of(scores_of(5))]
    first, again = (metric_intervals(results, n_resamples=50, random_state=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(metric_intervals(results, n_resamples=50, random_state=4))


def test_blocks_of_resamples_give_the_same_metrics(monkeypatch):
    result, weights = result_of(scores_of(6)), np.random.default_rng(0).integers(0, 3, (20, 60)).astype(np.uint16)
    whole = metrics_of_resamples(result, weights)
    monkeypatch.setattr("skpatchcore.evaluation.resampled._BLOCK", 180)
    for name, values in metrics_of_resamples(result, weights).items():
        np.testing.assert_array_equal(values, whole[name])


@pytest.mark.parametrize(("name", "value"), [("confidence", 0.0), ("n_resamples", 1)])
def test_parameters_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        metric_intervals(result_of(scores_of(7)), **{name: value})


def test_groups_must_fit_the_test_images():
    with pytest.raises(ValueError, match="expected one group for each of 60 test images, found 0"):
        metric_intervals(result_of(scores_of(8)), groups={"nut": np.zeros(60)})


def test_few_groups_give_a_warning_and_perfect_values_an_interval_of_the_groups():
    result, groups = result_of(np.where(LABELS == -1, -2.0, 0.0)), np.arange(60) // 5
    with (
        pytest.warns(UserWarning, match="the defective test images are of 5 groups only"),
        pytest.warns(UserWarning, match="the good test images are of 7 groups only"),
    ):
        found = metric_intervals(result, groups={"bolt": groups}, n_resamples=10).set_index("metric")
    assert found.loc["defects_found", "low"] == pytest.approx(0.025 ** (1 / 5))
    assert found.loc["image_auroc", "low"] < metric_intervals(result).set_index("metric").loc["image_auroc", "low"]


def test_groups_are_a_dict():
    with pytest.raises(TypeError, match="groups is a ndarray: expected a dict"):
        metric_intervals(result_of(scores_of(9)), groups=np.zeros(60))
