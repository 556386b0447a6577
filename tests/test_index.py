from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from skpatchcore import ExactIndex, PyNNDescentIndex
from skpatchcore.index import exact
from skpatchcore.scoring import kneighbors_without

INDEXES = [ExactIndex(), PyNNDescentIndex(n_neighbors=15, random_state=0)]
by_index = pytest.mark.parametrize("index", INDEXES, ids=lambda index: type(index).__name__)


@settings(deadline=None, max_examples=80)
@given(
    bank=arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.integers(-4, 4).map(float)),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    shift=st.sampled_from([0.0, 1e3]),
    k=st.integers(1, 12),
    seed=st.integers(0, 5),
)
def test_exact_is_brute_force(bank, scale, shift, k, seed):
    """With duplicates, zero vectors, a single row, tiny and huge scales, and banks far from the origin."""
    queries = np.random.default_rng(seed).integers(-5, 5, (7, 3)).astype(float)
    bank, queries = bank * scale + shift, queries * scale + shift
    k = min(k, len(bank))
    distances, indices = ExactIndex().fit(bank).kneighbors(queries, k)
    expected = np.sort(cdist(queries, bank), axis=1)[:, :k]
    np.testing.assert_allclose(distances, expected, rtol=1e-9, atol=1e-9 * scale)
    np.testing.assert_allclose(distances, np.linalg.norm(bank[indices] - queries[:, None], axis=2), rtol=1e-12)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_shape_of_the_batch_changes_nothing(monkeypatch, dtype):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(5, 1, (900, 40)).astype(dtype), rng.normal(5, 1, (50, 40)).astype(dtype)
    index = ExactIndex().fit(bank)
    distances, indices = index.kneighbors(queries, 3)
    single = [index.kneighbors(query[None], 3) for query in queries]
    assert (np.concatenate([s[0] for s in single]) == distances).all()
    assert (np.concatenate([s[1] for s in single]) == indices).all()
    monkeypatch.setattr(exact, "_CHUNK_BYTES", 10_000)
    assert (index.kneighbors(queries, 3)[0] == distances).all()


@by_index
def test_rows_of_the_bank_are_at_distance_zero_from_themselves(index):
    bank = (np.random.default_rng(0).normal(100, 1, (500, 60))).astype(np.float32)
    distances, indices = index.fit(bank).kneighbors(bank, 1)
    found = distances[:, 0] == 0
    assert found.mean() > 0.98
    assert (indices[found, 0] == np.flatnonzero(found)).all()


@by_index
def test_they_agree_with_scikit_learn(index):
    rng = np.random.default_rng(0)
    # patches of images lie near each other: clusters, not noise
    centers = rng.normal(0, 3, (30, 50))
    bank = (centers[rng.integers(0, 30, 3000)] + rng.normal(0, 1, (3000, 50))).astype(np.float32)
    queries = (centers[rng.integers(0, 30, 200)] + rng.normal(0, 1, (200, 50))).astype(np.float32)
    expected_distances, expected = NearestNeighbors(algorithm="brute").fit(bank).kneighbors(queries, 5)
    distances, indices = index.fit(bank).kneighbors(queries, n_neighbors=5)
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(indices.tolist(), expected.tolist(), strict=True)])
    assert recall >= (1.0 if isinstance(index, ExactIndex) else 0.9)
    true = np.linalg.norm(bank[indices].astype(np.float64) - queries[:, None], axis=2)
    np.testing.assert_allclose(distances, true, rtol=1e-6)
    assert (distances >= expected_distances - 1e-4).all()
    assert (np.diff(distances, axis=1) >= 0).all()
    np.testing.assert_array_equal(index.kneighbors(queries, 5, return_distance=False), indices)


@by_index
@pytest.mark.parametrize("n_bank", [1, 2, 5, 31, 40])
def test_small_banks(index, n_bank):
    bank = np.random.default_rng(0).normal(size=(n_bank, 4))
    k = min(n_bank, 9)
    distances, _ = index.fit(bank).kneighbors(bank, k)
    np.testing.assert_allclose(distances, np.sort(cdist(bank, bank), axis=1)[:, :k], atol=1e-6)
    with pytest.raises(ValueError, match=f"n_neighbors={n_bank + 1}"):
        index.kneighbors(bank, n_bank + 1)


@by_index
def test_bad_searches_are_refused(index):
    index.fit(np.zeros((4, 2)))
    for n_neighbors in (0, 1.5, None):
        with pytest.raises(ValueError, match="expected an int"):
            index.kneighbors(np.zeros((1, 2)), n_neighbors)
    with pytest.raises(ValueError, match="features"):
        index.kneighbors(np.zeros((1, 3)), 1)
    with pytest.raises(ValueError, match="NaN"):
        index.fit(np.full((4, 2), np.nan))


@pytest.mark.parametrize("index", [*INDEXES, NearestNeighbors(algorithm="brute")], ids=lambda i: type(i).__name__)
def test_excluded_rows_do_not_count(index):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(300, 5)).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)
    gone = rng.permutation(300)[:40]
    kept = np.setdiff1d(np.arange(300), gone)
    distances, indices = kneighbors_without(index.fit(bank), queries, 3, gone)
    assert not np.isin(indices, gone).any()
    np.testing.assert_allclose(distances, np.sort(cdist(queries, bank[kept]), axis=1)[:, :3], rtol=1e-5)


def test_more_neighbours_than_rows_that_count_are_refused():
    index = ExactIndex().fit(np.eye(4))
    with pytest.raises(ValueError, match="only 2 rows of the bank count"):
        index.kneighbors(np.eye(4), 3, exclude=[0, 3])
    assert index.kneighbors(np.eye(4), 2, exclude=[])[1].shape == (4, 2)


@by_index
def test_pickles_give_the_same_answers_and_hold_only_numpy(index):
    bank = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    index.fit(bank)
    expected = index.kneighbors(bank[:20] + 0.1, 4)
    data = pickle.dumps(index)
    assert b"torch" not in data
    assert b"pynndescent_" not in data
    found = pickle.loads(data).kneighbors(bank[:20] + 0.1, 4)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_more_threads_than_cores_are_no_error():
    bank = np.random.default_rng(0).normal(size=(100, 4))
    for n_jobs in (None, -1, 64):
        PyNNDescentIndex(n_neighbors=10, n_jobs=n_jobs).fit(bank).kneighbors(bank[:2], 1)


@by_index
def test_threads_may_share_it(index):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(500, 6)).astype(np.float32), rng.normal(size=(64, 6)).astype(np.float32)
    index.fit(bank)
    expected = [index.kneighbors(part, 2)[1].tolist() for part in np.split(queries, 16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda part: index.kneighbors(part, 2)[1].tolist(), np.split(queries, 16) * 4))
    assert found == expected * 4


def test_an_index_fitted_elsewhere_falls_back_to_the_cpu():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match="no such device"):
        ExactIndex(device="cuda").fit(np.eye(3))
    index = ExactIndex().fit(np.eye(3)).set_params(device="cuda:0")
    with pytest.warns(RuntimeWarning, match="CPU"):
        assert index.kneighbors(np.eye(3), 1)[1].ravel().tolist() == [0, 1, 2]


@pytest.mark.cuda
def test_cuda_finds_what_the_cpu_finds():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(5000, 60)).astype(np.float32), rng.normal(size=(99, 60)).astype(np.float32)
    on_cpu, on_cuda = (ExactIndex(device=d).fit(bank).kneighbors(queries, 3) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(on_cuda[0], on_cpu[0], rtol=1e-6)
