from __future__ import annotations

import functools
import pickle
import threading

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from skimage import data
from sklearn.base import clone
from torch import nn

from skpatchcore import ImageError, TorchFeatureExtractor, WeightsError
from skpatchcore._utils.modes import in_default_modes
from skpatchcore.features import _batches as batches_module
from skpatchcore.features import extractor as extractor_module
from skpatchcore.features._batches import Prepared
from skpatchcore.images.reading import PixelFormat
from tests import factories


def small(**parameters):
    return TorchFeatureExtractor("resnet18", weights=None, **{"image_size": None, "crop_size": None, **parameters})


def test_default_sizes_inspect_the_whole_image():
    # This test pinned the earlier default before, the crop of the paper: crop_size=224.
    extractor = TorchFeatureExtractor("resnet18", weights=None)
    assert (extractor.image_size, extractor.crop_size, extractor.patch_size) == (256, None, 3)
    features = extractor.fit_transform([data.astronaut()])
    assert features.shape == (1, 32, 32, 384)
    assert features.dtype == np.float32
    ((_, views),) = extractor.iter_transform([data.chelsea()])  # 300 × 451 pixels
    assert views[0].box == (0, 0, 300, 451)
    assert views[0].input_size == (256, 384)


def test_paper_returns_the_sizes_weights_and_channels_of_the_paper():
    extractor = TorchFeatureExtractor.paper()
    assert type(extractor) is TorchFeatureExtractor
    settings = {"weights": "IMAGENET1K_V1", "image_size": 256, "crop_size": 224, "n_channels": 1024}
    assert extractor.get_params() == {**TorchFeatureExtractor().get_params(), **settings}
    features = TorchFeatureExtractor.paper("resnet18", weights=None, batch_size=1).transform([data.astronaut()])
    assert features.shape == (1, 28, 28, 1024)


def test_paper_takes_other_backbones_and_parameters():
    replaced = TorchFeatureExtractor.paper("densenet201", crop_size=None, n_channels=64, patch_size=5)
    assert (replaced.backbone, replaced.weights) == ("densenet201", "IMAGENET1K_V1")
    assert (replaced.crop_size, replaced.n_channels, replaced.patch_size) == (None, 64, 5)
    for backbone in ("efficientnet_lite2", factories.extractor):
        assert TorchFeatureExtractor.paper(backbone).weights == "DEFAULT"
    with pytest.raises(TypeError, match="colour"):
        TorchFeatureExtractor.paper(colour=1)


def test_extractors_fitted_before_sides_were_rounded_resize_as_before():
    image = np.random.default_rng(0).random((96, 128, 3))
    extractor = small(image_size=64).fit()
    assert extractor.input_sizes([image]).tolist() == [[64, 80]]
    del extractor.rounded_to_  # as in the state of an older version
    older = pickle.loads(pickle.dumps(extractor))
    assert older.input_sizes([image]).tolist() == [[64, 85]]
    ((_, views),) = older.iter_transform([image])
    assert views[0].input_size == (64, 85)
    assert clone(older).input_sizes([image]).tolist() == [[64, 80]]


def test_small_changes_of_proportions_do_not_change_the_network_input_size():
    images = [np.zeros((128, width, 3), np.uint8) for width in range(178, 206)]
    sizes = TorchFeatureExtractor("resnet18", weights=None, image_size=64).input_sizes(images)
    assert sizes.tolist() == [[64, 96]] * len(images)


@pytest.mark.parametrize(
    ("parameters", "shape"),
    [
        ({"image_size": 64}, (8, 12)),
        ({"image_size": (64, 80)}, (8, 10)),
        ({"image_size": 64, "crop_size": 32}, (4, 4)),
        ({"image_size": 64, "crop_size": (32, 64)}, (4, 8)),
        ({"stride": 2}, (6, 9)),
        ({"layers": ["layer1"]}, (24, 36)),
        ({"n_channels": 10}, (12, 18)),
    ],
)
def test_grid_shape_follows_sizes_strides_and_layers(parameters, shape):
    images = np.random.default_rng(0).random((2, 96, 144, 3))
    features = small(**parameters).transform(images)
    assert features.shape[:3] == (2, *shape)
    assert features.shape[3] == {"layers": 64, "n_channels": 10}.get(next(iter(parameters)), 384)


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0", "vit_b_16"])
def test_bfloat16_changes_features_by_less_than_5_per_cent(backbone):
    images = [data.astronaut(), data.chelsea()]
    weights = "DEFAULT" if "lite" in backbone else None
    exact, rough = (
        TorchFeatureExtractor(backbone, weights=weights, crop_size=None, image_size=(224, 224), dtype=dtype).transform(
            images
        )
        for dtype in ("float32", "bfloat16")
    )
    assert rough.dtype == np.float32
    assert 0 < np.linalg.norm(rough - exact) < 0.05 * np.linalg.norm(exact)
    with pytest.raises(ValueError, match="dtype"):
        small(dtype="float8").fit()


