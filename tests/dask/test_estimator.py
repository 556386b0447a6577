"""Tests of DaskPatchCoreDetector as an estimator: parameters, copies, pickles, and the comparison of the workers."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone, is_outlier_detector
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags

pytest.importorskip("distributed", reason="needs the extra dask")

from distributed import Client

from skpatchcore import PatchCoreDetector
from skpatchcore.dask import DaskPatchCoreDetector

FEATURES = np.random.default_rng(0).random((20, 3, 3, 6))


@pytest.fixture(scope="module")
def fitted(cluster_client):
    return DaskPatchCoreDetector("precomputed", random_state=0, calibration=3, client=cluster_client).fit(FEATURES)


def test_parameters_are_those_of_the_local_detector_and_of_the_cluster():
    added = set(DaskPatchCoreDetector().get_params()) - set(PatchCoreDetector().get_params())
    assert added == {"client", "mode", "oversampling", "n_shards"}
    local = PatchCoreDetector().get_params()
    assert {name: DaskPatchCoreDetector().get_params()[name] for name in local} == local


def test_turned_views_are_refused_with_the_reason(cluster_client):
    with pytest.raises(ValueError, match=r"augment='flips' is not possible on a Dask cluster"):
        DaskPatchCoreDetector("precomputed", augment="flips", client=cluster_client).fit(FEATURES)
    with pytest.raises(ValueError, match=r"suspect_share=0.1 is not possible on a Dask cluster"):
        DaskPatchCoreDetector("precomputed", suspect_share=0.1, client=cluster_client).fit(FEATURES)


def test_nested_parameters_create_the_default_stages():
    detector = DaskPatchCoreDetector().set_params(extractor__image_size=64, sampler__ratio=0.01)
    assert (detector.extractor.image_size, detector.sampler.ratio) == (64, 0.01)


def test_clone_keeps_the_client_and_pickle_drops_it(fitted, cluster_client):
    assert clone(fitted).client is cluster_client
    assert not hasattr(clone(fitted), "memory_bank_")
    read = pickle.loads(pickle.dumps(fitted))
    assert read.client is None
    np.testing.assert_array_equal(read.memory_bank_, fitted.memory_bank_)
    assert fitted.client is cluster_client


def test_to_local_is_an_ordinary_detector_without_a_reference_to_dask(fitted):
    local = fitted.to_local()
    assert type(local) is PatchCoreDetector
    assert b"distributed" not in pickle.dumps(local)
    assert local.memory_bank_ is fitted.memory_bank_
    local.recalibrate(FEATURES)


def test_methods_compute_on_the_cluster_what_the_local_detector_returns(fitted, cluster_client):
    local, X = fitted.to_local(), FEATURES + np.arange(20)[:, None, None, None] / 10
    with cluster_client.as_current():
        for name in ("score_samples", "decision_function", "predict", "p_values"):
            np.testing.assert_array_equal(getattr(fitted, name)(X).compute(), getattr(local, name)(X))
        np.testing.assert_array_equal(fitted.segment(X).compute(), local.segment(X))
        np.testing.assert_array_equal(fitted.predict_mask(X).compute(), local.predict_mask(X))
        scores, maps = zip(*fitted.score_and_segment(X).compute(), strict=True)
    np.testing.assert_array_equal(scores, local.score_samples(X))
    np.testing.assert_array_equal(maps, local.segment(X))


def test_unfitted_detector_has_no_local_form():
    with pytest.raises(NotFittedError):
        DaskPatchCoreDetector().to_local()


def test_tags_are_those_of_the_local_detector():
    assert is_outlier_detector(DaskPatchCoreDetector())
    assert get_tags(DaskPatchCoreDetector()) == get_tags(PatchCoreDetector())


def test_repr_and_html_work_with_a_client(fitted):
    assert "DaskPatchCoreDetector" in repr(fitted)
    assert "DaskPatchCoreDetector" in fitted._repr_html_()


@pytest.mark.parametrize(
    "parameters", [{"mode": "fast"}, {"oversampling": 0.5}, {"n_shards": 0}, {"client": "tcp://"}, {"smoothing": -1}]
)
def test_invalid_parameter_is_an_error(cluster_client, parameters):
    with pytest.raises(ValueError, match=f"'{next(iter(parameters))}' parameter of DaskPatchCoreDetector"):
        DaskPatchCoreDetector("precomputed", **{"client": cluster_client, **parameters}).fit(FEATURES)


def test_fit_without_a_client_is_an_error():
    with pytest.raises(ValueError, match="there is no Dask client"):
        DaskPatchCoreDetector("precomputed").fit(FEATURES)


def test_html_and_hasattr_work_without_a_client(fitted):
    read = pickle.loads(pickle.dumps(fitted))
    assert "DaskPatchCoreDetector" in read._repr_html_()
    assert not hasattr(read, "client_")


def test_closed_client_is_an_error(cluster_client):
    closed = Client(cluster_client.scheduler.address, set_as_default=False)
    closed.close()
    with pytest.raises(ValueError, match="the Dask client is closed: create a new one"):
        DaskPatchCoreDetector("precomputed", client=closed).fit(FEATURES)


def test_labels_of_a_detector_without_a_threshold_are_an_error_at_once(cluster_client):
    detector = DaskPatchCoreDetector("precomputed", calibration=None, client=cluster_client).fit(FEATURES)
    for method in (detector.predict, detector.p_values, detector.predict_mask):
        with pytest.raises(ValueError, match="has no threshold"):
            method(FEATURES)


def test_fit_uses_the_current_client(cluster_client):
    with cluster_client.as_current():
        detector = DaskPatchCoreDetector("precomputed", random_state=0)
        assert detector.client_ is cluster_client
        detector.fit(FEATURES)


def test_failed_fit_keeps_the_earlier_fit(fitted, cluster_client):
    detector = clone(fitted).fit(FEATURES)
    with pytest.raises(ValueError, match="image 0"):
        detector.fit(np.full_like(FEATURES, np.nan))
    np.testing.assert_array_equal(detector.memory_bank_, fitted.memory_bank_)


def test_second_fit_removes_attributes_of_the_first(cluster_client):
    detector = DaskPatchCoreDetector("precomputed", random_state=0, calibration=3, client=cluster_client).fit(
        FEATURES[:, 0, 0]
    )
    assert detector.n_features_in_ == 6
    detector.fit(FEATURES)
    assert not hasattr(detector, "n_features_in_")


def test_report_and_sizes_of_shards(fitted):
    assert fitted.shard_sizes_.tolist() == [5, 5, 5, 5]
    assert (fitted.selection_report_.n_shards, fitted.selection_report_.mode) == (4, "exact")
    assert fitted.selection_report_.n_picks >= len(fitted.memory_bank_) == 18


def test_merge_mode_selects_as_many_rows(cluster_client):
    detector = DaskPatchCoreDetector("precomputed", mode="merge", random_state=0, client=cluster_client).fit(FEATURES)
    assert len(np.unique(detector.memory_bank_, axis=0)) == 18


def _set_version(module, version):
    import importlib

    importlib.import_module(module).__version__ = version


def _replace(path, name, value):
    import importlib

    module = importlib.import_module(path)
    module._before_the_test = getattr(module, name)
    setattr(module, name, lambda: value)


def _restore(path, name):
    import importlib

    module = importlib.import_module(path)
    setattr(module, name, module._before_the_test)


@pytest.mark.parametrize(
    ("module", "package"), [("skpatchcore.dask._cluster", "skpatchcore"), ("torch", "torch"), ("numpy", "numpy")]
)
def test_other_version_on_a_worker_is_an_error(cluster_client, module, package):
    worker = next(iter(cluster_client.scheduler_info()["workers"]))
    before = __import__(module, fromlist=["__version__"]).__version__
    cluster_client.run(_set_version, module, "0.0.1", workers=[worker])
    try:
        with pytest.raises(RuntimeError, match=rf"worker {worker} has {package} 0\.0\.1"):
            DaskPatchCoreDetector("precomputed", client=cluster_client).fit(FEATURES)
    finally:
        cluster_client.run(_set_version, module, before, workers=[worker])


@pytest.mark.parametrize(
    ("module", "name", "value", "text"),
    [
        ("torch", "get_num_threads", 7, "number of torch threads"),
        ("torch.backends.cpu", "get_cpu_capability", "AVX9", "instruction set of the CPU"),
    ],
)
def test_workers_that_may_compute_other_last_bits_are_a_warning(cluster_client, module, name, value, text):
    worker = next(iter(cluster_client.scheduler_info()["workers"]))
    cluster_client.run(_replace, module, name, value, workers=[worker])
    try:
        with pytest.warns(UserWarning, match=f"differ in the {text}.*{value}"):
            DaskPatchCoreDetector("precomputed", client=cluster_client).fit(FEATURES)
    finally:
        cluster_client.run(_restore, module, name, workers=[worker])


def test_missing_package_is_named_with_what_to_install():
    code = "import sys; sys.modules['distributed'] = None; import skpatchcore.dask as d; d.DaskPatchCoreDetector"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert "skpatchcore.dask needs the package distributed, of the extra dask: pip install distributed" in found.stderr
