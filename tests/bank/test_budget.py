from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.kernel_approximation import Nystroem
from sklearn.preprocessing import FunctionTransformer

from skpatchcore import (
    ExactIndex,
    GreedyCoresetSampler,
    ImageError,
    LearnedProxySampler,
    PatchCoreDetector,
    RandomSampler,
)
from skpatchcore._utils.bytes import format_bytes, parse_bytes
from skpatchcore.bank import budget, collect
from skpatchcore.bank.budget import MemoryEstimate
from skpatchcore.bank.reserve import stored
from tests.factories import extractor

FITTED = ("memory_bank_", "bank_image_indices_", "bank_positions_", "calibration_scores_", "offset_", "pixel_offset_")


def fit_in_one_way(monkeypatch, way, model, X, **fit):
    """Fit the model with a patched memory estimate that always returns `way`."""
    asked = []

    def decide(self, max_memory):
        asked.append(max_memory)
        return way

    with monkeypatch.context() as patched:
        patched.setattr(MemoryEstimate, "way", decide)
        model.fit(X, **fit)
    assert asked
    return model


def images_of_differing_sizes(n_images=9):
    rng = np.random.default_rng(1)
    sizes = [(48, 64), (64, 48), (80, 40), (48, 64), (120, 160), (56, 56)]
    return [rng.normal(0.6, 0.1, (*sizes[i % len(sizes)], 3)).clip(0, 1) for i in range(n_images)]


@pytest.mark.parametrize("sampler", [None, GreedyCoresetSampler(0.03), RandomSampler(0.2), GreedyCoresetSampler(7)])
@pytest.mark.parametrize("of_one_size", [True, False])
def test_fit_in_two_passes_is_bit_identical_to_fit_at_once(monkeypatch, parts, sampler, of_one_size):
    X = parts[0] if of_one_size else images_of_differing_sizes()
    y = np.array([1] * len(X))
    y[2] = -1
    groups = np.arange(len(X)) // 2
    model = PatchCoreDetector(extractor(), sampler=sampler, random_state=0)
    fit = {"y": y, "groups": groups}
    at_once = fit_in_one_way(monkeypatch, "at once", clone(model), X, **fit)
    twice = fit_in_one_way(monkeypatch, "two passes", clone(model), X, **fit)
    for name in FITTED:
        np.testing.assert_array_equal(getattr(twice, name), getattr(at_once, name))
    assert twice.sampler_.components_ is twice.memory_bank_
    np.testing.assert_array_equal(twice.score_samples(parts[2]), at_once.score_samples(parts[2]))


@pytest.mark.parametrize("as_list", [True, False])
def test_fit_in_two_passes_over_precomputed_features_is_bit_identical(monkeypatch, parts, as_list):
    features = extractor().transform(parts[0])
    X = list(features) if as_list else features
    model = PatchCoreDetector("precomputed", random_state=0)
    at_once = fit_in_one_way(monkeypatch, "at once", clone(model), X)
    twice = fit_in_one_way(monkeypatch, "two passes", clone(model), X)
    for name in FITTED:
        np.testing.assert_array_equal(getattr(twice, name), getattr(at_once, name))


def test_fit_in_two_passes_with_a_stateless_transformer_is_bit_identical(monkeypatch, parts):
    def blocks(X):
        return np.stack([x.reshape(6, 8, 8, 8, 3).mean(axis=(1, 3)) for x in X])

    X = np.concatenate([parts[0], parts[0] * 0.99])
    model = PatchCoreDetector(FunctionTransformer(blocks), random_state=0)
    at_once = fit_in_one_way(monkeypatch, "at once", clone(model), X)
    twice = fit_in_one_way(monkeypatch, "two passes", clone(model), X)
    for name in FITTED:
        np.testing.assert_array_equal(getattr(twice, name), getattr(at_once, name))