def test_iter_transform_yields_earlier_batches_before_an_error():
    images = list(np.random.default_rng(0).random((9, 32, 32, 3)))
    extractor = small(batch_size=2)
    expected = extractor.transform(images)
    images[6] = images[6] * np.nan
    batches = extractor.iter_transform(images)
    seen = np.concatenate([next(batches)[0] for _ in range(3)])
    np.testing.assert_allclose(seen, expected[:6], atol=1e-5)
    with pytest.raises(ImageError, match="image 6: holds NaN"):
        next(batches)
    next(extractor.iter_transform(images))  # the iterator is abandoned after the first batch
    assert not [t for t in threading.enumerate() if t.name.startswith("skpatchcore-prefetch")]


def test_transform_of_images_of_different_sizes_returns_grids_in_order():
    rng = np.random.default_rng(0)
    images = [rng.random(shape) for shape in [(64, 64), (64, 64), (48, 80, 3), (64, 64), (48, 80, 3)]]
    extractor = small(batch_size=2)
    grids = extractor.transform(images)
    assert isinstance(grids, list)
    assert [grid.shape[:2] for grid in grids] == [(8, 8), (8, 8), (6, 10), (8, 8), (6, 10)]
    for image, grid in zip(images, grids, strict=True):
        np.testing.assert_allclose(extractor.transform([image])[0], grid, atol=1e-5)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet18"])
def test_features_do_not_depend_on_batch_size(backbone):
    images = np.random.default_rng(0).random((7, 64, 64, 3))
    extractor = TorchFeatureExtractor(backbone, weights=None, image_size=None, crop_size=None)
    expected = extractor.set_params(batch_size=7).transform(images)
    for batch_size in (1, 2, 3, 16):
        np.testing.assert_allclose(extractor.set_params(batch_size=batch_size).transform(images), expected, atol=1e-5)


def test_every_container_gives_the_same_features(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    extractor = small()
    expected = extractor.transform(images)
    containers = [
        list(images), tuple(images), images / 255.0, paths, [str(p) for p in paths], np.array(paths, object),
        np.array([str(p) for p in paths]), pd.Series([str(p) for p in paths], index=[4, 2, 9]),
        [Image.fromarray(image) for image in images], images.astype(np.uint16) * 257,
    ]  # fmt: skip
    for X in containers:
        np.testing.assert_allclose(extractor.transform(X), expected, atol=1e-4)


def test_grey_image_equals_rgb_image_with_equal_channels():
    grey = data.camera()
    np.testing.assert_allclose(
        small(image_size=64).transform([grey]), small(image_size=64).transform([np.dstack([grey] * 3)]), atol=1e-5
    )


def test_transform_accepts_read_only_memory_maps(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert (small().transform(mapped) == small().transform(images)).all()


def test_error_names_index_and_path_of_a_bad_image(tmp_path):
    good = np.zeros((64, 64, 3))
    with pytest.raises(ImageError, match="image 2") as caught:
        small().transform([good, good, good + np.nan, good])
    assert caught.value.index == 2
    with pytest.raises(ImageError, match=r"image 1 \(.*gone.png\)"):
        small().transform([good, tmp_path / "gone.png"])


def test_error_names_the_image_if_the_network_refuses_its_size():
    with pytest.raises(ImageError, match=r"image 1: the backbone cannot use an input of 64×64"):
        TorchFeatureExtractor("vit_b_16", weights=None, image_size=None, crop_size=None).transform(
            [np.zeros((224, 224, 3)), np.zeros((64, 64, 3))]
        )


def test_features_that_are_not_finite_are_refused():
    def broken():
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, 8, 1))
        torch.nn.init.constant_(network[0].weight, 3e38)
        return network

    with pytest.raises(ImageError, match="image 0: the backbone returns features that are NaN or infinite"):
        TorchFeatureExtractor(broken, layers=["0"], image_size=64, crop_size=64).transform([data.astronaut()])


