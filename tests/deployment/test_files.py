"""Tests of save and load: atomic writes, exact round trips, refused files, and no code from files is run."""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn
import skops.io
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import InconsistentVersionWarning, NotFittedError
from sklearn.model_selection import ShuffleSplit
from sklearn.neighbors import NearestNeighbors

import skpatchcore
from skpatchcore import (
    ExactIndex,
    GreedyCoresetSampler,
    LearnedProxySampler,
    ModelFileError,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
    RandomSampler,
    SPADEDetector,
    WeightsError,
    load,
    save,
)
from skpatchcore._utils import sklearn as versions
from tests.factories import extractor

GOLDEN = Path(__file__).parents[1] / "contracts" / "golden"


def net():
    return torchvision.models.resnet18()


class Upside(BaseEstimator):
    """An extractor that is defined by a user."""

    def fit(self, X=None, y=None):
        return self

    def transform(self, X):
        return np.stack([np.asarray(x, np.float32)[::8, ::8] for x in X])


DETECTORS = {
    "default": lambda: PatchCoreDetector(extractor(), random_state=0),
    "approximate": lambda: PatchCoreDetector(extractor(), index="pynndescent", random_state=0),
    "scikit-learn index": lambda: PatchCoreDetector(extractor(), index=NearestNeighbors(), random_state=0),
    "float16 bank": lambda: PatchCoreDetector(extractor(), index=ExactIndex(storage="float16"), random_state=0),
    "random subset": lambda: PatchCoreDetector(extractor(), sampler=RandomSampler(0.2), random_state=0),
    "proxies": lambda: PatchCoreDetector(extractor(), sampler=LearnedProxySampler(9), random_state=0),
    "k-d tree": lambda: PatchCoreDetector(extractor(), index=NearestNeighbors(algorithm="kd_tree"), random_state=0),
    "splitter": lambda: PatchCoreDetector(extractor(), calibration=ShuffleSplit(1, random_state=0), random_state=0),
    "uncalibrated": lambda: PatchCoreDetector(extractor(), calibration=None, random_state=np.random.RandomState(3)),
    "SPADE": lambda: SPADEDetector(extractor()),
    "PaDiM": lambda: PaDiMDetector(extractor(), n_channels=10, random_state=0),
    "ensemble": lambda: PatchCoreEnsemble(
        [(str(n), PatchCoreDetector(extractor(), n_neighbors=n, random_state=0)) for n in (1, 9)]
    ),
}


@pytest.fixture(scope="module")
def fitted(parts):
    return PatchCoreDetector(extractor(), random_state=0).fit(parts[0])


