"""Tests of MultiLightDetector: parts are lists of aligned images, and each part is one sample."""

from __future__ import annotations

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate

from skpatchcore import DriftMonitor, ImageError, ImageWarning, MultiLightDetector, PatchCoreEnsemble, load, save
from skpatchcore.cli.main import main
from tests.factories import detector, extractor

METHODS = ("score_samples", "decision_function", "predict", "p_values", "segment", "predict_mask")


def lights_of(images, n_lights=3, seed=0):
    """Return parts of shape (n, n_lights, h, w, c): each light is another brightness with its own noise."""
    rng = np.random.default_rng(seed)
    shown = [images * (1 - 0.2 * light) + rng.normal(0, 0.02, images.shape) for light in range(n_lights)]
    return np.stack(shown, axis=1).clip(0, 1)


@pytest.fixture(scope="module")
def sets(parts):
    """Return good training parts, good parts and parts with a spot under the last light only."""
    train, good, bad = (lights_of(images, seed=seed) for seed, images in enumerate(parts))
    bad[:, :2] = good[:1, :2]
    return train, good, bad


@pytest.fixture(scope="module")
def fitted(sets):
    return MultiLightDetector(detector()).fit(sets[0])


@pytest.fixture
def files(sets, tmp_path):
    """Return paths of the good parts: a list of lists."""
    found = []
    for i, part in enumerate(sets[1]):
        paths = [str(tmp_path / f"{i}_{light}.png") for light in range(len(part))]
        for path, pixels in zip(paths, part, strict=True):
            Image.fromarray((pixels * 255).round().astype(np.uint8)).save(path)
        found.append(paths)
    return found


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_scores_and_maps_combine_the_standardised_values_of_the_lights(sets, aggregate):
    train, good, bad = sets
    X = np.concatenate([good, bad])
    model = MultiLightDetector(detector(), aggregate=aggregate).fit(train)
    scores, maps = [], []
    for light in range(3):
        own = detector().fit(train[:, light])
        known, peaks = -own.calibration_scores_, own.calibration_peaks_
        scores.append((-own.score_samples(X[:, light]) - known.mean()) / known.std())
        maps.append((own.segment(X[:, light]) - peaks.mean()) / peaks.std())
    over_lights = {"max": np.max, "mean": np.mean}[aggregate]
    np.testing.assert_allclose(-model.score_samples(X), over_lights(scores, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.segment(X), over_lights(maps, axis=0), rtol=1e-3, atol=1e-3)
    assert len(model.calibration_scores_) == len(train)
    assert (model.n_lights_, len(model.estimators_)) == (3, 3)


def test_a_defect_under_one_light_is_found_by_all_methods(fitted, sets):
    _, good, bad = sets
    X = np.concatenate([good, bad])
    assert fitted.predict(X).tolist()[-1] == -1
    assert fitted.p_values(bad).tolist() == [1 / 11]
    assert fitted.predict_mask(bad)[0, 16:28, 20:34].mean() > 0.5
    assert (fitted.regions(X)["image"] == 4).any()
    scores, maps = fitted.score_and_segment(X)
    assert (scores.shape, maps.shape) == ((5,), (5, 48, 64))
    np.testing.assert_allclose(scores, fitted.score_samples(X))
    results = list(fitted.iter_results(X))
    assert [result.label for result in results] == fitted.predict(X).tolist()
    np.testing.assert_allclose([result.score for result in results], scores)
    endless = iter([list(part) for part in X])
    assert [r.label for r in fitted.iter_results(endless, chunk_size=2)] == [result.label for result in results]


FORMS = {
    "lists of arrays": lambda parts: [list(part) for part in parts],
    "tuples": lambda parts: tuple(tuple(part) for part in parts),
    "4-D arrays": list,
    "tensor": lambda parts: torch.from_numpy(parts).movedim(-1, 2),
    "iterator": lambda parts: iter([list(part) for part in parts]),
    "series": lambda parts: pd.Series([list(part) for part in parts], index=range(5, 5 + len(parts))),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_parts_give_the_same_scores(fitted, sets, form):
    np.testing.assert_allclose(
        fitted.score_samples(FORMS[form](sets[1])), fitted.score_samples(sets[1]), rtol=1e-4, atol=1e-5
    )


def test_paths_tables_and_arrays_of_paths_give_the_same_scores(fitted, files):
    expected = fitted.score_samples([[np.asarray(Image.open(path)) for path in part] for part in files])
    table = pd.DataFrame(files, columns=["left", "right", "top"], index=range(7, 11))
    for X in (files, table, np.array(files), np.array(files, dtype=object)):
        np.testing.assert_allclose(fitted.score_samples(X), expected, rtol=1e-5)
    np.testing.assert_allclose([r.score for r in fitted.iter_results(table)], expected, rtol=1e-5)
    again = MultiLightDetector(detector()).fit(table.iloc[[0, 1, 2, 3, 0, 1, 2]], groups=[0, 1, 2, 3, 0, 1, 2])
    assert again.estimators_[1].training_paths_[0] == files[0][1]


def test_parts_of_different_sizes_have_maps_of_their_own_sizes(sets):
    train, good, _ = sets
    X = [part[:, :40] if i % 2 else part for i, part in enumerate(good)]
    maps = MultiLightDetector(detector()).fit([*train, *X]).segment(X)
    assert [anomaly_map.shape for anomaly_map in maps] == [part.shape[1:3] for part in X]


def test_fit_predict_recalibrate_and_labels_work_per_part(sets):
    train, good, bad = sets
    X, y = np.concatenate([train, bad]), [1] * 10 + [-1]
    for form in (X, [list(part) for part in X]):
        assert MultiLightDetector(detector()).fit_predict(form, y).tolist()[-1] == -1
    assert MultiLightDetector(detector(), contamination=0.2).fit_predict(X).tolist()[-1] == -1
    model = MultiLightDetector(detector()).fit(X, y)
    assert len(model.calibration_scores_) == 10
    model.recalibrate(good, contamination=0.3)
    assert len(model.calibration_scores_) == 4
    assert model.calibration_plan_ == "other good images"
    assert model.predict(bad).tolist() == [-1]
    with pytest.warns(UserWarning, match="contamination has no effect"):
        model.set_params(contamination=0.4)


def test_groups_are_used_and_routed(sets):
    train = sets[0]
    groups = np.repeat(np.arange(5), 2)
    calls = MultiLightDetector(detector(calibration=5)).fit(train, groups=groups)
    assert calls.calibration_scores_.shape == (10,)
    with pytest.raises(ValueError, match="group"):
        MultiLightDetector(detector()).fit(train, groups=np.zeros(10))
    with config_context(enable_metadata_routing=True):
        model = MultiLightDetector(detector()).set_fit_request(groups=True)
        found = cross_validate(
            model, train, cv=GroupKFold(2), params={"groups": groups}, scoring=lambda model, X, y=None: model.offset_
        )
    assert len(found["test_score"]) == 2


def test_errors_name_the_part_the_light_and_the_path(fitted, sets, files):
    broken = [list(part) for part in files]
    open(broken[2][1], "wb").close()
    for call in (MultiLightDetector(detector()).fit, fitted.predict, lambda X: list(fitted.iter_results(X))):
        with pytest.raises(ImageError, match="light 1 of the part") as caught:
            call(broken)
        assert (caught.value.index, caught.value.path) == (2, broken[2][1])


def test_flagged_parts_are_anomalous_and_others_are_unchanged(fitted, files, tmp_path):
    expected = fitted.score_samples(files)
    small = str(tmp_path / "small.png")
    Image.new("RGB", (20, 20)).save(small)
    faults = {"unreadable": [files[0][0], "gone.png", files[0][2]], "incomplete": files[0][:2], "empty": [],
              "not aligned": [*files[0][:2], small], "missing": None, "single path": files[0][0]}  # fmt: skip
    X = [files[0], *faults.values(), *files[1:]]
    good = [0, *range(1 + len(faults), len(X))]
    with pytest.warns(ImageWarning, match=f"{len(faults)} images could not be scored") as caught:
        scores, maps = fitted.score_and_segment(X, on_error="flag")
    assert [failure.index for failure in caught[0].message.failures] == [*range(1, 1 + len(faults))]
    assert np.flatnonzero(~np.isnan(scores)).tolist() == good
    np.testing.assert_allclose(scores[good], expected, rtol=1e-5)
    assert [i for i, anomaly_map in enumerate(maps) if anomaly_map is not None] == good
    with pytest.warns(ImageWarning):
        assert (fitted.predict(X, on_error="flag")[1 : 1 + len(faults)] == -1).all()
    results = list(fitted.iter_results(iter(X), on_error="flag", chunk_size=3))
    assert [result.error.index for result in results if result.error] == [*range(1, 1 + len(faults))]
    np.testing.assert_allclose([results[i].score for i in good], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part[:2], "the part has 2 images, expected 3 as in"),
        (lambda part: [*part[:2], part[2][:40]], "light 2 of the part has 40×64 pixels, and light 0 has 48×64"),
        (lambda part: part[0], "the part is of type ndarray of shape .48, 64, 3., expected a list of images"),
    ],
)
def test_parts_that_are_unlike_others_are_refused(fitted, sets, change, message):
    X = [list(part) for part in sets[1]]
    X[1] = change(X[1])
    for call in (MultiLightDetector(detector()).fit, fitted.predict, fitted.segment):
        with pytest.raises(ImageError, match=f"image 1.*{message}"):
            call(X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([], "no parts"),
        (np.zeros((4, 8, 8, 3)), "the lights are the channels"),
        ("a.png", "type str"),
        (Image.new("RGB", (4, 4)), "type Image"),
        (["a.png", "b.png"], "expected a list of images, one per light"),
        ([[], []], "no images"),
    ],
)
def test_fit_refuses_other_forms(X, message):
    with pytest.raises(ValueError, match=message):
        MultiLightDetector(detector()).fit(X)