def test_layers_that_return_no_maps_are_refused():
    extractor = TorchFeatureExtractor("resnet18", weights=None, layers=["fc"], image_size=64, crop_size=64)
    with pytest.raises(ValueError, match="expected maps"):
        extractor.transform([data.astronaut()])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"patch_size": 2}, "even"),
        ({"patch_size": 0}, "patch_size"),
        ({"stride": 0}, "stride"),
        ({"layers": []}, "layers is empty"),
        ({"image_size": (1, 2, 3)}, "pair"),
        ({"crop_size": (0, 2)}, "pair"),
        ({"image_size": 0}, "image_size"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"batch_size": 0}, "batch_size"),
        ({"device": "abacus"}, "not a device"),
        ({"backbone": 3}, "backbone"),
    ],
)
def test_parameters_out_of_range_are_refused_in_fit(parameters, message):
    with pytest.raises(ValueError, match=message):
        small(**parameters).fit() if "backbone" not in parameters else TorchFeatureExtractor(**parameters).fit()


def test_mean_and_std_set_the_normalisation():
    image = np.random.default_rng(0).random((1, 64, 64, 3))
    shifted = small(mean=(0.0, 0.0, 0.0), std=(0.5, 0.5, 0.5)).transform(image)
    plain = small(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).transform(image / 2)
    assert not np.allclose(shifted, plain)
    np.testing.assert_allclose(shifted, small(mean=(0, 0, 0), std=(0.25, 0.25, 0.25)).transform(image / 2), atol=1e-3)


def test_extractor_can_be_cloned_and_pickled_and_holds_no_tensor():
    extractor = small().fit()
    extractor.transform([data.astronaut()])
    copy = pickle.loads(pickle.dumps(clone(extractor)))
    assert copy.get_params() == extractor.get_params()
    assert set(vars(extractor)) == {*extractor.get_params(), "weights_digest_", "rounded_to_"}
    assert len(pickle.dumps(extractor)) < 2000


def test_absent_device_raises_in_fit_and_warns_in_transform():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match="no such device"):
        small(device="cuda").fit()
    with pytest.warns(RuntimeWarning, match="The CPU is used instead"):
        small(device="cuda").transform([data.astronaut()])


@pytest.mark.parametrize("size", [np.int64(64), (np.int32(64), np.int64(96))])
def test_sizes_may_be_numpy_integers(size):
    image = [data.astronaut()]
    assert small(image_size=size, crop_size=np.int64(32)).transform(image).shape == (1, 4, 4, 384)


def test_errors_name_the_path_of_the_file(tmp_path):
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(ImageError, match=r"image 0 \(.*small.png\): 40×60 pixels after resizing"):
        small(crop_size=64).transform([tmp_path / "small.png"])
    with pytest.raises(ImageError, match=r"image 0 \(.*small.png\): the backbone cannot use"):
        TorchFeatureExtractor("vit_b_16", weights=None, image_size=None, crop_size=None).transform(
            [tmp_path / "small.png"]
        )


def test_layers_with_channels_as_last_axis_give_grids():
    given = {"weights": None, "image_size": (64, 96), "crop_size": None}
    named = TorchFeatureExtractor("swin_t", **given).transform([data.astronaut()])
    called = TorchFeatureExtractor(
        lambda: torchvision.models.swin_t(), layers=["features.3", "features.5"], **given
    ).transform([data.astronaut()])
    assert named.shape == (1, 8, 12, 576)
    assert (called == named).all()


def test_transform_does_not_change_the_network_of_a_callable():
    network = torchvision.models.resnet18().train()
    TorchFeatureExtractor(lambda: network, image_size=64, crop_size=None).fit_transform([data.astronaut()])
    assert network.training
    assert network.relu.inplace
    assert all(p.requires_grad for p in network.parameters())


