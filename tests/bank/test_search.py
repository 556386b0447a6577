"""Cache of searches: results from the cache equal a new search to the bit, for each number of neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore import ExactIndex
from skpatchcore._utils.digests import DigestedArray, checksum_of
from skpatchcore.bank import search
from skpatchcore.bank.scoring import score_patches
from skpatchcore.patches.patches import Patches


def patches_of(features):
    return Patches.from_features([DigestedArray.of(grid.copy(), checksum_of(grid), 100.0) for grid in features])


def scores_of(features, bank, n_neighbors, exclude=None, with_maps=False, memory=None, index=None):
    index = (ExactIndex() if index is None else index).fit(bank)
    return score_patches(index, bank, patches_of(features), n_neighbors, exclude, with_maps, memory)


def require_same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    assert len(found[1]) == len(expected[1])
    for some, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_array_equal(some, other)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), n_bank=st.integers(2, 40), n_values=st.integers(2, 4), n_excluded=st.integers(0, 3))
def test_scores_from_the_cache_are_the_same_to_the_bit(tmp_path_factory, seed, n_bank, n_values, n_excluded):
    rng = np.random.default_rng(seed)
    memory = str(tmp_path_factory.mktemp("memory"))
    # Few different values: many rows have equal values or equal distances.
    bank = rng.integers(0, n_values, (n_bank, 3)).astype(np.float32)
    features = rng.integers(0, n_values + 1, (4, 2, 3, 3)).astype(np.float32)
    exclude = rng.choice(n_bank, min(n_excluded, n_bank - 1), replace=False) if n_excluded else None
    for n_neighbors, with_maps, images in (
        (3, False, [0, 2]),
        (1, True, [3, 1]),
        (9, False, range(4)),
        (25, True, [1]),
    ):
        for some in (features[list(images)], features):
            expected = scores_of(some, bank, n_neighbors, exclude, with_maps)
            require_same(scores_of(some, bank, n_neighbors, exclude, with_maps, memory), expected)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(3, 4, 5, 6)).astype(np.float32)


def counted(monkeypatch):
    """Return a list that receives the number of images of each later search."""
    searched, run = [], search._search

    def count(index, bank, patches, *rest):
        searched.append(len(patches))
        return run(index, bank, patches, *rest)

    monkeypatch.setattr(search, "_search", count)
    return searched


def test_settings_of_n_neighbors_share_one_search(tmp_path, data, monkeypatch):
    bank, features = data
    searched = counted(monkeypatch)
    for n_neighbors in (1, 9, 3, 16):
        scores_of(features, bank, n_neighbors, memory=tmp_path)
    assert searched == [3]
    scores_of(features, bank, 30, memory=tmp_path)
    scores_of(np.concatenate([features, features[:1] + 1]), bank, 20, memory=tmp_path)
    assert searched == [3, 3, 1]


def test_other_banks_exclusions_and_patches_are_searched(tmp_path, data, monkeypatch):
    bank, features = data
    changed = bank.copy()
    changed[3, 2] = np.nextafter(changed[3, 2], 9)
    others = [
        (features, bank, None, False),
        (features, bank[:-1], None, False),
        (features, changed, None, False),
        (features, bank[::-1].copy(), None, False),
        (features, bank.astype(np.float64), None, False),
        (features, bank, np.array([1]), False),
        (features, bank, None, True),
        (features + 1, bank, None, False),
    ]
    expected = [scores_of(queries, rows, 2, exclude, maps) for queries, rows, exclude, maps in others]
    searched = counted(monkeypatch)
    for _ in range(2):
        for (queries, rows, exclude, maps), scores in zip(others, expected, strict=True):
            require_same(scores_of(queries, rows, 2, exclude, maps, tmp_path), scores)
    assert searched == [3] * len(others)


def test_rows_in_a_region_have_their_own_results(tmp_path, data):
    bank, features = data
    index = ExactIndex().fit(bank)
    for cells in ([None] * 3, [np.array([1, 5])] * 3, [np.array([0, 2])] * 3, [np.array([19]), None, np.array([3])]):
        some = patches_of(features).within(cells, [None] * 3, [None] * 3)
        for memory in (tmp_path, tmp_path):
            found = score_patches(index, bank, some, 3, None, True, memory)
            require_same(found, score_patches(index, bank, some, 3, None, True))


@pytest.mark.parametrize("damage", ["cut", "empty", "other arrays", "missing"])
def test_damaged_results_are_searched_again(tmp_path, data, damage):
    bank, features = data
    expected = scores_of(features, bank, 3, with_maps=True, memory=tmp_path)
    paths = sorted(Path(tmp_path).rglob("*.npz"))
    assert len(paths) == 3
    for path in paths[:2]:
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "other arrays":
            np.savez(path, tops=np.zeros(1))
        else:
            path.write_bytes(b"" if damage == "empty" else content[:-20])
    for _ in range(2):
        require_same(scores_of(features, bank, 3, with_maps=True, memory=tmp_path), expected)


def test_unwritable_folder_and_other_indexes_search_without_a_cache(tmp_path, data):
    class Other(ExactIndex):
        pass

    bank, features = data
    require_same(
        scores_of(features, bank, 3, memory=tmp_path, index=Other()), scores_of(features, bank, 3, index=Other())
    )
    assert not list(tmp_path.rglob("*.npz"))
    expected = scores_of(features, bank, 3)
    (tmp_path / "skpatchcore-searches").write_text("a file in place of the folder")
    require_same(scores_of(features, bank, 3, memory=tmp_path), expected)


def test_results_on_disk_are_bounded(tmp_path, data, monkeypatch):
    bank, features = data
    scores_of(features[:1], bank, 3, memory=tmp_path / "one")
    (one,) = (tmp_path / "one").rglob("*.npz")
    size = one.stat().st_size
    monkeypatch.setattr(search, "_MOST_BYTES", 6 * size)
    monkeypatch.setattr(search, "_MOST_WRITTEN", 2 * size)
    for i in range(40):
        scores_of(features[:1] + i, bank, 3, memory=tmp_path / "many")
    assert 1 <= len(list((tmp_path / "many").rglob("*.npz"))) <= 30


def test_results_of_each_folder_are_bounded(tmp_path, data, monkeypatch):
    bank, features = data
    scores_of(features[:1], bank, 3, memory=tmp_path / "one")
    (one,) = (tmp_path / "one").rglob("*.npz")
    size = one.stat().st_size
    monkeypatch.setattr(search, "_MOST_BYTES", 6 * size)
    monkeypatch.setattr(search, "_MOST_WRITTEN", 2 * size)
    for i in range(40):  # the second folder gets most of the results, and reaches the limit of written bytes
        for name in ("first", "second", "second", "second"):
            scores_of(features[:1] + (i + len(list((tmp_path / name).rglob("*.npz")))), bank, 3, memory=tmp_path / name)
    for name in ("first", "second"):
        assert 1 <= len(list((tmp_path / name).rglob("*.npz"))) <= 30


def test_other_devices_than_the_cpu_search_for_the_given_number_of_neighbors_only(tmp_path, data, monkeypatch):
    bank, features = data
    n_searched, run = [], search._search

    def recorded(index, bank, patches, n_neighbors, *rest):
        n_searched.append(n_neighbors)
        return run(index, bank, patches, n_neighbors, *rest)

    monkeypatch.setattr(search, "_search", recorded)
    monkeypatch.setattr(search, "available_device", lambda device: torch.device("cuda"))
    for n_neighbors in (20, 3, 9, 3, 20):
        scores_of(features, bank, n_neighbors, memory=tmp_path)
    assert n_searched == [20, 3, 9]
