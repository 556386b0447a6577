"""Compare the metrics with direct loops over all thresholds, and with the metrics of scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from skpatchcore.metrics import (
    aupimo_scores,
    aupro_score,
    f1_max_score,
    pixel_average_precision_score,
    pixel_f1_max_score,
    pixel_metrics,
    pixel_roc_auc_score,
    pro_curve,
)


@st.composite
def cases(draw):
    """Generate masks and maps of different sizes, with ties, single pixels, touching regions, full and empty masks."""
    n_images = draw(st.integers(1, 4))
    n_levels = draw(st.sampled_from([2, 5, 1000]))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    masks, maps = [], []
    for _ in range(n_images):
        shape = tuple(rng.integers(1, 8, 2))
        masks.append(rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9])))
        maps.append(np.round(rng.random(shape) * n_levels) / n_levels)
    assume(any(mask.any() for mask in masks) and not all(mask.all() for mask in masks))
    return masks, maps


def direct_pro(masks, maps):
    """Return the PRO curve, computed by a loop over all thresholds and regions."""
    n_good = sum((~mask).sum() for mask in masks)
    points = [(0.0, 0.0)]
    for threshold in sorted({value for scored in maps for value in scored.ravel()}, reverse=True):
        false = sum(((scored >= threshold) & ~mask).sum() for mask, scored in zip(masks, maps, strict=True))
        overlaps = []
        for mask, scored in zip(masks, maps, strict=True):
            regions, n_regions = label(mask, np.ones((3, 3)))
            overlaps += [(scored[regions == i + 1] >= threshold).mean() for i in range(n_regions)]
        points.append((false / n_good, np.mean(overlaps)))
    return np.array(points).T


def area_up_to(x, y, limit):
    inside = x <= limit
    x_in, y_in = x[inside], y[inside]
    if x_in[-1] < limit:
        i = int(inside.sum())
        at_limit = y[i - 1] + (y[i] - y[i - 1]) * (limit - x[i - 1]) / (x[i] - x[i - 1])
        x_in, y_in = np.append(x_in, limit), np.append(y_in, at_limit)
    return np.trapezoid(y_in, x_in) / limit


@settings(max_examples=150, deadline=None)
@given(case=cases(), max_fpr=st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_aupro_equals_a_loop_over_all_thresholds(case, max_fpr):
    fpr, pro = direct_pro(*case)
    assert aupro_score(*case, max_fpr=max_fpr) == pytest.approx(area_up_to(fpr, pro, max_fpr), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_pro_curve_equals_a_loop_over_all_thresholds(case):
    fpr, pro, thresholds = pro_curve(*case)
    expected = direct_pro(*case)
    np.testing.assert_allclose(fpr, expected[0], atol=1e-12)
    np.testing.assert_allclose(pro, expected[1], atol=1e-12)
    assert thresholds[0] == np.inf
    assert (np.diff(thresholds) < 0).all()
    assert (fpr[-1], pro[-1]) == (pytest.approx(1), pytest.approx(1))


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_pixel_metrics_equal_those_of_scikit_learn(case):
    truth = np.concatenate([mask.ravel() for mask in case[0]])
    scores = np.concatenate([scored.ravel() for scored in case[1]])
    assert pixel_roc_auc_score(*case) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert pixel_average_precision_score(*case) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    best = pixel_f1_max_score(*case)
    assert best.f1 == pytest.approx(max(f1_score(truth, scores >= t) for t in np.unique(scores)))
    assert best.f1 == pytest.approx(f1_score(truth, scores >= best.threshold))
    assert best.n_misclassified == ((scores >= best.threshold) != truth).sum()


@given(seed=st.integers(0, 1000), n_levels=st.sampled_from([3, 10**6]))
def test_f1_max_score_is_the_maximum_over_all_thresholds(seed, n_levels):
    rng = np.random.default_rng(seed)
    y = rng.permutation([1] * 12 + [-1] * 5)
    scores = -np.round(rng.random(17) * n_levels)
    best = f1_max_score(y, scores)
    precision, recall, _ = precision_recall_curve(y == -1, -scores)
    assert best.f1 == pytest.approx(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))
    flagged = scores <= best.threshold
    assert best.n_misclassified == (flagged != (y == -1)).sum()
    assert best.f1 == pytest.approx(f1_score(y == -1, flagged))


def direct_aupimo(masks, maps, low, high):
    """Return the AUPIMO scores, computed by a loop over all thresholds."""
    good = [scored for mask, scored in zip(masks, maps, strict=True) if not mask.any()]
    values = sorted({value for scored in maps for value in scored.ravel()}, reverse=True)
    rates = np.array([0.0] + [np.mean([(scored >= t).mean() for scored in good]) for t in values])
    results = []
    for mask, scored in zip(masks, maps, strict=True):
        if not mask.any():
            results.append(math.nan)
            continue
        recall = np.array([0.0] + [(scored[mask] >= t).mean() for t in values])
        area = 0.0
        for x0, x1, y0, y1 in zip(rates[:-1], rates[1:], recall[:-1], recall[1:], strict=True):
            if x1 <= low or x0 >= high or x1 == x0:
                continue
            begin, end = math.log(max(x0, low)), math.log(min(x1, high))
            if x0 == 0:
                area += y0 * (end - begin)
                continue
            share = [(edge - math.log(x0)) / (math.log(x1) - math.log(x0)) for edge in (begin, end)]
            area += (end - begin) * (y0 + (y1 - y0) * np.mean(share))
        results.append(area / math.log(high / low))
    return results


@settings(max_examples=150, deadline=None)
@given(case=cases(), bounds=st.sampled_from([(1e-5, 1e-4), (0.05, 0.4), (0.3, 1.0), (1e-3, 0.2)]))
def test_aupimo_equals_a_loop_over_all_thresholds(case, bounds):
    masks, maps = case
    assume(any(not mask.any() for mask in masks))
    np.testing.assert_allclose(
        aupimo_scores(masks, maps, fpr_bounds=bounds), direct_aupimo(masks, maps, *bounds), atol=1e-9
    )


@pytest.mark.parametrize("n_levels", [4, 60, 10**6])
def test_metrics_of_large_maps_equal_a_loop_over_all_thresholds(n_levels):
    """Only the highest good pixels are sorted. The maps are large, because a partition sorts small arrays fully."""
    rng = np.random.default_rng(n_levels)
    masks = [np.zeros((30, 40), bool) for _ in range(4)]
    masks[1][3:9, 5:30] = masks[1][20:22, 2:4] = masks[3][10:25, 10:12] = True
    maps = [np.floor((rng.random(mask.shape) + mask * 0.4) * n_levels) / n_levels for mask in masks]
    fpr, pro = direct_pro(masks, maps)
    for max_fpr in (0.0005, 0.02, 0.3, 1.0):
        assert aupro_score(masks, maps, max_fpr=max_fpr) == pytest.approx(area_up_to(fpr, pro, max_fpr), abs=1e-9)
    truth, scores = np.array(masks).ravel(), np.array(maps).ravel()
    assert pixel_roc_auc_score(masks, maps) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert pixel_average_precision_score(masks, maps) == pytest.approx(average_precision_score(truth, scores))
    assert (
        pixel_f1_max_score(masks, maps).n_misclassified
        == ((scores >= pixel_f1_max_score(masks, maps).threshold) != truth).sum()
    )
    for bounds in [(1e-4, 2e-3), (0.01, 0.1), (0.2, 1.0)]:
        np.testing.assert_allclose(
            aupimo_scores(masks, maps, fpr_bounds=bounds), direct_aupimo(masks, maps, *bounds), atol=1e-9
        )


@pytest.mark.parametrize("n_good", range(1, 9))
def test_aupro_of_few_pixels_in_descending_order_equals_a_loop(n_good):
    scores = np.array([[*range(n_good, 0, -1), n_good - 0.5]])
    mask = np.array([[False] * n_good + [True]])
    for max_fpr in (0.1, 0.5, 0.8):
        expected = area_up_to(*direct_pro([mask], [scores]), max_fpr)
        assert aupro_score([mask], [scores], max_fpr=max_fpr) == pytest.approx(expected)


def test_aupimo_counts_all_pixels_of_a_tie():
    good = np.zeros((10, 10))
    good.flat[:10], good.flat[10:60] = 1.0, 0.5
    masks, maps = [np.zeros((10, 10), bool), np.eye(10, dtype=bool)], [good, np.full((10, 10), 0.5)]
    expected = direct_aupimo(masks, maps, 0.05, 0.4)
    np.testing.assert_allclose(aupimo_scores(masks, maps, fpr_bounds=(0.05, 0.4)), expected, atol=1e-12)


def test_metrics_of_perfect_and_constant_maps():
    masks = [np.zeros((20, 20), bool), np.pad(np.ones((4, 4), bool), 8)]
    perfect = [mask.astype(float) + np.random.default_rng(0).random(mask.shape) * 0.1 for mask in masks]
    flat = [np.zeros(mask.shape) for mask in masks]
    for metric in (aupro_score, pixel_roc_auc_score, pixel_average_precision_score):
        assert metric(masks, perfect) == pytest.approx(1)
    assert aupimo_scores(masks, perfect)[1] == pytest.approx(1)
    assert np.isnan(aupimo_scores(masks, perfect)[0])
    assert pixel_f1_max_score(masks, perfect)[0::2] == (1, 0)
    assert aupro_score(masks, flat) == pytest.approx(0.15)
    assert pixel_roc_auc_score(masks, flat) == 0.5
    assert aupimo_scores(masks, flat)[1] == 0


@pytest.mark.parametrize("n_points", [None, 5])
def test_pro_curve_is_at_most_1_despite_rounding(n_points):
    for n_regions in range(1, 60):
        mask = np.zeros((1, 2 * n_regions + 1), bool)
        mask[0, 1::2] = True
        scored = np.arange(mask.size, dtype=np.float32)[None]
        _, pro, thresholds = pro_curve([mask], [scored], n_points=n_points)
        assert pro.max() <= 1
        assert pro[-1] == pytest.approx(1)
        assert thresholds.dtype == np.float64


def test_aupro_counts_pixels_that_touch_at_corners_as_one_region():
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = mask[1, 1] = True  # a region of two pixels
    mask[3, 0] = True  # a region of one pixel
    scored = np.zeros((4, 4))
    scored[3, 0] = 1.0
    assert aupro_score([mask], [scored], max_fpr=1.0) == pytest.approx(0.5 + 0.5 * 0.5)


def test_metrics_refuse_masks_of_another_size_or_resize_them():
    mask = np.zeros((8, 12), bool)
    mask[2:4, 4:8] = True
    scored = np.zeros((4, 6))
    scored[1, 2:4] = 1.0
    with pytest.raises(
        ValueError, match=r"image 0: mask of shape \(8, 12\) and map of shape \(4, 6\) differ\. .* resize=True"
    ):
        aupro_score([mask], [scored])
    for metric in (aupro_score, pixel_roc_auc_score, pixel_average_precision_score):
        assert metric([mask], [scored], resize=True) == pytest.approx(1)


@pytest.mark.parametrize(
    "metric",
    [
        pro_curve,
        aupro_score,
        aupimo_scores,
        pixel_roc_auc_score,
        pixel_average_precision_score,
        pixel_f1_max_score,
        pixel_metrics,
    ],
)
def test_metrics_resize_masks_only_if_requested_and_accept_lists_and_all_dtypes(metric):
    mask = np.zeros((8, 12), int)
    mask[2:4, 4:8] = 255
    maps = np.random.default_rng(0).integers(0, 9, (2, 4, 6))
    expected = metric([mask[::2, ::2] > 0, np.zeros((4, 6))], maps.astype(float))
    with pytest.raises(ValueError, match="image 0: mask of shape"):
        metric([mask, mask * 0], maps)
    for same in (mask.tolist(), mask.astype(np.uint8)):
        assert str(metric([same, mask * 0], maps, resize=True)) == str(expected)
    for same in (maps.tolist(), maps.astype(object), maps.astype(np.float16), maps.astype(np.uint8)):
        assert str(metric([mask[::2, ::2].tolist(), np.zeros((4, 6))], same)) == str(expected)
    with pytest.raises(ValueError, match="are not 2-D"):
        metric([mask, mask * 0], maps[..., None], resize=True)
    with pytest.raises(ValueError, match="are not 2-D"):
        metric([mask[..., None], mask * 0], maps, resize=True)


@pytest.mark.parametrize(
    "metric", [aupro_score, pro_curve, pixel_roc_auc_score, pixel_average_precision_score, pixel_f1_max_score]
)
def test_metrics_refuse_invalid_masks_and_maps(metric):
    mask, scored = np.eye(3, dtype=bool), np.ones((3, 3))
    with pytest.raises(ValueError, match="2 masks and 1 maps"):
        metric([mask, mask], [scored])
    with pytest.raises(ValueError, match="no defective pixel"):
        metric([mask & False], [scored])
    with pytest.raises(ValueError, match="no good pixel"):
        metric([mask | True], [scored])
    for wrong in (np.where(mask, scored, np.inf), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="image 1: the map holds infinity, or only NaN"):
            metric([mask, mask], [scored, wrong])
    with pytest.raises(ValueError, match="no defective pixel"):
        metric([mask], [np.where(mask, np.nan, scored)])
    with pytest.raises(ValueError, match="no good pixel"):
        metric([mask], [np.where(mask, scored, np.nan)])
    with pytest.raises(ValueError, match="not 2-D"):
        metric([mask[None]], [scored[None]])


@settings(max_examples=50, deadline=None)
@given(cases(), st.integers(0, 2**31))
def test_metrics_leave_out_pixels_that_are_not_inspected(drawn, seed):
    """The metrics of pixels equal those of images that lack the columns that are NaN."""
    masks, maps = drawn
    rng = np.random.default_rng(seed)
    kept = [rng.random(mask.shape[1]) < 0.7 for mask in masks]
    rest = [mask[:, columns] for mask, columns in zip(masks, kept, strict=True)]
    assume(all(mask.size for mask in rest))
    assume(any(mask.any() for mask in rest) and not all(mask.all() for mask in rest))
    partly = [np.where(columns, scored, np.nan) for scored, columns in zip(maps, kept, strict=True)]
    scores = [scored[:, columns] for scored, columns in zip(maps, kept, strict=True)]
    for metric in (pixel_roc_auc_score, pixel_average_precision_score, pixel_f1_max_score):
        np.testing.assert_allclose(metric(masks, partly), metric(rest, scores))


def test_a_region_counts_by_its_inspected_pixels():
    mask = np.zeros((4, 12), bool)
    mask[1:3, 1:5] = mask[1:3, 8:10] = True
    scored = np.zeros((4, 12))
    scored[1:3, 1:3] = 1.0
    assert aupro_score([mask], [scored], max_fpr=1.0) == pytest.approx((0.5 + 0.5 * 0.5 + 0 + 0.5) / 2)
    scored[:, 3:5] = np.nan  # the inspected half of the first region is found
    assert aupro_score([mask], [scored], max_fpr=1.0) == pytest.approx((1 + 0.5) / 2)
    scored[:, 7:11] = np.nan  # the second region has no inspected pixel
    assert aupro_score([mask], [scored], max_fpr=1.0) == 1.0
    assert np.isnan(aupimo_scores([mask, mask, mask & False], [scored, np.where(mask, np.nan, 0.0), 0 * mask])[1])


def test_metrics_refuse_invalid_arguments():
    mask, scored = np.eye(3, dtype=bool), np.ones((3, 3))
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="max_fpr"):
            aupro_score([mask], [scored], max_fpr=wrong)
    with pytest.raises(ValueError, match="needs at least one good image and one anomalous image"):
        aupimo_scores([mask], [scored])
    with pytest.raises(ValueError, match="needs at least one good image and one anomalous image"):
        aupimo_scores([mask & False], [scored])
    for bounds in ((1e-3, 1e-4), (1e-3, 1e-3), (0, 1e-3), (0.5, 1.1)):
        with pytest.raises(ValueError, match="fpr_bounds"):
            aupimo_scores([mask, mask & False], [scored, scored], fpr_bounds=bounds)
    with pytest.raises(ValueError, match="score 1 is NaN"):
        f1_max_score([1, -1], [0.0, np.nan])
    with pytest.raises(ValueError, match="expected both"):
        f1_max_score([1, 0], [0.0, 1.0])
    with pytest.raises(ValueError, match="expected one label and one score per image"):
        f1_max_score([1, -1], [0.0])
    with pytest.raises(ValueError, match="expected one label and one score per image"):
        f1_max_score([[1, -1]], [[0.0, 1.0]])


def test_f1_max_score_accepts_any_numeric_dtype():
    assert f1_max_score([1, 1, -1], np.array([3, 2, 0], np.uint8)) == (1.0, 0.0, 0)
    assert f1_max_score(np.array([1, -1, -1]), [3, 2, 5]) == (pytest.approx(0.8), 5.0, 1)


def test_metrics_do_not_modify_their_input():
    rng = np.random.default_rng(0)
    masks, maps = (
        [rng.random((9, 9)) < 0.2 for _ in range(2)],
        [rng.random((9, 9)).astype(np.float32) for _ in range(2)],
    )
    before = [scored.copy() for scored in maps]
    masks[0][:] = False
    for metric in (aupro_score, pixel_roc_auc_score, pixel_f1_max_score, aupimo_scores):
        metric(masks, maps)
    for scored, copy in zip(maps, before, strict=True):
        np.testing.assert_array_equal(scored, copy)


def test_pixel_metrics_curve_has_500_points_by_default():
    rng = np.random.default_rng(0)
    masks, maps = [np.eye(40, dtype=bool)], [rng.random((40, 40)) - np.eye(40)]
    assert pixel_metrics(masks, maps)[1].shape == (2, 500)
    assert pixel_metrics(masks, maps, n_points=30)[1].shape == (2, 30)
    assert len(pro_curve(masks, maps)[0]) == 1601


@settings(deadline=None, max_examples=60)
@given(case=cases(), n_points=st.integers(3, 40))
def test_pixel_metrics_equals_the_separate_functions(case, n_points):
    masks, maps = case
    found, curve = pixel_metrics(masks, maps, n_points=n_points)
    assert found == {
        "pixel_auroc": pixel_roc_auc_score(masks, maps),
        "pixel_ap": pixel_average_precision_score(masks, maps),
        "pixel_f1_max": pixel_f1_max_score(masks, maps).f1,
        "aupro": pytest.approx(aupro_score(masks, maps), abs=1e-12),
        "aupro_05": pytest.approx(aupro_score(masks, maps, max_fpr=0.05), abs=1e-12),
    }
    # the returned points, including the first and the last one, are points of the full curve
    fpr, pro, thresholds = pro_curve(masks, maps)
    some_fpr, some_pro, some = pro_curve(masks, maps, n_points=n_points)
    np.testing.assert_array_equal(curve, [some_fpr, some_pro])
    assert len(some) <= n_points
    assert (some_fpr[-1], some_pro[-1]) == (1.0, pytest.approx(1.0))
    places = [int(np.flatnonzero(thresholds == t)[0]) for t in some]
    np.testing.assert_allclose(some_fpr, fpr[places], atol=1e-12)
    np.testing.assert_allclose(some_pro, pro[places], atol=1e-12)
