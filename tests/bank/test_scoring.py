from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from skpatchcore import ExactIndex, PyNNDescentIndex
from skpatchcore.bank.scoring import kneighbors_without, reweighted_score, score_patches
from skpatchcore.patches.patches import Patches


def paper(bank: np.ndarray, patches: np.ndarray, b: int) -> float:
    """Return the image score by Eq. 6-7 as written in the paper, in float64."""
    distances = cdist(patches, bank)
    patch, m_star = np.unravel_index(
        np.where(distances == distances.min(1, keepdims=True), distances, -1).argmax(), distances.shape
    )
    s = distances[patch, m_star]
    if b == 1:
        return s
    neighbourhood = cdist(bank[m_star : m_star + 1], bank)[0].argsort(kind="stable")[:b]
    return (1 - np.exp(s) / np.exp(distances[patch, neighbourhood]).sum()) * s


@pytest.mark.parametrize(
    "index", [ExactIndex(), NearestNeighbors(), PyNNDescentIndex(random_state=0)], ids=lambda i: type(i).__name__
)
@pytest.mark.parametrize("b", [1, 3, 9])
def test_score_patches_equals_stored_reference_scores(golden, index, b):
    arrays = golden("scoring")
    grids = Patches.from_features(arrays["queries"][:, None])
    scores, patch_scores = score_patches(index.fit(arrays["bank"]), arrays["bank"], grids, b)
    np.testing.assert_allclose(scores, arrays[f"eq7_b{b}"], atol=1e-5)
    np.testing.assert_allclose(np.stack(patch_scores)[:, 0], arrays["patch_distance"], atol=1e-5)
    np.testing.assert_allclose(np.stack(patch_scores)[:, 0] ** 2, arrays["reference_squared_patch_score"], atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    n_bank=st.integers(1, 30), b=st.integers(1, 12), scale=st.sampled_from([1e-3, 1.0, 30.0]), seed=st.integers(0, 99)
)
def test_score_patches_equals_the_formula_of_the_paper(n_bank, b, scale, seed):
    rng = np.random.default_rng(seed)
    bank, patches = rng.normal(size=(n_bank, 4)) * scale, rng.normal(size=(2, 6, 4)) * scale
    scores, _ = score_patches(ExactIndex().fit(bank), bank, Patches.from_features(patches[:, None]), b)
    for score, image in zip(scores, patches, strict=True):
        assert score == pytest.approx(paper(bank, image, min(b, n_bank)), rel=1e-6)


@given(distances=st.lists(st.floats(0, 1e6), min_size=2, max_size=20))
def test_reweighted_score_weight_lies_between_its_bounds(distances):
    """If m* is the nearest row, the weight lies in [1 - 1/b, 1], also for distances whose exponential overflows."""
    distances = np.sort(distances)
    weight = reweighted_score(distances, 1.0)
    assert 1 - 1 / len(distances) - 1e-12 <= weight <= 1


def test_reweighted_score_with_one_neighbour_returns_the_score():
    assert reweighted_score(np.array([3.0]), 3.0) == 3.0


def test_score_patches_counts_m_star_in_its_own_neighbourhood_if_the_search_misses_it():
    class Shy(ExactIndex):
        """Index that never returns the query row itself, as may happen in an approximate search."""

        def kneighbors(self, X, n_neighbors=1, return_distance=True):
            distances, indices = super().kneighbors(X, n_neighbors + 1)
            own = distances[:, :1] == 0
            return np.where(own, distances[:, 1:], distances[:, :-1]), np.where(own, indices[:, 1:], indices[:, :-1])

    bank = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [9.0, 9.0]])
    queries = np.array([[[[-1.0, 0.0]]]])
    for index in (ExactIndex(), Shy()):
        scores, _ = score_patches(index.fit(bank), bank, Patches.from_features(queries), 3)
        weights = np.exp([1.0, 3.0, 5.0])
        assert scores[0] == pytest.approx(1 - weights[0] / weights.sum())


