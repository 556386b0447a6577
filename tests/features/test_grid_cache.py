"""Cache of patch features: the same features to the bit, damaged files are never used, and layer maps come first."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from skpatchcore import GreedyCoresetSampler, RandomSampler, TorchFeatureExtractor
from skpatchcore._utils.digests import DigestedArray
from skpatchcore.features import _grid_cache as grid_cache
from skpatchcore.images.appearance import Appearance
from skpatchcore.images.views import View
from tests import factories


def extractor(memory=None, **parameters):
    return factories.extractor(memory=None if memory is None else str(memory), batch_size=1, **parameters)


def grids(folder):
    return sorted(Path(folder).rglob("*.grid"))


def size_of(folder, pattern):
    return sum(path.stat().st_size for path in Path(folder).rglob(pattern) if path.is_file())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((5, 32, 48, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"patch_size": 1}, {"stride": 2}, {"n_channels": 20}, {"layers": ["layer3", "layer2"]}, {"tile_size": 24}],
    ids=str,
)
def test_features_from_the_cache_are_the_same_to_the_bit(tmp_path, images, parameters):
    if parameters.get("tile_size"):
        images = np.random.default_rng(0).random((2, 160, 200, 3)).astype(np.float32)
        parameters = {"tile_size": 128, "layers": ["layer1"]}
    expected = extractor(**parameters).transform(images)
    for _ in range(3):
        np.testing.assert_array_equal(extractor(tmp_path, **parameters).transform(images), expected)
    assert len(grids(tmp_path)) == len(images)


def test_each_setting_of_the_features_has_its_own_files(tmp_path, images):
    for n, parameters in enumerate([{}, {"patch_size": 5}, {"stride": 2}, {"n_channels": 8}, {"layers": ["layer2"]}]):
        extractor(tmp_path, **parameters).transform(images)
        assert len(grids(tmp_path)) == (n + 1) * len(images)
    extractor(tmp_path, patch_size=np.int64(5)).transform(images[::-1])
    assert len(grids(tmp_path)) == 5 * len(images)


def test_partly_filled_cache_returns_the_images_in_order(tmp_path, images):
    expected = extractor().transform(images)
    extractor(tmp_path).transform(images[[0, 3]])
    found = factories.extractor(memory=str(tmp_path), batch_size=4).transform(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[[0, 3]], expected[[0, 3]])


@pytest.mark.parametrize("damage", ["cut", "longer", "header", "checksum", "values", "empty", "text", "other image"])
def test_damaged_files_are_computed_again(tmp_path, images, damage):
    expected = extractor(tmp_path).transform(images)
    extractor(tmp_path).transform(images)  # the files are verified
    for path in grids(tmp_path):
        content = bytearray(path.read_bytes())
        if damage == "cut":
            content = content[:-5]
        elif damage == "longer":
            content += b"0000"
        elif damage == "header":
            content[100] ^= 1
        elif damage == "checksum":
            content[5] ^= 1
        elif damage == "values":
            content[-1] ^= 64
        elif damage == "other image":
            header = json.loads(content[64:4096])
            header["checksum"] = "0" * 40
            content[:4096] = grid_cache._as_header(header)
        else:
            content = bytearray(b"" if damage == "empty" else b"text")
        path.write_bytes(bytes(content))
        os.utime(path, (1, 1))
    np.testing.assert_array_equal(extractor(tmp_path).transform(images), expected)
    assert all(path.stat().st_mtime > 1000 for path in grids(tmp_path))  # written again
    np.testing.assert_array_equal(extractor(tmp_path).transform(images), expected)


def test_changes_of_the_features_do_not_change_the_files(tmp_path, images):
    expected = extractor(tmp_path).transform(images)
    for features, _ in extractor(tmp_path).iter_transform(images):
        features += 1
    np.testing.assert_array_equal(extractor(tmp_path).transform(images), expected)


class Scaled(TorchFeatureExtractor):
    """Extractor that multiplies the first channels in place."""

    factor = 1.0

    def iter_transform(self, X):
        for features, views in super().iter_transform(X):
            for grid in features:
                grid[..., :5] *= self.factor
            yield features, views


class Wrapper(BaseEstimator):
    """Extractor that multiplies the first channels of another extractor in place."""

    factor = 1.0

    def __init__(self, extractor=None):
        self.extractor = extractor

    def __getattr__(self, name):
        if name == "extractor":
            raise AttributeError(name)
        return getattr(self.extractor, name)

    def fit(self, X, y=None):
        self.extractor.fit(X)
        return self

    def iter_transform(self, X):
        for features, views in self.extractor.iter_transform(X):
            for grid in features:
                grid[..., :5] *= self.factor
            yield features, views


class Aggregated(TorchFeatureExtractor):
    """Extractor that computes other features from the layer maps."""

    factor = 1.0

    def _aggregate(self, maps):
        return super()._aggregate(maps) * self.factor


@pytest.mark.parametrize("kind", [Scaled, Wrapper, Aggregated])
def test_extractors_that_change_the_features_share_no_results_of_other_features(tmp_path, images, monkeypatch, kind):
    def scores(memory):
        own = extractor(memory) if kind is Wrapper else kind(**extractor(memory).get_params())
        sampler = GreedyCoresetSampler(0.2, memory=memory, random_state=0)
        one = factories.detector(extractor=Wrapper(own) if kind is Wrapper else own, sampler=sampler, calibration=None)
        return one.fit(images).score_samples(images[:2] / 2)

    memory, found = str(tmp_path), []
    for factor in (1.0, 50.0):
        monkeypatch.setattr(kind, "factor", factor)
        found.append(scores(None))
        for _ in range(2):
            np.testing.assert_array_equal(scores(memory), found[-1])
    assert not np.array_equal(*found)


@pytest.mark.parametrize("kind", [Scaled, Wrapper])
def test_changed_features_are_checked(tmp_path, images, monkeypatch, kind):
    memory = str(tmp_path)
    own = extractor(memory) if kind is Wrapper else kind(**extractor(memory).get_params())
    detector = factories.detector(extractor=Wrapper(own) if kind is Wrapper else own, calibration=None).fit(images)
    monkeypatch.setattr(kind, "factor", np.nan)
    with pytest.raises(ValueError, match="patch features of image 0 hold NaN"):
        detector.score_samples(images)


@pytest.mark.parametrize("n_images", [1, 5])
@pytest.mark.parametrize("transformer", [StandardScaler(copy=False), PCA(4, copy=False, random_state=0)])
def test_transformers_that_work_in_place_give_the_same_scores(tmp_path, images, transformer, n_images):
    def scores(memory, some):
        one = factories.detector(
            extractor=extractor(memory), transformer=some, sampler=RandomSampler(0.5), calibration=None
        )
        return one.fit(images[:n_images]).score_samples(images)

    expected = scores(None, clone(transformer).set_params(copy=True))
    for memory in (None, tmp_path, tmp_path):
        np.testing.assert_allclose(scores(memory, transformer), expected, rtol=1e-4)


def test_content_is_verified_once_per_process_also_if_the_time_of_use_changes(tmp_path, images, monkeypatch):
    extractor(tmp_path).transform(images)
    for path in grids(tmp_path):
        os.utime(path, (1000, 1000))
    counts, checksum_of = [], grid_cache.checksum_of
    monkeypatch.setattr(grid_cache, "checksum_of", lambda values: (counts.append(1), checksum_of(values))[1])
    for _ in range(3):
        extractor(tmp_path).transform(images)
        assert len(counts) == len(images)
    assert all(path.stat().st_mtime > 1000 for path in grids(tmp_path))


def test_file_that_is_replaced_while_it_is_read_is_verified_when_it_is_read_next(tmp_path, images, monkeypatch):
    expected = extractor(tmp_path).transform(images[:1])
    (path,) = grids(tmp_path)
    content, header_of = path.read_bytes(), grid_cache._header_of
    damaged = content[:-1] + bytes([content[-1] ^ 64])

    def replace(header):
        other = path.with_name("other")
        other.write_bytes(damaged)
        os.replace(other, path)
        return header_of(header)

    monkeypatch.setattr(grid_cache, "_header_of", replace)
    np.testing.assert_array_equal(extractor(tmp_path).transform(images[:1]), expected)
    monkeypatch.undo()
    np.testing.assert_array_equal(extractor(tmp_path).transform(images[:1]), expected)


def test_unwritable_folder_returns_the_features(tmp_path, images):
    expected = extractor().transform(images)
    (tmp_path / "skpatchcore-grids").write_text("a file in place of the folder")
    for _ in range(2):
        np.testing.assert_array_equal(extractor(tmp_path).transform(images), expected)


def test_features_of_large_images_are_not_stored(tmp_path, images, monkeypatch):
    monkeypatch.setattr(grid_cache, "_MOST_BYTES", 1000)
    expected = extractor().transform(images)
    for _ in range(2):
        np.testing.assert_array_equal(extractor(tmp_path).transform(images), expected)
    assert not grids(tmp_path)


def test_limit_holds_for_layer_maps_and_features_together(tmp_path, images):
    many = np.concatenate([images * share for share in (0.9, 0.8, 0.7, 0.6)])
    expected = {size: extractor(patch_size=size).transform(many) for size in (1, 3)}
    extractor(tmp_path / "whole", patch_size=3).transform(many)
    layers, features = size_of(tmp_path / "whole", "*.npz"), size_of(tmp_path / "whole", "*.grid")
    limit = int(1.1 * layers + 0.5 * features)
    for _ in range(2):
        for size in (1, 3):
            found = extractor(tmp_path / "limited", patch_size=size, cache_limit=limit).transform(many)
            np.testing.assert_array_equal(found, expected[size])
            assert size_of(tmp_path / "limited", "*") <= 1.1 * limit
            assert size_of(tmp_path / "limited", "*.npz") == layers  # the features never replace layer maps
            assert 0 < len(grids(tmp_path / "limited")) < 2 * len(many)


def test_features_make_way_for_layer_maps(tmp_path, images):
    extractor(tmp_path, patch_size=3).transform(images)
    limit = size_of(tmp_path, "*")
    for size in (0.9, 0.8, 0.7):
        extractor(tmp_path, cache_limit=limit).transform(images * size)
    assert size_of(tmp_path, "*") <= 1.1 * limit


def test_features_take_at_most_a_quarter_of_the_free_space_and_a_fixed_size(tmp_path, images, monkeypatch):
    one = extractor(tmp_path / "one").transform(images[:1]).nbytes + 4096

    class Usage:
        def __init__(self, folder):
            self.free = 12 * one - size_of(tmp_path / "quarter", "*.grid")

    monkeypatch.setattr(grid_cache.shutil, "disk_usage", Usage)
    extractor(tmp_path / "quarter").transform(images)
    assert len(grids(tmp_path / "quarter")) == 3
    monkeypatch.undo()
    monkeypatch.setattr(grid_cache, "_MOST_STORED", 2 * one)
    extractor(tmp_path / "fixed").transform(images)
    assert len(grids(tmp_path / "fixed")) == 2


def test_layer_maps_can_be_stored_without_features(tmp_path, images):
    with grid_cache.layer_maps_only():
        first = extractor(tmp_path).transform(images)
    assert not grids(tmp_path)
    np.testing.assert_array_equal(extractor(tmp_path).transform(images), first)
    assert len(grids(tmp_path)) == len(images)


def test_stored_grid_has_the_view_the_peak_and_a_digest_of_its_values(tmp_path):
    appearance = Appearance(*np.linspace(0.1, 0.9, 5).tolist())
    view = View((31, 47), (0.5, 1.25, 30.1, 1 / 3), (32, 48), (1.1, 0.7), appearance)
    values = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    digests = []
    for change, setting in ((0, 1), (0, 2), (1e-3, 1)):
        cache = grid_cache.GridCache(tmp_path / "layers", {"patch_size": setting}, None)
        path = cache.path_of([Path("a.npz"), Path("b.npz")])
        kept = cache.keep(path, values + np.float32(change), view, (8, 12))
        found = cache.read(path)
        assert isinstance(kept, DigestedArray)
        np.testing.assert_array_equal(found.features, values + np.float32(change))
        assert (found.view, found.first_grid) == (view, (8, 12))
        assert found.features.peak == np.abs(values + np.float32(change)).max()
        assert found.features.digest == kept.digest
        digests.append(kept.digest)
    assert len(set(digests)) == 3
