"""Tests of suspicious patches: which patches are found, and that a fit does not learn them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore.bank.suspects import learnt_cells, suspicion
from skpatchcore.images.turns import Turn
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchStream


def grids(n=12, side=6, n_channels=5, seed=0):
    """Return grids of similar patches."""
    return np.random.default_rng(seed).normal(0, 1, (n, side, side, n_channels)).astype(np.float32)


def with_spot(X, images=(3,)):
    """Return grids with a spot of 2 x 2 unlike patches in some images."""
    X = X.copy()
    for image in images:
        X[image, 1:3, 2:4] += 12
    return X


def left_out(cells, n=36):
    """Return the suspicious cells of each image."""
    return [set() if own is None else set(range(n)) - set(own.tolist()) for own in cells]


SPOT = {1 * 6 + 2, 1 * 6 + 3, 2 * 6 + 2, 2 * 6 + 3}


@pytest.mark.parametrize("images", [(3,), (3, 7)])
def test_learnt_cells_leave_out_the_spot_of_few_images(images):
    X = with_spot(grids(), images)
    found = left_out(learnt_cells(Patches.from_features(X), 4 * len(images) / 432 + 1e-6, np.arange(12), 0))
    assert all(found[image] == SPOT for image in images)
    assert sum(map(len, found)) == 4 * len(images)


def test_learnt_cells_compare_no_patches_of_one_group():
    # One workpiece with the same spot in all of its 6 images: without groups, the spot is no rarity.
    X = with_spot(grids(30, 4), range(12))
    groups = np.arange(30)
    groups[:12] = 0
    alone, grouped = (suspicion(Patches.from_features(X), some, 0) for some in (np.arange(30), groups))
    assert grouped[0][1, 2] > 1.5 * alone[0][1, 2]


def test_suspicion_does_not_depend_on_batches():
    X = with_spot(grids(40, 9, 80))
    held = suspicion(Patches.from_features(X), np.arange(40), 7)
    batches = [Patches.from_features(X[i : i + 3]) for i in range(0, 40, 3)]

    class Batches:
        def __iter__(self):
            return iter(batches)

    assert all(np.array_equal(a, b) for a, b in zip(held, suspicion(Batches(), np.arange(40), 7), strict=True))


def test_suspicion_of_stream_equals_that_of_held_patches_and_depends_on_the_seed():
    X = with_spot(grids(30, 14, 80))  # more patches than are compared
    streamed, held, other = (
        suspicion(source, np.arange(30), seed)
        for source, seed in ((PatchStream(None, X), 1), (Patches.from_features(X), 1), (Patches.from_features(X), 2))
    )
    assert np.array_equal(streamed, held)
    assert not np.array_equal(streamed, other)


def test_suspicion_ignores_cells_outside_the_region():
    X = grids()
    cells = [np.arange(18)] + [None] * 11
    inside = Patches.from_features(X).within(cells, [None] * 12, [None] * 12)
    found = suspicion(inside, np.arange(12), 0)
    assert np.isnan(found[0][3:]).all()
    assert np.isfinite(found[0][:3]).all()
    assert left_out(learnt_cells(inside, 0.1, np.arange(12), 0))[0] >= set(range(18, 36))


def test_learnt_cells_of_turned_views_are_the_turned_cells():
    X = with_spot(grids())
    turned = np.rot90(X, 1, axes=(1, 2))
    cells = learnt_cells(Patches.from_features(np.concatenate([X, turned])), 0.03, np.arange(12), 0, [Turn(1)])
    assert len(cells) == 24
    mask = np.ones(36, bool)
    mask[list(left_out(cells)[3])] = False
    assert np.array_equal(cells[15], np.flatnonzero(np.rot90(mask.reshape(6, 6))))


def test_suspicion_of_equal_patches_is_finite():
    found = suspicion(Patches.from_features(np.ones((4, 3, 3, 2), np.float32)), np.arange(4), 0)
    assert np.isfinite(np.array(found)).all()


@pytest.mark.parametrize("groups", [np.zeros(12, int), np.zeros(1, int)])
def test_suspicion_refuses_a_single_group(groups):
    with pytest.raises(ValueError, match="suspect_share"):
        suspicion(Patches.from_features(grids()[: len(groups)]), groups, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(1, 5), st.floats(0.001, 0.499), st.integers(0, 5))
def test_learnt_cells_leave_out_the_share_rounded_down(n, side, share, seed):
    X = grids(n, side, 3, seed)
    cells = learnt_cells(Patches.from_features(X), share, np.arange(n), seed)
    n_learnt = sum(side**2 if own is None else len(own) for own in cells)
    assert n_learnt == n * side**2 - int(share * n * side**2 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=3, max_size=3), st.booleans())
def test_limited_patches_are_those_of_the_cells(masks, has_region):
    X = grids(3, 2, 2)
    region = np.array([[0, 1, 3]] * 3) if has_region else None
    patches = Patches.from_features(X)
    if region is not None:
        patches = patches.within(list(region), [None] * 3, [None] * 3)
    cells = [None if all(mask) else np.flatnonzero(mask) for mask in masks]
    found = patches.limited_to(cells)
    for i, mask in enumerate(masks):
        wanted = np.flatnonzero(np.array(mask) & (np.isin(np.arange(4), region[i]) if has_region else True))
        own = found.rows[found.starts[i] : found.starts[i + 1]]
        assert np.array_equal(own, X[i].reshape(4, 2)[wanted])
    rows = np.arange(len(found.rows))
    positions = found.positions_of(rows)
    assert np.array_equal(X[found.image_of(rows), positions[:, 0], positions[:, 1]], found.rows)
