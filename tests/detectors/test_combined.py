"""Tests of the numerics that combine several detectors: maps with NaN, and sketches of maxima."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore.calibration.sketches import LEVELS, fractions_above, sketch_of_map
from skpatchcore.detectors._combined import combined_map, sketches_of_maximum


def random_maps(seed, n_maps, shape=(12, 17), missing=0.3):
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(n_maps, *shape)).astype(np.float32)
    maps[rng.random(maps.shape) < missing] = np.nan
    return maps


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), n_maps=st.integers(1, 4), aggregate=st.sampled_from(["mean", "max"]))
def test_combined_map_uses_the_maps_that_inspect_a_pixel(seed, n_maps, aggregate):
    maps = random_maps(seed, n_maps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = combined_map(maps, aggregate)
        with np.errstate(all="raise"):
            combined_map(maps, aggregate)
    assert found.dtype == np.float32
    known = ~np.isnan(maps).all(axis=0)
    assert np.array_equal(~np.isnan(found), known)
    expected = {"mean": np.nanmean, "max": np.nanmax}[aggregate](maps[:, known], axis=0)
    np.testing.assert_allclose(found[known], expected, rtol=1e-5, atol=1e-6)


def test_peak_of_the_maximum_is_the_largest_peak_of_the_members():
    maps = random_maps(0, 3)
    assert np.nanmax(combined_map(maps, "max")) == np.nanmax(maps)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), n_maps=st.integers(1, 4), is_equal=st.booleans(), threshold=st.floats(-3, 3))
def test_sketches_of_maximum_are_upper_bounds_with_the_exact_peak(seed, n_maps, is_equal, threshold):
    maps = np.random.default_rng(seed).normal(size=(n_maps, 40, 60)).astype(np.float32)
    if is_equal:
        maps[:] = maps[:1]
    bound = sketches_of_maximum(np.array([[sketch_of_map(m)] for m in maps]))
    exact = sketch_of_map(maps.max(axis=0))[None]
    assert bound.shape == exact.shape
    assert bound[0, 0, 0] == maps.max()
    assert (np.diff(bound[0, 0]) <= 0).all()
    assert ((bound[0, 1] >= 0) & (bound[0, 1] <= 1)).all()
    # The sketches of the maps are exact to one of 2400 pixels and interpolated between levels a factor of 1.4 apart.
    assert fractions_above(bound, threshold) >= 0.7 * fractions_above(exact, threshold) - 2 / 2400
    assert fractions_above(bound, threshold) <= np.sqrt(2) * n_maps * fractions_above(exact, threshold) + 2 / 2400


def test_sketches_of_maximum_of_one_map_are_the_sketches_of_the_map():
    sketch = sketch_of_map(np.random.default_rng(0).normal(size=(64, 64)))
    np.testing.assert_array_equal(sketches_of_maximum(sketch[None, None])[0, 0], sketch[0])
    constant = sketches_of_maximum(np.stack([sketch_of_map(np.full((9, 9), value))[None] for value in (1.0, 2.0)]))
    np.testing.assert_array_equal(constant[0], [np.full(len(LEVELS), 2.0), np.zeros(len(LEVELS))])


def test_sketches_of_maximum_are_nan_for_images_that_a_member_could_not_score():
    sketches = np.array([[sketch_of_map(m) for m in random_maps(i, 3, missing=0)] for i in range(2)])
    sketches[1, 2] = np.nan
    found = sketches_of_maximum(sketches)
    assert np.isnan(found).all(axis=(1, 2)).tolist() == [False, False, True]


def test_combined_map_refuses_maps_of_different_sizes():
    with pytest.raises(ValueError, match="inhomogeneous"):
        combined_map([np.zeros((2, 3)), np.zeros((3, 2))], "mean")
