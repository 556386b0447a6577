from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors

from skpatchcore import ExactIndex, GreedyCoresetSampler, PatchCoreDetector, PyNNDescentIndex
from skpatchcore.bank.answers import farthest_of, measured, neighbors_of
from skpatchcore.bank.scoring import reweighted_score, score_patches
from skpatchcore.patches.patches import Patches

COMPLETED = "returned fewer distinct rows of the memory bank than requested"
NOT_EUCLIDEAN = "the distances of Told are not Euclidean"


class Told(BaseEstimator):
    """Index that finds the nearest rows and returns the result of ``change(distances, indices)``."""

    def __init__(self, change=None):
        self.change = change

    def fit(self, X, y=None):
        self.rows = X
        return self

    def kneighbors(self, X, n_neighbors=1, return_distance=True):
        distances = cdist(X, self.rows)
        indices = distances.argsort(axis=1, kind="stable")[:, :n_neighbors]
        distances = np.take_along_axis(distances, indices, axis=1)
        return (distances, indices) if self.change is None else self.change(distances, indices)


def padded(filler):
    def change(distances, indices):
        distances, indices = distances.copy(), indices.copy()
        distances[:, 1:], indices[:, 1:] = filler, -1
        distances[::2], indices[::2] = filler, -1
        return distances, indices

    return change


# Results of incomplete searches and of other metrics, as other libraries return them: (change, expected warning).
MENDED = {
    "minus one, infinity": (padded(np.inf), COMPLETED),
    "minus one, largest float32": (padded(np.sqrt(np.finfo("f").max)), COMPLETED),
    "minus one, NaN": (padded(np.nan), COMPLETED),
    "minus one, zero": (padded(0.0), COMPLETED),
    "unsigned": (lambda d, i: (padded(0.0)(d, i)[0], padded(0.0)(d, i)[1].astype(np.uint64)), COMPLETED),
    "too few columns": (lambda d, i: (d[:, :1], i[:, :1]), COMPLETED),
    "no columns": (lambda d, i: (d[:, :0], i[:, :0]), COMPLETED),
    "one row again and again": (lambda d, i: (d * 0 + d[:, :1], i * 0 + i[:, :1]), COMPLETED),
    "squares": (lambda d, i: (d**2, i), NOT_EUCLIDEAN),
    "zeros": (lambda d, i: (d * 0, i), NOT_EUCLIDEAN),
    "negative": (lambda d, i: (-d, i), NOT_EUCLIDEAN),
    "NaN": (lambda d, i: (d * np.nan, i), NOT_EUCLIDEAN),
    "infinite": (lambda d, i: (np.full_like(d, np.inf), i), NOT_EUCLIDEAN),
    "far to near": (lambda d, i: (d[:, ::-1], i[:, ::-1]), None),
    "more columns than asked for": (lambda d, i: (np.tile(d, 2), np.tile(i, 2)), None),
    "lists": (lambda d, i: (d.tolist(), i.tolist()), None),
    "int32, float32": (lambda d, i: (d.astype("f"), i.astype(np.int32)), None),
}
REFUSED = {
    "beyond the bank": (lambda d, i: (d, i + 10**6), r"Told returned the row 10000\d\d, expected -1 to 59"),
    "below minus one": (lambda d, i: (d, i * 0 - 2), "Told returned the row -2"),
    "floats": (lambda d, i: (d, i.astype(float)), "Told returned indices of dtype float64"),
    "texts": (lambda d, i: (d.astype(str), i), "Told returned distances of dtype <U"),
    "swapped": (lambda d, i: (i, d), "Told returned indices of dtype float64"),
    "indices alone": (lambda d, i: i, "Told returned ndarray"),
    "flat": (lambda d, i: (d.ravel(), i.ravel()), "indices of shape"),
    "other queries": (lambda d, i: (d[1:], i[1:]), "indices of shape"),
    "other shapes": (lambda d, i: (d[:, 1:], i), "indices of shape"),
}


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(60, 5)).astype(np.float32) * 3
    return bank, Patches.from_features(rng.normal(size=(4, 3, 3, 5)).astype(np.float32) * 4)


@pytest.mark.parametrize("exclude", [None, np.arange(0, 60, 7)])
@pytest.mark.parametrize("b", [1, 5])
@pytest.mark.parametrize("name", MENDED)
def test_score_patches_with_incomplete_or_non_euclidean_results_equals_exact_search(case, name, b, exclude):
    bank, patches = case
    expected = score_patches(ExactIndex().fit(bank), bank, patches, b, exclude)
    change, warning = MENDED[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores, patch_scores = score_patches(Told(change).fit(bank), bank, patches, b, exclude)
    is_enough = name in ("too few columns", "one row again and again") and b == 1 and exclude is None
    if not is_enough:
        assert (warning is None) == (not caught)
    assert all(str(w.message).startswith("index: ") and (warning or "") in str(w.message) for w in caught)
    np.testing.assert_allclose(scores, expected[0], rtol=1e-6)
    np.testing.assert_allclose(patch_scores, expected[1], rtol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_neighbors_of_refuses_results_that_are_not_rows_of_the_bank(case, name):
    bank, patches = case
    change, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^index: .*{message}"):
        score_patches(Told(change).fit(bank), bank, patches, 3)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), b=st.integers(1, 9), share=st.floats(0, 1), with_copies=st.booleans())
