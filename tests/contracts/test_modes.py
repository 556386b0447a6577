"""Test that global modes of torch and numpy, and in-place operations of networks, change no result.

Global modes are, e.g., a default dtype, autocast or inference mode. Every mode must be restored afterwards. In-place
operations in a network must not change the layer maps of an earlier layer.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from skpatchcore import (
    ExactIndex,
    GreedyCoresetSampler,
    LearnedProxySampler,
    PaDiMDetector,
    PatchCoreDetector,
    PyNNDescentIndex,
    SPADEDetector,
    TorchFeatureExtractor,
    WeightsError,
)
from skpatchcore._utils.modes import default_modes
from skpatchcore.features import _backbones as backbones
from tests.factories import extractor


def state():
    """Return all global settings that the modes below change."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        getattr(matmul, "fp32_precision", None),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch.get_num_threads(),
        torch.random.get_rng_state().numpy().tobytes(),
        np.geterr(),
    )


@contextmanager
def switched(switch, back):
    """Call `switch` on entry and `back` on exit."""
    switch()
    try:
        yield
    finally:
        back()


class Meddling(TorchFunctionMode):
    """A mode that replaces every floating-point result of a torch function with zeros."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 0 if isinstance(result, torch.Tensor) and result.is_floating_point() else result


class Refusing(TorchDispatchMode):
    """A mode that raises at every torch operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError("dispatched")


MODES = {
    "float64": lambda: switched(
        lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)
    ),
    "bfloat16": lambda: switched(
        lambda: torch.set_default_dtype(torch.bfloat16), lambda: torch.set_default_dtype(torch.float32)
    ),
    "default device": lambda: switched(
        lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)
    ),
    "with device": lambda: torch.device("meta"),
    "deterministic": lambda: switched(
        lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)
    ),
    "deterministic, warnings": lambda: switched(
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "coarse products": lambda: switched(
        lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision("highest")
    ),
    "seed": lambda: switched(lambda: torch.manual_seed(7), lambda: None),
    "function mode": Meddling,
    "dispatch mode": Refusing,
    "numpy raises": lambda: np.errstate(all="raise"),
}


def results():
    """Return results of detectors, samplers and indexes, computed with empty caches as in a new process."""
    backbones._cache.clear()
    rng = np.random.default_rng(0)
    good = rng.normal(0.6, 0.03, (6, 48, 64, 3)).clip(0, 1)
    bad = good[:1].copy()
    bad[0, 16:28, 20:34] = 0
    model = PatchCoreDetector(extractor(batch_size=4), sampler=GreedyCoresetSampler(0.5), random_state=0).fit(good)
    padim = PaDiMDetector(extractor(), n_channels=30, random_state=0, calibration=3).fit(good)
    spade = SPADEDetector(extractor(n_channels=50), n_neighbors=3).fit(good)
    rows = rng.normal(size=(300, 200)).astype(np.float32)
    many = np.tile(rows, (10, 1)) + rng.normal(size=(3000, 200)).astype(np.float32)
    sampler = GreedyCoresetSampler(30, random_state=0).fit(rows)
    return [
        model.memory_bank_,
        np.array([model.offset_, model.pixel_offset_]),
        *model.score_and_segment(np.concatenate([good, bad])),
        model.score_samples(bad),
        *padim.score_and_segment(bad),
        padim.calibration_scores_,
        spade.score_samples(bad),
        sampler.component_indices_,
        sampler.selection_distances_,
        sampler.transform(rows[:5]),
        LearnedProxySampler(5, random_state=0, n_epochs=1).fit(rows).components_,
        *ExactIndex().fit(many).kneighbors(rows[:40], 3),
        *ExactIndex().fit(many.astype(float)).farthest(rows[:40], np.array([0, 9, 40])),
        *PyNNDescentIndex(n_neighbors=5, random_state=0).fit(rows[:9]).kneighbors(rows, 2),
    ]


@pytest.fixture(scope="module")
def expected():
    return results()


@pytest.mark.parametrize("name", MODES)
def test_global_mode_changes_no_result_and_is_restored(name, expected):
    with MODES[name]():
        before = state() if name not in ("function mode", "dispatch mode") else None
        found = results()
        if before is not None:
            assert state() == before
        else:
            assert torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack() == 1
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_index_fitted_in_inference_mode_works_inside_and_outside_of_it(expected):
    rows = np.random.default_rng(0).normal(size=(3000, 200)).astype(np.float32)
    with torch.inference_mode():
        index = ExactIndex().fit(rows)
        inside = index.kneighbors(rows[:30], 2, exclude=[1, 2])
    np.testing.assert_array_equal(index.kneighbors(rows[:30], 2, exclude=[1, 2]), inside)
    with torch.inference_mode():
        np.testing.assert_array_equal(index.kneighbors(rows[:30], 2, exclude=[1, 2]), inside)


