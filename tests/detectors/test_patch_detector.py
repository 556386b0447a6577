"""Tests of the parts that all PatchDetectors share: fit, calibration, parameters of stages, and results."""

from __future__ import annotations

import os
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from skpatchcore import (
    OneClassSplit,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
    RandomSampler,
    SPADEDetector,
    load,
    save,
)
from skpatchcore.bank import MemoryEstimate
from skpatchcore.detectors._stages import make_stage
from skpatchcore.model_selection import image_roc_auc_scorer
from tests.factories import extractor

DETECTORS = [PatchCoreDetector, PaDiMDetector, SPADEDetector]
FITTED = ("calibration_scores_", "calibration_peaks_", "calibration_image_indices_", "offset_", "pixel_offset_")


def fit_in_two_passes(monkeypatch, detector, X, **fit):
    """Fit in two passes, as if the memory were too small to hold the patch features."""
    with monkeypatch.context() as patched:
        patched.setattr(MemoryEstimate, "way", lambda *args: "two passes")
        return detector.fit(X, **fit)


@pytest.mark.parametrize("kind", DETECTORS)
def test_parameters_of_default_stages_can_be_set(kind):
    detector = kind().set_params(extractor__patch_size=1, extractor__backbone="resnet18")
    assert detector.extractor.patch_size == 1
    assert kind().extractor is None


@pytest.mark.parametrize("scoring", ["roc_auc", "average_precision", image_roc_auc_scorer])
@pytest.mark.parametrize("kind", DETECTORS)
def test_search_without_calibration_ranks_patch_sizes(kind, scoring, parts):
    X = np.concatenate([parts[0][:6], parts[2], parts[2]])
    y = np.array([1] * 6 + [-1] * 2)
    search = GridSearchCV(
        kind(extractor(), calibration=None), {"extractor__patch_size": [1, 3]}, cv=OneClassSplit(2),
        scoring=scoring, error_score="raise",
    )  # fmt: skip
    assert search.fit(X, y).best_params_["extractor__patch_size"] in (1, 3)


@pytest.mark.parametrize("kind", DETECTORS)
def test_one_training_image_gives_a_calibration_score_of_nan(kind, parts):
    with pytest.warns(UserWarning, match="1 of 1 training images could not be scored without their own patches"):
        detector = kind(extractor()).fit(parts[0][:1])
    np.testing.assert_array_equal(detector.calibration_scores_, [np.nan])
    assert np.isnan(detector.offset_)


@pytest.mark.parametrize("kind", DETECTORS)
def test_stages_inherit_device_and_seed_from_the_detector(kind):
    stages = kind(device="cpu", random_state=0)._make_stages(np.random.RandomState(0))
    assert {stage.device for stage in stages.values() if stage is not None} == {"cpu"}  # no transformer by default
    chosen = extractor(device="cuda:0")
    assert kind(chosen, device="cpu")._make_stages(np.random.RandomState(0))["extractor"].device == "cuda:0"
    assert chosen.device == "cuda:0"


def test_make_stage_of_precomputed_features_returns_none():
    assert make_stage("extractor", "precomputed", None, "cpu", 0) is None


@pytest.mark.parametrize("kind", DETECTORS)
def test_fit_refuses_an_unknown_device(kind, parts):
    with pytest.raises(ValueError, match="device='nowhere' is not a device"):
        kind(extractor(), device="nowhere").fit(parts[0])


@pytest.mark.parametrize("kind", DETECTORS)
def test_estimate_memory_grows_with_the_number_of_images(kind):
    detector = kind(extractor(image_size=64))
    few, many = (detector.estimate_memory(n) for n in (100, 1000))
    assert many.n_patches == 10 * few.n_patches
    assert many.at_once > few.at_once > few.overhead > 0


@pytest.mark.parametrize("kind", DETECTORS)
def test_fit_refuses_too_small_max_memory(kind, parts):
    detector = kind(extractor(), max_memory=1000)
    with pytest.raises(ValueError, match=r"max_memory=1 kB is too small: this fit needs at least .* GB"):
        detector.fit(parts[0])
    assert not hasattr(detector, "offset_")


