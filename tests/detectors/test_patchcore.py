from __future__ import annotations

import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.kernel_approximation import Nystroem
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skpatchcore import (
    ExactIndex,
    GreedyCoresetSampler,
    ImageError,
    PatchCoreDetector,
    PyNNDescentIndex,
    RandomSampler,
    TorchFeatureExtractor,
)
from skpatchcore.maps import anomaly_map
from tests.factories import detector, extractor


@pytest.fixture(scope="module")
def fitted(parts):
    return detector().fit(parts[0])


def test_predict_and_segment_find_and_locate_the_defect(fitted, parts):
    _, good, bad = parts
    assert fitted.predict(bad).tolist() == [-1]
    assert fitted.score_samples(bad)[0] < fitted.score_samples(good).min() < 0
    defect_map = fitted.segment(bad)[0]
    assert defect_map.shape == (48, 64)
    peak = np.unravel_index(defect_map.argmax(), defect_map.shape)
    assert 12 <= peak[0] <= 32
    assert 16 <= peak[1] <= 38
    assert defect_map.max() > fitted.pixel_offset_ > fitted.segment(good).mean()


def test_score_methods_agree_in_sign_and_dtype(fitted, parts):
    _, good, bad = parts
    X = np.concatenate([good, bad])
    scores = fitted.score_samples(X)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(fitted.decision_function(X), scores - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(X), np.where(scores < fitted.offset_, -1, 1))
    both = fitted.score_and_segment(X)
    np.testing.assert_array_equal(both[0], scores)
    np.testing.assert_array_equal(both[1], fitted.segment(X))


def test_fit_predict_scores_training_images_without_their_own_patches(parts):
    train, _, bad = parts
    X = np.concatenate([train, bad])
    model = detector(contamination=0.2)
    assert model.fit_predict(X).tolist() == [1] * 10 + [-1]
    assert model.predict(X).tolist() == [1] * 11  # the bank contains the defect itself
    assert detector().fit_predict(X).tolist() == [1] * 11  # "auto" flags no training image
    y = np.array([1] * 10 + [-1])
    assert detector().fit_predict(X, y).tolist() == [1] * 10 + [-1]
    with pytest.raises(ValueError, match="no threshold"):
        detector(calibration=None).fit_predict(X)


def test_memory_bank_rows_equal_the_features_at_their_indices(fitted, parts):
    grids = extractor().transform(parts[0])
    for row, image, (y, x) in zip(fitted.memory_bank_, fitted.bank_image_indices_, fitted.bank_positions_, strict=True):
        np.testing.assert_allclose(row, grids[image, y, x], atol=1e-5)
    assert len(fitted.memory_bank_) == np.ceil(0.1 * grids[..., 0].size)


def test_leave_one_out_scores_exclude_the_rows_of_the_image(parts):
    features = extractor().transform(parts[0])
    model = PatchCoreDetector("precomputed", n_neighbors=4, calibration="leave-one-out", random_state=0).fit(features)
    peaks = []
    for i, grid in enumerate(features):
        # Expected: the score of a detector with only those rows of the bank that come from the other images.
        others = model.memory_bank_[model.bank_image_indices_ != i]
        alone = PatchCoreDetector("precomputed", n_neighbors=4, sampler=GreedyCoresetSampler(1.0), calibration=None)
        alone.fit(others[None, None])
        assert model.calibration_scores_[i] == pytest.approx(alone.score_samples(grid[None])[0], rel=1e-6)
        peaks.append(cdist(grid.reshape(-1, grid.shape[-1]), others).min(axis=1).max())
    assert model.pixel_offset_ == pytest.approx(max(peaks), rel=1e-5)
    assert model.offset_ == model.calibration_scores_.min()
    # Scores of the training images against the whole bank are too high.
    assert (model.score_samples(features) >= model.calibration_scores_).all()


