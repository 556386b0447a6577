from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist
from sklearn.base import clone

from skpatchcore import GreedyCoresetSampler, LearnedProxySampler, RandomSampler
from skpatchcore.coreset import _farthest as farthest
from skpatchcore.coreset import _k_center as selection
from skpatchcore.coreset import _rows as rows
from skpatchcore.coreset import _shards as batches
from skpatchcore.coreset import greedy, proxies
from skpatchcore.coreset._base import count_of
from skpatchcore.coreset._projection import gaussian_projection, lemma_projections, sparse_projection
from skpatchcore.coreset.reserve import ReserveRequest


def textbook(X: np.ndarray, n_selected: int, start: int) -> tuple[list[int], list[float]]:
    """Return the picks and radii of Algorithm 1, computed as printed in the paper."""
    picks, radii = [start], []
    nearest = np.linalg.norm(X - X[start], axis=1)
    for _ in range(n_selected):
        radii.append(nearest.max())
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(X - X[picks[-1]], axis=1))
    return picks[:n_selected], radii


def as_rows(X):
    """Return the array as `Rows`."""
    return rows.Rows(torch.from_numpy(np.pad(X, [(0, 0), (0, 1)])))


def covering_radius(X, rows):
    """Return the largest distance from any row of `X` to the nearest of the selected rows."""
    return cdist(X, X[rows]).min(axis=1).max()


@pytest.mark.parametrize("start", [0, 17])
def test_greedy_order_equals_reference_implementation(golden, start):
    arrays_ = golden("greedy")
    sampler = GreedyCoresetSampler(60, start=start, n_projections=None).fit(arrays_["X"])
    assert sampler.component_indices_.tolist() == arrays_[f"order_start{start}"].tolist()
    np.testing.assert_allclose(sampler.selection_distances_[:-1], arrays_[f"radius_start{start}"], atol=1e-5)


@pytest.mark.parametrize("n_candidates", [1, 7, 50, 100_000])
@pytest.mark.parametrize("block", [(1, 1), (64, 5), (1024, 512)])
@pytest.mark.parametrize("n_unasked", [1, 16])
def test_greedy_order_does_not_depend_on_block_sizes(monkeypatch, n_candidates, block, n_unasked):
    monkeypatch.setattr(selection, "N_CANDIDATES", n_candidates)
    monkeypatch.setattr(farthest, "_BLOCK", block)
    monkeypatch.setattr(selection, "_N_UNASKED", n_unasked)
    X = np.random.default_rng(3).normal(size=(400, 6))
    picks, radii = textbook(X, 120, 5)
    sampler = GreedyCoresetSampler(120, start=5).fit(X)
    assert sampler.component_indices_.tolist() == picks
    np.testing.assert_allclose(sampler.selection_distances_, radii, rtol=1e-6)


@pytest.mark.parametrize("n_candidates", [3, 1024])
def test_k_center_greedy_continues_from_any_given_picks(monkeypatch, n_candidates):
    """The given picks are kept even if greedy selection would not have made them."""
    monkeypatch.setattr(selection, "N_CANDIDATES", n_candidates)
    X = np.random.default_rng(3).normal(size=(200, 5))
    begun = np.array([7, 3, 11]), np.array([5.0, 4.0, 3.0])
    new = []
    order, radii = selection.k_center_greedy(as_rows(X), 60, 7, new.append, begun)
    nearest = cdist(X, X[begun[0]]).min(axis=1)
    expected, expected_radii = [7, 3, 11], [5.0, 4.0, nearest.max()]
    for _ in range(57):
        expected.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(X - X[expected[-1]], axis=1))
        expected_radii.append(nearest.max())
    assert order.tolist() == expected
    np.testing.assert_allclose(radii, expected_radii, rtol=1e-6)
    assert (order.dtype, radii.dtype) == (np.int64, np.float64)
    assert sum(new) == 57
    assert n_candidates == 3 or max(new) > 1  # one round makes many picks


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_rows", [1, 2, 40])
def test_k_center_greedy_of_all_rows_ends_with_radius_zero(dtype, n_rows):
    X = np.random.default_rng(3).normal(size=(n_rows, 4)).astype(dtype)
    order, radii = selection.k_center_greedy(as_rows(X), n_rows, n_rows - 1)
    assert order.tolist() == textbook(X.astype(float), n_rows, n_rows - 1)[0]
    assert radii.dtype == np.float64
    assert radii[-1] == 0
    assert (radii[:-1] > 0).all()
    assert (np.diff(radii) <= 0).all()


