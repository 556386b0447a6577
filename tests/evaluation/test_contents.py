"""Stored results depend on content: data, masks, labels, groups, weights, functions."""

from __future__ import annotations

import copy
import functools
import importlib
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from torch import nn
from torchvision.models import resnet18

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import load_image_folder, make_textures
from skpatchcore.evaluation import run_evaluation
from skpatchcore.evaluation.contents import content_digest, dataset_digest
from skpatchcore.evaluation.storage import settings_of
from skpatchcore.evaluation.studies import Run
from tests.factories import detector, extractor


@pytest.fixture
def root(tmp_path):
    """A data set of bitmaps: files of images of equal size have the same number of bytes."""
    rng = np.random.default_rng(0)
    for i in range(4):
        for part in ("train/good", "test/good", "test/dark"):
            pixels = (rng.normal(0.5, 0.03, (32, 32, 3)).clip(0, 1) * 255).astype(np.uint8)
            pixels[8:24, 8:24] *= part != "test/dark"
            put(tmp_path / "data" / part / f"{i}.bmp", pixels)
        put(tmp_path / "data" / "ground_truth" / "dark" / f"{i}_mask.bmp", mask(8, 24))
    return tmp_path / "data"


def put(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask(start, stop):
    pixels = np.zeros((32, 32), np.uint8)
    pixels[start:stop, start:stop] = 255
    return pixels


def change_image(root):
    put(root / "test" / "good" / "0.bmp", np.zeros((32, 32, 3), np.uint8))


def change_training_image(root):
    put(root / "train" / "good" / "0.bmp", np.zeros((32, 32, 3), np.uint8))


def change_mask(root):
    put(root / "ground_truth" / "dark" / "0_mask.bmp", mask(0, 16))


def change_label(root):
    (root / "test" / "dark" / "3.bmp").rename(root / "test" / "good" / "9.bmp")
    (root / "ground_truth" / "dark" / "3_mask.bmp").unlink()


def add_image(root):
    put(root / "train" / "good" / "9.bmp", np.full((32, 32, 3), 128, np.uint8))


@pytest.mark.filterwarnings("ignore:contamination")
@pytest.mark.parametrize("change", [change_image, change_training_image, change_mask, change_label, add_image])
def test_run_evaluation_recomputes_if_the_data_have_changed(root, tmp_path, change):
    quick = detector(calibration=None)
    run_evaluation(quick, load_image_folder(root), tmp_path / "out")
    change(root)
    with pytest.warns(UserWarning, match="category 'all': the data changed since the result in"):
        again = run_evaluation(quick, load_image_folder(root), tmp_path / "out")
    fresh = run_evaluation(quick, load_image_folder(root), tmp_path / "fresh")
    same = [name for name in fresh.table if not name.endswith(("seconds", "bytes")) and "_seconds" not in name
            and not name.startswith(("fit_", "test_"))]  # fmt: skip
    pd.testing.assert_frame_equal(again.table[same], fresh.table[same])
    with warnings.catch_warnings():  # the new result is stored
        warnings.simplefilter("error")
        run_evaluation(quick, load_image_folder(root), tmp_path / "out")


def test_run_evaluation_recomputes_if_the_network_has_changed(root, tmp_path):
    network = resnet18()
    made = detector(lambda: network, calibration=None)
    first = run_evaluation(made, load_image_folder(root), tmp_path / "out")
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.5).add_(0.01)
    with pytest.warns(UserWarning, match="the network"):
        second = run_evaluation(made, load_image_folder(root), tmp_path / "out")
    assert not np.array_equal(first.runs[0].result.scores, second.runs[0].result.scores)


def settings(made, data):
    return settings_of(Run("all", "all", {}, made, data), "own")


