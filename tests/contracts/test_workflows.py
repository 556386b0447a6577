"""Test common scikit-learn workflows: pipelines, searches, callbacks, displays and parallel backends."""

from __future__ import annotations

import os
from unittest import mock

import joblib
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import RocCurveDisplay, roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    permutation_test_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skpatchcore import (
    ExactIndex,
    GreedyCoresetSampler,
    OneClassSplit,
    PatchCoreDetector,
    RandomSampler,
)
from skpatchcore.features._backbones import load_network
from skpatchcore.model_selection import image_roc_auc_scorer
from tests.factories import detector, extractor

mpl.use("Agg")


@pytest.fixture(scope="module")
def task(parts):
    """Return twelve good images and four images with dark spots in random order, and their labels."""
    train, good, _ = parts
    rng = np.random.default_rng(0)
    spotted = train[:4].copy()
    for image in spotted:
        y, x = rng.integers(0, 30, 2)
        image[y : y + 14, x : x + 14] = 0.05
    X = np.concatenate([train[4:], good, parts[0][:2], spotted]).astype(np.float32)
    y = np.array([1] * 12 + [-1] * 4)
    order = rng.permutation(len(X))
    return X[order], y[order]


@pytest.fixture(scope="module")
def paths(task, tmp_path_factory):
    """Write the images of `task` as PNG files; return their paths."""
    folder = tmp_path_factory.mktemp("parts")
    found = []
    for i, image in enumerate(task[0]):
        found.append(str(folder / f"{i:02}.png"))
        Image.fromarray((image * 255).astype(np.uint8)).save(found[-1])
    return found


def brightened(X):
    return (X * 1.1).clip(0, 1)


@pytest.mark.parametrize("memory", [False, True])
def test_pipeline_of_extractor_and_detector_equals_the_detector(task, memory, tmp_path):
    X, y = task
    piped = make_pipeline(
        extractor(), PatchCoreDetector("precomputed", random_state=0), memory=str(tmp_path) if memory else None
    )
    expected = detector().fit(X, y)
    for _ in range(2):
        model = clone(piped).fit(X, y)
        np.testing.assert_allclose(model.score_samples(X), expected.score_samples(X), rtol=1e-4)
        np.testing.assert_array_equal(model.predict(X), expected.predict(X))
    assert cross_val_score(piped, X, y, cv=OneClassSplit(2), scoring=image_roc_auc_scorer).min() > 0.9


def test_pipeline_with_user_preprocessing_before_the_detector(task):
    X, y = task
    piped = make_pipeline(FunctionTransformer(brightened), detector()).fit(X, y)
    np.testing.assert_array_equal(piped.predict(X), detector().fit(brightened(X), y).predict(brightened(X)))
    search = GridSearchCV(
        piped,
        {"patchcoredetector__sampler": [GreedyCoresetSampler(0.05), RandomSampler(0.05, random_state=0)]},
        cv=OneClassSplit(2),
        scoring="roc_auc",
    ).fit(X, y)
    assert search.best_score_ > 0.8


def test_data_frame_column_of_paths_is_accepted_by_fit_predict_and_cross_validation(task, paths):
    _, y = task
    frame = pd.DataFrame({"path": paths, "label": y}, index=np.arange(16) + 100)
    model = detector().fit(frame["path"], frame["label"])
    frame["score"] = model.score_samples(frame["path"])
    assert roc_auc_score(frame["label"], frame["score"]) > 0.9
    scores = cross_val_score(detector(), frame["path"], frame["label"], cv=OneClassSplit(2), scoring="roc_auc")
    assert scores.min() > 0.8
    pick = FunctionTransformer(lambda frame: frame["path"])
    piped = make_pipeline(pick, detector()).fit(frame, y)
    np.testing.assert_array_equal(piped.predict(frame), model.predict(paths))


def test_set_output_names_sampler_columns_and_leaves_grids_as_arrays(task):
    X, _ = task
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(extractor().transform(X), np.ndarray)
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 3)), columns=["a", "b", "c"])
    for sampler in (GreedyCoresetSampler(4, random_state=0), RandomSampler(4, random_state=0)):
        distances = sampler.set_output(transform="pandas").fit_transform(table)
        assert distances.shape == (20, 4)
        assert list(distances.index) == list(table.index)
        assert list(distances.columns) == list(sampler.get_feature_names_out())


def test_frozen_detectors_are_not_fitted_again(task):
    X, y = task
    model = detector().fit(X[y == 1])
    frozen = FrozenEstimator(model).fit(X[:3], None)
    np.testing.assert_array_equal(frozen.predict(X), model.predict(X))
    assert clone(frozen).estimator is model


