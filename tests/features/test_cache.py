"""Cache of layer maps: the network runs once per image, and damaged entries are never used."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from PIL import Image
from sklearn.base import clone

from skpatchcore import ImageError, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore._utils.files import read_arrays, write_arrays
from skpatchcore._utils.folders import prune
from skpatchcore.features import _backbones as backbones
from skpatchcore.features._cache import hash_content
from skpatchcore.images.kept import KeptPath
from tests import factories


def extractor(memory=None, **parameters):
    return factories.extractor(memory=None if memory is None else str(memory), **parameters)


def entries(folder):
    """Return the files of the cache: one per image and layer. The extractor of these tests has two layers."""
    return sorted(Path(folder).rglob("*.npz"))


@pytest.fixture
def seen():
    """Record the number of images per forward pass of the resnet18 with random weights that all tests share."""
    counts = []
    network = backbones.load_network("resnet18", None, None, torch.device("cpu"))
    handle = network.module.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
    yield counts
    handle.remove()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((6, 32, 48, 3)).astype(np.float32)


def test_network_runs_once_per_image(tmp_path, seen, images):
    expected = extractor().transform(images)
    seen.clear()
    first = extractor(tmp_path).transform(images)
    assert sum(seen) == 6
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-5)
    # Other patch sizes, strides, channels, batches and orders use the same entries.
    for parameters in ({}, {"patch_size": 5}, {"stride": 2}, {"n_channels": 20}, {"batch_size": 1}):
        kept = extractor(tmp_path, **parameters).transform(images[::-1])
        fresh = extractor(**parameters)
        seen.clear()
        np.testing.assert_allclose(kept, fresh.transform(images[::-1]), rtol=1e-4, atol=1e-5)
        assert sum(seen) == 6
    seen.clear()
    np.testing.assert_array_equal(extractor(tmp_path).transform(images), first)
    extractor(tmp_path).transform(np.concatenate([images, images * 0.5]))
    assert sum(seen) == 6
    assert len(entries(tmp_path)) == 2 * 12


def test_extractors_with_the_same_last_layer_share_entries(tmp_path, seen, images):
    layers = ["layer1", "layer2", "layer3"]
    extractor(tmp_path, layers=layers).transform(images)
    assert len(entries(tmp_path)) == 3 * 6
    for some in (["layer1", "layer3"], ["layer3"], ["layer3", "layer2"]):
        expected = extractor(layers=some).transform(images)
        seen.clear()
        np.testing.assert_allclose(extractor(tmp_path, layers=some).transform(images), expected, rtol=1e-5, atol=1e-5)
        assert sum(seen) == 0
        assert len(entries(tmp_path)) == 3 * 6


def test_parameters_that_change_the_maps_create_new_entries(tmp_path, seen, images):
    extractor(tmp_path).transform(images)
    seen.clear()
    for parameters in (
        {"image_size": 64},
        {"crop_size": 32},
        {"mean": (0.1, 0.2, 0.3)},
        {"std": (0.1, 0.2, 0.3)},
        {"cache_dtype": "float16"},
    ):
        n_before = sum(seen)
        kept = extractor(tmp_path, **parameters).transform(images)
        assert sum(seen) == n_before + 6, parameters
        plain = extractor(**{k: v for k, v in parameters.items() if k != "cache_dtype"}).transform(images)
        np.testing.assert_allclose(kept, plain, rtol=2e-3, atol=2e-3)
    n_before = len(entries(tmp_path))
    extractor(tmp_path, layers=["layer1"]).transform(images)
    extractor(tmp_path, dtype="bfloat16").transform(images)
    assert len(entries(tmp_path)) == n_before + 6 + 2 * 6


def _small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 8, 1), torch.nn.ReLU())


def _other():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 8, 1), torch.nn.Sigmoid())


def test_callable_networks_with_equal_weights_have_separate_entries(tmp_path, images):
    first, second = (
        TorchFeatureExtractor(
            network, layers=["1"], image_size=None, crop_size=None, memory=str(tmp_path), patch_size=1
        ).transform(images)
        for network in (_small, _other)
    )
    assert not np.allclose(first, second)
    assert len(entries(tmp_path)) == 12


def test_images_are_identified_by_content(tmp_path, seen, images):
    pixels = (images * 255).astype(np.uint8)
    paths = []
    for i, image in enumerate(pixels):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(paths[-1])
    memory = tmp_path / "memory"
    expected = extractor(memory).transform(paths)
    seen.clear()
    renamed = tmp_path / "renamed.png"
    Path(paths[0]).rename(renamed)
    np.testing.assert_array_equal(extractor(memory).transform([renamed]), expected[:1])
    assert sum(seen) == 0
    Image.fromarray(255 - pixels[0]).save(renamed)  # the same name, another image
    assert not np.allclose(extractor(memory).transform([renamed]), expected[:1])
    assert sum(seen) == 1
    assert hash_content(pixels[0], 0) == hash_content(np.asfortranarray(pixels[0]), 0)
    assert hash_content(pixels[0], 0) != hash_content(pixels[0].astype(np.uint16), 0)
    assert hash_content(pixels[0], 0) != hash_content(pixels[0].reshape(48, 32, 3), 0)
    assert hash_content(Image.fromarray(pixels[0]), 0) == hash_content(Image.fromarray(pixels[0]), 0)


def test_cache_keeps_sizes_and_views(tmp_path):
    rng = np.random.default_rng(0)
    X = [rng.random((*size, 3)) for size in ((40, 64), (64, 40), (40, 64), (72, 72))]
    parameters = {"image_size": 32, "crop_size": (24, 24), "stride": 2}
    plain = list(extractor(**parameters).iter_transform(X))
    for _ in range(2):
        kept = list(extractor(tmp_path, **parameters).iter_transform(X))
        assert [views for _, views in kept] == [views for _, views in plain]
    own = extractor(tmp_path).transform(X)
    assert [grid.shape[:2] for grid in own] == [(5, 8), (8, 5), (5, 8), (9, 9)]


def test_networks_that_differ_only_in_code_have_separate_entries(tmp_path, images, monkeypatch):
    found = []
    for function in ("relu", "sigmoid"):
        (tmp_path / f"of_{function}.py").write_text(
            "import torch\n\n\nclass Small(torch.nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n"
            "        torch.manual_seed(0)\n        self.convolution = torch.nn.Conv2d(3, 4, 3, 8, 1)\n"
            "        self.last = torch.nn.Identity()\n\n"
            f"    def forward(self, x):\n        return self.last(torch.{function}(self.convolution(x)))\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        network = importlib.import_module(f"of_{function}").Small
        found.append(
            TorchFeatureExtractor(
                network, layers=["last"], image_size=None, crop_size=None, memory=str(tmp_path), patch_size=1
            ).transform(images)
        )
    assert not np.allclose(*found)
    assert len(entries(tmp_path)) == 12


def test_networks_without_source_are_refused_only_with_a_cache(tmp_path, images):
    names = {}
    # torch.fx cannot trace a forward pass that depends on values. Therefore, the class itself runs.
    forward = "    def forward(self, x):\n        return super().forward(x) if x.sum() > -1e30 else x\n"
    exec(f"import torch\nclass Typed(torch.nn.Conv2d):\n{forward}", names)
    network = TorchFeatureExtractor(
        lambda: torch.nn.Sequential(names["Typed"](3, 4, 3, 8, 1)),
        layers=["0"], image_size=None, crop_size=None, memory=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(ValueError, match="source code that cannot be read"):
        network.transform(images)
    assert network.set_params(memory=None).transform(images).shape == (6, 4, 6, 4)


def test_read_arrays_never_returns_values_with_a_flipped_bit(tmp_path):
    path = tmp_path / "entry.npz"
    arrays = {"layer0": np.random.default_rng(0).normal(size=(4, 4, 8)).astype(np.float32), "view": np.arange(10.0)}
    write_arrays(path, **arrays)
    content = path.read_bytes()
    n_refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(damaged))
        found = read_arrays(path)
        n_refused += found is None
        for name in set(found or ()) & set(arrays):  # if metadata of the archive is damaged, the values are right
            np.testing.assert_array_equal(found[name], arrays[name])
    assert n_refused > 0.8 * len(content)


def test_maps_that_overflow_in_float16_are_not_stored(tmp_path, images, seen):
    class Large(torch.nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 1e6

    network = TorchFeatureExtractor(
        lambda: torch.nn.Sequential(Large(3, 4, 3, 8, 1)), layers=["0"], image_size=None, crop_size=None, patch_size=1
    )
    plain = network.transform(images)
    network.set_params(memory=str(tmp_path), cache_dtype="float16")
    np.testing.assert_allclose(network.transform(images), plain, rtol=1e-5)
    assert len(entries(tmp_path)) < 6


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_damaged_entries_are_computed_again(tmp_path, seen, images, damage):
    expected = extractor(tmp_path).transform(images)
    shutil.rmtree(tmp_path / "skpatchcore-grids")  # otherwise, the layer maps would not be read
    entry = entries(tmp_path)[2]
    content = bytearray(entry.read_bytes())
    if damage == "cut":
        content = content[:-1000]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        np.savez(entry, other=np.zeros(3))
        content = bytearray(entry.read_bytes())
    entry.write_bytes(bytes(content))
    seen.clear()
    np.testing.assert_allclose(extractor(tmp_path).transform(images), expected, rtol=1e-5, atol=1e-5)
    assert sum(seen) == 1
    seen.clear()
    extractor(tmp_path).transform(images)
    assert sum(seen) == 0


def test_float16_cache_halves_the_files_and_returns_equal_features_on_every_run(tmp_path, images):
    first = extractor(tmp_path / "half", cache_dtype="float16").transform(images)
    np.testing.assert_array_equal(extractor(tmp_path / "half", cache_dtype="float16").transform(images), first)
    whole = extractor(tmp_path / "whole").transform(images)
    np.testing.assert_allclose(first, whole, rtol=2e-3, atol=2e-3)
    half_size, whole_size = (
        sum(path.stat().st_size for path in entries(tmp_path / name)) for name in ("half", "whole")
    )
    assert half_size < 0.6 * whole_size


def test_cache_limit_is_enforced(tmp_path, images):
    extractor(tmp_path).transform(images[:1])
    size = sum(path.stat().st_size for path in entries(tmp_path))
    many = np.concatenate([images * share for share in (0.9, 0.8, 0.7)])
    limit = int(4.5 * size)
    extractor(tmp_path, cache_limit=limit).transform(many)
    assert 2 * 2 <= len(entries(tmp_path)) <= 2 * 4 + 1
    for text in ("1GB", None):
        extractor(tmp_path, cache_limit=text).transform(images)
    with pytest.raises(ValueError, match="not an amount of memory"):
        extractor(tmp_path, cache_limit="much").transform(images)


def test_least_recently_used_entries_are_evicted(tmp_path, images):
    for i, image in enumerate(images):
        extractor(tmp_path, cache_limit="1GB").transform([image])
        new = [path for path in entries(tmp_path) if path.stat().st_mtime > 2000]
        assert len(new) == 2
        for path in new:
            os.utime(path, (1000 + i, 1000 + i))
    before = {path: path.stat().st_mtime for path in entries(tmp_path)}
    extractor(tmp_path, cache_limit="1GB").transform(images[:1])  # use the oldest entry again
    used = sorted(entries(tmp_path), key=lambda path: path.stat().st_mtime)[-2:]
    assert [before[path] for path in used] == [1000, 1000]
    prune(tmp_path / "skpatchcore-layers", 2 * sum(path.stat().st_size for path in used) + 10)
    assert len(entries(tmp_path)) == 4
    assert set(used) <= set(entries(tmp_path))


def test_processes_and_threads_share_a_folder(tmp_path, images):
    expected = extractor().transform(images)
    for backend in ("threading", "loky"):
        found = Parallel(4 if backend == "threading" else 2, backend=backend)(
            delayed(extractor(tmp_path / backend).transform)(images) for _ in range(4)
        )
        for features in found:
            np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
        assert len(entries(tmp_path / backend)) == 2 * 6
        assert not list((tmp_path / backend).rglob("*.partial"))


def test_unwritable_folder_warns_and_returns_the_features(tmp_path, images):
    (tmp_path / "skpatchcore-layers").write_text("a file in place of the folder")
    with pytest.warns(UserWarning, match="layer maps cannot be stored"):
        features = extractor(tmp_path).transform(images)
    np.testing.assert_allclose(features, extractor().transform(images), rtol=1e-5, atol=1e-5)


def test_unreadable_images_are_named_in_the_error_with_a_cache(tmp_path, images):
    cached = extractor(tmp_path / "memory")
    with pytest.raises(ImageError, match=r"image 1 \(.*gone\.png\): no such file"):
        cached.transform([images[0], str(tmp_path / "gone.png")])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"image 1 \(.*broken\.png\): cannot be read"):
        cached.transform([images[0], str(tmp_path / "broken.png")])
    with pytest.raises(ImageError, match="image 1: holds NaN"):
        cached.transform([images[0], images[0] * np.nan])
    with pytest.raises(ImageError, match="image 1: the image is of type int"):
        cached.transform([images[0], 3])


def test_memory_accepts_a_path_or_joblib_memory_and_survives_clone(tmp_path, images, seen):
    memory = joblib.Memory(tmp_path / "joblib", verbose=0)
    model = clone(extractor().set_params(memory=memory))
    model.transform(images)
    seen.clear()
    clone(model).transform(images)
    extractor().set_params(memory=tmp_path / "joblib").transform(images)
    assert sum(seen) == 0
    with pytest.raises(ValueError, match="'memory' parameter"):
        extractor().set_params(memory=3).transform(images)
    with pytest.raises(ValueError, match="without a location"):
        extractor().set_params(memory=joblib.Memory(None)).transform(images)


def test_detector_returns_equal_scores_with_and_without_a_cache(tmp_path, images):
    plain = PatchCoreDetector(extractor(), random_state=0).fit(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            model = PatchCoreDetector(extractor(tmp_path), random_state=0).fit(images)
            np.testing.assert_allclose(model.score_samples(images), plain.score_samples(images), atol=1e-3)
            np.testing.assert_allclose(model.calibration_scores_, plain.calibration_scores_, rtol=1e-4)
            np.testing.assert_array_equal(model.bank_boxes_, plain.bank_boxes_)


def test_kept_content_is_scored_even_if_the_file_has_changed_or_is_gone(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((32, 32), 40, np.uint8)).save(path)
    for memory in (None, tmp_path / "cache"):
        expected = extractor(memory).transform([str(path)])
        kept = KeptPath(path)
        kept.content = path.read_bytes()
        path.rename(tmp_path / "b.png")
        np.testing.assert_array_equal(extractor(memory).transform([kept]), expected)
        (tmp_path / "b.png").rename(path)
