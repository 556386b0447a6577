"""Networks are identified by content: overwritten files and changed networks of callables are detected."""

from __future__ import annotations

import copy
import os
import time
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from skpatchcore import TorchFeatureExtractor, WeightsError
from skpatchcore.features import _backbones as backbones
from skpatchcore.features import _digests as digests
from skpatchcore.features._digests import architecture_text, digest_of_file, network_fingerprint
from tests import factories

IMAGE = np.random.default_rng(0).random((1, 32, 32, 3))


class Tiny(nn.Module):
    """Network with one convolution, an activation function, a factor, a shift and a normalisation."""

    def __init__(self, factor=1.0, act=torch.relu):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, stride=8)
        self.factor, self.act, self.shift = factor, act, torch.zeros(1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.act(self.layer(x)) * self.factor + self.shift)


def tiny(backbone):
    return TorchFeatureExtractor(
        backbone, weights=None, layers=["norm"], image_size=None, crop_size=None, patch_size=1
    )  # fmt: skip


def with_weights(change, state):
    for tensor in state.values():
        if tensor.dtype.is_floating_point:
            change(tensor)


CHANGES = {
    "in place": lambda network: with_weights(lambda t: t.add_(0.1), network.state_dict()),
    "through .data": lambda network: network.layer.weight.data.mul_(2.0),
    "one weight": lambda network: network.layer.weight.data[0, 0, 0, 0].add_(1.0),
    "a buffer": lambda network: network.norm.running_mean.add_(0.5),
    "a setting": lambda network: setattr(network, "factor", 2.0),
    "a function": lambda network: setattr(network, "act", torch.sigmoid),
    "a tensor": lambda network: network.shift.add_(1.0),
    "a module": lambda network: setattr(network, "norm", nn.InstanceNorm2d(4)),
    "a module's setting": lambda network: setattr(network.layer, "stride", (4, 4)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_network_of_a_callable_is_detected(change):
    torch.manual_seed(0)
    network = Tiny()
    extractor = tiny(lambda: network)
    before = extractor.transform(IMAGE)
    np.testing.assert_array_equal(extractor.transform(IMAGE), before)
    with torch.no_grad():
        change(network)
    after = extractor.transform(IMAGE)
    assert after.shape != before.shape or np.abs(after - before).max() > 1e-6
    fresh = tiny(lambda: network).transform(IMAGE)
    np.testing.assert_array_equal(after, fresh)


def test_callable_that_returns_another_network_is_detected():
    networks = [Tiny(), Tiny()]
    extractor = tiny(lambda: networks[0])
    extractor.fit()
    first = extractor.transform(IMAGE)
    networks.reverse()
    with pytest.raises(WeightsError, match="differ from the weights in fit"):
        extractor.transform(IMAGE)
    second = extractor.fit().transform(IMAGE)
    assert np.abs(first - second).max() > 1e-6
    networks.reverse()
    np.testing.assert_array_equal(extractor.fit().transform(IMAGE), first)


def test_unchanged_network_is_prepared_once(monkeypatch):
    calls = []
    build = backbones._build_network
    monkeypatch.setattr(backbones, "_build_network", lambda *given: calls.append(given) or build(*given))
    for extractor in (tiny(partial(Tiny, 3.0)), factories.extractor(lambda: torchvision.models.resnet18())):
        calls.clear()
        for _ in range(3):
            extractor.fit()
            extractor.transform(IMAGE.repeat(2, 1).repeat(2, 2))
        assert len(calls) == 1


def test_equal_networks_have_equal_fingerprints():
    torch.manual_seed(0)
    first = torchvision.models.resnet18()
    torch.manual_seed(0)
    second = torchvision.models.resnet18()
    assert network_fingerprint(first) == network_fingerprint(second.eval())
    assert hash(network_fingerprint(first)) == hash(network_fingerprint(second))
    second.layer1[0].conv1.weight.data[0, 0, 0, 0] += 1e-3
    assert network_fingerprint(first) != network_fingerprint(second)


SETTINGS = {
    "list": ([1, 2], [1, 3]),
    "list in a list": ([1, [2]], [1, [3]]),
    "dict": ({"a": 1.0}, {"a": 2.0}),
    "list in a dict": ({"a": [1]}, {"a": [2]}),
    "set": ({1, 2}, {1, 3}),
    "array": (np.zeros(3), np.array([0, 0, 1.0])),
    "array of objects": (np.array([1, None], object), np.array([2, None], object)),
    "list of tensors": ([torch.zeros(2)], [torch.ones(2)]),
    "tuple of lists": (([1],), ([2],)),
    "number of numpy": (np.float32(1), np.float32(2)),
    "partial": (partial(torch.mul, other=2.0), partial(torch.mul, other=3.0)),
    "class": (nn.ReLU, nn.Sigmoid),
    "type of a container": ([1], (1,)),
}


@pytest.mark.parametrize(("one", "other"), SETTINGS.values(), ids=SETTINGS)
def test_network_fingerprint_covers_settings_in_containers_and_arrays(one, other):
    network = Tiny(factor=copy.deepcopy(one))
    before = network_fingerprint(network)
    assert before == network_fingerprint(copy.deepcopy(network))
    hash(before)
    network.factor = other
    assert network_fingerprint(network) != before


def test_network_fingerprint_terminates_for_a_container_that_holds_itself():
    circle: list = []
    circle.append(circle)
    assert network_fingerprint(Tiny(factor=circle)) is not None


class Scales(Tiny):
    def __init__(self):
        super().__init__()
        self.scales = [1.0, 2.0]

    def forward(self, x):
        x = self.layer(x)
        return self.norm(sum((x - scale).relu() for scale in self.scales))


def test_list_setting_that_is_changed_in_place_is_detected():
    network = Scales()
    extractor = tiny(lambda: network).fit()
    before, digests_before = extractor.transform(IMAGE), extractor.network_digests()
    network.scales[1] = 1.1
    assert np.abs(extractor.transform(IMAGE) - before).max() > 1e-6
    assert extractor.network_digests() != digests_before
    np.testing.assert_array_equal(extractor.transform(IMAGE), tiny(lambda: network).fit().transform(IMAGE))


@pytest.mark.parametrize(("one", "other"), SETTINGS.values(), ids=SETTINGS)
def test_architecture_digest_covers_settings_in_containers_and_arrays(one, other):
    first, same, second = (architecture_text(Tiny(factor=copy.deepcopy(factor))) for factor in (one, one, other))
    assert first == same
    assert first != second


def test_changed_weights_file_of_equal_size_and_mtime_is_read_again(tmp_path):
    path = tmp_path / "w.pth"
    extractor = factories.extractor(weights=path)
    features = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(torchvision.models.resnet18().state_dict(), path)
        os.utime(path, (1e9, 1e9))
        if seed:
            with pytest.raises(WeightsError, match="differ from the weights in fit"):
                extractor.transform(IMAGE)
        features.append(extractor.fit().transform(IMAGE))
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_digest_of_file_is_reused_while_size_and_timestamps_are_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"first")
    first = digest_of_file(path)
    path.write_bytes(b"other")  # possibly within one tick of the file system's clock
    second = digest_of_file(path)
    assert first != second
    later = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert digest_of_file(path) == second
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda *given: pytest.fail("the file was read again"))
    if os.name == "posix":
        assert digest_of_file(path) == second