@pytest.fixture(scope="module")
def content(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "parts.skops"
    save(fitted, path)
    return path.read_bytes()


@pytest.mark.parametrize("make", DETECTORS.values(), ids=DETECTORS)
def test_loaded_detector_equals_the_saved_detector(make, parts, tmp_path):
    detector = make().fit(parts[0])
    save(detector, tmp_path / "a.skops")
    loaded = load(tmp_path / "a.skops")
    assert type(loaded) is type(detector)
    assert repr(loaded).split("RandomState")[0] == repr(detector).split("RandomState")[0]
    assert set(vars(loaded)) == set(vars(detector))
    for X in parts:
        for name in ("score_samples", "segment"):
            np.testing.assert_array_equal(getattr(loaded, name)(X), getattr(detector, name)(X))
    np.testing.assert_array_equal([loaded.offset_, loaded.pixel_offset_], [detector.offset_, detector.pixel_offset_])
    if hasattr(detector, "memory_bank_"):
        np.testing.assert_array_equal(loaded.memory_bank_, loaded.index_._fit_X)
        if detector.memory_bank_ is detector.index_._fit_X:
            assert loaded.memory_bank_ is loaded.index_._fit_X
    with zipfile.ZipFile(tmp_path / "a.skops") as archive:
        assert {Path(name).suffix for name in archive.namelist()} <= {".json", ".npy"}
        manifest = json.loads(archive.read("skpatchcore.json"))
    assert manifest["networks"] == [["resnet18", extractor().fit().weights_digest_]]
    assert manifest["versions"]["skpatchcore"] == skpatchcore.__version__


def test_save_with_float16_halves_the_bank_and_keeps_predictions(fitted, parts, tmp_path):
    save(fitted, tmp_path / "whole.skops")
    save(fitted, tmp_path / "half.skops", bank_dtype="float16")
    saved = (tmp_path / "whole.skops").stat().st_size - (tmp_path / "half.skops").stat().st_size
    assert saved == pytest.approx(fitted.memory_bank_.nbytes / 2, rel=0.01)
    loaded = load(tmp_path / "half.skops")
    assert loaded.memory_bank_.dtype == np.float32
    assert loaded.memory_bank_ is loaded.index_.stored_rows is loaded.sampler_.components_
    X = np.concatenate(parts[1:])
    np.testing.assert_allclose(loaded.score_samples(X), fitted.score_samples(X), rtol=1e-3)
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    assert fitted.memory_bank_.dtype == np.float32
    assert fitted.memory_bank_ is fitted.index_.stored_rows


def test_refused_save_keeps_the_old_file(fitted, parts, tmp_path):
    path = tmp_path / "a.skops"
    save(fitted, path)
    before = path.read_bytes()
    grids = np.random.default_rng(0).random((20, 4, 4, 3), np.float32)
    features = PatchCoreDetector("precomputed", random_state=0)
    no_half = [
        (fitted, "float8", "expected 'float16'"),
        (SPADEDetector("precomputed").fit(grids), "float16", "no memory bank"),
        (features.fit(grids * 1e6), "float16", "65504"),
        (
            PatchCoreDetector("precomputed", index=NearestNeighbors(algorithm="kd_tree")).fit(grids),
            "float16",
            "keeps its own copy of the memory bank",
        ),
    ]
    for detector, dtype, message in no_half:
        with pytest.raises(ValueError, match=message):
            save(detector, path, bank_dtype=dtype)
    with pytest.raises(NotFittedError):
        save(PatchCoreDetector(), path)
    no_form = PatchCoreDetector(extractor(backbone=lambda: net()), random_state=0).fit(parts[0])
    with pytest.raises(ValueError, match="PatchCoreDetector cannot be saved"):
        save(no_form, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.skops"]


def test_save_removes_the_folders_of_caches(parts, tmp_path):
    detector = PatchCoreDetector(
        extractor(memory=tmp_path / "cache"),
        sampler=GreedyCoresetSampler(memory=str(tmp_path / "cache")),
        random_state=0,
    ).fit(parts[0])
    save(detector, tmp_path / "a.skops")
    assert str(tmp_path).encode() not in (tmp_path / "a.skops").read_bytes()
    loaded = load(tmp_path / "a.skops")
    assert loaded.extractor.memory is loaded.extractor_.memory is loaded.sampler_.memory is None
    np.testing.assert_array_equal(loaded.score_samples(parts[2]), detector.score_samples(parts[2]))
    assert detector.extractor.memory == tmp_path / "cache"


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_load_refuses_damaged_files(fitted, content, parts, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.skops"
    damaged = bytearray(content)
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    if data.draw(st.booleans(), label="truncated"):
        path.write_bytes(damaged[:place])
        with pytest.raises(ModelFileError):
            load(path)
        return
    damaged[place] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    path.write_bytes(damaged)
    try:
        loaded = load(path)
    except ModelFileError:
        return
    else:  # the flipped bit is in a field of the container without a meaning, e.g. a date
        np.testing.assert_array_equal(loaded.memory_bank_, fitted.memory_bank_)
        np.testing.assert_array_equal(loaded.calibration_scores_, fitted.calibration_scores_)
        assert repr(loaded) == repr(fitted)
        assert (loaded.offset_, loaded.pixel_offset_) == (fitted.offset_, fitted.pixel_offset_)


class Exploit:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_load_refuses_foreign_files_without_running_code(fitted, content, parts, tmp_path):
    trace = tmp_path / "trace"
    for name, dump in (("a.skops", pickle.dump), ("b.joblib", joblib.dump)):
        with (tmp_path / name).open("wb") as file:
            dump(Exploit(trace), file)
        with pytest.raises(ModelFileError, match="pickle"):
            load(tmp_path / name)
    (tmp_path / "text.skops").write_text("no model")
    (tmp_path / "empty.skops").write_bytes(b"")
    skops.io.dump(fitted, tmp_path / "plain.skops")
    np.savez(tmp_path / "arrays.skops.npz", np.eye(3))
    for name in ("text.skops", "empty.skops", "plain.skops", "arrays.skops.npz"):
        with pytest.raises(ModelFileError, match="not a model file"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "gone.skops")
    with pytest.raises(OSError, match="directory"):
        load(tmp_path)
    assert not trace.exists()


def rewritten(content, path, change):
    """Write a model file with a changed schema or manifest, and with correct digests."""
    import hashlib
    import io

    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    manifest, schema = json.loads(members.pop("skpatchcore.json")), json.loads(members["schema.json"])
    change(manifest, schema)
    members["schema.json"] = json.dumps(schema).encode()
    manifest["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
        new.writestr("skpatchcore.json", json.dumps(manifest))


def test_load_refuses_malicious_files(content, tmp_path):
    path = tmp_path / "a.skops"

    def run_a_command(manifest, schema):
        schema["content"]["content"]["verbose"] = {
            "__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "__id__": 1,
            "content": {"module_path": "os", "function": "system"},
        }  # fmt: skip

    def pretend(manifest, schema):
        schema["__class__"], schema["__module__"] = "Popen", "subprocess"

    for change, message in ((run_a_command, "os.system|posix.system"), (pretend, "subprocess.Popen")):
        rewritten(content, path, change)
        with pytest.raises(ModelFileError, match=message):
            load(path)
    rewritten(content, path, lambda manifest, schema: None)
    assert load(path).offset_ < 0
    rewritten(content, path, lambda manifest, schema: schema["content"].clear())
    with pytest.raises(ModelFileError, match="cannot be read with the installed packages"):
        load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b"0" * 10_000_000)
        archive.writestr("skpatchcore.json", b'{"format": 1, "versions": {"skpatchcore": "1"}, "sha256": {}}')
    with pytest.raises(ModelFileError, match="compressed"):
        load(path)


def test_load_refuses_files_of_a_later_format(content, tmp_path):
    def later(manifest, schema):
        manifest["format"] += 1
        manifest["versions"]["skpatchcore"] = "7.1"

    rewritten(content, tmp_path / "a.skops", later)
    with pytest.raises(ModelFileError, match=r"has format 2, written by skpatchcore 7\.1.*up to format 1"):
        load(tmp_path / "a.skops")


def test_load_requires_trusted_for_own_types(parts, tmp_path):
    path = tmp_path / "a.skops"
    with pytest.warns(UserWarning, match="To load the file, pass trusted="):
        save(PatchCoreDetector(Upside(), random_state=0).fit(parts[0]), path)
    own = f"{Upside.__module__}.Upside"
    with pytest.raises(ModelFileError, match=f"types {own}, which can run code"):
        load(path)
    assert np.isfinite(load(path, trusted=[own]).score_samples(parts[2])).all()
    with pytest.warns(UserWarning, match=r"net\. To load the file"):
        save(PatchCoreDetector(extractor(backbone=net), random_state=0).fit(parts[0]), path)
    with pytest.raises(ModelFileError, match="net"):
        load(path)
    assert np.isfinite(load(path, trusted=[f"{net.__module__}.net"]).score_samples(parts[2])).all()


def test_loaded_detector_refuses_other_weights_with_both_digests(parts, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    detector = PatchCoreDetector(extractor(weights=tmp_path / "w.pth"), random_state=0).fit(parts[0])
    save(detector, tmp_path / "a.skops")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    loaded = load(tmp_path / "a.skops")
    now = extractor(weights=tmp_path / "w.pth").fit().weights_digest_
    with pytest.raises(WeightsError) as caught:
        loaded.predict(parts[2])
    assert now in str(caught.value)
    assert detector.extractor_.weights_digest_ in str(caught.value)
    assert now != detector.extractor_.weights_digest_


WRITER = """
import sys
import numpy as np
from skpatchcore import PatchCoreDetector, save
rng = np.random.default_rng(int(sys.argv[2]))
detector = PatchCoreDetector("precomputed", random_state=0).fit(rng.random((40, 8, 8, 200), np.float32))
print("ready", flush=True)
for _ in range(10_000):  # a limit, in case the test is killed and cannot stop this process
    save(detector, sys.argv[1])
"""


def test_killed_save_leaves_a_complete_file(tmp_path):
    path = tmp_path / "a.skops"
    save(PatchCoreDetector("precomputed", random_state=0).fit(np.ones((5, 4, 4, 3), np.float32)), path)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        n_new = 0
        for _ in range(10_000):  # each load during the writes finds a complete file
            n_channels = load(path).memory_bank_.shape[1]
            assert n_channels in (3, 200)
            n_new += n_channels == 200
            if n_new == 40:
                break
            time.sleep(0.01)
        assert n_new == 40
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert load(path).memory_bank_.shape == (256, 200)


def test_save_on_a_full_disk_keeps_the_old_file(fitted, tmp_path):
    path = tmp_path / "a.skops"
    save(PatchCoreDetector("precomputed", random_state=0).fit(np.ones((5, 4, 4, 3), np.float32)), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # limit the size of files to 10,000 bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            save(fitted, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.skops"]


OTHER_VERSIONS = pytest.mark.parametrize(
    ("package", "category", "message"),
    [
        ("scikit-learn", InconsistentVersionWarning, "PatchCoreDetector from version 0.9 when using version"),
        ("skpatchcore", UserWarning, "was written by skpatchcore 0.9 and is read by"),
    ],
)


@OTHER_VERSIONS
def test_load_warns_of_files_of_other_versions(content, parts, tmp_path, package, category, message):
    def older(manifest, schema):
        manifest["versions"][package] = "0.9"

    rewritten(content, tmp_path / "a.skops", older)
    with pytest.warns(category, match=message) as caught:
        loaded = load(tmp_path / "a.skops")
    assert len(caught) == 1
    assert np.isfinite(loaded.score_samples(parts[2])).all()


@OTHER_VERSIONS
def test_unpickling_warns_of_other_versions(parts, tmp_path, monkeypatch, package, category, message):
    fitted = PatchCoreDetector(extractor(), random_state=0).fit(parts[0])
    with monkeypatch.context() as patch:
        if package == "scikit-learn":
            patch.setattr(sklearn, "__version__", "0.9")
        else:
            patch.setattr(versions, "__version__", "0.9")
        joblib.dump(fitted, tmp_path / "a.joblib")
        pickled = pickle.dumps(fitted)
    for read in (lambda: joblib.load(tmp_path / "a.joblib"), lambda: pickle.loads(pickled)):
        with pytest.warns(category, match=r"\b0\.9 ") as caught:  # the stages warn too
            loaded = read()
        assert any(message in str(warning.message) for warning in caught)
        assert {warning.filename for warning in caught} == {__file__}
        assert not [name for name in vars(loaded) if "versions" in name]
        with warnings.catch_warnings():  # copies of the loaded detector have the current version
            warnings.simplefilter("error")
            for same in (copy.copy(loaded), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), clone(loaded)):
                assert vars(same).keys() <= vars(fitted).keys()


def test_unpickling_states_without_versions_does_not_warn(parts):
    fitted = PatchCoreDetector(extractor(), random_state=0).fit(parts[0])
    with versions.versions_apart():
        older = pickle.dumps(fitted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = pickle.loads(older)
    np.testing.assert_array_equal(loaded.score_samples(parts[2]), fitted.score_samples(parts[2]))


@pytest.mark.parametrize("name", ["a.pkl", "a.PICKLE", "a.joblib"])
def test_save_warns_of_endings_of_pickles(parts, tmp_path, name):
    fitted = PatchCoreDetector(extractor(), random_state=0).fit(parts[0])
    with pytest.warns(UserWarning, match=f"{name}' ends in .*not be a pickle, and only skpatchcore.load can") as caught:
        save(fitted, tmp_path / name)
    assert [warning.filename for warning in caught] == [__file__]
    np.testing.assert_array_equal(load(tmp_path / name).score_samples(parts[2]), fitted.score_samples(parts[2]))


@pytest.mark.parametrize("make", DETECTORS.values(), ids=DETECTORS)
def test_save_of_a_memory_mapped_detector_equals_save_of_the_original(make, parts, tmp_path):
    detector = make().fit(parts[0])
    joblib.dump(detector, tmp_path / "a.joblib")
    save(joblib.load(tmp_path / "a.joblib", mmap_mode="r"), tmp_path / "a.skops")
    save(detector, tmp_path / "b.skops")
    loaded = load(tmp_path / "a.skops")
    np.testing.assert_array_equal(loaded.score_samples(parts[2]), detector.score_samples(parts[2]))
    # An array with two references is written once.
    assert (tmp_path / "a.skops").stat().st_size == pytest.approx((tmp_path / "b.skops").stat().st_size, rel=0.01)