@pytest.mark.parametrize("index", [ExactIndex(), NearestNeighbors()], ids=lambda i: type(i).__name__)
@pytest.mark.parametrize("b", [1, 4, 50])
def test_score_patches_with_excluded_rows_equals_scores_of_the_smaller_bank(index, b):
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(30, 3)).astype(np.float32)
    images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in [(2, 3), (4, 1), (3, 3)]]
    grids = Patches.from_features([*images, bank[None, [7]]])
    exclude = np.array([0, 7, 8, 21, 29])
    left = np.delete(bank, exclude, axis=0)
    expected, expected_patches = score_patches(ExactIndex().fit(left), left, grids, b)
    fitted = index.fit(bank)
    none = score_patches(fitted, bank, grids, b, np.array([], int))[0]
    np.testing.assert_array_equal(none, score_patches(fitted, bank, grids, b)[0])
    assert none[3] < 1e-3 < expected[3]
    scores, patch_scores = score_patches(fitted, bank, grids, b, exclude)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert [part.shape for part in patch_scores] == [(2, 3), (4, 1), (3, 3), (1, 1)]
    for part, of_left in zip(patch_scores, expected_patches, strict=True):
        assert part.dtype == np.float64
        np.testing.assert_allclose(part, of_left, rtol=1e-5)
    # image scores without patch scores: an index with `farthest` computes them by another search
    alone, nothing = score_patches(fitted, bank, grids, b, exclude, with_patch_scores=False)
    np.testing.assert_allclose(alone, expected, rtol=1e-5)
    assert nothing == []


def test_score_patches_requests_only_the_needed_neighbours():
    class Watched(ExactIndex):
        def farthest(self, X, starts, exclude=None):
            asked.append("farthest")
            return super().farthest(X, starts, exclude=exclude)

        def kneighbors(self, X=None, n_neighbors=1, return_distance=True, exclude=None):
            asked.append((len(X), n_neighbors, None if exclude is None else len(exclude)))
            return super().kneighbors(X, n_neighbors, return_distance, exclude=exclude)

    bank = np.random.default_rng(0).normal(size=(30, 3))
    grids = Patches.from_features(np.random.default_rng(1).normal(size=(2, 3, 4, 3)))
    index, exclude = Watched().fit(bank), np.arange(5)
    asked = []
    score_patches(index, bank, grids, 4, exclude)
    assert asked == [(24, 1, 5), (2, 4, 5)]
    asked = []
    score_patches(index, bank, grids, 4, exclude, with_patch_scores=False)
    assert asked == ["farthest", (2, 4, 5)]


def test_kneighbors_without_keeps_the_order_of_the_remaining_neighbours():
    rng = np.random.default_rng(0)
    bank, X, exclude = rng.normal(size=(300, 2)), rng.normal(size=(20, 2)), rng.permutation(300)[:100]
    left = np.setdiff1d(np.arange(300), exclude)
    distances, indices = kneighbors_without(NearestNeighbors().fit(bank), X, 150, exclude)
    expected = cdist(X, bank[left])
    order = expected.argsort(axis=1)[:, :150]
    np.testing.assert_array_equal(indices, left[order])
    np.testing.assert_allclose(distances, np.take_along_axis(expected, order, axis=1))


def test_reweighted_scores_are_computed_in_float64_and_are_not_nan():
    assert reweighted_score(np.array([np.inf, np.inf]), np.inf) == np.inf
    distances = np.array([1.0, 1.1, 1.3], np.float32)
    assert reweighted_score(distances, 1.0) == pytest.approx(reweighted_score(distances.astype(float), 1.0), rel=1e-14)

    class Exact:
        def kneighbors(self, X, n_neighbors, return_distance):
            distances = cdist(X, bank)
            order = distances.argsort(axis=1)[:, :n_neighbors]
            return np.take_along_axis(distances, order, axis=1), order

    bank = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    far = np.full((1, 3), 1e3, np.float32)
    scores, _ = score_patches(Exact(), bank, Patches.from_features(far[:, None, None]), 3)
    nearest = cdist(far, bank)[0]
    neighbourhood = cdist(bank, bank)[nearest.argmin()].argsort()[:3]
    weight = 1 - 1 / np.exp(nearest[neighbourhood] - nearest.min()).sum()
    assert scores[0] == pytest.approx(weight * nearest.min(), rel=1e-10)


def test_score_patches_refuses_features_with_another_number_of_channels():
    bank, grids = np.zeros((3, 4)), Patches.from_features(np.zeros((1, 2, 2, 5)))
    with pytest.raises(ValueError, match="patch features have 5 channels, but the memory bank has 4"):
        score_patches(ExactIndex().fit(bank), bank, grids, 3)