def test_wrong_rows_of_an_index_never_lower_patch_scores(seed, b, share, with_copies):
    """Patch scores are at least the exact ones, and image scores at least 1 - 1/b of the exact ones."""
    rng = np.random.default_rng(seed)
    bank = rng.normal(size=(40, 3))
    if with_copies:
        bank = bank[rng.integers(0, 5, 40)]
    patches = Patches.from_features(rng.normal(size=(3, 2, 4, 3)) * 2)

    def change(distances, indices):
        wrong = rng.random(indices.shape) < share
        return distances, np.where(wrong, rng.integers(-1, 40, indices.shape), indices)

    expected, expected_patches = score_patches(ExactIndex().fit(bank), bank, patches, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores, patch_scores = score_patches(Told(change).fit(bank), bank, patches, b)
    assert (np.array(patch_scores) >= np.array(expected_patches) * (1 - 1e-9)).all()
    assert (scores >= expected * (1 - 1 / b) * (1 - 1e-9)).all()
    assert (scores > 0).all() or b == 1


def test_reweighted_score_is_at_least_its_lower_bound_if_the_nearest_row_was_missed():
    assert reweighted_score(np.array([50.0, 1.0, 2.0, 3.0]), 50.0) == 50 * (1 - 1 / 4)


def test_calibration_scores_of_an_incomplete_index_equal_those_of_exact_search():
    """Leave-one-out requests more neighbours than an approximate index returns."""
    good = np.random.default_rng(0).normal(0, 1, (30, 8, 8, 16)).astype(np.float32)
    good[7, :3] += 25
    few = lambda d, i: (np.where(np.arange(d.shape[1]) < 9, d, 0), np.where(np.arange(d.shape[1]) < 9, i, -1))  # noqa: E731
    with pytest.warns(UserWarning, match=COMPLETED):
        model = PatchCoreDetector("precomputed", index=Told(few), random_state=0, calibration="leave-one-out").fit(good)
    expected = PatchCoreDetector("precomputed", random_state=0, calibration="leave-one-out").fit(good)
    np.testing.assert_allclose(model.calibration_scores_, expected.calibration_scores_, rtol=1e-5)
    assert model.offset_ == pytest.approx(expected.offset_, rel=1e-5)


def test_neighbors_of_warns_of_another_metric_and_returns_euclidean_distances(case):
    bank, patches = case
    index = NearestNeighbors(metric="cosine", algorithm="brute").fit(bank)
    with pytest.warns(UserWarning, match=r"NearestNeighbors are not Euclidean.*other metrics are not supported"):
        _, indices = neighbors_of(index, bank, patches.rows, 2)
    with pytest.warns(UserWarning, match="not Euclidean"):
        distances, _ = neighbors_of(index, bank, patches.rows, 2)
    np.testing.assert_allclose(distances, np.sort(measured(patches.rows, bank, indices), axis=1))


@pytest.mark.parametrize("shift", [0, 1e3])
def test_neighbors_of_accepts_rounded_distances_without_warning(shift):
    """Distances from matrix products are inexact: self-distances of 0.1 were observed."""
    bank = (np.random.default_rng(0).normal(size=(200, 64)) + shift).astype(np.float32)
    index = Told(lambda d, i: (np.sqrt(d**2 + 64 * shift**2 * 1e-7), i)).fit(bank)
    distances, indices = neighbors_of(index, bank, bank, 1)  # warnings are errors
    np.testing.assert_array_equal(distances, 0)
    np.testing.assert_array_equal(indices[:, 0], np.arange(200))


def test_measured_does_not_overflow_for_large_float64_values():
    X, bank = np.array([[3e200, 0.0]]), np.array([[0.0, 4e200], [3e200, 0.0]])
    np.testing.assert_allclose(measured(X, bank, np.array([[0, 1]])), [[5e200, 0]])


@pytest.mark.parametrize("what", ["query of another group", "row", "excluded row"])
def test_farthest_of_refuses_wrong_results_of_a_subclass(case, what):
    class Wrong(ExactIndex):
        def farthest(self, X, starts, *, exclude=None):
            queries, distances, indices = super().farthest(X, starts, exclude=exclude)
            if what == "query of another group":
                return queries[::-1], distances, indices
            return queries, distances, indices * 0 + (-1 if what == "row" else 3)

    bank, patches = case
    with pytest.raises(ValueError, match="farthest of Wrong returned a query of another group, or a row that does not"):
        farthest_of(Wrong().fit(bank), bank, patches.rows, patches.starts, np.array([3]))


def test_score_patches_does_not_call_farthest_of_other_classes(case):
    class Foreign(Told):
        def farthest(self, X, starts, exclude=None):
            raise AssertionError("farthest was called, though its result cannot be checked")

    bank, patches = case
    scores, _ = score_patches(Foreign().fit(bank), bank, patches, 3, with_patch_scores=False)
    np.testing.assert_allclose(scores, score_patches(ExactIndex().fit(bank), bank, patches, 3)[0], rtol=1e-6)


@pytest.mark.parametrize("n_blank", [0, 15, 20])
def test_pynndescent_finds_bank_rows_among_many_duplicates(n_blank):
    X = np.random.default_rng(0).normal(size=(20, 8, 8, 16)).astype(np.float32)
    X[:n_blank] = 0
    model = PatchCoreDetector(
        "precomputed", index=PyNNDescentIndex(), sampler=GreedyCoresetSampler(1.0), random_state=0
    ).fit(X)
    distances, indices = model.index_.kneighbors(X.reshape(-1, 16), 3)
    assert np.mean(distances[:, 0] == 0) > 0.99
    assert all(len(set(row)) == 3 for row in indices.tolist())
    blank = (model.memory_bank_ == 0).all(axis=1)
    if n_blank:  # all duplicates of the row that was found are returned too
        assert blank[model.index_.kneighbors(np.zeros((1, 16)), n_blank * 64, return_distance=False)].all()
    assert (model.predict(X) == 1).mean() > 0.9
