"""Tiles of large images: the stitched features equal those of the whole image, for every size of tile and image."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skpatchcore import ImageError, PaDiMDetector, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.features import tiling
from skpatchcore.features._locality import NotLocalError, locality_of
from skpatchcore.features.tiling import AUTO_PIXELS, is_whole, plan_tiles, stitched_maps
from tests import factories

CPU = torch.device("cpu")


class Small(nn.Module):
    """Convolutional network with a small receptive field: strides 2 and 4, with odd and even paddings."""

    def __init__(self):
        super().__init__()
        self.layer2 = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 1, 1))
        self.layer3 = nn.Sequential(
            nn.Conv2d(4, 5, 5, 2, 1), nn.BatchNorm2d(5), nn.ReLU6(), nn.Conv2d(5, 5, 3, padding=1)
        )

    def forward(self, x):
        return self.layer3(self.layer2(x))


class Untraceable(Small):
    """The same network with control flow that torch.fx cannot trace."""

    def forward(self, x):
        return super().forward(x) if x.shape[0] else x


class Gated(Small):
    """Squeeze-and-excitation: each position depends on the mean of all positions."""

    def forward(self, x):
        x = self.layer2(x)
        return self.layer3(x * x.mean((2, 3), keepdim=True).sigmoid())


class Placed(Small):
    """Adds the row number to each pixel: positions depend on their place in the image."""

    def forward(self, x):
        return super().forward(x + torch.arange(x.shape[2], device=x.device)[:, None] / 10)


class Upsampled(Small):
    """Adds an upsampled deeper map: the outputs repeat only after 8 pixels, twice the stride of the deepest layer."""

    def __init__(self):
        super().__init__()
        self.deeper = nn.Conv2d(4, 4, 5, 4, 2)
        self.join = nn.Identity()

    def forward(self, x):
        x = self.layer2(x)
        y = nn.functional.interpolate(self.deeper(x), size=x.shape[2:], mode="nearest")
        return self.layer3(self.join(x + y))


class FixedSize(Small):
    """Accepts square images of two sizes only."""

    def forward(self, x):
        if tuple(x.shape[2:]) not in ((96, 96), (224, 224)):
            raise RuntimeError("expected 96 × 96 or 224 × 224 pixels")
        return super().forward(x)


def images_of(height, width, n_images=1, seed=0):
    return np.random.default_rng(seed).random((n_images, height, width, 3)).astype(np.float32)


def forward_of(backbone, layers=None, **parameters):
    extractor = factories.extractor(backbone, layers=layers, **parameters)
    return extractor._forward_pass(extractor._load(CPU), CPU)


def reach_of(backbone, size=0, axis=0, layers=None):
    forward = forward_of(backbone, layers)
    return locality_of(forward.network, axis, size, forward._outputs, CPU, torch.float32)


def assert_tiles_equal_whole(backbone, size, tile_size, **parameters):
    images = images_of(*size)
    assert forward_of(backbone, tile_size=tile_size, **parameters).plan_of(size) is not None
    whole = factories.extractor(backbone, tile_size=None, **parameters).transform(images)
    tiled = factories.extractor(backbone, tile_size=tile_size, **parameters).transform(images)
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).max() <= 1e-5 * np.abs(whole).max()


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(20, 120),
    width=st.integers(20, 120),
    tile=st.tuples(st.integers(40, 80), st.integers(40, 80)),
    backbone=st.sampled_from([Small, Untraceable]),
    batch_size=st.integers(1, 5),
)
def test_tiles_equal_the_whole_image_for_any_size(height, width, tile, backbone, batch_size):
    images = images_of(height, width)
    whole = factories.extractor(backbone, tile_size=None).transform(images)
    tiled = factories.extractor(backbone, tile_size=tile, batch_size=batch_size).transform(images)
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).max() <= 1e-5 * np.abs(whole).max()


def test_tiles_start_at_multiples_of_the_period_of_all_used_and_unused_strides():
    assert reach_of(Small).period == 4
    assert reach_of(Upsampled).period == 8
    assert_tiles_equal_whole(Upsampled, (136, 128), 80)
    with pytest.raises(ValueError, match="place of a tile"):  # the factor of the upsampling depends on the size
        factories.extractor(Upsampled, tile_size=80).transform(images_of(131, 128))


@pytest.mark.parametrize(("size", "tile_size"), [((331, 250), 250), ((256, 397), (270, 290)), ((300, 301), 240)])
def test_tiles_of_resnet18_equal_the_whole_image(size, tile_size):
    assert_tiles_equal_whole("resnet18", size, tile_size)


@pytest.mark.parametrize(
    ("backbone", "layers", "tile_size"),
    [
        ("resnet50", ("layer1", "layer2"), 150),
        ("efficientnet_lite0", ("stage3", "stage5"), 376),
        ("googlenet", ("inception3a", "inception3b"), 120),
        ("densenet121", ("features.denseblock1",), 100),
        ("inception_v3", ("Mixed_5b",), 120),
    ],
)
def test_tiles_of_torchvision_networks_equal_the_whole_image(backbone, layers, tile_size):
    side = max(tile_size) if isinstance(tile_size, tuple) else tile_size
    assert_tiles_equal_whole(backbone, (side + 57, side + 30), tile_size, layers=layers)


@pytest.mark.parametrize("residue", [1, 6, 11])
def test_tiles_of_efficientnet_equal_the_whole_image_for_every_padding(residue):
    assert_tiles_equal_whole("efficientnet_lite0", (240 + residue, 255 - residue), 150, layers=("stage2", "stage3"))


@pytest.mark.parametrize("parameters", [{"stride": 2}, {"n_channels": 7, "patch_size": 5}, {"dtype": "bfloat16"}])
def test_tiles_work_with_other_parameters(parameters):
    images, tolerance = images_of(101, 90), 0.02 if "dtype" in parameters else 1e-5
    whole = factories.extractor(Small, tile_size=None, **parameters).transform(images)
    tiled = factories.extractor(Small, tile_size=50, **parameters).transform(images)
    assert np.abs(tiled - whole).max() <= tolerance * np.abs(whole).max()


def test_features_do_not_depend_on_the_batch_size():
    images = images_of(331, 250, n_images=2)
    one, three = (factories.extractor(tile_size=250, batch_size=n).transform(images) for n in (1, 3))
    np.testing.assert_array_equal(one, three)


def test_channels_last_layers_are_stitched():
    assert_tiles_equal_whole(ChannelsLast, (90, 101), 60)


class ChannelsLast(Small):
    """Returns maps with the channels as last axis."""

    def __init__(self):
        super().__init__()
        self.layer2.append(ToLast())
        self.layer3.append(ToLast())

    def forward(self, x):
        return self.layer3(self.layer2(x).permute(0, 3, 1, 2))


class ToLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def analytic_field(steps):
    """Return stride, and the number of pixels before and after the first pixel of a position's cell that it sees.

    A step is (kernel size, stride, padding). Position j sees the pixels from ``j * stride - before`` to
    ``j * stride + after``.
    """
    stride, before, after = 1, 0, 0
    for kernel, step, padding in steps:
        before += padding * stride
        after += (kernel - 1 - padding) * stride
        stride *= step
    return stride, before, after


STEM = [(7, 2, 3), (3, 2, 1)]  # convolution and max pooling of a ResNet
RESNET18 = STEM + [(3, 1, 1)] * 4 + [(3, 2, 1)] + [(3, 1, 1)] * 3
RESNET50 = STEM + [(3, 1, 1)] * 3 + [(3, 2, 1)] + [(3, 1, 1)] * 3
MORE = {"resnet18": [(3, 2, 1)] + [(3, 1, 1)] * 3, "resnet50": [(3, 2, 1)] + [(3, 1, 1)] * 5}


@pytest.mark.parametrize(("backbone", "steps"), [("resnet18", RESNET18), ("resnet50", RESNET50)])
@pytest.mark.parametrize("residue", [0, 1, 5, 15])
@pytest.mark.parametrize("axis", [0, 1])
def test_receptive_field_equals_that_of_the_architecture(backbone, steps, residue, axis):
    reach = reach_of(backbone, 320 + residue, axis)
    assert reach.period == 16
    for layer, path in zip(reach.layers, (steps, steps + MORE[backbone]), strict=True):
        stride, before, after = analytic_field(path)
        assert layer.stride == stride
        # A tile begins at pixel 0 and ends before pixel `size`. A position is discarded if it sees pixels outside.
        size = 1600 + residue
        places = np.arange(layer.count(size)) * stride
        assert layer.count(size) == -(-size // stride)
        assert layer.lead == (places - before < 0).sum()
        assert layer.tail == (places + after >= size).sum()


def test_probe_grows_until_a_large_receptive_field_fits():
    layer = reach_of(Dilated, layers=("layer3",)).layers[0]
    assert layer.lead == reach_of(Small, layers=("layer3",)).layers[0].lead + 97  # 388 pixels more on each side
    assert_tiles_equal_whole(Dilated, (1000, 60), 880, layers=("layer3",))


class Dilated(Small):
    """Network with a large receptive field, because of a dilated convolution."""

    def __init__(self):
        super().__init__()
        self.layer3.append(nn.Conv2d(5, 2, 3, dilation=97, padding=97))


def test_half_the_margin_changes_the_features():
    images = torch.from_numpy(images_of(331, 400)[0]).permute(2, 0, 1)
    forward = forward_of("resnet18")
    arguments = forward.network, (331, 400), 250, forward._outputs, CPU, torch.float32

    def run(tiles):
        return forward._outputs(torch.stack(tiles))

    with torch.inference_mode():
        whole = run([images])
        for margin, is_equal in ((1.0, True), (0.5, False), (0.0, False)):
            maps = stitched_maps(plan_tiles(*arguments, margin=margin), images, run, 2)
            differences = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(maps, whole, strict=True)]
            assert (max(differences) <= 1e-5) == is_equal, (margin, differences)


@pytest.mark.parametrize("backbone", [Gated, "efficientnet_b0", "mobilenet_v3_small"])
def test_fit_refuses_tiles_if_the_network_looks_at_the_whole_image(backbone):
    with pytest.raises(ValueError, match=r"tile_size=300: .*looks at the whole image.*tile_size=None"):
        factories.extractor(backbone, tile_size=300).fit()


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [(Placed, "place of a tile"), (FixedSize, "any height"), ("vit_b_32", "any height")],
)
def test_fit_refuses_tiles_if_the_network_is_not_local(backbone, reason):
    with pytest.raises(ValueError, match=reason):
        factories.extractor(backbone, tile_size=300).fit()


def test_transform_refuses_tiles_if_the_network_is_not_local():
    small, large = images_of(60, 60), images_of(130, 130)
    extractor = factories.extractor(Gated, tile_size=100)
    assert len(extractor.transform(small)) == 1  # images that fit into a tile are not cut
    with pytest.raises(ValueError, match="looks at the whole image"):
        extractor.transform(large)


def test_auto_uses_the_whole_image_and_warns_if_the_network_is_not_local(monkeypatch):
    monkeypatch.setattr(tiling, "AUTO_PIXELS", 100 * 100)
    whole = factories.extractor(Gated, tile_size=None)
    auto = factories.extractor(Gated, tile_size="auto").fit()
    np.testing.assert_array_equal(auto.transform(images_of(90, 100)), whole.transform(images_of(90, 100)))
    with pytest.warns(UserWarning, match="looks at the whole image"):
        features = auto.transform(images_of(120, 100))
    np.testing.assert_array_equal(features, whole.transform(images_of(120, 100)))


def test_error_names_the_smallest_tile():
    with pytest.raises(ValueError, match=r"tile_size=200 is too small: .*has 224 pixels"):
        factories.extractor(tile_size=200).transform(images_of(304, 304))
    assert_tiles_equal_whole("resnet18", (304, 304), 224)
    with pytest.raises(ValueError, match="too small"):
        factories.extractor(tile_size=64).fit()


@pytest.mark.parametrize("size", [0, -3, (100,), (100, 0), "whole", 3.5])
def test_fit_refuses_an_invalid_tile_size(size):
    with pytest.raises(ValueError, match="tile_size"):
        factories.extractor(tile_size=size).fit()


def test_auto_leaves_ordinary_images_whole():
    assert AUTO_PIXELS == 2**21
    assert is_whole((1024, 2048), "auto")
    assert not is_whole((1025, 2048), "auto")
    plan = forward_of("efficientnet_lite0", tile_size="auto").plan_of((3000, 4000))
    assert max(plan.tile) <= 1440
    assert plan.rows[-1].pixels.stop == 3000
    assert plan.columns[-1].pixels.stop == 4000
    assert TorchFeatureExtractor().tile_size == "auto"


def test_auto_keeps_at_least_half_of_each_tile(monkeypatch):
    monkeypatch.setattr(tiling, "_AUTO_SIDE", 64)
    monkeypatch.setattr(tiling, "_AUTO_STEP", 16)
    plan = forward_of("resnet18", tile_size="auto").plan_of((2000, 3000))
    step = plan.rows[1].pixels.start
    assert 2 * step >= plan.tile[0] - 16
    assert plan.tile[0] > 224


def test_tiles_cover_each_position_once_or_more():
    plan = forward_of("resnet18", tile_size=250).plan_of((1003, 777))
    for layer, (height, width) in enumerate(plan.grids):
        counts = np.zeros((height, width), int)
        for row, column in plan.tiles:
            counts[row.of_image[layer], column.of_image[layer]] += 1
        assert counts.min() == 1


def test_out_of_memory_halves_the_tiles(monkeypatch):
    expected = factories.extractor(Small, tile_size=50).transform(images_of(120, 130))
    sizes, run = [], tiling._outputs_of

    def limited(tiles, pixels, function):
        def fails(some):
            sizes.append(len(some))
            if len(some) > 2:
                raise RuntimeError("out of memory")
            return function(some)

        return run(tiles, pixels, fails)

    monkeypatch.setattr(tiling, "_outputs_of", limited)
    with pytest.warns(RuntimeWarning, match="tiles of .* take more memory"):
        found = factories.extractor(Small, tile_size=50, batch_size=5).transform(images_of(120, 130))
    np.testing.assert_array_equal(found, expected)
    assert sizes[:2] == [5, 2]


def test_out_of_memory_of_one_tile_names_the_image(monkeypatch):
    def fails(*arguments):
        raise RuntimeError("out of memory")

    extractor = factories.extractor(Small, tile_size=50, batch_size=1)
    extractor.transform(images_of(120, 130))  # the probes of the network are kept
    monkeypatch.setattr("skpatchcore.features._forward.ForwardPass._maps_of", fails)
    with pytest.raises(MemoryError, match="image 0 at 120×130 pixels"):
        extractor.transform(images_of(120, 130))


def test_unusable_features_of_a_tile_name_the_image():
    images = images_of(120, 130, n_images=2)

    def overflows():
        network = Small()
        nn.init.constant_(network.layer2[0].weight, 1e20)
        return network

    with pytest.raises(ImageError, match="image 0"):
        factories.extractor(overflows, tile_size=60).transform(images)


def test_images_that_are_cut_are_alone_in_their_batch():
    extractor = factories.extractor(Small, tile_size=60, batch_size=4)
    batches = [len(features) for features, _ in extractor.iter_transform(images_of(120, 130, n_images=3))]
    assert batches == [1, 1, 1]
    assert [len(features) for features, _ in extractor.iter_transform(images_of(60, 60, n_images=3))] == [3]


def test_cache_keeps_stitched_maps_apart_from_whole_maps(tmp_path):
    small, large = images_of(60, 60), images_of(120, 130)
    for images, n_files in ((small, 2), (large, 6)):  # one file per layer
        for size in (None, 60, "auto"):  # "auto" shares the entries of None, because the images are small
            cached = factories.extractor(Small, tile_size=size, memory=str(tmp_path))
            for _ in range(2):  # from the network, then from the cache
                expected = factories.extractor(Small, tile_size=size).transform(images)
                np.testing.assert_allclose(cached.transform(images), expected, rtol=1e-5, atol=1e-6)
        assert len(list(tmp_path.rglob("*.npz"))) == n_files


@pytest.mark.parametrize("detector", [PatchCoreDetector, PaDiMDetector])
def test_detectors_fitted_on_tiles_equal_detectors_fitted_on_whole_images(detector):
    images, new = images_of(101, 90, n_images=6), images_of(101, 90, n_images=3, seed=1)
    fitted = [detector(factories.extractor(Small, tile_size=size), random_state=0).fit(images) for size in (None, 50)]
    whole, tiled = (d.score_samples(new) for d in fitted)
    np.testing.assert_allclose(tiled, whole, rtol=1e-5)
    for a, b in zip(*(d.segment(new) for d in fitted), strict=True):
        assert a.shape == (101, 90)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_memory_estimate_counts_tiles_instead_of_the_whole_image():
    image = images_of(900, 1000)[0]
    whole, tiled = (
        factories.detector(Small, extractor=factories.extractor(Small, tile_size=size, batch_size=2))
        .estimate_memory(10, image)
        .overhead
        for size in (None, 100)
    )
    assert whole - tiled > 0.5e9


def test_batch_normalisation_of_an_untraceable_network_does_not_depend_on_the_batch():
    images = images_of(40, 40, n_images=3)
    together, alone = (factories.extractor(Untraceable).transform(images[:n]) for n in (3, 1))
    np.testing.assert_allclose(together[:1], alone, rtol=1e-5, atol=1e-6)
    traced = factories.extractor(Small).transform(images)
    np.testing.assert_allclose(together, traced, rtol=1e-4, atol=1e-5)


def test_networks_are_probed_once():
    forward, calls = forward_of("resnet18", tile_size=250), []
    forward.plan_of((900, 901))
    handle = forward.network.module.register_forward_pre_hook(lambda *arguments: calls.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward.plan_of((900 + 16, 901 + 32))
    handle.remove()
    assert not calls


def test_not_local_error_is_a_value_error():
    with pytest.raises(NotLocalError):
        reach_of(Gated)
    assert issubclass(NotLocalError, ValueError)