def test_all_kinds_of_hyperparameter_search(task, tmp_path):
    X, y = task
    memory = str(tmp_path)
    model = detector(extractor=extractor(memory=memory), sampler=GreedyCoresetSampler(memory=memory), calibration=None)
    grid = {
        "extractor__patch_size": [1, 3],
        "sampler__ratio": [0.05, 0.1],
        "n_neighbors": [1, 9],
        "index": ["exact", ExactIndex(storage="float16")],
    }
    common = {"scoring": image_roc_auc_scorer, "cv": OneClassSplit(2)}
    full = GridSearchCV(model, grid, refit=True, **common).fit(X, y)
    assert full.best_score_ > 0.9
    assert (y[full.best_estimator_.bank_image_indices_] == 1).all()
    parallel = GridSearchCV(model, {"n_neighbors": [1, 9]}, n_jobs=2, **common).fit(X, y)
    alone = GridSearchCV(model, {"n_neighbors": [1, 9]}, **common).fit(X, y)
    np.testing.assert_array_equal(parallel.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    some = RandomizedSearchCV(model, grid, n_iter=3, random_state=0, **common).fit(X, y)
    assert some.best_score_ > 0.9
    halving = HalvingGridSearchCV(
        model,
        {"extractor__patch_size": [1, 3, 5]},
        resource="n_neighbors",
        max_resources=9,
        return_train_score=False,  # training folds hold no anomalous images, so they have no ROC AUC
        **common,
    ).fit(X, y)
    assert halving.best_params_["n_neighbors"] == 9
    score, others, p_value = permutation_test_score(
        model, X, y, n_permutations=9, random_state=0, scoring=image_roc_auc_scorer, cv=OneClassSplit(2)
    )
    assert score > np.mean(others)
    assert p_value <= 0.5


def test_cross_val_predict_with_one_class_split_and_roc_curve(task):
    X, y = task
    # With y, cross_val_predict encodes -1 and +1 as 0 and 1. Without y, fit gets good images only, from the folds.
    folds = list(OneClassSplit(StratifiedKFold(4)).split(X, y))
    predicted = cross_val_predict(detector(), X, cv=folds, method="decision_function")
    assert roc_auc_score(y, predicted) > 0.9
    display = RocCurveDisplay.from_predictions(y, predicted)
    assert display.roc_auc == pytest.approx(roc_auc_score(y, predicted))
    labels = cross_val_predict(detector(), X, y, cv=OneClassSplit(2))
    assert set(np.unique(labels)) <= {-1, 1}


def test_search_with_a_cache_runs_the_network_once_per_image(task, tmp_path):
    X, y = task
    seen = []
    network = load_network("resnet18", None, None, torch.device("cpu"))
    handle = network.module.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    memory = str(tmp_path)
    GridSearchCV(
        detector(extractor=extractor(memory=memory), sampler=GreedyCoresetSampler(memory=memory)),
        {"extractor__patch_size": [1, 3, 5], "sampler__ratio": [0.05, 0.1], "n_neighbors": [1, 9]},
        cv=OneClassSplit(2),
        scoring="roc_auc",
    ).fit(X, y)
    handle.remove()
    assert sum(seen) == len(np.unique(X, axis=0))


def test_callbacks_receive_the_stages_of_a_fit(task):
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.8 has no callbacks")
    X, _ = task

    class Recorder:
        def setup(self, estimator, context):
            self.begun, self.ended, self.torn_down = [], [], False

        def on_fit_task_begin(self, estimator, context):
            self.begun.append(context.task_name)

        def on_fit_task_end(self, estimator, context):
            self.ended.append(context.task_name)

        def teardown(self, estimator, context):
            self.torn_down = True

    recorder = Recorder()
    model = detector().set_callbacks(recorder)
    model.fit(X)
    assert [name for name in recorder.begun if name != "step"] == [
        "fit", "extracting features", "selecting the coreset", "selecting for calibration", "calibrating",
    ]  # fmt: skip
    assert sorted(recorder.begun) == sorted(recorder.ended)
    assert recorder.begun.count("step") >= 2 * len(X)
    assert recorder.torn_down
    with pytest.raises(ValueError, match="holds NaN"):
        model.fit(X * np.nan)
    assert recorder.torn_down
    assert recorder.ended == []
    plain = detector().fit(X)
    np.testing.assert_array_equal(plain.memory_bank_, model.fit(X).memory_bank_)


def test_progress_bar_of_scikit_learn_shows_the_stages_of_a_fit(task, capsys):
    pytest.importorskip("rich", reason="scikit-learn's progress bar needs rich")
    callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.8 has no callbacks")
    search = GridSearchCV(
        detector(), {"n_neighbors": [1, 9]}, cv=OneClassSplit(2), scoring=image_roc_auc_scorer
    ).set_callbacks(callback.ProgressBar(max_propagation_depth=None))
    search.fit(*task)
    assert "extracting features" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_search_on_a_dask_cluster_equals_a_local_search(task, paths):
    distributed = pytest.importorskip(
        "distributed", reason="the dask backend needs distributed: pip install distributed"
    )
    _, y = task
    search = GridSearchCV(
        detector(calibration=None),
        {"n_neighbors": [1, 9]},
        cv=OneClassSplit(2),
        scoring=image_roc_auc_scorer,
        n_jobs=-1,
    )
    expected = clone(search).set_params(n_jobs=None).fit(paths, y)
    with (
        mock.patch.dict(os.environ),  # restores OMP_NUM_THREADS, which the cluster sets
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_backend("dask"),
    ):
        search.fit(paths, y)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(search.score_samples(paths), expected.score_samples(paths))


def test_cross_validation_works_with_metadata_routing_enabled(task):
    X, y = task
    with sklearn.config_context(enable_metadata_routing=True):
        assert len(cross_val_score(detector(), X, y, cv=OneClassSplit(StratifiedKFold(2)), scoring="roc_auc")) == 2