class Twice(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.layer2, self.layer3 = nn.Conv2d(3, 4, 3, 8), nn.Conv2d(4, 4, 3)
        self.activation = activation

    def forward(self, x):
        return self.layer3(self.activation(self.layer2(x)))


def test_settings_differ_for_functions_with_the_same_name(root):
    data = load_image_folder(root)
    networks = [Twice(nn.ReLU()), Twice(nn.Sigmoid())]
    networks[1].load_state_dict(networks[0].state_dict())
    first, second = (settings(detector(lambda network=network: network), data) for network in networks)
    assert first["parameters"] == second["parameters"]
    assert first["weights_digests"][0][0] == second["weights_digests"][0][0]  # the weights are equal
    assert first["weights_digests"] != second["weights_digests"]  # the networks differ
    assert settings(detector(functools.partial(resnet18)), data) == settings(
        detector(functools.partial(resnet18)), data
    )


def test_settings_are_equal_for_equal_seeds(root):
    data = load_image_folder(root)
    for seeds in (0, 0), (np.random.RandomState(3), np.random.RandomState(3)):
        first, second = (settings(detector(random_state=seed), data) for seed in seeds)
        assert first == second
    assert settings(detector(random_state=np.random.RandomState(3)), data) != settings(
        detector(random_state=np.random.RandomState(4)), data
    )


class Own(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        return self


def test_settings_differ_for_classes_with_the_same_name(root):
    data = load_image_folder(root)
    other = type("Own", (TransformerMixin, BaseEstimator), {"fit": lambda self, X, y=None: None, "__module__": "own"})
    assert settings(PatchCoreDetector(Own()), data) == settings(PatchCoreDetector(Own()), data)
    assert settings(PatchCoreDetector(Own()), data) != settings(PatchCoreDetector(other()), data)
    assert settings(PatchCoreDetector(extractor()), data) != settings(PatchCoreDetector(TorchFeatureExtractor(
        "resnet18", weights=None, image_size=32, crop_size=None)), data)  # fmt: skip


GLOBAL = 1


def uses_global():
    return GLOBAL


def test_content_digest_of_a_function_includes_the_values_that_it_uses(monkeypatch):
    def outer(n, default=0):
        return lambda x=default: x + n

    assert content_digest(outer(1)) == content_digest(outer(1))
    assert content_digest(outer(1)) != content_digest(outer(2))
    assert content_digest(outer(1)) != content_digest(outer(1, 5))
    assert content_digest(lambda x: x + 1) != content_digest(lambda x: x + 2)
    assert content_digest(functools.partial(outer, 1)) != content_digest(functools.partial(outer, 2))
    before = content_digest(uses_global)
    monkeypatch.setitem(globals(), "GLOBAL", 2)
    assert content_digest(uses_global) != before
    circle: list = []
    circle.append(circle)
    assert content_digest(circle) == content_digest(circle)


def test_dataset_digest_changes_with_labels_groups_masks_and_images():
    data = make_textures("brick", n_views=2)
    same = make_textures("brick", n_views=2)
    assert dataset_digest(data) == dataset_digest(same)
    others = [
        replace(data, test_labels=-data.test_labels),
        replace(data, train_groups=data.train_groups[::-1].copy()),
        replace(data, test_masks=~np.asarray(data.test_masks)),
        replace(data, train_images=data.train_images[::-1].copy()),
    ]
    assert len({dataset_digest(data), *(dataset_digest(other) for other in others)}) == 5


def test_dataset_digest_accepts_a_file_that_cannot_be_read(root):
    data = load_image_folder(root)
    before = dataset_digest(data)
    (root / "test" / "good" / "0.bmp").unlink()
    assert dataset_digest(data) != before


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, ""])
def test_dataset_digest_is_equal_for_all_forms_of_a_missing_mask(root, missing):
    data = load_image_folder(root)
    masks = np.array([missing if mask is None else mask for mask in data.test_masks], object)
    assert dataset_digest(replace(data, test_masks=masks)) == dataset_digest(data)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Return a function that writes modules, and imports the last one again."""
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def written(**sources):
        for name, text in sources.items():
            path = tmp_path / "src" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        names = [name.replace("__", ".") for name in sources]
        for name in list(sys.modules):
            if name.split(".")[0].startswith("own_"):
                monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        return importlib.import_module(names[-1])

    return written


CALLS = {
    "through a module": "import own_helpers\ndef subject(x):\n    return own_helpers.crop(x)\n",
    "by name": "from own_helpers import crop\ndef subject(x):\n    return crop(x)\n",
    "imported when it runs": "def subject(x):\n    import own_helpers\n    return own_helpers.crop(x)\n",
    "in a method": "import own_helpers\nclass subject:\n    def run(self, x):\n        return own_helpers.crop(x)\n",
    "in a method, by name": "from own_helpers import crop\nclass subject:\n    def run(self, x):\n"
    "        return crop(x)\n",
    "in a static method": "from own_helpers import crop\nclass subject:\n    @staticmethod\n    def run(x):\n"
    "        return crop(x)\n",
    "in a property": "from own_helpers import crop\nclass subject:\n    @property\n    def run(self):\n"
    "        return crop(self)\n",
    "in a base class": "from own_helpers import crop\nclass Base:\n    def run(self, x):\n        return crop(x)\n"
    "class subject(Base):\n    pass\n",
    "in a method of an object": "from own_helpers import crop\nclass Cut:\n    def run(self, x):\n"
    "        return crop(x)\nsubject = Cut()\n",
    "in a cached function": "import functools\nfrom own_helpers import crop\n@functools.lru_cache\ndef subject(x):\n"
    "    return crop(x)\n",
    "as an attribute": "from own_helpers import crop\nclass Cut:\n    pass\nsubject = Cut()\nsubject.run = crop\n",
}  # fmt: skip


@pytest.mark.parametrize("source", CALLS.values(), ids=CALLS)
def test_content_digest_changes_with_a_helper_in_another_module(modules, source):
    before, same, after = (
        content_digest(modules(own_helpers=f"def crop(x):\n    return x[{n}:]\n", own_subject=source).subject)
        for n in (1, 1, 2)
    )
    assert before == same
    assert before != after


@pytest.mark.parametrize("statement", ["from own_package import deep", "from . import deep", "import own_package.deep"])
def test_content_digest_includes_imported_modules(modules, statement):
    digests = [
        content_digest(
            modules(
                own_package____init__="",
                own_package__deep=f"N = {n}\n",
                own_package__outer=f"{statement}\n",
                own_subject="import own_package.outer\ndef subject():\n    return own_package.outer.run()\n",
            ).subject
        )
        for n in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_content_digest_uses_a_module_as_it_was_imported(modules, tmp_path):
    texts = [f"def crop(x):\n    return x[{n}:]\n" for n in (1, 2)]
    subject = modules(own_helpers=texts[0], own_subject=CALLS["through a module"]).subject
    (tmp_path / "src" / "own_helpers.py").write_text(texts[1])
    stale = content_digest(subject)  # the imported code is the first, the file contains the second
    assert stale != content_digest(modules(own_helpers=texts[1], own_subject=CALLS["through a module"]).subject)


def test_content_digest_ends_for_modules_that_import_each_other(modules):
    names = [f"own_m{i}" for i in range(12)]
    sources = {name: "".join(f"import {other}\n" for other in names) + "def f():\n    return 1\n" for name in names}
    body = "".join(f"    {name}.f()\n" for name in names)
    subject = modules(
        **sources, own_subject="".join(f"import {n}\n" for n in names) + f"def subject():\n{body}"
    ).subject
    assert content_digest(subject) == content_digest(subject)


class Scaled(nn.Module):
    def __init__(self, scales):
        super().__init__()
        self.layer, self.scales = nn.Conv2d(3, 4, 3), scales


@pytest.mark.parametrize(
    ("one", "other"), [([1, 2], [1, 3]), ({"a": 1}, {"a": 2}), (np.zeros(2), np.ones(2)), (torch.relu, torch.sigmoid)]
)
def test_content_digest_of_a_network_includes_its_attributes(one, other):
    def digest(scales):
        torch.manual_seed(0)
        return content_digest(nn.Sequential(Scaled(scales)))

    assert digest(one) == digest(copy.deepcopy(one))
    assert digest(one) != digest(other)
