from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.measure import label

from skpatchcore.calibration.sketches import (
    LEVELS,
    fractions_above,
    largest_areas,
    no_sketches,
    pixel_threshold,
    sketch_of_map,
    smallest_area,
)


def smooth_map(seed, shape=(90, 120)):
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 5).astype(np.float32)


@given(seed=st.integers(0, 99), share=st.floats(0.001, 0.5))
@settings(max_examples=40, deadline=None)
def test_fractions_and_areas_of_a_sketch_are_near_those_of_the_map(seed, share):
    anomaly_map = smooth_map(seed)
    threshold = float(np.quantile(anomaly_map, 1 - share))
    sketch = sketch_of_map(anomaly_map)[None]
    mask = anomaly_map > threshold
    # The true fraction lies between two levels, whose ratio is the square root of 2, and so does the estimate. One more
    # level on each side allows for the thinning of the map.
    place = int(np.searchsorted(LEVELS, mask.mean()))
    around = LEVELS[max(place - 2, 0)], LEVELS[min(place + 1, len(LEVELS) - 1)]
    assert around[0] <= fractions_above(sketch, threshold)[0] <= around[1]
    regions = label(mask, connectivity=2)
    # an area changes by jumps where regions merge, so it is compared with the areas at the two levels around
    lower, upper = (np.searchsorted(LEVELS, mask.mean()) + step for step in (-1, 0))
    areas = sketch[0, 1, [max(lower - 1, 0), min(upper + 1, len(LEVELS) - 1)]]
    largest = np.bincount(regions.ravel())[1:].max() / mask.size
    assert areas[0] * 0.9 - 1e-3 <= largest <= areas[1] * 1.1 + 1e-3
    assert areas[0] - 1e-6 <= largest_areas(sketch, threshold)[0] <= areas[1] + 1e-6


def test_fractions_of_sketches_are_accurate_for_most_maps():
    errors = []
    for seed in range(40):
        anomaly_map = smooth_map(seed)
        sketch = sketch_of_map(anomaly_map)[None]
        for share in (0.002, 0.01, 0.05, 0.2, 0.5):
            threshold = float(np.quantile(anomaly_map, 1 - share))
            fraction = (anomaly_map > threshold).mean()
            errors.append(abs(fractions_above(sketch, threshold)[0] - fraction) / fraction)
    assert np.median(errors) < 0.02
    assert np.quantile(errors, 0.95) < 0.1


def test_first_value_of_a_sketch_is_the_exact_maximum_of_a_large_map():
    anomaly_map = smooth_map(0, (700, 1000))
    anomaly_map[333, 777] = 9  # a pixel that the thinned map leaves out
    assert sketch_of_map(anomaly_map)[0, 0] == 9
    assert sketch_of_map(anomaly_map)[0, 1] < 9


def test_sketch_ignores_pixels_that_are_not_inspected():
    anomaly_map = smooth_map(1)
    seen = anomaly_map.copy()
    seen[:, 60:] = np.nan
    np.testing.assert_array_equal(sketch_of_map(seen)[0], sketch_of_map(anomaly_map[:, :60])[0])
    assert np.isnan(sketch_of_map(np.full((3, 4), np.nan))).all()


@pytest.mark.parametrize("anomaly_map", [np.ones((1, 1)), np.zeros((5, 7)), np.arange(6.0).reshape(2, 3)])
def test_nothing_is_above_the_maximum_and_everything_above_a_lower_value(anomaly_map):
    sketch = sketch_of_map(anomaly_map)[None]
    assert fractions_above(sketch, anomaly_map.max())[0] == 0
    assert largest_areas(sketch, anomaly_map.max())[0] == 0
    assert fractions_above(sketch, anomaly_map.min() - 1)[0] == 1


@given(n=st.integers(1, 60), share=st.sampled_from([1e-3, 1e-2, 0.1, 0.5]), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_pixel_threshold_is_the_smallest_that_keeps_the_fraction(n, share, seed):
    rng = np.random.default_rng(seed)
    sketches = np.stack([sketch_of_map(rng.gamma(4, size=(20, 20)) * rng.uniform(0.8, 1.2)) for _ in range(n)])
    threshold = pixel_threshold(sketches, share)

    def mean_with_one_more(value):
        fractions = fractions_above(sketches, value)
        return (fractions.sum() + fractions.max()) / (n + 1)

    assert mean_with_one_more(threshold) <= share
    assert mean_with_one_more(threshold - 1e-4) >= share * 0.97 or threshold == sketches[:, 0].min()


def test_pixel_threshold_promises_the_fraction_for_new_images():
    rng = np.random.default_rng(0)
    for n, share in ((30, 0.01), (80, 0.002)):
        rates = []
        for _ in range(15):
            known = np.stack([sketch_of_map(smooth_map(int(rng.integers(1 << 30)), (40, 40))) for _ in range(n)])
            threshold = pixel_threshold(known, share)
            fresh = np.stack([smooth_map(int(rng.integers(1 << 30)), (40, 40)) for _ in range(60)])
            rates.append((fresh > threshold).mean())
        assert share / 3 < np.mean(rates) < share * 1.3


def test_smallest_area_is_the_conformal_rank_of_the_largest_regions():
    maps = np.zeros((9, 10, 10))
    for i in range(9):
        maps[i].flat[: i + 1] = 1 + np.arange(i + 1) / 100  # regions of 1 to 9 pixels in a row
    sketches = np.stack([sketch_of_map(anomaly_map) for anomaly_map in maps])
    areas = np.sort(largest_areas(sketches, 0.5))
    for contamination, rank in ((0.5, 5), (0.2, 8), (0.1, 9), (0.01, 9)):
        assert smallest_area(sketches, 0.5, contamination) == areas[rank - 1]
    assert np.isnan(smallest_area(no_sketches(3), 0.5, 0.1))
    assert np.isnan(pixel_threshold(no_sketches(3), 0.1))
