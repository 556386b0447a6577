from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.base import clone

from skpatchcore import GreedyCoresetSampler
from skpatchcore.coreset import distributed
from skpatchcore.coreset.distributed import InProcessGroup


class PicklingGroup(InProcessGroup):
    """Group that pickles all arguments and results, and runs each function twice, as a cluster may do."""

    def map(self, name, function, *held, common=()):
        assert name.startswith("skpatchcore-")
        before = pickle.dumps((held, common))
        super().map(name, function, *held, common=common)
        assert pickle.dumps((held, common)) == before, f"{function.__name__} changes its arguments"
        second = super().map(name, function, *pickle.loads(before)[0], common=pickle.loads(before)[1])
        return pickle.loads(pickle.dumps(second))


def blobs(n_rows, n_columns, seed=0):
    """Return rows around a few centres, in the order of their images, and the image of each row."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(30, n_columns)) * 4
    X = centres[rng.integers(0, 30, n_rows)] + rng.normal(size=(n_rows, n_columns)) * rng.random((n_rows, 1))
    return X.astype(np.float32), np.sort(rng.integers(0, n_rows // 12 + 2, n_rows))


def divided(sampler, X, images, ends):
    """Return the projected rows of shards; `ends` are the image numbers at which shards end."""
    starts = [0, *np.searchsorted(images, sorted(ends)).tolist(), len(X)]
    parts = [slice(a, b) for a, b in pairwise(starts) if b > a]
    return [
        sampler.project_batches(np.array_split(X[part], 3) if len(X[part]) > 3 else [X[part]], [images[part]])
        for part in parts
    ]


@settings(deadline=None, max_examples=25)
@given(
    n_rows=st.integers(1, 400),
    ends=st.sets(st.integers(0, 40), max_size=9),
    ratio=st.sampled_from([1, 0.02, 0.3, 1.0]),
    start=st.sampled_from(["random", 0]),
    seed=st.integers(0, 3),
    levels=st.sampled_from([None, 3]),
    n_columns=st.sampled_from([3, 150]),
)
def test_exact_mode_selects_the_rows_of_a_fit_in_one_process(n_rows, ends, ratio, start, seed, levels, n_columns):
    X, images = blobs(n_rows, n_columns, seed)
    if levels:  # few different values: many ties
        X = np.clip(np.round(X), -levels, levels)
    sampler = GreedyCoresetSampler(ratio, start=start, random_state=seed)
    expected = clone(sampler).fit(X)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "_N_CANDIDATES", 30)
        patched.setattr(distributed, "_FEWEST", 4)
        report, _ = sampler.fit_shards(InProcessGroup(), divided(sampler, X, images, ends))
    assert sampler.component_indices_.tolist() == expected.component_indices_.tolist()
    assert sampler.selection_distances_.tolist() == expected.selection_distances_.tolist()
    assert sampler.n_features_in_ == n_columns
    assert report.covering_radius == expected.selection_distances_[-1]
    assert report.n_picks == len(expected.component_indices_)
    assert not hasattr(sampler, "components_")


@pytest.mark.parametrize("ends", [[], [20, 60], [1, 2, 3, 50, 70]])
def test_functions_of_shards_are_pure_and_picklable(ends):
    X, images = blobs(1000, 140)
    folds = [np.arange(0, 80, 3), np.arange(5)]
    for mode in ("exact", "merge"):
        plain, pickling = (GreedyCoresetSampler(0.1, random_state=0) for _ in range(2))
        _, expected = plain.fit_shards(InProcessGroup(), divided(plain, X, images, ends), folds, mode)
        _, found = pickling.fit_shards(PicklingGroup(), divided(plain, X, images, ends), folds, mode)
        assert pickling.component_indices_.tolist() == plain.component_indices_.tolist()
        for a, b in zip(expected, found, strict=True):
            assert a.tolist() == b.tolist()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), ratio=st.sampled_from([0.02, 0.2, 5]), n_shards=st.integers(1, 6))
def test_exact_mode_selects_the_same_folds_as_one_process(seed, ratio, n_shards):
    X, images = blobs(500, 6, seed)
    rng = np.random.default_rng(seed)
    folds = [rng.permutation(np.unique(images))[: rng.integers(1, 30)] for _ in range(30)]
    sampler, local = (GreedyCoresetSampler(ratio, random_state=seed) for _ in range(2))
    left_out = [np.flatnonzero(np.isin(images, fold)) for fold in folds]
    expected = local.fit_folds([X], len(X), left_out, images=iter([images]))
    ends = np.linspace(0, images.max(), n_shards + 1).astype(int)[1:-1]
    _, found = sampler.fit_shards(InProcessGroup(), divided(sampler, X, images, ends), folds)
    assert sampler.component_indices_.tolist() == local.component_indices_.tolist()
    for a, b in zip(expected, found, strict=True):
        assert a.tolist() == b.tolist()


def test_few_rounds_and_candidates_suffice():
    X, images = blobs(8000, 8)
    sampler = GreedyCoresetSampler(300, random_state=0)
    calls = []
    report, _ = sampler.fit_shards(
        InProcessGroup(), divided(sampler, X, images, range(80, 640, 80)), on_progress=lambda *done: calls.append(done)
    )
    assert report.n_shards == 8
    assert report.n_rounds < 60
    assert report.n_rows_sent < len(X)
    assert sum(n for n, _ in calls) + 1 == 300  # the first pick is not part of a round
    assert [rounds for _, rounds in calls] == list(range(1, report.n_rounds + 1))


@pytest.mark.parametrize("oversampling", [1.0, 2.0, 50.0])
@pytest.mark.parametrize("ends", [[], [30], [1, 2, 60, 61], range(0, 84, 4)])
def test_merge_mode_covers_within_its_certified_factor(oversampling, ends):
    X, images = blobs(1000, 5)
    for n_selected in (1, 2, 40, 999, 1000):
        sampler = GreedyCoresetSampler(n_selected, random_state=0, n_projections=None)
        report, _ = sampler.fit_shards(
            InProcessGroup(), divided(sampler, X, images, ends), mode="merge", oversampling=oversampling
        )
        picks = sampler.component_indices_
        assert len(set(picks.tolist())) == n_selected
        nearest = cdist(X, X[picks]).min(axis=1)
        assert report.covering_radius == pytest.approx(nearest.max(), rel=1e-5, abs=1e-5)
        assert sampler.selection_distances_[-1] == report.covering_radius
        assert (np.diff(sampler.selection_distances_) <= 0).all()
        for k in (1, n_selected):
            radius = cdist(X, X[picks[:k]]).min(axis=1).max()
            assert radius <= sampler.selection_distances_[k - 1] * (1 + 1e-5) + 1e-5
        exact = clone(sampler).fit(X)
        assert picks[0] == exact.component_indices_[0]
        # No k rows cover better than half of the radius of the exact greedy algorithm.
        assert (
            report.covering_radius <= report.approximation_factor * exact.selection_distances_[-1] * (1 + 1e-6) + 1e-9
        )
        assert report.approximation_factor >= 1
        if oversampling == 50.0:  # each shard selects at least as many rows as are wanted
            assert report.approximation_factor < 4.5


def test_merge_mode_of_one_shard_equals_exact_mode():
    X, images = blobs(800, 5)
    merged, exact = (GreedyCoresetSampler(0.1, random_state=0) for _ in range(2))
    merged.fit_shards(InProcessGroup(), divided(merged, X, images, []), mode="merge")
    exact.fit_shards(InProcessGroup(), divided(exact, X, images, []))
    assert merged.component_indices_.tolist() == exact.component_indices_.tolist()


def test_shards_refuse_what_depends_on_all_rows():
    X, images = blobs(100, 200)
    with pytest.raises(ValueError, match="n_projections='auto' depends on the number of patches"):
        GreedyCoresetSampler(n_projections="auto", random_state=0).project_batches([X], [images])
    sampler = GreedyCoresetSampler(5, random_state=0)
    with pytest.raises(ValueError, match="leaves out all rows"):
        sampler.fit_shards(InProcessGroup(), divided(sampler, X, images, [4]), [np.unique(images)])
    other = sampler.project_batches([X[:, :150]], [images])
    with pytest.raises(ValueError, match="expected one number"):
        sampler.fit_shards(InProcessGroup(), [*divided(sampler, X, images, [4]), other])


def test_lost_rows_raise_an_error():
    class Losing(InProcessGroup):
        def map(self, name, function, *held, common=()):
            found = super().map(name, function, *held, common=common)
            if name == "skpatchcore-candidates":
                found[0].found = {i: None for i in found[0].found}
            return found

    X, images = blobs(100, 5)
    sampler = GreedyCoresetSampler(1.0, random_state=0)
    with pytest.raises(RuntimeError, match="rows have been lost"):
        sampler.fit_shards(Losing(), divided(sampler, X, images, [4]))


def test_rows_that_were_computed_again_with_another_result_raise_an_error():
    class Restarting(InProcessGroup):
        def map(self, name, function, *held, common=()):
            if name == "skpatchcore-check":
                held[0][1].checksum += 1
            return super().map(name, function, *held, common=common)

    X, images = blobs(100, 5)
    sampler = GreedyCoresetSampler(5, random_state=0)
    with pytest.raises(RuntimeError, match=r"images 4 to \d+ were computed again.*results differ"):
        sampler.fit_shards(Restarting(), divided(sampler, X, images, [4]))


def test_shards_refuse_a_start_or_a_number_of_rows_beyond_all_rows():
    X, images = blobs(100, 5)
    for parameters, message in (
        ({"ratio": 5, "start": 100}, "start=100 is beyond the 100 rows"),
        ({"ratio": 101}, "n_samples=100"),
    ):
        for mode in ("exact", "merge"):
            sampler = GreedyCoresetSampler(**parameters, random_state=0)
            with pytest.raises(ValueError, match=message):
                sampler.fit_shards(InProcessGroup(), divided(sampler, X, images, [4]), mode=mode)


@pytest.mark.parametrize("factor", [64, 250])
def test_exact_mode_selects_the_same_rows_if_a_few_rows_have_large_values(factor):
    for seed in range(4):
        X, images = blobs(600, 20, seed)
        X[[5, 6, 300, 301]] = np.abs(X).max() / np.abs(X[5]).max() * factor * X[5]
        X[300] *= np.float32(1 + 1e-6)
        sampler, local = (GreedyCoresetSampler(1.0, random_state=seed) for _ in range(2))
        sampler.fit_shards(InProcessGroup(), divided(sampler, X, images, [10, 25]))
        assert sampler.component_indices_.tolist() == local.fit(X).component_indices_.tolist()


def test_merge_mode_needs_two_rounds_for_all_folds():
    X, images = blobs(500, 6)
    sampler = GreedyCoresetSampler(0.1, random_state=0)
    folds = [np.arange(5), np.arange(5, 10), np.arange(10, 15)]
    report, picks = sampler.fit_shards(InProcessGroup(), divided(sampler, X, images, [10, 25]), folds, "merge")
    assert (report.n_rounds, report.n_selections, len(picks)) == (2, 4, 3)
    for fold, picked in zip(folds, picks, strict=True):
        assert not np.isin(images[picked], fold).any()


def test_merge_mode_has_no_finite_factor_if_all_rows_that_were_sent_are_equal():
    X, images = np.float32([[0, 0], [5, 0], [0, 0], [5, 0]]), np.array([0, 0, 1, 1])
    sampler = GreedyCoresetSampler(2, start=0)
    report, _ = sampler.fit_shards(
        InProcessGroup(), divided(sampler.set_params(random_state=0), X, images, [1]), mode="merge", oversampling=1.0
    )
    assert report.covering_radius == 5
    assert report.approximation_factor == np.inf