def test_fit_in_shards_with_little_memory_covers_all_patches(monkeypatch, parts):
    features = np.random.default_rng(0).normal(size=(200, 10, 10, 40)).astype(np.float32)
    model = PatchCoreDetector("precomputed", sampler=GreedyCoresetSampler(60), random_state=0, calibration=None)
    estimate = model.estimate_memory(200, features[0])
    assert estimate.n_patches == 20_000
    # a tenth of the memory that a selection from all patches would need
    scratch = GreedyCoresetSampler().estimate_memory(0, 40)
    least = estimate.overhead + scratch + (estimate.learning - scratch) // 10
    whole = clone(model).fit(features)
    sharded = clone(model).set_params(max_memory=least)
    fit_in_one_way(monkeypatch, "shards", sharded, features)
    assert sharded.memory_bank_.shape == (60, 40)
    for row, image, (y, x) in zip(
        sharded.memory_bank_, sharded.bank_image_indices_, sharded.bank_positions_, strict=True
    ):
        np.testing.assert_array_equal(row, features[image, y, x])
    radius = sharded.sampler_.selection_distances_[-1]
    distances = ExactIndex().fit(sharded.memory_bank_).kneighbors(features.reshape(-1, 40))[0]
    assert distances.max() <= radius
    assert distances.max() <= 1.3 * whole.sampler_.selection_distances_[-1]


def test_memory_estimate_way_is_the_fastest_within_max_memory():
    estimate = MemoryEstimate(
        n_patches=10**6,
        n_channels=1500,
        overhead=10**9,
        features=6 * 10**9,
        learning=10**9,
        model=25 * 10**7,
        in_shards=True,
    )
    assert (estimate.at_once, estimate.two_passes, estimate.least) == (8 * 10**9, 2 * 10**9, 15 * 10**8)
    assert estimate.way(8 * 10**9) == "at once"
    assert estimate.way(7 * 10**9) == estimate.way(2 * 10**9) == "two passes"
    assert estimate.way(19 * 10**8) == estimate.way(15 * 10**8) == "shards"
    with pytest.raises(
        ValueError, match=r"max_memory=1.4 GB is too small: .* at least 1.5 GB .*8 GB at once, 2 GB in two passes"
    ):
        estimate.way(14 * 10**8)


def test_fit_refuses_small_max_memory_for_samplers_without_batches(parts):
    for sampler in (LearnedProxySampler(3), Nystroem(n_components=3)):
        model = PatchCoreDetector(extractor(), sampler=sampler, max_memory="1.2 GB", random_state=0)
        with pytest.raises(ValueError, match=r"max_memory=1.2 GB is too small"):
            model.fit(parts[0])
        assert not hasattr(model, "memory_bank_")
        assert model.set_params(max_memory=None).fit(parts[0]).predict(parts[2]).tolist() == [-1]


def test_estimate_memory_equals_the_estimate_in_fit(monkeypatch, parts):
    seen = []

    def estimate(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    original = budget.estimate_memory
    monkeypatch.setattr(budget, "estimate_memory", estimate)
    for model in (
        PatchCoreDetector(extractor(image_size=48), random_state=0),
        PatchCoreDetector(extractor(image_size=64, crop_size=48), sampler=RandomSampler(0.5)),
    ):
        model.fit(parts[0])
        assert model.estimate_memory(len(parts[0]), parts[0][0]) == seen.pop()
    assert model.estimate_memory(10).n_patches == 360
    with pytest.raises(ValueError, match="pass an example"):
        PatchCoreDetector(extractor()).estimate_memory(10)
    with pytest.raises(ValueError, match="pass an example"):
        PatchCoreDetector("precomputed").estimate_memory(10)


def test_fit_estimates_patches_of_images_of_different_sizes_by_area(monkeypatch):
    seen = []
    original = budget.estimate_memory
    monkeypatch.setattr(
        budget, "estimate_memory", lambda n_patches, *args: seen.append(n_patches) or original(n_patches, *args)
    )
    X = images_of_differing_sizes(30)
    PatchCoreDetector(extractor(), calibration=None).fit(X)
    n_patches = sum((x.shape[0] // 8) * (x.shape[1] // 8) for x in X)
    assert n_patches <= seen[0] <= 1.2 * n_patches


@pytest.mark.parametrize("way", ["at once", "two passes"])
def test_fit_error_names_the_bad_image_in_each_way(monkeypatch, parts, way):
    y = np.array([-1, 1, -1] + [1] * 8)
    X = [*parts[0][:9], parts[0][0] * np.nan, parts[0][9]]
    model = PatchCoreDetector(extractor(), random_state=0)
    with pytest.raises(ImageError, match="image 9: holds NaN"):
        fit_in_one_way(monkeypatch, way, model, X, y=y)
    assert not hasattr(model, "memory_bank_")


def test_fit_in_two_passes_refuses_images_that_change_during_fit(monkeypatch):
    calls = []

    def grids(X):
        calls.append(len(X))
        return np.random.default_rng(0).normal(size=(len(X), 3 if len(calls) <= 2 else 2, 3, 2))

    model = PatchCoreDetector(FunctionTransformer(grids))
    with pytest.raises(ValueError, match="have changed"):
        fit_in_one_way(monkeypatch, "two passes", model, np.zeros((20, 8, 8, 3)))


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4GB", 4e9), ("512 MiB", 2**29), ("1.5g", 1.5e9), ("2T", 2e12), ("100", 100), (" 7 kb ", 7000), (12, 12)],
)
def test_parse_bytes_returns_number_of_bytes(text, n_bytes):
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "much", "4 GBit", "-1GB", "GB", "1e9"])
def test_fit_refuses_invalid_max_memory(parts, text):
    with pytest.raises(ValueError, match="is not an amount of memory"):
        PatchCoreDetector(extractor(), max_memory=text).fit(parts[0])


