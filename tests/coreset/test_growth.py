"""Tests of selections that go on: GreedyCoresetSampler.extend and refill, RandomSampler.extend, and reserves."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

import skpatchcore.coreset.reserve as reserve_module
from skpatchcore import GreedyCoresetSampler, RandomSampler
from skpatchcore.coreset._rows import Rows
from skpatchcore.coreset.reserve import N_SUPPORTS, ReserveRequest


def rows_of(seed=0, n=300, n_columns=6):
    return np.random.default_rng(seed).normal(size=(n, n_columns)).astype(np.float32)


def textbook(X, known, radius=None, count=None):
    """Return greedy picks among the rows of `X` that follow the known rows."""
    nearest, picks = cdist(X, known).min(axis=1), []
    while len(picks) < len(X) if count is None else len(picks) < count:
        best = int(nearest.argmax())
        if radius is not None and nearest[best] <= radius:
            break
        picks.append(best)
        nearest = np.minimum(nearest, np.linalg.norm(X - X[best], axis=1))
    return picks, nearest.max()


@pytest.mark.parametrize("growth", ["radius", "ratio"])
def test_extend_selects_as_the_textbook_does(growth):
    X = rows_of()
    sampler = GreedyCoresetSampler(0.1, random_state=0).fit(X[:200])
    radius = sampler.selection_distances_[-1]
    picks = sampler.extend([X[200:230], X[230:]], 100, growth)
    expected, left = textbook(X[200:], sampler.components_, radius)
    if growth == "ratio" and len(expected) < 10:
        expected, left = textbook(X[200:], sampler.components_, count=10)
    assert picks.tolist() == expected
    assert sampler.component_indices_[20:].tolist() == [200 + i for i in expected]
    assert sampler.n_samples_seen_ == 300
    assert sampler.radius_ == radius
    assert sampler.covering_radius_ == pytest.approx(max(radius, left), rel=1e-6)
    assert len(sampler.selection_distances_) == len(sampler.component_indices_)


def test_growth_by_ratio_keeps_the_radius_and_saves_rows_later():
    X = rows_of()
    sampler = GreedyCoresetSampler(0.1, random_state=0).fit(X[:200])
    odd = np.concatenate([X[200:205] + 10 * np.arange(1, 6)[:, None], X[205:210]])
    picks = sampler.extend([odd], 10, "ratio")
    assert {0, 1, 2, 3, 4} <= set(picks.tolist())  # one row would be the fraction
    assert sampler.n_beyond_ratio_ == len(picks) - 1
    assert sampler.covering_radius_ == sampler.radius_
    sampler.components_ = np.concatenate([sampler.components_, odd[picks]])
    n_copies = len(sampler.extend([np.repeat(sampler.components_[:1], 60, axis=0)], 60, "ratio"))
    assert n_copies == 6 - (len(picks) - 1)
    assert sampler.n_beyond_ratio_ == 0


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 99), max_size=4, unique=True))
def test_extend_does_not_depend_on_batches(cuts):
    X = rows_of()
    picks = []
    for parts in ([X[200:]], np.split(X[200:], sorted(cuts))):
        sampler = GreedyCoresetSampler(0.1, n_projections=3, random_state=0).fit(X[:200])
        picks.append(sampler.extend(parts, 100).tolist())
    assert picks[0] == picks[1]


def test_extend_projects_as_the_fit_did():
    X = rows_of(n_columns=40)
    sampler = GreedyCoresetSampler(0.05, n_projections=8).fit(X[:200])  # without a seed
    again = GreedyCoresetSampler(0.05, n_projections=8, random_state=sampler.seed_).fit(X[:200])
    assert again.component_indices_.tolist() == sampler.component_indices_.tolist()
    assert sampler.n_projections_ == 8
    assert sampler.extend([X[200:]], 100).tolist() == again.extend([X[200:]], 100).tolist()
    everything = GreedyCoresetSampler(0.05, n_projections=8, random_state=sampler.seed_)
    assert everything.fit(X).n_samples_seen_ == 300


def test_extend_refuses_other_rows():
    X = rows_of()
    sampler = GreedyCoresetSampler(0.1, random_state=0).fit(X)
    with pytest.raises(ValueError, match="5 columns"):
        sampler.extend([X[:, :5]], 300)
    with pytest.raises(ValueError, match="row 1 of X holds NaN"):
        sampler.extend([np.where(np.arange(300)[:, None] == 1, np.nan, X)], 300)
    with pytest.raises(ValueError, match="growth='all'"):
        sampler.extend([X], 300, "all")
    assert sampler.n_samples_seen_ == 300


def test_random_sampler_goes_on_at_random():
    X = rows_of()
    sampler = RandomSampler(0.1, random_state=0).fit(X[:200])
    picks = sampler.extend([X[200:]], 100)
    again = RandomSampler(0.1, random_state=0).fit(X[:200]).extend([X[200:250], X[250:]], 100)
    assert picks.tolist() == again.tolist()
    assert len(np.unique(picks)) == 10
    with pytest.raises(ValueError, match="growth='radius'"):
        sampler.extend([X], 300, "radius")


def test_random_sampler_keeps_the_seed_of_its_fit():
    X = rows_of()
    first, second = (RandomSampler(0.1, random_state=np.random.RandomState(0)).fit(X[:200]) for _ in range(2))
    again = RandomSampler(0.1, random_state=first.seed_).fit(X[:200])
    assert again.component_indices_.tolist() == first.component_indices_.tolist()
    picks = first.extend([X[200:]], 100).tolist()
    assert second.extend([X[200:]], 100).tolist() == again.extend([X[200:]], 100).tolist() == picks
    by_batches = RandomSampler(0.1, random_state=np.random.RandomState(0)).fit_batches([X[:50], X[50:200]])
    assert by_batches.seed_ == first.seed_
    assert RandomSampler(0.1).fit(X).seed_ != RandomSampler(0.1).fit(X).seed_
    assert RandomSampler(0.1, random_state=5).fit(X).seed_ == 5


@pytest.mark.parametrize("random_state", [5, None])
def test_random_sampler_of_an_older_version_goes_on(random_state):
    X = rows_of()
    sampler = RandomSampler(0.1, random_state=random_state).fit(X[:200])
    older = RandomSampler.__new__(RandomSampler)
    older.__setstate__({name: value for name, value in sampler.__getstate__().items() if name != "seed_"})
    assert older.seed_ == random_state
    picks = older.extend([X[200:]], 100)
    assert len(np.unique(picks)) == 10
    if random_state is not None:
        assert picks.tolist() == sampler.extend([X[200:]], 100).tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(3, 30), st.sampled_from([1, 3, 256]), st.booleans())
def test_reserve_covers_each_image_by_itself_and_knows_its_supports(seed, n_selected, n_images, n_first, is_divided):
    rng = np.random.default_rng(seed)
    X, images = rows_of(seed, 200, 3), np.sort(rng.integers(0, n_images, 200))
    request = ReserveRequest(iter(np.split(images, [50, 120])))
    sampler = GreedyCoresetSampler(n_selected, random_state=0)
    parts = {"_ROWS": 7, "_BLOCK": 16} if is_divided else {}
    with mock.patch.multiple(reserve_module, _FIRST_PICKS=n_first, **parts):
        sampler.fit_batches(np.split(X, [50, 120]), 200, reserve=request)
    plain = GreedyCoresetSampler(n_selected, random_state=0).fit(X)
    assert sampler.component_indices_.tolist() == plain.component_indices_.tolist()
    picked, radius = plain.component_indices_, sampler.covering_radius_ * (1 + 1e-5)
    assert not np.isin(request.rows, picked).any()
    assert request.row_images.tolist() == images[request.rows].tolist()
    distances = cdist(X, X)
    for i in range(200):
        own = np.concatenate([picked, request.rows])
        assert distances[i, own[images[own] == images[i]]].min() <= radius
    # A row that is covered by few other images only is represented by a row of the reserve with these supports.
    entries = {(request.rows[place], *sorted(rest)) for place, *rest in request.supports.tolist()}
    near = distances <= sampler.covering_radius_ * (1 - 1e-5)
    unsure = (distances > sampler.covering_radius_ * (1 - 1e-5)) & (distances <= radius)
    for i in range(200):
        of_image = picked[images[picked] == images[i]]
        if (near | unsure)[i, of_image].any() or unsure[i, picked].any():
            continue
        covering = np.unique(images[picked[near[i, picked]]]).tolist()
        if len(covering) <= N_SUPPORTS:
            padded = sorted([*covering, *[-1] * (N_SUPPORTS - len(covering))])
            places = [row for row, *rest in entries if rest == padded and images[row] == images[i]]
            assert any(distances[i, row] <= radius for row in places)


def test_reserve_is_selected_only_if_it_is_not_too_large():
    X, images = rows_of(), np.repeat(np.arange(30), 10)

    def requested(most_rows):
        request = ReserveRequest([images], most_rows=most_rows)
        GreedyCoresetSampler(0.1, random_state=0).fit_batches([X], 300, reserve=request)
        return request

    asked = []
    free = requested(None)
    enough = requested(lambda n_selected: asked.append(n_selected) or len(free.rows))
    assert asked == [30]
    assert not free.is_too_large
    assert not enough.is_too_large
    assert enough.rows.tolist() == free.rows.tolist()
    assert enough.supports.tolist() == free.supports.tolist()
    less = requested(lambda _: len(free.rows) - 1)
    assert less.is_too_large
    assert less.rows is None


def test_supports_are_exact_at_the_radius():
    """Distances that equal the radius count, although float32 cannot decide about them."""
    points = torch.tensor([[0.0, 0.0], [3000.0, 4000.0], [3000.0, 4001.0], [9999.0, 0.0]])
    rows = Rows.from_rounded(points, 1.0, np.zeros(2))
    request = ReserveRequest([np.array([0, 1, 2, 3])])
    request.select(rows, np.array([0, 3]), 5000.0)
    assert request.rows.tolist() == [1, 2]
    assert request.supports.tolist() == [[0, 0, -1, -1], [1, -1, -1, -1]]


def test_refill_covers_the_reserve_within_the_radius():
    X = rows_of()
    sampler = GreedyCoresetSampler(0.1, random_state=0).fit(X)
    reserve = rows_of(1, 80)
    filled = sampler.refill(reserve, np.array([3, 4]))
    assert filled[:2].tolist() == [3, 4]
    known = np.concatenate([sampler.components_, reserve[filled]])
    assert cdist(reserve, known).min(axis=1).max() <= sampler.covering_radius_ * (1 + 1e-6)
    expected, _ = textbook(reserve, np.concatenate([sampler.components_, reserve[3:5]]), sampler.covering_radius_)
    assert filled[2:].tolist() == expected
    assert sampler.refill(reserve[:0], np.zeros(0, np.int64)).tolist() == []
