from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from skpatchcore import ExactIndex, PyNNDescentIndex
from skpatchcore.bank.scoring import kneighbors_without
from skpatchcore.index import _bounded as bounded
from skpatchcore.index import _bounds as bounds
from skpatchcore.index import _device_bank as device_bank
from skpatchcore.index import _directions as directions
from skpatchcore.index import _pairs as pairs
from skpatchcore.index._speeds import Speeds

INDEXES = [ExactIndex(), PyNNDescentIndex(n_neighbors=15, random_state=0)]
by_index = pytest.mark.parametrize("index", INDEXES, ids=lambda index: type(index).__name__)


@pytest.fixture(params=list(product(["in full", "all features", "directions"], ["float32", "bfloat16"])), ids=str)
def way(request, monkeypatch):
    """Search small banks without bounds, or with bounds over all features or few directions, on any machine."""
    kind, dtype = request.param
    half = 0.4 if dtype == "bfloat16" else 1.0
    speeds = Speeds({torch.float32: 2e-11, torch.bfloat16: half * 2e-11}, 2e-10)
    assert speeds.fastest == getattr(torch, dtype)
    for module in (bounded, directions):
        monkeypatch.setattr(module, "measured_speeds", lambda: speeds, raising=False)
    if kind == "in full":
        monkeypatch.setattr(bounded, "_DENSE", -1.0)
    else:  # small blocks make small banks use all parts of the algorithm
        for module in (bounded, bounds):
            monkeypatch.setattr(module, "N_ROWS", 128)
        monkeypatch.setattr(bounded, "_N_BLOCK", 2048)
    if kind == "directions":
        monkeypatch.setattr(bounded, "N_SMALL", 0)
        monkeypatch.setattr(directions, "_N_DIRECTIONS", (1, 2, 8, 16))
        monkeypatch.setattr(bounded, "_N_COARSE", 2)
        monkeypatch.setattr(bounded, "_N_FIRST", 2)
    return request.param


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bank=arrays(np.float64, st.tuples(st.integers(1, 300), st.just(3)), elements=st.integers(-4, 4).map(float)),
    scale=st.sampled_from([1e-100, 1e-6, 1.0, 1e6, 1e100]),
    shift=st.sampled_from([0.0, 1e3]),
    k=st.integers(1, 12),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_exact_equals_brute_force(way, bank, scale, shift, k, seed, data):
    """The banks have duplicates, zero vectors or a single row, tiny or huge scales, or lie far from the origin."""
    queries = np.random.default_rng(seed).integers(-5, 5, (7, 3)).astype(float)
    bank, queries = (bank + shift) * scale, (queries + shift) * scale
    excluded = np.array(data.draw(st.lists(st.integers(0, len(bank) - 1), max_size=len(bank) - 1, unique=True)), int)
    k = min(k, len(bank) - len(excluded))
    index = ExactIndex().fit(bank)
    distances, indices = index.kneighbors(queries, k, exclude=excluded)
    kept = np.delete(np.arange(len(bank)), excluded)
    expected = np.sort(cdist(queries / scale, bank[kept] / scale), axis=1)[:, :k] * scale
    np.testing.assert_allclose(distances, expected, rtol=1e-9, atol=1e-9 * scale)
    found = np.linalg.norm(bank[indices] / scale - queries[:, None] / scale, axis=2) * scale
    np.testing.assert_allclose(distances, found, rtol=1e-9, atol=1e-12 * scale)
    assert all(len(set(row)) == k for row in indices.tolist())
    assert not np.isin(indices, excluded).any()
    # The first neighbour is the first of several equal rows.
    first = kept[np.array([np.flatnonzero((bank[kept] == bank[i]).all(axis=1))[0] for i in indices[:, 0]])]
    np.testing.assert_array_equal(indices[:, 0], first)
    tops, top_distances, top_indices = index.farthest(queries, np.array([0, 1, 5, 7]), exclude=excluded)
    for top, group in zip(tops, ([0], [1, 2, 3, 4], [5, 6]), strict=True):
        assert top == group[distances[group, 0].argmax()]
    np.testing.assert_array_equal(top_distances, distances[tops, 0])
    np.testing.assert_array_equal(top_indices, indices[tops, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["noise", "clusters", "low rank", "outliers", "flat"])
def test_exact_equals_brute_force_in_many_dimensions(way, dtype, kind):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(3, 1, (700, 40)), rng.normal(3, 1, (60, 40))
    if kind == "clusters":
        centers = rng.normal(0, 3, (20, 40))
        bank, queries = bank * 0.3 + centers[rng.integers(0, 20, 700)], queries * 0.3 + centers[rng.integers(0, 20, 60)]
    elif kind == "low rank":
        mixing = rng.normal(size=(40, 40)) * 0.5 ** np.arange(40)[:, None]
        bank, queries = bank @ mixing, queries @ mixing
    elif kind == "outliers":
        bank[::50] *= 1e4
        queries[::10] *= 1e5
    elif kind == "flat":
        bank[rng.permutation(700)[:500]] = 1.5
        queries[:20] = 1.5
    bank, queries = bank.astype(dtype), queries.astype(dtype)
    wide = bank.astype(np.float64), queries.astype(np.float64)
    index = ExactIndex().fit(bank)
    for k in (1, 5):
        distances, indices = index.kneighbors(queries, k)
        expected = np.sort(cdist(wide[1], wide[0]), axis=1)[:, :k]
        np.testing.assert_allclose(distances, expected, rtol=1e-6 if dtype == np.float32 else 1e-12)
        true = np.linalg.norm(wide[0][indices] - wide[1][:, None], axis=2)
        np.testing.assert_allclose(true, expected, rtol=1e-6)
    tops = index.farthest(queries, np.array([0, 60]))
    assert tops[1][0] == index.kneighbors(queries, 1)[0].max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_results_do_not_depend_on_batch_shape(way, dtype):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(5, 1, (900, 40)).astype(dtype), rng.normal(5, 1, (50, 40)).astype(dtype)
    index = ExactIndex().fit(bank)
    distances, indices = index.kneighbors(queries, 3)
    single = [index.kneighbors(query[None], 3) for query in queries]
    assert (np.concatenate([s[0] for s in single]) == distances).all()
    assert (np.concatenate([s[1] for s in single]) == indices).all()


def test_rows_at_equal_distance_are_sorted_by_index_for_any_batch_and_number_of_neighbors():
    """Permutations of one vector have the same length, and squares that differ in the last bit."""
    rng = np.random.default_rng(0)
    far = rng.random((20, 24)) + 3
    for _ in range(60):
        vector = rng.random(24)
        bank = np.concatenate([[rng.permutation(vector) for _ in range(6)], rng.random((60, 24)) + 3])
        index, query = ExactIndex().fit(bank), np.zeros((1, 24))
        distances, indices = index.kneighbors(query, 6)
        for start in np.flatnonzero(np.diff(distances[0], prepend=-1)):
            tied = indices[0][distances[0] == distances[0, start]]
            assert tied.tolist() == sorted(tied.tolist())
        assert index.kneighbors(query, 1)[1][0, 0] == indices[0, 0]
        assert index.kneighbors(np.concatenate([query, far]), 1)[1][0, 0] == indices[0, 0]


def test_bounds_never_rule_out_nearest_row():
    """In each precision, the limit for the true squared distance of a row never rules out the row."""
    rng = np.random.default_rng(0)
    for dtype in (torch.float32, torch.bfloat16):
        for scale in (1e-3, 1.0):
            rows, queries = (torch.from_numpy(rng.normal(0, 1, (n, 30))) for n in (500, 40))
            # With a small scale, the rests are tiny: they are small differences of large numbers.
            rows[:, 10:] *= scale
            queries[:, 10:] *= scale
            norms, query_norms = rows.square().sum(1), queries.square().sum(1)
            squares = torch.cdist(queries, rows).square()
            thin = bounds.Bounds(rows[:, :10].float(), norms.float(), 30, dtype)
            left, added = thin.left(queries[:, :10].float(), query_norms.float())
            keys = torch.cat([thin.keys(left, block) for block in thin.blocks], dim=1)
            assert (keys[:, 500:] == thin.infinity).all()
            for row in range(500):
                assert (keys[:, row] <= thin.limits(squares[:, row].float(), added)).all()
            # The bounds are also tight enough to be useful.
            assert (keys[:, :500].contiguous().view(dtype) / squares).mean() > (0.2 if scale == 1.0 else 0.9)


def test_pair_products_with_and_without_sparse_kernel(monkeypatch):
    rng = np.random.default_rng(0)
    X, Y = torch.from_numpy(rng.normal(size=(6, 9))), torch.from_numpy(rng.normal(size=(11, 9)))
    q, rows = torch.tensor([0, 0, 2, 5, 5, 5]), torch.tensor([3, 1, 10, 0, 4, 4])
    expected = (X[q] * Y[rows]).sum(1)
    torch.testing.assert_close(pairs.pair_products(X, Y, q, rows), expected)
    monkeypatch.setattr(pairs, "_can_sample", lambda: False)
    monkeypatch.setattr(pairs, "_N_PAIRS", 4)
    torch.testing.assert_close(pairs.pair_products(X, Y, q, rows), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_device_bank_equals_exact_index(monkeypatch, dtype):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(5, 1, (900, 40)).astype(dtype), rng.normal(5, 1, (50, 40)).astype(dtype)
    index = ExactIndex().fit(bank)
    monkeypatch.setattr(device_bank, "_CHUNK_BYTES", 100_000)
    plain = device_bank.DeviceBank(torch.from_numpy(bank))
    excluded = np.arange(0, 900, 7)
    for k in (1, 4):
        found = plain.kneighbors(torch.from_numpy(queries), k, excluded)
        distances, indices = index.kneighbors(queries, k, exclude=excluded)
        np.testing.assert_array_equal(found[1], indices)
        np.testing.assert_allclose(found[0], distances, rtol=1e-6)
    starts = np.array([0, 20, 50])
    for own, expected in zip(
        plain.farthest(torch.from_numpy(queries), starts, excluded),
        index.farthest(queries, starts, exclude=excluded),
        strict=True,
    ):
        np.testing.assert_allclose(own, expected, rtol=1e-6)


@by_index
def test_bank_rows_have_distance_zero_to_themselves(index):
    bank = (np.random.default_rng(0).normal(100, 1, (500, 60))).astype(np.float32)
    distances, indices = index.fit(bank).kneighbors(bank, 1)
    found = distances[:, 0] == 0
    assert found.mean() > 0.98
    assert (indices[found, 0] == np.flatnonzero(found)).all()


@by_index
def test_indexes_agree_with_scikit_learn(index):
    rng = np.random.default_rng(0)
    # The rows form clusters, as patch features of images do.
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
def test_indexes_search_small_banks(index, n_bank):
    bank = np.random.default_rng(0).normal(size=(n_bank, 4))
    k = min(n_bank, 9)
    distances, _ = index.fit(bank).kneighbors(bank, k)
    np.testing.assert_allclose(distances, np.sort(cdist(bank, bank), axis=1)[:, :k], atol=1e-6)
    with pytest.raises(ValueError, match=f"n_neighbors={n_bank + 1}"):
        index.kneighbors(bank, n_bank + 1)


@by_index
def test_indexes_refuse_invalid_input(index):
    index.fit(np.zeros((4, 2)))
    for n_neighbors in (0, 1.5, None):
        with pytest.raises(ValueError, match="expected an int"):
            index.kneighbors(np.zeros((1, 2)), n_neighbors)
    with pytest.raises(ValueError, match="features"):
        index.kneighbors(np.zeros((1, 3)), 1)
    with pytest.raises(ValueError, match="NaN"):
        index.fit(np.full((4, 2), np.nan))


@pytest.mark.parametrize("index", [*INDEXES, NearestNeighbors(algorithm="brute")], ids=lambda i: type(i).__name__)
def test_excluded_rows_are_not_returned(index):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(300, 5)).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)
    gone = rng.permutation(300)[:40]
    kept = np.setdiff1d(np.arange(300), gone)
    distances, indices = kneighbors_without(index.fit(bank), queries, 3, gone)
    assert not np.isin(indices, gone).any()
    np.testing.assert_allclose(distances, np.sort(cdist(queries, bank[kept]), axis=1)[:, :3], rtol=1e-5)