def test_global_modes_are_restored_after_the_last_thread_has_finished():
    torch.set_default_dtype(torch.float64)
    try:
        rows = np.random.default_rng(0).normal(size=(2000, 60)).astype(np.float32)
        index = ExactIndex().fit(rows)
        alone = index.kneighbors(rows[:50], 3)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: index.kneighbors(rows[:50], 3), range(40), timeout=300):
                np.testing.assert_array_equal(found, alone)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_modes_are_restored_after_an_error():
    with ExitStack() as stack:
        for name in ("float64", "deterministic, warnings", "coarse products", "autocast", "with device"):
            stack.enter_context(MODES[name]())
        before = state()
        with pytest.raises(ZeroDivisionError), default_modes():
            _ = 1 / 0
        assert state() == before
        with default_modes():
            assert state() != before


def test_modes_of_the_caller_are_active_between_two_batches(parts):
    """`iter_transform` is a generator, so the caller's code runs between two batches and needs the caller's modes."""
    with torch.autocast("cpu", dtype=torch.bfloat16), np.errstate(all="raise"):
        for _ in extractor(batch_size=2).iter_transform(parts[0]):
            assert torch.is_autocast_enabled("cpu")
            assert np.geterr()["over"] == "raise"


# In-place operations after a layer: each network below changes the output of layer "a" in place, in its own way.


class Convolutions(torch.nn.Module):
    """Base class of the networks below: two convolutions, "a" and "b"."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 1, 1)
        self.activation = torch.nn.ReLU(inplace=True)


class Relu(Convolutions):
    def forward(self, x):
        return self.b(F.relu(self.a(x), inplace=True))


class Module(Convolutions):
    def forward(self, x):
        return self.b(self.activation(self.a(x)))


class Residual(Convolutions):
    def forward(self, x):
        y = self.a(x)
        z = self.b(y)
        y += z
        return self.b(y)


class Method(Convolutions):
    def forward(self, x):
        return self.b(self.a(x).mul_(3))


class View(Convolutions):
    def forward(self, x):
        y = self.a(x)
        y.flatten(1).clamp_(min=0)
        return self.b(y)


class Written(Convolutions):
    def forward(self, x):
        y = self.a(x)
        y[:, 0] = 0
        return self.b(y)


class Data(Convolutions):
    def forward(self, x):
        y = self.a(x)
        y.data.add_(1)
        return self.b(y)


class Traceless(Convolutions):
    """A network that torch.fx cannot trace, because a branch depends on values; hooks record its layer maps."""

    def forward(self, x):
        y = self.a(x)
        z = self.b(F.relu_(y)) if y.sum() < 1e9 else y
        return z


class Picky(Relu):
    """A network that accepts only images with 32 rows, and therefore none of the probe images of `_cut.py`."""

    def forward(self, x):
        torch._assert(x.shape[2] == 32, "32 pixels")
        return super().forward(x)


@pytest.mark.parametrize(
    "kind", [Relu, Module, Residual, Method, View, Written, Data, Traceless, Picky], ids=lambda kind: kind.__name__
)
def test_layer_map_is_not_changed_by_later_in_place_operations(kind, tmp_path):
    torch.manual_seed(0)
    network = kind()
    images = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)
    for memory in (None, str(tmp_path)):
        alone, both = (
            TorchFeatureExtractor(
                lambda: network, layers=layers, patch_size=1, image_size=None, crop_size=None, memory=memory
            ).transform(images)
            for layers in (("a",), ("a", "b"))
        )
        np.testing.assert_array_equal(both[..., :4], alone)
    mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = torch.from_numpy((images - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        first = network.a(x).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(alone, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "densenet121", "efficientnet_lite0"])
def test_default_layers_of_backbones_are_not_overwritten_and_need_no_copy(name):
    assert backbones.load_network(name, None, None, torch.device("cpu")).architecture == name


def test_network_of_the_user_is_not_changed_and_changed_weights_are_refused():
    """The extractor uses a copy of the user's network; if the user trains the network further, `transform` raises."""
    network = Relu().train()
    before = copy.deepcopy(network.state_dict())
    model = TorchFeatureExtractor(lambda: network, layers=("a",), image_size=None, crop_size=None)
    images = np.random.default_rng(0).random((2, 32, 32, 3))
    expected = model.fit_transform(images)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    np.testing.assert_array_equal(model.transform(images), expected)
    with torch.no_grad():
        network.a.weight.mul_(2)
    with pytest.raises(WeightsError, match="differ from the weights in fit"):
        model.transform(images)