def test_k_center_greedy_compares_rows_and_picks_at_most_once(monkeypatch):
    """No pair is compared twice, and nearly half of the pairs are never compared."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 5))[rng.integers(0, 30, 3000)] + rng.normal(size=(3000, 5)) * 0.1 * rng.random((3000, 1))
    times = np.zeros((3000, 3000), int)

    def count(self, members, first):
        times[members.numpy(), first : self.n_picks] += 1
        lower(self, members, first)

    lower = farthest.FarthestRows._lower
    monkeypatch.setattr(farthest.FarthestRows, "_lower", count)
    monkeypatch.setattr(selection, "N_CANDIDATES", 64)
    order, _ = selection.k_center_greedy(as_rows(X), 300, 0)
    assert order.tolist() == textbook(X, 300, 0)[0]
    assert times.max() == 1
    assert (np.delete(times[:, 0], 0) == 1).all()
    assert times.sum() < 0.55 * 3000 * 300


def exact_greedy(X: np.ndarray, n_selected: int, start: int) -> list[int]:
    """Return the picks of Algorithm 1 for rows of integers; of several farthest rows, the first is picked."""
    X = X.astype(np.int64)
    picks, nearest = [start], ((X - X[start]) ** 2).sum(1)
    nearest[start] = -1
    for _ in range(n_selected - 1):
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((X - X[picks[-1]]) ** 2).sum(1))
        nearest[picks] = -1
    return picks


@settings(deadline=None, max_examples=60)
@given(
    X=arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=st.integers(-3, 3).map(float)),
    share=st.floats(0.01, 1.0),
    n_candidates=st.sampled_from([1, 2, 5, 1024]),
    scale=st.sampled_from([1.0, 2.0**-60, 3.0]),
)
def test_of_several_farthest_rows_the_first_is_selected(X, share, n_candidates, scale):
    """On a grid of few integers, most rows are as far as other rows, and many rows are equal."""
    n_selected = max(1, int(share * len(X)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(selection, "N_CANDIDATES", n_candidates)
        order, _ = selection.k_center_greedy(as_rows(X * np.float32(scale)), n_selected, len(X) // 2)
    assert order.tolist() == exact_greedy(X, n_selected, len(X) // 2)


@pytest.mark.parametrize(("n_values", "n_columns"), [(1, 3), (2, 2), (2, 12), (4, 3), (60, 2)])
def test_ties_of_more_rows_than_candidates_are_selected_in_order(monkeypatch, n_values, n_columns):
    monkeypatch.setattr(selection, "N_CANDIDATES", 40)
    X = np.random.default_rng(0).integers(0, n_values, (3000, n_columns)).astype(np.float32)
    assert selection.k_center_greedy(as_rows(X), 300, 5)[0].tolist() == exact_greedy(X, 300, 5)


def test_selection_does_not_depend_on_threads_or_batches():
    """Sums of floating-point numbers depend on both. Near ties, the picks would then differ."""
    code = (
        "import json, sys; import numpy as np, torch; from skpatchcore import GreedyCoresetSampler; "
        "torch.set_num_threads(int(sys.argv[1])); "
        "X = np.random.default_rng(0).normal(size=(1600, 140)).astype(np.float32); "
        "X[800:] = X[:800] + np.float32(1e-7); "
        "sampler = GreedyCoresetSampler(0.5, random_state=0).fit_batches(np.array_split(X, int(sys.argv[2])), 1600); "
        "print(json.dumps(sampler.component_indices_.tolist()))"
    )
    found = [
        subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300, check=True)
        for args in (("1", "1"), ("2", "37"))
    ]
    assert json.loads(found[0].stdout) == json.loads(found[1].stdout)


@pytest.mark.parametrize("factor", [1e3, 1e9])
def test_several_rows_of_huge_values_are_all_selected(factor):
    X = np.random.default_rng(0).normal(size=(5000, 64)).astype(np.float32)
    X[[7, 8, 9, 4000]] = X[7] * np.float32(factor)
    picked = GreedyCoresetSampler(1.0, random_state=0).fit(X).component_indices_
    assert sorted(picked.tolist()) == list(range(5000))


@pytest.mark.parametrize("outlier", [1e6, 1e12])
def test_a_row_of_huge_values_does_not_make_the_selection_of_the_others_coarse(outlier):
    X = np.random.default_rng(0).normal(size=(2000, 5)).astype(np.float32)
    X[77] = outlier
    picked = GreedyCoresetSampler(60, start=0).fit(X).component_indices_
    assert picked[1] == 77
    expected = textbook(np.delete(X, 77, axis=0).astype(float), 60, 0)[1][58]
    others = np.delete(X, 77, axis=0)
    assert cdist(others, X[picked]).min(axis=1).max() <= 1.001 * expected


@pytest.mark.parametrize("n_candidates", [2, 3, 5])
def test_k_center_greedy_with_few_candidates_equals_textbook(monkeypatch, n_candidates):
    monkeypatch.setattr(selection, "N_CANDIDATES", n_candidates)
    for seed in range(20):
        X = np.random.default_rng(seed).random((50, 1 + seed % 3))
        assert selection.k_center_greedy(as_rows(X), 30, 0)[0].tolist() == textbook(X, 30, 0)[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_k_center_greedy_selects_duplicates_of_large_rows_once_each(dtype):
    """Rounding errors are far larger than 1. No squared distance may fall below -1, which marks picked rows."""
    X = np.repeat(np.random.default_rng(0).normal(size=(60, 5)) * (1e6 if dtype == np.float32 else 1e10), 4, axis=0)
    order, radii = selection.k_center_greedy(as_rows(X.astype(dtype)), 240, 0)
    assert sorted(order.tolist()) == list(range(240))
    assert sorted({row // 4 for row in order[:60]}) == list(range(60))
    assert (radii >= 0).all()


def test_count_of_rounds_fractions_up_and_keeps_ints():
    counts = [count_of(ratio, 100) for ratio in (1e-12, 0.07, 0.0701, 0.999, 1.0, 1, 100, np.int64(9))]
    assert counts == [1, 7, 8, 100, 100, 1, 100, 9]
    with pytest.raises(ValueError, match="n_samples=100"):
        count_of(101, 100)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_greedy_prefixes_cover_as_well_as_textbook_in_each_dtype(dtype):
    X = (np.random.default_rng(0).normal(size=(3000, 20)) * 10).astype(dtype)
    sampler = GreedyCoresetSampler(200, start=0).fit(X)
    _, radii = textbook(X.astype(np.float64), 200, 0)
    for k in (1, 10, 50, 200):
        assert covering_radius(X.astype(np.float64), sampler.component_indices_[:k]) <= 1.001 * radii[k - 1]


@settings(deadline=None, max_examples=60)
@given(
    X=arrays(np.float64, st.tuples(st.integers(1, 25), st.integers(1, 4)), elements=st.integers(-3, 3).map(float)),
    ratio=st.floats(0.01, 1.0),
    seed=st.integers(0, 9),
)
def test_greedy_rows_are_distinct_and_radii_never_increase(X, ratio, seed):
    sampler = GreedyCoresetSampler(ratio, random_state=seed).fit(X)
    n = max(1, int(np.ceil(ratio * len(X) - 1e-9)))
    assert len(set(sampler.component_indices_.tolist())) == n
    assert (sampler.components_ == X[sampler.component_indices_]).all()
    radii = sampler.selection_distances_
    assert (np.diff(radii) <= 1e-12).all()
    assert radii[-1] == pytest.approx(covering_radius(X, sampler.component_indices_), abs=1e-6)


def test_greedy_smaller_ratio_selects_prefix():
    X = np.random.default_rng(0).normal(size=(500, 200)).astype(np.float32)
    orders = [GreedyCoresetSampler(r, random_state=1).fit(X).component_indices_ for r in (0.01, 0.1, 250, 1.0)]
    assert [len(order) for order in orders] == [5, 50, 250, 500]
    for smaller, larger in pairwise(orders):
        assert larger[: len(smaller)].tolist() == smaller.tolist()


def test_greedy_selection_does_not_depend_on_row_order():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 160))
    shuffled = rng.permutation(600)
    plain = GreedyCoresetSampler(0.1, random_state=4).fit(X)
    mixed = GreedyCoresetSampler(0.1, random_state=4).fit(X[shuffled])
    assert shuffled[mixed.component_indices_].tolist() == plain.component_indices_.tolist()


def test_greedy_random_start_is_farthest_along_random_direction():
    X = np.random.default_rng(0).normal(size=(300, 6)) + 50
    for seed in range(3):
        sampler = GreedyCoresetSampler(2, n_projections=None, random_state=seed).fit(X)
        direction = np.random.RandomState(seed).standard_normal(6)
        assert sampler.component_indices_[0] == (X @ direction).argmax()


def test_greedy_random_state_determines_selection():
    X = np.random.default_rng(0).normal(size=(300, 150))
    first, second, other = (GreedyCoresetSampler(30, random_state=s).fit(X).component_indices_ for s in (0, 0, 1))
    assert first.tolist() == second.tolist() != other.tolist()


def test_greedy_covers_better_than_random_subset():
    X = np.random.default_rng(0).normal(size=(2000, 3))
    picked = GreedyCoresetSampler(40, random_state=0).fit(X).component_indices_
    assert covering_radius(X, picked) < 0.8 * covering_radius(X, np.arange(40))


@pytest.mark.parametrize("project", [gaussian_projection, sparse_projection])
def test_projection_keeps_distances_approximately(project):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(50, 1000))
    projected = X @ project(1000, 128, rng)
    ratio = cdist(projected, projected)[np.triu_indices(50, 1)] / cdist(X, X)[np.triu_indices(50, 1)]
    assert 0.7 < ratio.min() < ratio.max() < 1.3
    assert abs(ratio.mean() - 1) < 0.05


def test_n_projections_auto_follows_lemma_and_is_at_most_n_features():
    assert lemma_projections(163_856, 1536) == 296
    assert lemma_projections(163_856, 168) == 168
    assert lemma_projections(1, 5) == 5
    X = np.random.default_rng(0).normal(size=(40, 400))
    auto = GreedyCoresetSampler(10, n_projections="auto", random_state=0).fit(X)
    same = GreedyCoresetSampler(10, n_projections=lemma_projections(40, 400), random_state=0).fit(X)
    assert auto.component_indices_.tolist() == same.component_indices_.tolist()
    sparse = GreedyCoresetSampler(10, projection="sparse", random_state=0).fit(X)
    assert sparse.component_indices_.tolist() != same.component_indices_.tolist()


def counted(monkeypatch):
    """Return a list that receives the number of picks of each later call of `k_center_greedy`."""
    asked = []

    def count(rows, n_selected, start, on_pick, resume):
        asked.append(n_selected - (len(resume[0]) if resume else 0))
        return selection.k_center_greedy(rows, n_selected, start, on_pick, resume)

    monkeypatch.setattr(greedy, "k_center_greedy", count)
    return asked


def test_greedy_memory_reuses_and_continues_cached_order(tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(300, 8))
    expected = GreedyCoresetSampler(120, random_state=0).fit(X)
    asked = counted(monkeypatch)
    for ratio in (50, 20, 120, 120, 0.1):
        sampler = GreedyCoresetSampler(ratio, memory=str(tmp_path), random_state=0).fit(X)
        n = len(sampler.component_indices_)
        assert sampler.component_indices_.tolist() == expected.component_indices_[:n].tolist()
        np.testing.assert_allclose(sampler.selection_distances_, expected.selection_distances_[:n], rtol=1e-9)
    assert asked == [50, 70]
    GreedyCoresetSampler(50, memory=joblib.Memory(tmp_path, verbose=0), random_state=1).fit(X)
    GreedyCoresetSampler(50, memory=joblib.Memory(tmp_path, verbose=0), random_state=0).fit(X + 1)
    assert asked == [50, 70, 50, 50]


def test_greedy_memory_is_not_written_without_int_seed(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 3))
    GreedyCoresetSampler(5, memory=str(tmp_path)).fit(X)
    GreedyCoresetSampler(5, memory=str(tmp_path), start=0).fit(np.repeat(X, 50, axis=1))  # with a random projection
    assert not list(tmp_path.rglob("*.npz"))
    GreedyCoresetSampler(5, memory=str(tmp_path), n_projections=None, start=0).fit(X)
    assert len(list(tmp_path.rglob("*.npz"))) == 1
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "skpatchcore-orders").write_text("This file has the name of the cache folder.")
    with pytest.warns(UserWarning, match="selection order cannot be written"):
        GreedyCoresetSampler(5, memory=str(tmp_path / "taken"), random_state=0).fit(X)


def test_greedy_memory_replaces_damaged_file(tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(60, 3))
    expected = GreedyCoresetSampler(30, memory=str(tmp_path), random_state=0).fit(X).component_indices_.tolist()
    (file,) = tmp_path.rglob("*.npz")
    whole = file.read_bytes()
    asked = counted(monkeypatch)
    for damaged in (b"", whole[:100], whole[:200] + b"xxxx" + whole[204:], b"text"):
        file.write_bytes(damaged)
        sampler = GreedyCoresetSampler(30, memory=str(tmp_path), random_state=0).fit(X)
        assert sampler.component_indices_.tolist() == expected
        assert file.read_bytes() == whole
    assert asked == [30] * 4


def batches_of(X, n_allowed):
    """Yield batches of 60 rows. Raise if more than `n_allowed` batches are read."""
    for i in range(0, len(X), 60):
        assert i < 60 * n_allowed, "too many batches were read"
        yield X[i : i + 60]


def fitted_by(X, ratio, memory=None, n_allowed=1000, digest=b"rows", folds=None, **parameters):
    """Return the results of a fit with a reserve, and with folds that leave out some rows."""
    sampler = GreedyCoresetSampler(ratio, random_state=0, memory=memory, **parameters)
    request = ReserveRequest(iter([np.repeat(np.arange(len(X) // 20), 20)]))
    picks = []
    if folds is None:
        sampler.fit_batches(batches_of(X, n_allowed), len(X), reserve=request, digest=digest)
    else:
        picks = sampler.fit_folds(batches_of(X, n_allowed), len(X), iter(folds), request, digest)
    found = [sampler.component_indices_, sampler.selection_distances_, request.rows, request.row_images]
    assert (sampler.seed_, sampler.n_samples_seen_, sampler.n_features_in_) == (0, len(X), X.shape[1])
    return [*found, request.supports, *picks]


@pytest.mark.parametrize("n_columns", [6, 150])
@pytest.mark.parametrize("with_folds", [False, True])
def test_rows_with_a_known_digest_are_not_read_again(tmp_path, n_columns, with_folds):
    X = np.random.default_rng(0).normal(size=(600, n_columns)).astype(np.float32)
    folds = [np.arange(0, 40), np.arange(100, 300)] if with_folds else None
    memory = str(tmp_path)
    for ratio in (0.02, 0.1, 0.05):
        expected = fitted_by(X, ratio, digest=None, folds=folds)
        for n_allowed in (1000, 1):
            found = fitted_by(X, ratio, memory, n_allowed, folds=folds)
            for some, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(some, other)
    # Without one of the files, its content is computed again.
    for path in sorted(tmp_path.rglob("*.npz")):
        content = path.read_bytes()
        for damaged in (None, content[:-30], b""):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            found = fitted_by(X, 0.05, memory, folds=folds)
            for some, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(some, other)
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("digest", "parameters"),
    [
        (b"others", {}),
        (b"rows", {"start": 3}),
        (b"rows", {"n_projections": 8}),
        (b"rows", {"projection": "sparse"}),
        (b"rows", {"n_projections": None}),
    ],
)
def test_other_digests_and_settings_select_again(tmp_path, digest, parameters):
    X = np.random.default_rng(0).normal(size=(200, 150)).astype(np.float32)
    fitted_by(X, 0.05, str(tmp_path))
    expected = fitted_by(X[::-1], 0.05, digest=None, **parameters)
    found = fitted_by(X[::-1], 0.05, str(tmp_path), digest=digest, **parameters)
    for some, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(some, other)


def test_folders_that_cannot_be_written_warn_and_select_the_same_rows(tmp_path):
    X = np.random.default_rng(0).normal(size=(200, 150)).astype(np.float32)
    expected = fitted_by(X, 0.05, digest=None)
    for name in ("orders", "rows"):
        (tmp_path / f"skpatchcore-{name}").write_text("This file has the name of the cache folder.")
    with pytest.warns(UserWarning, match="selection order cannot be written"):
        found = fitted_by(X, 0.05, str(tmp_path))
    for some, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(some, other)


def test_random_sampler_is_seeded_nested_and_distinct():
    X = np.random.default_rng(0).normal(size=(50, 3))
    few, many = (RandomSampler(r, random_state=0).fit(X) for r in (0.1, 40))
    assert few.component_indices_.tolist() == many.component_indices_[:5].tolist()
    assert len(set(many.component_indices_.tolist())) == 40
    np.testing.assert_array_equal(many.components_, X[many.component_indices_])
    np.testing.assert_allclose(many.transform(X), cdist(X, many.components_), atol=1e-6)
    with pytest.raises(ValueError, match="n_samples=50"):
        RandomSampler(51).fit(X)


def test_greedy_accepts_strided_and_read_only_arrays(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    expected = GreedyCoresetSampler(9, random_state=0).fit(X).component_indices_.tolist()
    np.save(tmp_path / "rows.npy", X)
    for form in (np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2], np.load(tmp_path / "rows.npy", mmap_mode="r")):
        assert GreedyCoresetSampler(9, random_state=0).fit(form).component_indices_.tolist() == expected


def test_transform_returns_distances_to_selected_rows():
    X = np.random.default_rng(0).normal(size=(40, 5))
    sampler = GreedyCoresetSampler(0.2, random_state=0)
    distances = sampler.fit_transform(X)
    np.testing.assert_allclose(distances, cdist(X, sampler.components_), atol=1e-6)
    assert len(sampler.get_feature_names_out()) == 8


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"ratio": 0.0}, "ratio"),
        ({"ratio": 1.5}, "ratio"),
        ({"ratio": 0}, "ratio"),
        ({"ratio": 11}, "n_samples=10"),
        ({"start": 10}, "start=10 is beyond"),
        ({"start": "first"}, "start"),
        ({"start": -1}, "start"),
        ({"n_projections": 0}, "n_projections"),
        ({"projection": "dense"}, "projection"),
        ({"device": "abacus"}, "device"),
        ({"device": 3}, "'device' parameter"),
        ({"memory": 3}, "'memory' parameter"),
        ({"random_state": "seed"}, "'random_state' parameter"),
        ({"verbose": "yes"}, "'verbose' parameter"),
    ],
)
def test_greedy_fit_refuses_invalid_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        GreedyCoresetSampler(**parameters).fit(np.random.default_rng(0).normal(size=(10, 3)))


def test_greedy_with_one_projection_completes_progress_bar(capsys):
    X = np.random.default_rng(0).normal(size=(30, 3))
    sampler = GreedyCoresetSampler(12, n_projections=1, random_state=0, verbose=1).fit(X)
    assert sampler.component_indices_.shape == (12,)
    assert "12/12" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sampler", [GreedyCoresetSampler(), RandomSampler(), LearnedProxySampler()])
@pytest.mark.parametrize("row", [3, 4999])
def test_fit_names_row_that_is_not_finite(sampler, bad, row):
    X = np.zeros((5000, 2), np.float32)
    X[row, 1] = bad
    with pytest.raises(ValueError, match=f"row {row} of X holds NaN"):
        sampler.fit(X)
    assert not hasattr(sampler, "components_")


def test_fit_batches_names_row_with_too_large_values():
    X = np.ones((9, 300), np.float32)
    X[5] = 3e38
    with pytest.raises(ValueError, match=r"row 5 of X holds .* too large"):
        GreedyCoresetSampler(3, random_state=0).fit_batches(np.split(X, 3), 9)


def in_batches(X, sizes):
    """Return the rows of `X` in batches of the given sizes."""
    return np.split(X, np.cumsum(sizes)[:-1])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.sampled_from([np.float32, np.float64]))
@pytest.mark.parametrize("n_columns", [5, 140])
def test_fit_batches_equals_fit_for_any_batch_sizes(n_columns, sizes, dtype):
    X = np.random.default_rng(len(sizes)).normal(size=(sum(sizes), n_columns)).astype(dtype)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rows, "_BLOCK", 64)
        plain = GreedyCoresetSampler(0.3, random_state=0).fit(X)
        # A wrong number of expected rows may cost memory, but does not change the selection.
        for announced in {len(X), max(1, len(X) - 5), len(X) + 40}:
            batched = GreedyCoresetSampler(0.3, random_state=0).fit_batches(in_batches(X, sizes), announced)
            assert batched.component_indices_.tolist() == plain.component_indices_.tolist()
            assert batched.selection_distances_.tolist() == plain.selection_distances_.tolist()
            assert not hasattr(batched, "components_")


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), ratio=st.sampled_from([0.03, 0.3, 5]), start=st.sampled_from(["random", 3]))
@pytest.mark.parametrize("n_columns", [5, 140])
def test_fit_folds_selects_what_fit_selects_from_the_remaining_rows(n_columns, seed, ratio, start):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(120, n_columns))
    folds = [rng.permutation(120)[: rng.integers(0, 100)] for _ in range(4)]
    folds = [np.setdiff1d(fold, [3]) for fold in folds]
    sampler = GreedyCoresetSampler(ratio, start=start, random_state=seed)
    picks = clone(sampler).fit_folds(in_batches(X, [50, 70]), 120, iter(folds))
    for fold, picked in zip(folds, picks, strict=True):
        kept = np.setdiff1d(np.arange(120), fold)
        first = {} if start == "random" else {"start": int(np.flatnonzero(kept == 3)[0])}
        alone = clone(sampler).set_params(**first).fit(X[kept])
        np.testing.assert_array_equal(picked, kept[alone.component_indices_])
    whole = clone(sampler)
    whole.fit_folds([X], 120, [])
    np.testing.assert_array_equal(whole.component_indices_, clone(sampler).fit(X).component_indices_)


def test_fit_folds_selects_all_remaining_rows_if_ratio_is_too_large_and_refuses_empty_folds():
    X = np.random.default_rng(0).normal(size=(20, 3))
    (picked,) = GreedyCoresetSampler(15, random_state=0).fit_folds([X], 20, [np.arange(9)])
    assert sorted(picked) == list(range(9, 20))
    with pytest.raises(ValueError, match="leaves out all rows"):
        GreedyCoresetSampler(2, random_state=0).fit_folds([X], 20, [np.arange(20)])


@pytest.mark.parametrize("start", ["random", 777])
@pytest.mark.parametrize("n_shards", [2, 5, 40])
def test_fit_batches_with_shards_covers_within_guaranteed_factor(start, n_shards):
    X = np.random.default_rng(0).normal(size=(6000, 4)).astype(np.float32)
    sampler = GreedyCoresetSampler(40, start=start, random_state=0)
    whole = sampler.fit(X)
    order, radius = whole.component_indices_, whole.selection_distances_[-1]
    enough = sampler.estimate_memory(*X.shape)
    scratch = sampler.estimate_memory(0, 4)
    sharded = sampler.fit_batches(in_batches(X, [1500, 4000, 500]), 6000, scratch + 3 * (enough - scratch) // n_shards)
    picks = sharded.component_indices_
    assert picks[0] == order[0]
    assert len(set(picks.tolist())) == 40
    true_radius = covering_radius(X, picks)
    # With shards, the radii are upper bounds. The guaranteed radius is 4 times the smallest possible one, which is at
    # most 4 times the radius of `fit`. The factors checked here are smaller.
    assert true_radius <= sharded.selection_distances_[-1] * (1 + 1e-6)
    assert true_radius <= (1.5 if n_shards < 40 else 2) * radius
    assert (np.diff(sharded.selection_distances_) <= 0).all()
    np.testing.assert_array_equal(sampler.fit_batches([X], 6000, enough).component_indices_, order)
    assert sampler.fit_batches([X], 6000, enough - 1).component_indices_.tolist() != order.tolist()


def fit_with_place_for(sampler, n_rows, X, n_announced=None):
    """Fit in batches, with `max_memory` for `n_rows` rows."""
    return sampler.fit_batches(np.array_split(X, 7), n_announced or len(X), sampler.estimate_memory(n_rows, X.shape[1]))


@pytest.mark.parametrize("outlier", [0, 299, 300, 950, 999])
def test_fit_batches_with_shards_selects_outlier_of_any_shard(monkeypatch, outlier):
    seen = []  # number of rows of each selection

    def look(rows, *args):
        seen.append(len(rows))
        return selection.k_center_greedy(rows, *args)

    monkeypatch.setattr(greedy, "k_center_greedy", look)
    X = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    X[outlier] = 90
    for n_selected, sizes in [
        (5, [300, 300, 300, 100, 20]),
        (100, [300, 300, 300, 300, 100, 200]),
        (120, [300, 300, 240, 300, 240, 100, 220]),
    ]:
        sampler = fit_with_place_for(GreedyCoresetSampler(n_selected, random_state=0), 900, X)
        assert outlier in sampler.component_indices_[:2]
        assert len(set(sampler.component_indices_.tolist())) == n_selected
        assert covering_radius(X, sampler.component_indices_) <= sampler.selection_distances_[-1]
        assert seen == sizes
        seen.clear()
    fit_with_place_for(GreedyCoresetSampler(5), 1000, X)
    assert seen == [1000]
    fit_with_place_for(GreedyCoresetSampler(5), 1000, X.astype(np.float64))  # float64 needs more memory
    assert len(seen) > 2


def test_merged_radius_is_merge_radius_plus_largest_shard_radius():
    bounds = iter([(3.0, 1.0), (9.0, 5.0), (8.0, 2.0)])  # radii of two shards and of the merge
    buffer = rows.RowBuffer(None, 3, torch.float32, torch.device("cpu"))
    X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    found = batches.select_from_shards([X], 18, 2, buffer, lambda *_: (np.array([1, 0]), np.array(next(bounds))))
    assert found.radii.tolist() == [13.0, 7.0]
    assert found.numbers.tolist() == [0, 1]
    np.testing.assert_allclose(found.left[:, :3], X[:2], atol=1e-6)


@pytest.mark.parametrize("row", [0, 70, 299, 300, 999])
@pytest.mark.parametrize("block", [64, 4096])
def test_fit_batches_names_row_that_is_not_finite_in_any_shard(monkeypatch, row, block):
    monkeypatch.setattr(rows, "_BLOCK", block)
    X = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    X[[row, -1], 2] = np.nan
    with pytest.raises(ValueError, match=f"row {row} of X holds NaN"):
        fit_with_place_for(GreedyCoresetSampler(50), 900, X)


def test_fit_batches_projects_same_blocks_for_any_batch_sizes(monkeypatch):
    def write(self, X):
        written.append(len(X))
        original(self, X)

    original = rows.RowBuffer._write
    monkeypatch.setattr(rows, "_BLOCK", 64)
    monkeypatch.setattr(rows.RowBuffer, "_write", write)
    X = np.random.default_rng(0).normal(size=(500, 140)).astype(np.float32)
    for sizes in ([500], [50, 30, 200, 1, 63, 128, 28], [1] * 500, [64] * 7 + [52], [63, 437]):
        written = []
        GreedyCoresetSampler(5).fit_batches(in_batches(X, sizes), 500)
        assert written == [64] * 7 + [52]


def test_fit_batches_accepts_reused_memory_and_mixed_dtypes():
    X = np.random.default_rng(0).normal(size=(300, 140)).astype(np.float32)
    expected = GreedyCoresetSampler(30, random_state=0).fit(X).component_indices_.tolist()

    def written_over():
        place = np.empty((60, 140), np.float32)
        for batch in np.split(X, 5):
            place[:] = batch
            yield place

    mixed = [X[:100], X[100:200].astype(np.float64), X[200:]]
    for form in (written_over(), mixed):
        found = GreedyCoresetSampler(30, random_state=0).fit_batches(form, 300)
        assert found.component_indices_.tolist() == expected


def test_row_buffer_accepts_rows_with_overflowing_sum():
    buffer = rows.RowBuffer(None, 3, torch.float32, torch.device("cpu"))
    X = np.full((7, 3), 3e38, np.float32)
    buffer.extend(X)
    assert buffer.n_gathered == 7
    left, numbers = buffer.take()
    np.testing.assert_array_equal(left[:, :3], X)
    assert numbers.tolist() == list(range(7))
    assert buffer.n_gathered == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_yield_exact_distances_of_rounded_rows_and_restore_rows(dtype):
    X = (np.random.default_rng(0).normal(size=(20, 3)) + 1000).astype(dtype)
    seen, picks = as_rows(X), torch.tensor([4, 9])
    assert len(seen) == 20
    assert np.log2(seen.quantum) % 1 == 0
    points = seen.exactly(torch.arange(20)).numpy()
    assert (points == np.round(points)).all()
    np.testing.assert_allclose(points * seen.quantum + seen.centre, X, atol=seen.quantum / 2)
    assert seen.quantum < 4 * np.abs(X - X.mean(0)).max() * 2.0**-24
    np.testing.assert_allclose(seen.norms, (points**2).sum(1), rtol=1e-6)
    np.testing.assert_allclose(seen.as_they_came(picks)[:, :-1], X[picks], rtol=2e-7 if dtype == np.float32 else 1e-9)
    assert seen.as_they_came(picks).numpy().dtype == dtype


def test_fit_batches_refuses_shards_smaller_than_twice_the_coreset():
    X = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    assert len(fit_with_place_for(GreedyCoresetSampler(50), 300, X).component_indices_) == 50
    with pytest.raises(ValueError, match="50 rows are to be selected, but only 299 fit"):
        fit_with_place_for(GreedyCoresetSampler(50), 299, X)
    fewer = 299 * batches.row_bytes(4) // batches.row_bytes(4, 8)
    with pytest.raises(ValueError, match=f"only {fewer} fit"):
        fit_with_place_for(GreedyCoresetSampler(50), 299, X.astype(np.float64))
    with pytest.raises(ValueError, match="only 0 fit"):
        GreedyCoresetSampler(50).fit_batches([X], 1000, 1)
    # A row projected to 128 columns needs memory for one more column, a norm, a bound and a count.
    estimate = GreedyCoresetSampler().estimate_memory
    assert estimate(1000, 500) - estimate(0, 500) == estimate(2000, 200) - estimate(1000, 200) >= 1000 * (129 + 3) * 4


def test_fit_batches_of_one_shard_equals_fit():
    X = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    found = fit_with_place_for(GreedyCoresetSampler(20, random_state=0), 900, X, n_announced=5000)
    plain = GreedyCoresetSampler(20, random_state=0).fit(X)
    np.testing.assert_array_equal(found.component_indices_, plain.component_indices_)
    np.testing.assert_array_equal(found.selection_distances_, plain.selection_distances_)


def test_fit_batches_refuses_max_memory_too_small_for_coreset():
    X = np.zeros((6000, 4), np.float32)
    sampler = GreedyCoresetSampler(0.5, random_state=0)
    with pytest.raises(ValueError, match="3000 rows are to be selected"):
        sampler.fit_batches([X], 6000, sampler.estimate_memory(3000, 4))


def test_default_parameters_of_samplers():
    assert RandomSampler().get_params() == {"ratio": 0.1, "random_state": None}
    assert GreedyCoresetSampler().get_params() == {
        **RandomSampler().get_params(), "n_projections": 128, "projection": "gaussian", "start": "random",
        "device": "auto", "memory": None, "verbose": 0,
    }  # fmt: skip
    assert LearnedProxySampler().get_params() == {
        **RandomSampler().get_params(), "n_epochs": 5, "batch_size": 512, "learning_rate": 0.01, "device": "auto",
        "verbose": 0,
    }  # fmt: skip


@pytest.mark.parametrize("sampler", [GreedyCoresetSampler(5, random_state=0), RandomSampler(5, random_state=0)])
def test_fit_batches_replaces_attributes_of_earlier_fit(sampler):
    rng = np.random.default_rng(0)
    sampler.fit(rng.normal(size=(20, 3)).tolist())
    assert (sampler.n_features_in_, sampler.components_.shape) == (3, (5, 3))
    sampler.fit_batches(np.split(rng.normal(size=(40, 4)), 4), 40)
    assert sampler.n_features_in_ == 4
    assert not hasattr(sampler, "components_")
    assert sampler.component_indices_.max() >= 20


def test_fit_batches_refuses_no_batches():
    with pytest.raises(ValueError, match="no batches"):
        GreedyCoresetSampler(1).fit_batches([], 5)


def test_random_sampler_fit_batches_equals_fit():
    X = np.random.default_rng(0).normal(size=(50, 3))
    batched = RandomSampler(0.2, random_state=3).fit_batches(in_batches(X, [20, 30]))
    assert batched.component_indices_.tolist() == RandomSampler(0.2, random_state=3).fit(X).component_indices_.tolist()


@pytest.mark.parametrize(("n_samples", "ratio", "n_selected"), [(1, 0.1, 1), (1, 1, 1), (7, 1.0, 7), (50, 0.001, 1)])
@pytest.mark.parametrize("sampler", [GreedyCoresetSampler, RandomSampler, LearnedProxySampler])
def test_samplers_with_smallest_and_largest_ratio(sampler, n_samples, ratio, n_selected):
    X = np.random.default_rng(0).normal(size=(n_samples, 3))
    assert sampler(ratio, random_state=0).fit(X).component_indices_.shape == (n_selected,)


def reconstruction(X, proxies):
    """Return the mean of Equation 8 over the rows, computed in loops as printed in the paper."""
    errors = []
    for x in X:
        weights = [np.exp(-np.linalg.norm(x - p)) for p in proxies]
        errors.append(np.sum((x - np.average(proxies, axis=0, weights=weights)) ** 2))
    return np.mean(errors)


def test_learned_proxies_reduce_reconstruction_error():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(c, 0.3, (60, 4)) for c in (-4, 0, 4)])
    start = RandomSampler(6, random_state=0).fit(X).components_
    sampler = LearnedProxySampler(6, n_epochs=40, random_state=0).fit(X)
    assert reconstruction(X, sampler.components_) < 0.8 * reconstruction(X, start)
    loss = proxies.reconstruction_loss(torch.from_numpy(X), torch.from_numpy(start))
    assert float(loss) == pytest.approx(reconstruction(X, start))
    again = LearnedProxySampler(6, n_epochs=40, random_state=0).fit(X)
    np.testing.assert_array_equal(sampler.components_, again.components_)
    assert cdist(sampler.components_, X).argmin(1).tolist() == sampler.component_indices_.tolist()


def test_learned_proxies_of_constant_rows_equal_rows():
    sampler = LearnedProxySampler(3, random_state=0).fit(np.full((20, 2), 5.0))
    np.testing.assert_allclose(sampler.components_, 5.0, atol=1e-6)


def test_interrupted_fit_leaves_greedy_unfitted(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    X = np.random.default_rng(0).normal(size=(50, 3))
    sampler = GreedyCoresetSampler(random_state=0)
    with monkeypatch.context() as patched:
        patched.setattr(farthest.FarthestRows, "candidates", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sampler.fit(X)
    assert not hasattr(sampler, "components_")
    assert len(sampler.fit(X).components_) == 5


@pytest.mark.cuda
def test_cuda_covers_as_well_as_the_cpu():
    X = np.random.default_rng(0).normal(size=(5000, 300)).astype(np.float32)
    on_cpu, on_cuda = (GreedyCoresetSampler(300, device=d, random_state=0).fit(X) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(on_cuda.selection_distances_, on_cpu.selection_distances_, rtol=1e-3)


def test_greedy_fit_leaves_global_torch_generator_unchanged():
    before = torch.random.get_rng_state()
    GreedyCoresetSampler(random_state=0).fit(np.random.default_rng(0).normal(size=(50, 300)))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("sampler", [GreedyCoresetSampler(3, start=0), LearnedProxySampler(2, random_state=0)])
def test_fit_converts_ints_to_float64(sampler):
    fitted = sampler.fit(np.array([[2**24], [2**24 + 1], [0]]))
    assert fitted.components_.dtype == np.float64