def test_leave_one_out_excludes_whole_groups(parts):
    features = extractor().transform(parts[0])
    twins = np.concatenate([features, features])
    groups = np.tile(np.arange(len(features)), 2)
    alone = PatchCoreDetector("precomputed", calibration="leave-one-out", random_state=0).fit(twins)
    grouped = PatchCoreDetector("precomputed", calibration="leave-one-out", random_state=0).fit(twins, groups=groups)
    # Without groups, the copy of an image in the bank increases the score of the image.
    assert grouped.calibration_scores_.mean() < alone.calibration_scores_.mean()
    with pytest.raises(ValueError, match="inconsistent numbers"):
        detector().fit(parts[0], groups=[1, 2])
    for missing in (np.nan, None):
        with pytest.raises(ValueError, match="image 3 has no group"):
            detector().fit(parts[0], groups=["a", "a", "b", missing, *"cdefgh"])


def test_contamination_sets_the_thresholds(parts):
    features = extractor().transform(np.concatenate(parts[:2]))
    auto, tenth, half = (
        PatchCoreDetector("precomputed", contamination=c, random_state=0).fit(features) for c in ("auto", 0.1, 0.5)
    )
    assert auto.offset_ == auto.calibration_scores_.min()
    assert auto.offset_ <= tenth.offset_ < half.offset_
    assert half.pixel_offset_ < auto.pixel_offset_
    with pytest.warns(UserWarning, match=r"contamination=0.01 cannot be promised with 14 calibration images"):
        PatchCoreDetector("precomputed", contamination=0.01).fit(features)


def test_detector_without_calibration_ranks_images_but_refuses_to_predict(parts):
    model = detector(calibration=None).fit(parts[0])
    scores = model.score_samples(parts[1])
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(model.decision_function(parts[1]), scores)
    with pytest.raises(ValueError, match="no threshold"):
        model.predict(parts[1])
    model.recalibrate(parts[1])
    np.testing.assert_array_equal(model.decision_function(parts[1]), scores - model.offset_)


def test_fit_on_one_image_scores_but_has_no_threshold(parts):
    with pytest.warns(UserWarning, match="could not be scored without their own patches"):
        model = detector().fit(parts[0][:1])
    assert model.score_samples(parts[2]) < model.score_samples(parts[1][:1])
    for method in (model.predict, model.decision_function):
        with pytest.raises(ValueError, match="fit with calibration and on more images"):
            method(parts[2])


def test_same_seed_gives_same_scores_for_any_batch_size_and_order(parts):
    train, good, bad = parts
    X = np.concatenate([good, bad])
    expected = detector().fit(train).score_samples(X)
    np.testing.assert_array_equal(detector().fit(train).score_samples(X), expected)
    for batch_size in (1, 3, 64):
        model = detector(extractor=extractor(batch_size=batch_size)).fit(train)
        np.testing.assert_allclose(model.score_samples(X), expected, rtol=1e-5)
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(detector().fit(train).score_samples(X[order]), expected[order], rtol=1e-5)
    shuffled = np.random.default_rng(1).permutation(len(train))
    np.testing.assert_allclose(detector().fit(train[shuffled]).score_samples(X), expected, rtol=1e-5)
    assert not np.allclose(detector(random_state=1).fit(train).score_samples(X), expected, rtol=1e-5)


def test_score_samples_of_one_image_equals_batch(fitted, parts):
    X = np.concatenate(parts[1:])
    np.testing.assert_allclose(
        np.concatenate([fitted.score_samples([x]) for x in X]), fitted.score_samples(X), rtol=1e-5
    )


