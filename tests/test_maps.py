from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter, gaussian_filter1d, label

from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View
from skpatchcore.maps import anomaly_map, axis_matrices, map_of, map_peak, regions_of_map


def test_anomaly_map_equals_the_stored_reference(golden):
    arrays = golden("scoring")
    found = np.stack([anomaly_map(grid, (64, 48)) for grid in arrays["patch_grid"]])
    np.testing.assert_allclose(found, arrays["reference_map_64x48"], atol=1e-5)


def test_anomaly_map_is_float32_and_default_smoothing_is_4_pixels():
    grid = [[0, 1, 7], [3, 2, 1]]
    found = anomaly_map(grid, (30, 40))
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, anomaly_map(np.array(grid, np.float32), (30, 40), smoothing=4.0))
    np.testing.assert_array_equal(
        anomaly_map(grid, (30, 40), smoothing=(1.0, 5.0)), anomaly_map(np.transpose(grid), (40, 30), None, (5.0, 1.0)).T
    )


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 7), columns=st.integers(1, 7), height=st.integers(1, 40), width=st.integers(1, 40),
    sigma=st.sampled_from([0.0, 0.7, 4.0]), seed=st.integers(0, 9),
)  # fmt: skip
def test_anomaly_map_equals_bilinear_upsampling_then_gaussian_filter(rows, columns, height, width, sigma, seed):
    grid = np.random.default_rng(seed).random((rows, columns))
    expected = F.interpolate(torch.from_numpy(grid)[None, None], (height, width), mode="bilinear", align_corners=False)
    expected = gaussian_filter(expected[0, 0].numpy(), sigma) if sigma else expected[0, 0].numpy()
    np.testing.assert_allclose(anomaly_map(grid, (height, width), smoothing=sigma), expected, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)), height=st.integers(1, 90), width=st.integers(1, 90),
    sigmas=st.tuples(st.floats(0.002, 60), st.floats(0.002, 60)), start=st.floats(-5, 20), length=st.floats(5, 60),
)  # fmt: skip
def test_axis_matrices_are_smoothed_as_scipy_smooths(grid, height, width, sigmas, start, length):
    box = (start, start / 2, length, length / 2)
    sharp = axis_matrices(grid, (height, width), box, 0.0)
    smooth = axis_matrices(grid, (height, width), box, sigmas)
    for before, after, sigma in zip(sharp, smooth, sigmas, strict=True):
        assert np.abs(after - gaussian_filter1d(before, sigma, axis=0)).max() < 1e-12


def test_anomaly_map_equals_the_product_with_its_axis_matrices():
    grid, box = np.random.default_rng(0).random((6, 9)), (3.0, -2.0, 40.0, 70.0)
    rows, columns = axis_matrices((6, 9), (50, 61), box, (4.0, 2.0))
    np.testing.assert_allclose(anomaly_map(grid, (50, 61), box, (4.0, 2.0)), rows @ grid @ columns.T, rtol=1e-6)
    assert not rows.flags.writeable


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 6), top=st.floats(0, 10), left=st.floats(0, 10),
    box=st.floats(5, 30), sigma=st.floats(0, 5),
)  # fmt: skip
def test_anomaly_map_stays_in_the_range_of_the_patch_scores(rows, columns, top, left, box, sigma):
    grid = np.random.default_rng(rows).normal(size=(rows, columns))
    found = anomaly_map(grid, (40, 45), (top, left, box, box), sigma)
    assert found.shape == (40, 45)
    assert grid.min() - 1e-5 <= found.min() <= found.max() <= grid.max() + 1e-5


def test_anomaly_map_of_a_box_repeats_the_border_values_outside():
    grid = np.array([[1.0, 2.0], [3.0, 4.0]])
    found = anomaly_map(grid, (20, 30), (5.0, 10.0, 10.0, 10.0), 0.0)
    np.testing.assert_allclose(found[5:15, 10:20], anomaly_map(grid, (10, 10), None, 0.0), atol=1e-6)
    assert (found[:5] == found[5]).all()
    assert (found[:, 20:] == found[:, 19:20]).all()


@settings(deadline=None, max_examples=100)
@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)), size=st.tuples(st.integers(8, 70), st.integers(8, 70)),
    smoothing=st.sampled_from([0.0, 1.0, 4.0, 30.0]), crop=st.floats(0, 0.3), is_masked=st.booleans(),
    n_missing=st.integers(0, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_map_peak_is_the_maximum_of_the_map_over_inspected_pixels(
    grid, size, smoothing, crop, is_masked, n_missing, seed
):
    rng = np.random.default_rng(seed)
    scores = rng.random(grid) ** 4
    if scores.size > n_missing:
        scores.flat[rng.choice(scores.size, n_missing, replace=False)] = np.nan
    height, width = size
    box = (crop * height, crop * width, (1 - 2 * crop) * height, (1 - 2 * crop) * width)
    view = View(size, box, (32, 32), (height / 32, width / 32))
    mask = PixelMask.of(rng.random(size) < 0.5) if is_masked else None
    drawn = map_of(scores, view, smoothing, mask)
    expected = np.nanmax(scores) if np.isnan(drawn).all() else np.nanmax(drawn)
    np.testing.assert_allclose(map_peak(scores, view, smoothing, mask), expected, rtol=2e-7)


def test_map_peak_without_a_view_or_with_infinity_is_the_largest_patch_score():
    scores = np.array([[0.1, np.nan], [0.3, 0.2]])
    assert map_peak(scores, None, 4.0) == 0.3
    view = View((16, 16), (0.0, 0.0, 16.0, 16.0), (16, 16))
    scores[0, 0] = np.inf
    assert map_peak(scores, view, 4.0) == np.inf


@given(
    values=arrays(
        np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 3, np.nan])
    ),
    threshold=st.sampled_from([-1.0, 0.0, 1.5, 3.0]),
)
def test_peak_of_a_region_is_its_first_largest_pixel(values, threshold):
    labels, n_regions = label(values > threshold, structure=np.ones((3, 3)))
    expected = []
    for region in range(1, n_regions + 1):
        inside = np.where(labels == region, values, -np.inf)
        row, column = np.unravel_index(inside.argmax(), inside.shape)
        expected.append((int((labels == region).sum()), float(inside.max()), int(row), int(column)))
    found = regions_of_map(values, threshold)
    rows = found[["area", "peak", "peak_row", "peak_column"]].itertuples(index=False, name=None)
    assert sorted(rows) == sorted(expected)
    assert found["peak"].is_monotonic_decreasing