def test_fit_refuses_other_estimators_and_lights_calibrated_on_different_parts(sets):
    with pytest.raises(ValueError, match="'estimator' parameter"):
        MultiLightDetector(extractor()).fit(sets[0])
    with pytest.raises(ValueError, match="'light 0' has too few calibration scores"):
        MultiLightDetector(detector(calibration=None)).fit(sets[0])
    held_out = MultiLightDetector(detector(calibration=0.5)).fit(sets[0])
    assert len(held_out.calibration_scores_) == 5
    differing = MultiLightDetector(detector(calibration=0.5, random_state=np.random.RandomState(0))).fit(sets[0])
    assert len(differing.calibration_scores_) == 5  # clones of a RandomState draw the same numbers


def test_failed_fit_keeps_the_earlier_model(sets):
    train, good, _ = sets
    model = MultiLightDetector(detector()).fit(train)
    before = model.score_samples(good)
    with pytest.raises(ImageError):
        model.fit([*train, good[0, :2]])
    np.testing.assert_array_equal(model.score_samples(good), before)


def test_detector_can_be_cloned_saved_shown_and_searched(fitted, sets, tmp_path):
    train, good, bad = sets
    X = np.concatenate([good, bad])
    copy = clone(fitted)
    assert not hasattr(copy, "estimators_")
    copy.set_params(estimator__n_neighbors=3, aggregate="mean")
    assert copy.get_params()["estimator__n_neighbors"] == 3
    save(fitted, tmp_path / "lights.skops")
    joblib.dump(fitted, tmp_path / "lights.joblib")
    for loaded in (load(tmp_path / "lights.skops"), joblib.load(tmp_path / "lights.joblib")):
        assert set(vars(loaded)) == set(vars(fitted))
        for name in METHODS:
            np.testing.assert_array_equal(getattr(loaded, name)(X), getattr(fitted, name)(X))
    assert "light 2" in fitted._repr_html_()
    assert "one per light" in copy._repr_html_()
    search = GridSearchCV(
        MultiLightDetector(detector()),
        {"estimator__n_neighbors": [1, 9]},
        cv=[(np.arange(8), np.array([8, 9, 10]))],
        scoring=lambda model, X, y: float((model.predict(X) == y).mean()),
    ).fit(np.concatenate([train, bad]), [1] * 10 + [-1])
    assert search.best_estimator_.n_lights_ == 3