def test_float16_storage_nearly_keeps_distances():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(3, 1, (500, 40)).astype(np.float32), rng.normal(3, 1, (30, 40)).astype(np.float32)
    exact, halved = ExactIndex().fit(bank), ExactIndex(storage="float16").fit(bank)
    assert halved.stored_rows.dtype == np.float16
    np.testing.assert_array_equal(exact.stored_rows, bank)
    np.testing.assert_allclose(halved.kneighbors(queries, 3)[0], exact.kneighbors(queries, 3)[0], rtol=1e-3)
    rounded = ExactIndex().fit(bank.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(halved.kneighbors(queries, 3)[0], rounded.kneighbors(queries, 3)[0])
    assert len(pickle.dumps(halved)) < 0.6 * len(pickle.dumps(exact))
    with pytest.raises(ValueError, match=r"up to 65504, but the bank has 70000"):
        halved.fit(np.full((2, 2), 7e4))


def test_exact_refuses_more_neighbors_than_rows_not_excluded():
    index = ExactIndex().fit(np.eye(4))
    with pytest.raises(ValueError, match="only 2 rows of the bank can be returned"):
        index.kneighbors(np.eye(4), 3, exclude=[0, 3])
    assert index.kneighbors(np.eye(4), 3, exclude=[3, -1])[1].shape == (4, 3)  # both name the last row
    assert index.kneighbors(np.eye(4), 2, exclude=[])[1].shape == (4, 2)


@by_index
def test_pickled_index_returns_same_results_and_contains_only_numpy(index):
    bank = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    index.fit(bank)
    expected = index.kneighbors(bank[:20] + 0.1, 4)
    data = pickle.dumps(index)
    assert b"torch" not in data
    assert b"pynndescent_" not in data
    found = pickle.loads(data).kneighbors(bank[:20] + 0.1, 4)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_pynndescent_accepts_more_threads_than_cores():
    bank = np.random.default_rng(0).normal(size=(100, 4))
    for n_jobs in (None, -1, 64):
        PyNNDescentIndex(n_neighbors=10, n_jobs=n_jobs).fit(bank).kneighbors(bank[:2], 1)


@by_index
def test_threads_share_one_index(index):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(500, 6)).astype(np.float32), rng.normal(size=(64, 6)).astype(np.float32)
    index.fit(bank)
    expected = [index.kneighbors(part, 2)[1].tolist() for part in np.split(queries, 16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda part: index.kneighbors(part, 2)[1].tolist(), np.split(queries, 16) * 4))
    assert found == expected * 4


def test_exact_index_with_missing_device_falls_back_to_cpu():
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


def test_pynndescent_counts_distinct_rows_and_returns_copies():
    rows = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    bank = np.concatenate([np.zeros((500, 8), np.float32), rows, rows[:50]])
    index = PyNNDescentIndex(random_state=0).fit(bank)
    assert index.n_samples_fit_ == 850
    assert index.n_distinct_ == 301
    distances, indices = index.kneighbors(bank, 2)
    assert (distances[:, 0] == 0).mean() > 0.99
    np.testing.assert_array_equal(distances[:500], 0)
    np.testing.assert_array_equal(np.sort(indices[800:]), np.stack([np.arange(500, 550), np.arange(800, 850)], axis=1))