def test_fit_and_segment_accept_images_of_different_sizes(parts):
    rng = np.random.default_rng(0)
    sizes = [(48, 64), (64, 48), (48, 64), (80, 40), (72, 72), (56, 56)]
    images = [rng.normal(0.6, 0.03, (*size, 3)).clip(0, 1) for size in sizes]
    model = detector().fit(images)
    maps = model.segment(images)
    assert [m.shape for m in maps] == sizes
    assert isinstance(maps, list)
    assert (model.bank_positions_ < np.array([np.array(s) // 8 for s in sizes])[model.bank_image_indices_]).all()
    resized = detector(extractor=extractor(image_size=64, crop_size=48)).fit(images)
    assert [m.shape for m in resized.segment(images)] == sizes
    assert resized.segment(parts[0]).shape == (10, 48, 64)


def test_segment_locates_the_defect_for_any_resizing(parts):
    train, _, bad = parts
    wanted = np.array([21.5, 26.5])
    strides = [{"stride": 2, "image_size": 96}, {"stride": 3, "image_size": 144}]
    for given in ({}, {"image_size": (96, 96)}, {"image_size": 96, "crop_size": 80}, *strides):
        model = detector(extractor=extractor(**given)).fit(train)
        defect_map = model.segment(bad)[0]
        centre = np.argwhere(defect_map > 0.8 * np.nanmax(defect_map)).mean(axis=0)
        assert np.abs(centre - wanted).max() < 6, given


def test_paths_arrays_and_series_give_the_same_scores(tmp_path, parts):
    images = (parts[0] * 255).astype(np.uint8)
    paths = []
    for i, image in enumerate(images):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(paths[-1])
    expected = detector().fit(images).score_samples(images[:3])
    for X in (paths, pd.Series(paths, index=range(5, 15)), np.array(paths), list(images)):
        np.testing.assert_allclose(detector().fit(X).score_samples(X[:3]), expected, rtol=1e-5)


def test_fit_with_labels_excludes_anomalous_images(parts):
    train, _, bad = parts
    X = np.concatenate([bad, train])
    y = np.array([-1] + [1] * len(train))
    model = detector().fit(X, y)
    assert 0 not in model.bank_image_indices_
    assert len(model.calibration_scores_) == len(train)
    np.testing.assert_allclose(model.score_samples(bad), detector().fit(train).score_samples(bad), rtol=1e-6)
    np.testing.assert_allclose(detector().fit(list(X), list(y)).score_samples(bad), model.score_samples(bad))
    # `groups` has one value per image of X, also for the anomalous images that fit leaves out.
    groups = np.array([9, 0, 0, *range(1, 9)])
    grouped, expected = detector().fit(X, y, groups=groups), detector().fit(train, groups=groups[1:])
    np.testing.assert_array_equal(grouped.calibration_scores_, expected.calibration_scores_)
    features = extractor().transform(X)
    features[3] = np.nan
    with pytest.raises(ValueError, match="patch features of image 3 hold NaN"):
        PatchCoreDetector("precomputed").fit(features, y)
    with pytest.raises(ImageError, match="image 5:") as caught:
        detector().fit([*X[:5], X[5] * np.nan, *X[6:]], y)
    assert caught.value.index == 5


@pytest.mark.parametrize(
    "y",
    [[0] * 5 + [1] * 5, [True] * 5 + [False] * 5, ["good"] * 9 + ["bad"], [1] * 9 + [2], [1] * 9 + [-1.5]],
)
def test_fit_refuses_labels_of_another_convention(parts, y):
    with pytest.raises(ValueError, match=r"convention is \+1 for good and -1 for anomalous"):
        detector().fit(parts[0], y)


def test_fit_on_a_table_ignores_other_labels_with_a_warning():
    table = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.warns(UserWarning, match="labels of a table are ignored"):
        model = PatchCoreDetector("precomputed").fit(table, [0, 1] * 10)
    assert len(model.calibration_scores_) == 20


def test_fit_refuses_labels_without_a_good_image_or_of_another_length(parts):
    with pytest.raises(ValueError, match="no good image"):
        detector().fit(parts[0], [-1] * 10)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        detector().fit(parts[0], [1, -1])


@pytest.mark.parametrize(
    "stages",
    [
        {"index": "exact"},
        {"index": "pynndescent"},
        {"index": ExactIndex()},
        {"index": PyNNDescentIndex(n_neighbors=10)},
        {"index": NearestNeighbors()},
        {"sampler": GreedyCoresetSampler(0.5)},
        {"sampler": RandomSampler(0.5)},
        {"sampler": Nystroem(n_components=60)},
    ],
    ids=str,
)
def test_each_stage_can_be_replaced(parts, stages):
    train, good, bad = parts
    model = detector(**stages).fit(train)
    assert model.predict(bad).tolist() == [-1]
    assert model.score_samples(bad) < model.score_samples(good).min()
    assert np.isfinite(model.calibration_scores_).all()


def test_any_stateless_transformer_can_be_the_extractor(parts):
    def blocks(X):
        return np.stack([x.reshape(6, 8, 8, 8, 3).mean(axis=(1, 3)) for x in X])

    train, _, bad = parts
    model = PatchCoreDetector(FunctionTransformer(blocks), random_state=0).fit(train)
    assert model.predict(bad).tolist() == [-1]
    assert model.segment(bad).shape == (1, 48, 64)


def test_precomputed_features_give_the_same_scores_as_images(parts):
    train, good, bad = parts
    X = np.concatenate([good, bad])
    direct = detector().fit(train)
    piped = make_pipeline(extractor(), PatchCoreDetector("precomputed", random_state=0)).fit(train)
    np.testing.assert_allclose(piped.score_samples(X), direct.score_samples(X), rtol=1e-5)
    np.testing.assert_array_equal(piped.predict(X), direct.predict(X))
    assert piped[-1].segment(extractor().transform(X)).shape == (5, 6, 8)
    with pytest.raises(ValueError, match="5 channels, but the memory bank has 384"):
        piped[-1].score_samples(np.zeros((1, 2, 2, 5)))


def test_table_has_one_patch_per_image():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b", "c"])
    model = PatchCoreDetector("precomputed", n_neighbors=1, sampler=GreedyCoresetSampler(1.0)).fit(X)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    expected = -cdist([[9.0, 9.0, 9.0]], X).min()
    far = pd.DataFrame([[9.0, 9.0, 9.0]], columns=X.columns)
    assert model.score_samples(far)[0] == pytest.approx(expected)
    assert model.predict(far).tolist() == [-1]


def test_fit_refuses_stages_that_violate_the_protocol(parts):
    flat = FunctionTransformer(lambda X: np.zeros((len(X) * 3, 4)))
    with pytest.raises(ValueError, match="features of 30 images for 10"):
        PatchCoreDetector(flat).fit(parts[0])
    with pytest.raises(ValueError, match="no component_indices_"):
        detector(sampler=KMeans(3, n_init=1)).fit(parts[0])


def test_grids_in_any_container_give_the_same_scores(parts):
    features = extractor().transform(parts[0])
    expected = PatchCoreDetector("precomputed", random_state=0).fit(features).score_samples(features[:2])
    ragged = np.empty(10, object)
    ragged[:] = list(features)
    for X in (list(features), tuple(features), ragged, pd.Series(list(features)), torch.from_numpy(features)):
        model = PatchCoreDetector("precomputed", random_state=0).fit(X)
        np.testing.assert_allclose(model.score_samples(X[:2]), expected, rtol=1e-6)


def test_refit_can_switch_between_table_and_grids(parts):
    features, table = extractor().transform(parts[0]), np.random.default_rng(0).normal(size=(20, 3))
    model = PatchCoreDetector("precomputed").fit(table)
    model.fit(features).score_samples(features)
    assert not hasattr(model, "n_features_in_")
    model.fit(table).score_samples(table)


@pytest.mark.parametrize(
    "X", [None, 5, "part.png", Image.new("L", (64, 64)), {"a.png": 1}], ids=["None", "int", "str", "PIL image", "dict"]
)
def test_methods_refuse_input_that_is_not_a_sequence_of_images(fitted, X):
    for method in (detector().fit, fitted.score_samples, fitted.segment):
        with pytest.raises(ValueError, match="X is"):
            method(X)


def test_smoothing_is_in_pixels_of_the_network_input(parts):
    train, _, bad = parts
    halved = extractor(image_size=(24, 16))
    model = detector(extractor=halved, smoothing=1.5).fit(train)
    grid = PatchCoreDetector("precomputed", random_state=0).fit(halved.transform(train)).segment(halved.transform(bad))
    # The height 48 is resized to 24, and the width 64 to 16. Therefore sigma 1.5 in pixels of the network's input is
    # (3, 6) in pixels of the image.
    np.testing.assert_allclose(model.segment(bad)[0], anomaly_map(grid[0], (48, 64), None, (3.0, 6.0)), rtol=1e-4)


def test_stages_take_the_seed_of_the_detector(parts):
    model = detector(index="pynndescent", random_state=3).fit(parts[0])
    again = detector(index="pynndescent", random_state=3).fit(parts[0])
    assert model.index_.seed_ == again.index_.seed_
    assert model.sampler_.random_state == again.sampler_.random_state is not None
    own = detector(sampler=GreedyCoresetSampler(random_state=7), random_state=3).fit(parts[0])
    assert own.sampler_.random_state == 7


def test_parameters_of_default_stages_can_be_set_and_searched(parts):
    model = PatchCoreDetector().set_params(
        extractor__backbone="resnet18", sampler__ratio=0.5, index__device="cpu", extractor__patch_size=1
    )
    assert (model.extractor.backbone, model.extractor.patch_size) == ("resnet18", 1)
    assert (model.sampler.ratio, model.index.device) == (0.5, "cpu")
    assert PatchCoreDetector(index="pynndescent").set_params(index__epsilon=0.2).index.epsilon == 0.2
    assert PatchCoreDetector().set_params(index="pynndescent", index__n_neighbors=9).index.n_neighbors == 9
    with pytest.raises(ValueError, match="Invalid parameter"):
        PatchCoreDetector().set_params(sampler__speed=3)

    train, good, bad = parts
    X, y = np.concatenate([train[:6], bad, good, bad]), np.array([1] * 6 + [-1] + [1] * 4 + [-1])
    search = GridSearchCV(
        PatchCoreDetector(random_state=0).set_params(
            extractor__backbone="resnet18", extractor__weights=None, extractor__image_size=48, extractor__crop_size=48
        ),
        {"extractor__patch_size": [1, 3], "sampler__ratio": [0.05, 0.1]},
        scoring="roc_auc",
        cv=StratifiedKFold(2),
    ).fit(X, y)
    assert search.best_score_ == 1.0
    assert (search.best_estimator_.bank_image_indices_ != 6).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"extractor": "resnet18"}, "extractor"),
        ({"sampler": 0.1}, "sampler"),
        ({"index": "faiss"}, "index"),
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"contamination": 0.6}, "contamination"),
        ({"contamination": 0.0}, "contamination"),
        ({"calibration": "in-sample"}, "calibration"),
        ({"smoothing": -1}, "smoothing"),
        ({"random_state": "seed"}, "random_state"),
    ],
)
def test_fit_refuses_parameters_out_of_range(parts, parameters, message):
    with pytest.raises(ValueError, match=f"'{message}' parameter"):
        detector(**parameters).fit(parts[0])