@pytest.mark.parametrize("calibration", ["leave-one-out", 0.3, 3])
@pytest.mark.parametrize("groups", [None, np.arange(10) // 2])
def test_padim_in_two_passes_equals_padim_in_memory(monkeypatch, parts, calibration, groups):
    at_once = PaDiMDetector(extractor(), n_channels=12, calibration=calibration, random_state=0)
    two_passes = clone(at_once).set_params(max_memory="3GB")
    at_once.fit(parts[0], groups=groups)
    fit_in_two_passes(monkeypatch, two_passes, parts[0], groups=groups)
    for name in ("means", "whitening", "channels"):
        np.testing.assert_array_equal(getattr(two_passes.model_, name), getattr(at_once.model_, name))
    for name in FITTED:
        np.testing.assert_allclose(getattr(two_passes, name), getattr(at_once, name), rtol=1e-6, err_msg=name)


def test_fitted_padim_contains_no_training_features(parts):
    detector = PaDiMDetector(extractor(), n_channels=12).fit(parts[0])
    assert detector.model_.training is None
    with pytest.raises(ValueError, match="during the fit only"):
        detector.model_.without(np.arange(1))


def test_spade_model_does_not_contain_held_out_images(parts):
    detector = SPADEDetector(extractor(), calibration=0.3, random_state=0).fit(parts[0])
    learnt = np.setdiff1d(np.arange(10), detector.calibration_image_indices_)
    assert len(detector.model_.images) == len(learnt) == 7
    assert len(detector.model_.rows) == 7 * 48


@pytest.mark.parametrize("kind", DETECTORS)
def test_html_representation_shows_the_stages(kind, parts):
    for detector in (kind(), kind(extractor()).fit(parts[0])):
        assert "TorchFeatureExtractor" in detector._repr_html_()


@pytest.mark.parametrize("kind", DETECTORS)
def test_callbacks_receive_the_tasks_of_a_fit(kind, parts):
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.8 has no callbacks")

    class Recorder:
        def setup(self, estimator, context):
            self.begun = []

        def on_fit_task_begin(self, estimator, context):
            self.begun.append(context.task_name)

        def on_fit_task_end(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

    recorder = Recorder()
    kind(extractor(), random_state=0).set_callbacks(recorder).fit(parts[0])
    assert {"extracting features", "calibrating"} <= set(recorder.begun)


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("with_maps", [True, False])
def test_iter_results_equals_the_other_methods(kind, parts, with_maps):
    detector = kind(extractor(batch_size=3), contamination=0.2, random_state=0).fit(parts[0])
    X = np.concatenate([parts[1], parts[2]])
    results = list(detector.iter_results(X, with_maps=with_maps))
    assert [result.index for result in results] == list(range(len(X)))
    for name, values in (
        ("score", detector.score_samples(X)),
        ("decision", detector.decision_function(X)),
        ("label", detector.predict(X)),
        ("p_value", detector.p_values(X)),
    ):
        np.testing.assert_allclose([getattr(result, name) for result in results], values, rtol=1e-12, err_msg=name)
    for result, anomaly_map in zip(results, detector.segment(X), strict=True):
        assert (result.anomaly_map is not None) == with_maps
        if with_maps:
            np.testing.assert_array_equal(result.anomaly_map, anomaly_map)


@pytest.mark.parametrize("kind", [*DETECTORS, PatchCoreEnsemble])
def test_iter_results_reads_a_generator_chunk_by_chunk(kind, parts):
    members = [("a", PatchCoreDetector(extractor(), random_state=0)), ("b", SPADEDetector(extractor()))]
    detector = (kind(members) if kind is PatchCoreEnsemble else kind(extractor(), random_state=0)).fit(parts[0])
    seen = 0

    def images():
        nonlocal seen
        for i in range(300):
            seen += 1
            yield parts[1][i % 4]

    results = detector.iter_results(images())
    first = [next(results) for _ in range(3)]
    assert [result.index for result in first] == [0, 1, 2]
    assert seen == 64
    np.testing.assert_allclose([r.score for r in first], detector.score_samples(parts[1][:3]), rtol=1e-5)
    seen = 0
    next(detector.iter_results(images(), chunk_size=1))
    assert seen == 1
    with pytest.raises(ValueError, match="chunk_size=0"):
        detector.iter_results(images(), chunk_size=0)


def test_iter_results_accepts_a_table_and_a_series_of_paths(parts, tmp_path):
    table = pd.DataFrame(np.random.default_rng(0).random((30, 4)), columns=list("abcd"))
    detector = PatchCoreDetector("precomputed", random_state=0).fit(table)
    results = list(detector.iter_results(table[20:]))
    np.testing.assert_array_equal([r.score for r in results], detector.score_samples(table[20:]))
    assert results[0].image.tolist() == table.iloc[20].tolist()
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path, image in zip(paths, parts[1], strict=True):
        Image.fromarray((image * 255).astype(np.uint8)).save(path)
    detector = PatchCoreDetector(extractor(), random_state=0).fit(parts[0])
    column = pd.Series(paths, index=[7, 5, 3, 1])
    assert [result.image for result in detector.iter_results(column)] == paths


def test_iter_results_flags_or_raises_errors_of_unreadable_images(parts):
    detector = PatchCoreDetector(extractor(), random_state=0).fit(parts[0])
    X = [*parts[1][:2], "gone.png", parts[2][0], "gone too.png"]
    for images in (X, iter(X)):
        results = list(detector.iter_results(images, on_error="flag"))
        assert [result.error is None for result in results] == [True, True, False, True, False]
        assert [result.label for result in results if result.error] == [-1, -1]
        assert [result.error.index for result in results if result.error] == [2, 4]
        assert all(np.isnan([r.score, r.decision, r.p_value]).all() for r in results if r.error)
        assert results[3].label == -1
        assert results[3].error is None
    for images in (X, iter(X)):
        before = []
        with pytest.raises(ValueError, match=r"image 2 \(gone.png\)"):
            before.extend(result.index for result in detector.iter_results(images))
        results = detector.iter_results(X)
        assert [next(results).index, next(results).index] == [0, 1]
    with pytest.raises(ValueError, match="on_error='ignore'"):
        detector.iter_results(X, on_error="ignore")


def test_iter_results_without_threshold_labels_only_failed_images(parts):
    detector = PatchCoreDetector(extractor(), calibration=None, random_state=0).fit(parts[0])
    good, gone = detector.iter_results([parts[1][0], "gone.png"], on_error="flag")
    assert (good.label, gone.label) == (None, -1)
    assert np.isnan([good.decision, good.p_value]).all()
    assert good.score < 0


@pytest.fixture
def training_files(tmp_path, parts):
    """Paths of six good images. One image has a name that is not valid UTF-8."""
    names = [f"{i}.png" for i in range(5)] + [os.fsdecode(b"ros\xe9.png")]
    try:
        for name, image in zip(names, parts[0], strict=False):
            with open(tmp_path / name, "wb") as file:
                Image.fromarray((image * 255).astype(np.uint8)).save(file, "PNG")
    except OSError:
        pytest.skip("the file system refuses such names")
    return [str(tmp_path / name) for name in names]


@pytest.mark.parametrize("kind", DETECTORS)
def test_training_paths_survive_save_and_joblib(kind, training_files, tmp_path):
    detector = kind(extractor(), calibration=None).fit(training_files)
    assert detector.training_paths_ == training_files
    save(detector, tmp_path / "model.skops")
    joblib.dump(detector, tmp_path / "model.joblib")
    for read in (load(tmp_path / "model.skops"), joblib.load(tmp_path / "model.joblib")):
        assert read.training_paths_ == training_files


def test_training_paths_are_absolute_and_aligned_with_nominal_image(training_files, monkeypatch):
    monkeypatch.chdir(Path(training_files[0]).parent)
    X = [Path(path).name for path in training_files]
    y = [1, -1, 1, 1, 1, 1]
    whole = RandomSampler(ratio=1.0)  # the nearest patch of a training image is in that image
    detector = PatchCoreDetector(extractor(), calibration=None, sampler=whole).fit(pd.Series(X, dtype=object), y)
    assert detector.training_paths_ == [os.path.abspath(name) for name in X]
    nearest = detector.nearest_patches([training_files[4]])
    assert detector.training_paths_[nearest["nominal_image"][0]] == training_files[4]


def test_training_paths_are_none_without_paths(parts, training_files):
    assert PatchCoreDetector(extractor(), calibration=None).fit(parts[0][:3]).training_paths_ is None
    mixed = [training_files[0], parts[0][1]]
    assert PatchCoreDetector(extractor(), calibration=None).fit(mixed).training_paths_ is None
    features = np.random.default_rng(0).random((4, 2, 2, 3))
    assert PatchCoreDetector("precomputed", calibration=None).fit(features).training_paths_ is None


def test_a_refit_on_arrays_forgets_training_paths(parts, training_files):
    detector = PatchCoreDetector(extractor(), calibration=None).fit(training_files)
    assert detector.fit(parts[0][:3]).training_paths_ is None


def test_training_paths_are_taken_from_any_collection_of_paths(training_files):
    for X in (
        training_files,
        np.array(training_files, object),
        pd.Series(training_files, dtype=object),
        tuple(training_files),
    ):
        assert PatchCoreDetector(extractor(), calibration=None).fit(X).training_paths_ == training_files


def test_a_model_of_an_older_version_has_no_training_paths(parts, training_files):
    detector = PatchCoreDetector(extractor(), calibration=None).fit(training_files)
    state = detector.__getstate__()
    del state["training_paths_"]
    older = PatchCoreDetector.__new__(PatchCoreDetector)
    older.__setstate__(state)
    assert older.training_paths_ is None
    assert not hasattr(clone(older), "training_paths_")
