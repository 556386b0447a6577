from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from skpatchcore import GreedyCoresetSampler
from skpatchcore.coreset import _pools as pools
from skpatchcore.coreset._rows import Rows


def integer_rows(n_images, n_each, n_columns, seed, levels=40):
    """Return rows of integers and the image of each row. Few levels give equal rows and equal distances."""
    points = np.random.default_rng(seed).integers(-levels, levels + 1, (n_images * n_each, n_columns))
    return points.astype(np.float32), np.repeat(np.arange(n_images), n_each)


def as_rows(points):
    return Rows.from_rounded(torch.from_numpy(points), 1.0, np.zeros(points.shape[1]))


def patches(n_images=24, n_each=50, seed=0):
    """Return rows around a few centres, as patch features, and the image of each row."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(25, 12)) * 4
    X = centres[rng.integers(0, 25, n_images * n_each)] + rng.normal(size=(n_images * n_each, 12))
    return X.astype(np.float32), np.repeat(np.arange(n_images), n_each)


def without(images, fold):
    return np.flatnonzero(np.isin(images, fold))


@settings(deadline=None, max_examples=60)
@given(
    n_images=st.integers(1, 5),
    n_each=st.integers(1, 40),
    levels=st.sampled_from([1, 3, 40]),
    radius=st.sampled_from([0.0, 1.0, 5.0, 30.0, 1000.0]),
    seed=st.integers(0, 99),
)
def test_pool_covers_each_image_by_own_rows(n_images, n_each, levels, radius, seed):
    points, images = integer_rows(n_images, n_each, 3, seed, levels)
    pool = pools.cover_of_images(as_rows(points), images, radius, 3 * len(points))
    assert pool.tolist() == sorted(set(pool.tolist()))
    for image in range(n_images):
        own = pool[images[pool] == image]
        distances = cdist(points[images == image], points[own])
        assert distances.min(axis=1).max() <= 0.8 * radius * (1 + 1e-9)


def test_there_is_no_pool_if_it_has_more_than_half_of_the_rows():
    points, images = integer_rows(4, 30, 5, seed=0)
    assert pools.cover_of_images(as_rows(points), images, 0.0, len(points)) is None
    assert len(pools.cover_of_images(as_rows(points), images, 0.0, 2 * len(points))) == len(points)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), levels=st.sampled_from([1, 40]), radius=st.sampled_from([0.0, 2.0, 20.0]))
def test_pool_of_large_images_equals_textbook_loop(seed, levels, radius):
    points, images = integer_rows(3, 60, 4, seed, levels)
    expected = pools.cover_of_images(as_rows(points), images, radius, 3 * len(points))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pools, "_N_LOOP", 0)
        found = pools.cover_of_images(as_rows(points), images, radius, 3 * len(points))
    assert found.tolist() == expected.tolist()


def test_pool_of_image_does_not_depend_on_other_images():
    points, images = integer_rows(4, 60, 5, seed=0)
    pool = pools.cover_of_images(as_rows(points), images, 30.0, 3 * len(points))
    changed = points.copy()
    changed[images == 2] = integer_rows(1, 60, 5, seed=9)[0]
    other = pools.cover_of_images(as_rows(changed), images, 30.0, 3 * len(points))
    kept = [[row for row in found.tolist() if images[row] != 2] for found in (pool, other)]
    assert kept[0] == kept[1]
    assert pool.tolist() != other.tolist()


@pytest.mark.parametrize("ratio", [0.004, 0.01])
def test_folds_from_pool_cover_remaining_rows_about_as_well_as_selection_from_all_rows(ratio):
    X, images = patches(n_each=200)
    left_out = [without(images, fold) for fold in np.array_split(np.random.default_rng(0).permutation(24), 6)]
    sampler = GreedyCoresetSampler(ratio, random_state=0)
    exact = sampler.fit_folds([X], len(X), left_out)
    pooled = sampler.fit_folds([X], len(X), left_out, images=iter([images]))
    assert any(a.tolist() != b.tolist() for a, b in zip(exact, pooled, strict=True))
    for some, a, b in zip(left_out, exact, pooled, strict=True):
        assert len(a) == len(b) == len(set(b.tolist()))
        assert not np.isin(b, some).any()
        rest = np.delete(X, some, axis=0)
        radii = [cdist(rest, X[picked]).min(axis=1).max() for picked in (a, b)]
        assert radii[1] <= 1.25 * radii[0]


def test_folds_are_selected_from_all_rows_if_the_pool_is_large():
    X, images = patches()
    left_out = [without(images, [0, 3]), without(images, [5])]
    sampler = GreedyCoresetSampler(0.9, random_state=0)
    exact = sampler.fit_folds([X], len(X), left_out)
    pooled = sampler.fit_folds([X], len(X), left_out, images=iter([images]))
    assert [a.tolist() for a in exact] == [b.tolist() for b in pooled]


def test_folds_are_selected_from_all_rows_if_the_pool_is_too_small():
    X = np.repeat(np.random.default_rng(0).normal(size=(6, 4)), 20, axis=0).astype(np.float32)  # 6 different rows
    images = np.tile(np.arange(4), 30)
    sampler = GreedyCoresetSampler(50, random_state=0)
    (picked,) = sampler.fit_folds([X], len(X), [without(images, [1])], images=iter([images]))
    assert len(set(picked.tolist())) == 50
    assert not np.isin(picked, without(images, [1])).any()


def test_folds_from_pool_do_not_depend_on_batches_and_are_read_from_the_cache(tmp_path):
    X, images = patches()
    left_out = [without(images, [0, 3]), without(images, [5])]
    plain = GreedyCoresetSampler(0.05, random_state=0)
    expected = plain.fit_folds([X], len(X), left_out, images=iter([images]))
    parts = [700, 900]
    found = plain.fit_folds(np.split(X, parts), len(X), left_out, images=iter(np.split(images, parts)))
    assert [a.tolist() for a in found] == [a.tolist() for a in expected]
    cached = GreedyCoresetSampler(0.05, random_state=0, memory=str(tmp_path))
    for _ in range(2):
        found = cached.fit_folds([X], len(X), left_out, digest=b"rows", images=iter([images]))
        assert [a.tolist() for a in found] == [a.tolist() for a in expected]
    # The selection from all rows has a cache of its own, and so has another ratio.
    exact = plain.fit_folds([X], len(X), left_out)
    assert [a.tolist() for a in cached.fit_folds([X], len(X), left_out, digest=b"rows")] == [a.tolist() for a in exact]
    smaller, cached_smaller = plain.set_params(ratio=0.03), cached.set_params(ratio=0.03)
    expected = smaller.fit_folds([X], len(X), left_out, images=iter([images]))
    found = cached_smaller.fit_folds([X], len(X), left_out, digest=b"rows", images=iter([images]))
    assert [a.tolist() for a in found] == [a.tolist() for a in expected]


def test_cache_does_not_mix_folds_of_int_and_float_ratios(tmp_path):
    """Both ratios select 20 rows; of the rows without the fold, they select 20 and 19. The pool has 19 rows."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(20), 10)
    spread = np.where(images == 3, 1.0, 1e-3)[:, None]  # only the image that is left out needs several rows
    X = ((rng.normal(size=(20, 8)) * 100)[images] + spread * rng.normal(size=(200, 8))).astype(np.float32)
    left_out = [without(images, [3])]

    def folds(ratio, memory):
        sampler = GreedyCoresetSampler(ratio, random_state=0, memory=memory)
        return sampler.fit_folds([X], len(X), left_out, digest=b"rows", images=iter([images]))[0].tolist()

    for order in ([0.1, 20], [20, 0.1]):
        memory = str(tmp_path / str(order[0]))
        assert [folds(ratio, memory) for ratio in order] == [folds(ratio, None) for ratio in order]


def test_cache_is_used_without_a_seed_if_nothing_is_drawn(tmp_path):
    X = patches(n_images=6)[0]
    for _ in range(3):
        sampler = GreedyCoresetSampler(0.05, n_projections=None, start=0, memory=str(tmp_path))
        sampler.fit_batches([X], len(X), digest=b"rows")
        assert len(list(tmp_path.rglob("*.npz"))) == 1