def test_format_bytes_uses_decimal_units():
    assert [format_bytes(n) for n in (12, 1234, 5_600_000, 1.84e9)] == ["12 B", "1.23 kB", "5.6 MB", "1.84 GB"]


def test_max_memory_auto_respects_the_available_memory(monkeypatch):
    """Features are held at once only if enough memory is available."""
    features = np.random.default_rng(0).normal(size=(20, 4, 4, 8)).astype(np.float32)
    ways = []
    original = MemoryEstimate.way

    def way(self, max_memory):
        ways.append(original(self, max_memory))
        return ways[-1]

    monkeypatch.setattr(MemoryEstimate, "way", way)
    for available in (10**12, 10**6):
        monkeypatch.setattr(budget, "available_bytes", lambda available=available: available)
        PatchCoreDetector("precomputed", random_state=0, calibration=None).fit(list(features))
    assert ways[0] == "at once"
    assert ways[-1] != "at once"


def test_reserve_that_does_not_fit_in_memory_is_not_selected_and_a_warning_says_so(monkeypatch, parts):
    whole = PatchCoreDetector(extractor(), sampler=GreedyCoresetSampler(0.05), calibration=None, random_state=0)
    limited = clone(whole).fit(parts[0])
    n_bank, n_reserved = len(limited.memory_bank_), len(limited.reserve_rows_)
    row_bytes = limited.memory_bank_[:1].nbytes
    enough, most_reserved = int(np.ceil(row_bytes * (3 * n_bank + 1.5 * n_reserved))), collect._most_reserved

    def fitted(n_bytes):
        monkeypatch.setattr(collect, "_most_reserved", lambda _, *others: most_reserved(n_bytes, *others))
        return fit_in_one_way(monkeypatch, "two passes", clone(whole).set_params(max_memory="3GB"), parts[0])

    np.testing.assert_array_equal(fitted(enough).reserve_rows_, limited.reserve_rows_)
    with pytest.warns(UserWarning, match=f"no reserve: it would have more than {n_reserved - 1} patches"):
        without = fitted(enough - 1)
    assert without.reserve_rows_ is None
    np.testing.assert_array_equal(without.memory_bank_, limited.memory_bank_)


@pytest.mark.parametrize("n_rows", [0, 1, 1024, 2500])
def test_rows_of_the_reserve_are_rounded_only_if_all_of_them_stay_near(n_rows):
    rows = np.random.default_rng(0).normal(size=(n_rows, 8)).astype(np.float32)
    assert stored(rows, radius=1e3).dtype == np.float16
    np.testing.assert_array_equal(stored(rows, radius=1e3), rows.astype(np.float16))
    if n_rows:
        assert stored(rows, radius=1e-3) is rows
        rows[-1, 0] = 1e6  # no float16
        assert stored(rows, radius=1e3) is rows
