"""Test finite values whose squares overflow.

Every call must end, either with a correct result or with an error that names row or image, and column or channel.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from skpatchcore import (
    ExactIndex,
    GreedyCoresetSampler,
    ImageError,
    LearnedProxySampler,
    PaDiMDetector,
    PatchCoreDetector,
    PyNNDescentIndex,
    RandomSampler,
    SPADEDetector,
)
from skpatchcore.coreset import _k_center as k_center
from skpatchcore.coreset._rows import Rows
from skpatchcore.index import _bounded as bounded
from tests.factories import extractor

PLACES = [(np.float32, 1e20), (np.float32, -3e38), (np.float64, 1e200), (np.float64, -1.7e308)]
by_place = pytest.mark.parametrize(("dtype", "value"), PLACES)


def table(dtype=np.float32, value=None, n_columns=8):
    """Return a table of noise; `value`, if given, is put in row 3 and column 2."""
    X = np.random.default_rng(0).normal(size=(50, n_columns)).astype(dtype)
    if value is not None:
        X[3, 2] = value
    return X


SAMPLERS = [
    GreedyCoresetSampler(5),
    GreedyCoresetSampler(5, n_projections=4),
    GreedyCoresetSampler(5, n_projections=4, projection="sparse"),
    RandomSampler(5),
    LearnedProxySampler(5),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@by_place
def test_samplers_refuse_values_whose_squares_overflow(sampler, dtype, value):
    with pytest.raises(
        ValueError, match=r"^row 3 of X holds .*e\+\d+ in column 2, which is too large: distances overflow"
    ):
        sampler.fit(table(dtype, value))


@pytest.mark.parametrize("sampler", SAMPLERS[:3], ids=repr)
@by_place
def test_fit_batches_refuses_values_whose_squares_overflow(sampler, dtype, value):
    X = table(dtype, value)
    with pytest.raises(ValueError, match=r"^row 53 of X holds .* in column 2, which is too large: distances overflow"):
        sampler.fit_batches([table(dtype), X[:20], X[20:]], 100)


def test_fit_in_shards_refuses_values_whose_squares_overflow():
    X = np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float32)
    X[15_001, 3] = 1e25
    with pytest.raises(ValueError, match=r"^row 15001 of X holds 1e\+25 in column 3"):
        GreedyCoresetSampler(5).fit_batches([X], len(X), (64 << 20) + 100_000)


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1e14), (np.float64, 1e149)])
def test_largest_accepted_values_select_the_same_rows_as_small_values(dtype, scale):
    X = table(dtype)
    expected = GreedyCoresetSampler(20, start=0).fit(X)
    found = GreedyCoresetSampler(20, start=0).fit(X * dtype(scale))
    np.testing.assert_array_equal(found.component_indices_, expected.component_indices_)
    np.testing.assert_allclose(found.selection_distances_ / scale, expected.selection_distances_, rtol=1e-3, atol=1e-3)
    assert np.isfinite(found.transform(X * dtype(scale))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_k_center_greedy_raises_for_rows_that_are_not_finite(value):
    """The samplers refuse such rows before the selection."""
    left = torch.from_numpy(np.pad(table(value=value), [(0, 0), (0, 1)]))
    with pytest.raises(ArithmeticError, match="not finite"):
        k_center.k_center_greedy(Rows(left), 10, 0)


def test_k_center_greedy_selects_a_row_of_huge_values_second():
    left = torch.from_numpy(np.pad(table(value=1e30), [(0, 0), (0, 1)]))
    order, radii = k_center.k_center_greedy(Rows(left), 10, 0)
    assert radii[0] == pytest.approx(1e30)
    assert len(set(order.tolist())) == 10


@pytest.mark.parametrize("scale", [1e20, 1e38])
@pytest.mark.parametrize("way", ["all features", "directions"])
def test_exact_search_in_a_bank_of_huge_values_equals_brute_force(scale, way, monkeypatch):
    if way == "directions":
        monkeypatch.setattr(bounded, "N_SMALL", 0)
    bank, queries = (np.clip(X, -3, 3) * np.float32(scale) for X in (table(), table()[::-1] * np.float32(0.9)))
    distances, indices = ExactIndex().fit(bank).kneighbors(queries, 3)
    expected = cdist(queries.astype(float) / scale, bank.astype(float) / scale)
    np.testing.assert_array_equal(indices, expected.argsort(axis=1)[:, :3])
    np.testing.assert_allclose(distances / scale, np.sort(expected, axis=1)[:, :3], rtol=1e-6)


@by_place
@pytest.mark.parametrize("exclude", [None, [0, 3, 49]])
def test_exact_search_with_one_huge_query_equals_brute_force(dtype, value, exclude):
    bank, queries = table(dtype), table(dtype, value)[:9]
    index = ExactIndex().fit(bank)
    distances, indices = index.kneighbors(queries, 2, exclude=exclude)
    left = np.delete(np.arange(50), exclude or [])
    unit = np.abs(queries).max(axis=1, keepdims=True).astype(float)
    expected = np.array([cdist(q[None] / u, bank[left] / u)[0] for q, u in zip(queries, unit, strict=True)]) * unit
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :2], rtol=1e-6)
    near = np.delete(np.arange(9), 3)  # for the huge query, all rows are equally near
    np.testing.assert_array_equal(indices[near], left[expected.argsort(axis=1)[:, :2]][near])
    tops, top_distances, _ = index.farthest(queries, np.array([0, 2, 9]), exclude=exclude)
    assert tops[1] == 3
    assert top_distances[1] == pytest.approx(abs(value), rel=1e-6)


def test_exact_search_with_a_large_query_in_a_bank_of_tiny_values():
    """The squared ratio of query and bank values overflows, although the squared values do not."""
    bank = table() * np.float32(1e-12)
    distances, _ = ExactIndex().fit(bank).kneighbors(np.full((1, 8), 1e14, np.float32))
    assert distances[0, 0] == pytest.approx(1e14 * np.sqrt(8))


@by_place
def test_indexes_refuse_banks_whose_squared_distances_overflow(dtype, value):
    with pytest.raises(ValueError, match=r"row 3 of X holds .* in column 2, which is too large: distances overflow"):
        PyNNDescentIndex().fit(table(dtype, value))
    with pytest.raises(ValueError, match=r"row 3 of X holds .* in column 2, which is too large: distances overflow"):
        PyNNDescentIndex().fit(table(dtype)).kneighbors(table(dtype, value))
    if dtype == np.float64:
        with pytest.raises(
            ValueError, match=r"row 3 of X holds .* in column 2, which is too large: distances overflow"
        ):
            ExactIndex().fit(table(dtype, value))


@pytest.mark.parametrize(
    "make",
    [PatchCoreDetector, lambda e: PatchCoreDetector(e, index="pynndescent"), PaDiMDetector, SPADEDetector],
    ids=["patchcore", "pynndescent", "padim", "spade"],
)
@pytest.mark.parametrize("form", ["table", "grids", "list"])
@by_place
def test_detectors_refuse_huge_features_in_fit_and_flag_them_in_predict(make, form, dtype, value):
    def formed(X):
        grids = X.reshape(25, 1, 2, 8)
        return {"table": X, "grids": grids, "list": list(grids)}[form]

    image = 3 if form == "table" else 1
    message = (
        rf"patch features of image {image} hold .*e\+\d+ in channel 2, which is too large: distances overflow beyond"
    )
    with pytest.raises(ValueError, match=message):
        make("precomputed").fit(formed(table(dtype, value)))
    model = make("precomputed").fit(formed(table(dtype)))
    X = formed(table(dtype, value))
    if getattr(model, "index", None) == "pynndescent":
        with pytest.raises(ValueError, match=r"row 3 of X holds .* in column 2, which is too large"):
            model.predict(X)
        return
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SPADE's squares and PaDiM's products overflow
        assert model.predict(X)[image] == -1
        score = model.score_samples(X)[image]
    if isinstance(model, PatchCoreDetector):
        assert -2 * abs(value) <= score <= -abs(value) / 2
        assert np.isfinite(score)
    else:
        assert not score > -1e15


def test_extractor_raises_with_the_index_of_an_image_with_huge_features(parts):
    class Amplifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 2, 3, 2)

        def forward(self, x):
            return self.layer(x) * torch.where(x.amax((1, 2, 3), keepdim=True) > 50, 1e30, 1.0)

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Amplifier()

        def forward(self, x):
            return self.body(x)

    X = parts[0].copy()
    X[2] = 1.0
    model = extractor(Whole, layers=("body",), mean=(0, 0, 0), std=(0.01, 0.01, 0.01))
    with pytest.raises(ImageError, match=r"image 2: .*NaN or infinite, or beyond ±1e\+15"):
        model.transform(X * 0.6 + (np.arange(len(X)) == 2)[:, None, None, None] * 0.4)