def test_fitted_extractor_refuses_other_weights(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    extractor = TorchFeatureExtractor("resnet18", weights=path, image_size=64, crop_size=None).fit()
    extractor.transform([data.astronaut()])
    torch.save({"module." + k: v + 1 for k, v in torchvision.models.resnet18().state_dict().items()}, path)
    loaded = pickle.loads(pickle.dumps(extractor))
    with pytest.raises(WeightsError, match=f"expected {extractor.weights_digest_}"):
        loaded.transform([data.astronaut()])


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_stride_selects_every_nth_patch_and_keeps_its_place(stride):
    """The features are every s-th patch of the dense grid, and the view has the positions of these patches."""
    image = [np.random.default_rng(0).random((96, 128, 3))]
    dense = small().transform(image)
    features, (view,) = next(small(stride=stride).iter_transform(image))
    np.testing.assert_allclose(features, dense[:, ::stride, ::stride], atol=1e-5)
    top, left, height, width = view.box
    for start, length, count in ((top, height, features.shape[1]), (left, width, features.shape[2])):
        centres = start + (np.arange(count) + 0.5) * length / count
        np.testing.assert_allclose(centres, (np.arange(count) * stride + 0.5) * 8)


@pytest.mark.cuda
def test_cuda_gives_the_features_of_the_cpu():
    images = [data.astronaut()]
    on_cpu, on_cuda = (small(device=device, image_size=64).transform(images) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(on_cuda, on_cpu, rtol=1e-2, atol=1e-2)


class Halves(nn.Module):
    """Network with 12 and 20 channels at strides 8 and 16, and the channels as second or as last axis."""

    def __init__(self, channels_last):
        super().__init__()
        self.channels_last = channels_last
        self.first, self.second = nn.Conv2d(3, 12, 8, 8), nn.Conv2d(12, 20, 2, 2)
        self.shallow, self.deep = nn.Identity(), nn.Identity()

    def forward(self, x):
        x = self.first(x)
        shallow, deep = x, self.second(x)
        if self.channels_last:
            shallow, deep = shallow.permute(0, 2, 3, 1), deep.permute(0, 2, 3, 1)
        return self.shallow(shallow), self.deep(deep)


@pytest.mark.parametrize("size", [(96, 96), (64, 176), (160, 96), (96, 64), (192, 320), (160, 512)])
def test_channel_layout_is_detected_for_every_image_size(size):
    # For some of these sizes, the grid also fits the proportions of the image if channels are read as rows.
    image = np.random.default_rng(0).random((*size, 3)).astype(np.float32)
    found = []
    for channels_last in (False, True):
        extractor = TorchFeatureExtractor(
            functools.partial(Halves, channels_last),
            weights=None,
            layers=("shallow", "deep"),
            image_size=None,
            crop_size=None,
        )
        found.append(extractor.fit_transform([image]))
        assert found[-1].shape == (1, size[0] // 8, size[1] // 8, 32)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet18"])
def test_number_of_channels_does_not_depend_on_image_size(backbone):
    extractor = TorchFeatureExtractor(backbone, weights=None, image_size=None, crop_size=None)
    rng = np.random.default_rng(0)
    sizes = [(182, 104), *rng.integers(40, 220, (40, 2)).tolist()]
    n_channels = {extractor.fit_transform([np.zeros(size, np.uint8)]).shape[-1] for size in sizes}
    assert len(n_channels) == 1


@pytest.mark.parametrize("n_readers", [2, 5])
def test_several_readers_return_the_same_features_and_errors(tmp_path, monkeypatch, n_readers):
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{i}.png") for i in range(11)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (40 + 8 * (i % 3 == 0), 48), np.uint8)).save(path)
    expected = small(batch_size=3).transform(paths)
    read_by_one = extractor_module.prepared_batches
    monkeypatch.setattr(extractor_module, "prepared_batches", lambda *given: read_by_one(*given[:-1], n_readers))
    found = small(batch_size=3).transform(paths)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    (tmp_path / "7.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"7\.png"):
        small(batch_size=3).transform(paths)
    assert not [t for t in threading.enumerate() if t.name.startswith("skpatchcore-")]


def test_several_readers_prepare_images_in_default_modes(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path in paths:
        Image.fromarray(np.zeros((40, 48), np.uint8)).save(path)
    load, seen, is_used, is_read = batches_module.load_image, [], threading.Event(), threading.Event()

    def seeing(image, index, *more):
        if index == 2:
            assert is_used.wait(60)
        seen.append((torch.get_default_dtype(), torch.is_grad_enabled()))
        if index == 2:
            is_read.set()
        return load(image, index, *more)

    monkeypatch.setattr(batches_module, "load_image", seeing)
    batches = in_default_modes(
        batches_module.prepared_batches(paths, 1, None, None, None, None, PixelFormat(), 1, n_readers=3)
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        next(batches)
        is_used.set()
        assert is_read.wait(60)  # in a thread, while the caller's code runs in the caller's modes
        assert len(list(batches)) == 3
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)
    assert set(seen) == {(torch.float32, False)}


def test_check_of_layer_maps_that_is_left_for_later_names_the_image():
    def network():
        torch.manual_seed(0)
        module = torchvision.models.resnet18()
        module.conv1.weight.data *= np.inf
        return module

    extractor = TorchFeatureExtractor(network, weights=None, image_size=None)
    forward = extractor._forward_pass(extractor._load(torch.device("cpu")), torch.device("cpu"))
    prepared = [Prepared(None, 3, "a.png", torch.rand(3, 64, 64)), Prepared(None, 4, "b.png", torch.rand(3, 64, 64))]
    checks = []
    with torch.inference_mode():
        forward._maps_of([image.pixels for image in prepared], prepared, checks)
    (check,) = checks
    with pytest.raises(ImageError, match=r"a\.png.*NaN or infinite"):
        check.raise_if_unusable()