def test_lights_can_be_ensembles_and_precomputed_features(sets):
    train, good, bad = sets
    members = PatchCoreEnsemble([("a", detector()), ("b", detector(n_neighbors=1))])
    assert MultiLightDetector(members).fit(train).predict(bad).tolist() == [-1]
    grids = [
        np.stack([extractor().transform(images[:, light]) for light in range(3)], axis=1) for images in (train, good)
    ]
    model = MultiLightDetector(detector(extractor="precomputed")).fit(grids[0])
    assert model.segment(grids[1]).shape == (4, 6, 8)
    expected = MultiLightDetector(detector()).fit(train).score_samples(good)
    np.testing.assert_allclose(model.score_samples(grids[1]), expected, rtol=1e-4)


def test_drift_monitor_compares_the_scores_of_parts(fitted, sets):
    monitor = DriftMonitor(fitted).update(sets[1])
    assert (monitor.channels_, monitor.n_seen_) == (["scores"], 4)


def test_commands_never_report_single_images_as_normal(fitted, files, tmp_path, capsys):
    save(fitted, tmp_path / "lights.skops")
    assert main(["predict", str(tmp_path / "lights.skops"), *files[0], "-o", str(tmp_path / "out")]) == 1
    assert "expected a list of images, one per light" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "out" / "scores.csv")["label"]) == {-1}