def test_unreadable_image_raises_an_error_with_its_index(fitted, parts, tmp_path):
    good = parts[1][0]
    for method in (fitted.score_samples, fitted.predict, fitted.segment, detector().fit):
        with pytest.raises(ImageError, match=r"image 1 \(.*gone.png\): no such file"):
            method([good, str(tmp_path / "gone.png"), good])
        with pytest.raises(ImageError, match="image 2: holds NaN"):
            method([good, good, good * np.nan])


def test_unfitted_detector_raises_not_fitted_error(parts):
    failed = PatchCoreDetector("precomputed")
    with pytest.raises(ValueError, match="no good image"):
        failed.fit(np.zeros((3, 2)), [-1, -1, -1])
    for method in ("score_samples", "predict", "decision_function", "segment"):
        with pytest.raises(NotFittedError):
            getattr(detector(), method)(parts[0])
        with pytest.raises(NotFittedError):
            getattr(failed, method)(np.zeros((3, 2)))


def test_failed_fit_keeps_the_old_model(parts):
    model = detector().fit(parts[0])
    expected = model.score_samples(parts[2])
    with pytest.raises(ImageError):
        model.fit([parts[0][0], "gone.png"])
    np.testing.assert_array_equal(model.score_samples(parts[2]), expected)


def test_clone_of_a_fitted_detector_is_unfitted(fitted):
    copy = clone(fitted)
    assert not hasattr(copy, "memory_bank_")
    assert copy.extractor.backbone == "resnet18"


def test_repr_of_a_fitted_detector_works(fitted):
    assert "TorchFeatureExtractor" in fitted._repr_html_()
    assert "PatchCoreDetector" in repr(fitted)
    dir(fitted)


def tensors_in(value, seen=None):
    """Return whether a pickle of `value` would contain a torch object."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return False
    seen.add(id(value))
    if type(value).__module__.startswith("torch"):
        return True
    if isinstance(value, dict):
        return any(tensors_in(v, seen) for v in value.values())
    if isinstance(value, list | tuple):
        return any(tensors_in(v, seen) for v in value)
    return hasattr(value, "__dict__") and not isinstance(value, type) and tensors_in(vars(value), seen)


@pytest.mark.parametrize("index", ["exact", "pynndescent"])
@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_pickled_detector_gives_identical_scores(tmp_path, parts, index, mmap_mode):
    train, good, bad = parts
    X = np.concatenate([good, bad])
    np.save(tmp_path / "X.npy", X)
    model = detector(index=index, sampler=GreedyCoresetSampler(0.5)).fit(train)
    expected = model.score_samples(X)
    joblib.dump(model, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib", mmap_mode=mmap_mode)
    np.testing.assert_array_equal(loaded.score_samples(X), expected)
    assert loaded.sampler_.components_ is loaded.memory_bank_
    assert not tensors_in(model)
    if mmap_mode:
        return
    code = (
        "import sys, joblib, numpy as np; folder = sys.argv[1]; "
        "model = joblib.load(folder + '/model.joblib'); X = np.load(folder + '/X.npy'); "
        "np.save(folder + '/scores.npy', model.score_samples(X)); np.save(folder + '/maps.npy', model.segment(X))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "maps.npy"), model.segment(X))


def test_pickle_contains_the_bank_once(tmp_path, parts):
    model = detector(sampler=GreedyCoresetSampler(1.0)).fit(parts[0])
    joblib.dump(model, tmp_path / "model.joblib")
    assert (tmp_path / "model.joblib").stat().st_size < 1.2 * model.memory_bank_.nbytes


def test_float16_bank_halves_the_pickle(tmp_path, parts):
    exact, halved = (
        detector(sampler=GreedyCoresetSampler(1.0), index=ExactIndex(storage=storage)).fit(parts[0])
        for storage in (None, "float16")
    )
    X = np.concatenate(parts[1:])
    np.testing.assert_allclose(halved.score_samples(X), exact.score_samples(X), rtol=2e-3)
    assert halved.predict(parts[2]).tolist() == [-1]
    joblib.dump(halved, tmp_path / "model.joblib")
    assert (tmp_path / "model.joblib").stat().st_size < 0.6 * exact.memory_bank_.nbytes
    loaded = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(loaded.score_samples(X), halved.score_samples(X))
    assert loaded.sampler_.components_ is loaded.memory_bank_


def test_progress_is_shown_only_with_verbose(capsys, parts):
    detector().fit(parts[0]).score_samples(parts[1])
    assert capsys.readouterr().err == ""
    detector(verbose=1).fit(parts[0]).score_samples(parts[1])
    shown = capsys.readouterr().err
    for task in ("extracting features", "selecting the coreset", "calibrating", "scoring"):
        assert task in shown


def test_real_images_and_real_weights_separate_good_from_defective(hazelnut):
    from skpatchcore import load_image_folder

    folder = load_image_folder(hazelnut)
    model = PatchCoreDetector(
        TorchFeatureExtractor("efficientnet_lite0", image_size=128, crop_size=None),
        sampler=GreedyCoresetSampler(0.02),
        random_state=0,
    ).fit(folder.train_paths)
    scores = model.score_samples(folder.test_paths)
    assert scores[folder.test_labels == -1].max() < scores[folder.test_labels == 1].min() + 1e-9
    assert model.segment(folder.test_paths[:1]).shape == (1, 512, 512)


@pytest.mark.cuda
def test_a_detector_fitted_on_cuda_scores_the_same_on_the_cpu(parts):
    model = detector(extractor=extractor(device="cuda"), index=ExactIndex(device="cuda")).fit(parts[0])
    expected = model.score_samples(parts[1])
    model.extractor_.device = model.index_.device = "cpu"
    np.testing.assert_allclose(model.score_samples(parts[1]), expected, rtol=1e-2)
