from __future__ import annotations

import math
import pickle
from copy import copy

import numpy as np
import pytest
from PIL import Image

from skpatchcore import DriftMonitor, ImageWarning, PatchCoreDetector, PatchCoreEnsemble, load, save
from skpatchcore.calibration.whole_images import fit_whole_images
from skpatchcore.patches.embedding import N_COLUMNS, embeddings_of, recorded_embeddings
from skpatchcore.patches.patches import Patches
from tests.factories import detector as small_detector

ATTRIBUTES = ("alarm_", "alarm_image_", "alarm_channel_", "n_seen_", "n_unreadable_")


def grids(seed, n_images, shift=0.0):
    return np.random.default_rng(seed).random((n_images, 3, 3, 6)) + shift


@pytest.fixture(scope="module")
def fitted():
    return PatchCoreDetector("precomputed", calibration=0.4, random_state=0).fit(grids(0, 80))


@pytest.fixture(scope="module")
def of_images(parts):
    return small_detector().fit(parts[0])


def assert_same(one, other):
    np.testing.assert_array_equal(one.log_evidence_, other.log_evidence_)
    assert [getattr(one, name) for name in ATTRIBUTES] == [getattr(other, name) for name in ATTRIBUTES]


def test_good_images_raise_no_alarm_and_drifted_images_do(fitted):
    monitor = DriftMonitor(fitted).update(grids(1, 60))
    assert (monitor.alarm_, monitor.alarm_image_, monitor.alarm_channel_) == (False, None, None)
    assert monitor.describe() == "No drift found in 60 images."
    monitor.update(grids(2, 60, shift=0.3))
    assert monitor.alarm_
    assert 65 <= monitor.alarm_image_ < 100
    assert monitor.alarm_channel_ in ("scores", "embedding")
    assert monitor.describe().startswith(f"Drift found after {monitor.alarm_image_ + 1} images: the ")
    assert (
        monitor.log_evidence_[monitor.alarm_image_] >= math.log(100) > monitor.log_evidence_[monitor.alarm_image_ - 1]
    )
    first = monitor.alarm_image_
    assert monitor.update(grids(3, 20)).alarm_image_ == first
    assert len(monitor.log_evidence_) == monitor.n_seen_ == 140
    assert not monitor.reset().alarm_
    assert len(monitor.log_evidence_) == 0


def test_images_one_by_one_give_the_result_of_a_batch(fitted):
    X = np.concatenate([grids(1, 10), grids(2, 30, shift=0.3)])
    at_once, one_by_one = DriftMonitor(fitted).update(X), DriftMonitor(fitted)
    for image in X:
        one_by_one.update(image[None])
    assert_same(at_once, one_by_one)
    assert at_once.alarm_


def test_scores_one_by_one_give_the_result_of_a_batch(fitted):
    scores = np.append(np.random.default_rng(0).normal(-3, 1, 30), [np.nan, -9, -9])
    at_once, one_by_one = DriftMonitor(fitted).update_scores(scores), DriftMonitor(fitted)
    for score in scores:
        one_by_one.update_scores([score])
    assert_same(at_once, one_by_one)
    assert_same(at_once, DriftMonitor(fitted).update_scores(scores.tolist()))


def test_a_pickled_monitor_continues_with_the_same_result(fitted):
    monitor = DriftMonitor(fitted).update(grids(1, 20))
    other = pickle.loads(pickle.dumps(monitor))
    assert_same(monitor.update(grids(2, 20, 0.2)), other.update(grids(2, 20, 0.2)))


def test_random_state_of_a_generator_is_used_without_sharing_it(fitted):
    rng = np.random.RandomState(5)
    first, second = DriftMonitor(fitted, random_state=rng), DriftMonitor(fitted, random_state=np.random.RandomState(5))
    rng.random_sample(3)
    assert_same(first.update(grids(1, 10)), second.update(grids(1, 10)))


def test_false_alarms_on_exchangeable_images_are_at_most_alpha(fitted):
    rng, highest = np.random.default_rng(0), []
    one = copy(fitted)
    for number in range(60):
        values = rng.normal(size=(150, 6))
        one.calibration_scores_, one.embeddings_ = values[:50, 0], values[:50, 1:]
        log = recorded_of(values[50:, 1:])
        monitor = DriftMonitor(one, random_state=number).update_scores(values[50:, 0], log)
        highest.append(monitor.log_evidence_.max())
    for alpha in (0.05, 0.2):
        assert np.mean(np.array(highest) >= -math.log(alpha)) <= alpha + 3 * math.sqrt(alpha / 60)


def recorded_of(embeddings):
    with recorded_embeddings() as log:
        log.add(Patches(embeddings, np.ones((len(embeddings), 2), int)), np.arange(len(embeddings)))
    return log


def test_a_few_defective_images_in_a_row_raise_no_alarm_but_many_do(fitted):
    for with_embeddings in (False, True):
        defective = grids(4, 40, shift=50)
        monitor = DriftMonitor(fitted)
        scores = fitted.score_samples(defective)
        monitor = monitor.update(defective) if with_embeddings else monitor.update_scores(scores)
        assert 8 <= monitor.alarm_image_ < 20


def test_defective_images_below_the_defect_rate_raise_no_alarm(fitted):
    rng = np.random.default_rng(0)
    scores = np.where(rng.random(1500) < 0.1, -1e9, rng.choice(fitted.calibration_scores_, 1500))
    assert not DriftMonitor(fitted, defect_rate=0.15).update_scores(scores).alarm_


def test_lower_anomaly_scores_are_no_drift(fitted):
    assert not DriftMonitor(fitted).update_scores(np.zeros(100)).alarm_


def test_unreadable_images_are_counted_and_not_compared(fitted):
    scores = np.random.default_rng(0).normal(-3, 1, 10)
    plain, gaps = DriftMonitor(fitted).update_scores(scores), DriftMonitor(fitted)
    gaps.update_scores(np.insert(scores, [0, 5], np.nan))
    assert (gaps.n_seen_, gaps.n_unreadable_) == (12, 2)
    assert "2 images could not be read and were not compared" in gaps.describe()
    np.testing.assert_array_equal(np.delete(gaps.log_evidence_, [0, 6]), plain.log_evidence_)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": 0}, "alpha=0: expected a probability"),
        ({"alpha": 1.0}, "alpha=1.0: expected"),
        ({"alpha": math.nan}, "alpha=nan: expected"),
        ({"defect_rate": 0.6}, "defect_rate=0.6: expected a fraction"),
        ({"defect_rate": -0.1}, "defect_rate=-0.1: expected"),
    ],
)
def test_monitor_refuses_invalid_parameters(fitted, parameters, message):
    with pytest.raises(ValueError, match=message):
        DriftMonitor(fitted, **parameters)


def test_monitor_refuses_invalid_scores(fitted):
    with pytest.raises(ValueError, match=r"shape \(2, 1\): expected one score per image"):
        DriftMonitor(fitted).update_scores([[1.0], [2.0]])
    with pytest.raises(ValueError, match="score 1 is infinite"):
        DriftMonitor(fitted).update_scores([-1.0, -np.inf])


def test_monitor_refuses_a_detector_without_anything_to_compare_with():
    few = PatchCoreDetector("precomputed", calibration=None, random_state=0).fit(grids(0, 4))
    with pytest.raises(ValueError, match="nothing to compare new images with"):
        DriftMonitor(few)
    with pytest.raises(ValueError, match="not fitted"):
        DriftMonitor(PatchCoreDetector("precomputed"))


def test_monitor_of_a_detector_without_threshold_compares_embeddings():
    ranking = PatchCoreDetector("precomputed", calibration=None, random_state=0).fit(grids(0, 60))
    monitor = DriftMonitor(ranking)
    assert monitor.channels_ == ["embedding"]
    assert monitor.update(grids(1, 40, 0.4)).alarm_


def test_images_give_brightness_and_contrast(of_images, parts):
    detector, good = of_images, parts[1]
    assert detector.appearances_.shape == (10, 5)
    assert detector.embeddings_.shape == (10, N_COLUMNS)
    monitor = DriftMonitor(detector).update(good)
    assert monitor.channels_ == ["scores", "embedding", "brightness", "contrast"]
    darker = np.tile(good, (6, 1, 1, 1)) * 0.93
    assert monitor.update(darker).alarm_
    table = monitor.summary().set_index("channel")
    assert table.loc["brightness", "change"] == "lower"
    assert table.loc["brightness", "mean_p_value"] > 0.6
    assert "the images are darker" in monitor.describe()


def test_unreadable_files_are_skipped(of_images, parts, tmp_path):
    detector = of_images
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path, image in zip(paths, parts[1], strict=True):
        Image.fromarray((image * 255).astype(np.uint8)).save(path)
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.warns(ImageWarning):
        monitor = DriftMonitor(detector).update(paths)
    assert (monitor.n_seen_, monitor.n_unreadable_) == (4, 1)
    whole = DriftMonitor(detector).update([paths[0], paths[1], paths[3]])
    np.testing.assert_allclose(monitor.log_evidence_[[0, 1, 3]], whole.log_evidence_)
    assert whole.summary()["mean_p_value"].notna().sum() == 3


def test_embeddings_survive_save_and_an_older_model_has_none(of_images, parts, tmp_path):
    detector = of_images
    save(detector, tmp_path / "model.skops")
    loaded = load(tmp_path / "model.skops")
    np.testing.assert_array_equal(loaded.embeddings_, detector.embeddings_)
    np.testing.assert_array_equal(loaded.appearances_, detector.appearances_)
    state = detector.__getstate__()
    del state["embeddings_"], state["appearances_"]
    older = PatchCoreDetector.__new__(PatchCoreDetector)
    older.__setstate__(state)
    monitor = DriftMonitor(older)
    assert monitor.channels_ == ["scores"]
    assert monitor.update(parts[1]).n_seen_ == 4


def test_recalibrate_makes_its_images_the_reference(parts):
    detector = small_detector().fit(parts[0])
    before = detector.embeddings_
    detector.recalibrate(parts[1])
    assert len(detector.embeddings_) == len(detector.appearances_) == 4
    assert len(before) == 10


def test_ensemble_compares_scores_only():
    members = [(name, PatchCoreDetector("precomputed", random_state=i)) for i, name in enumerate("ab")]
    ensemble = PatchCoreEnsemble(members).fit(grids(0, 30))
    monitor = DriftMonitor(ensemble).update(grids(1, 5))
    assert (monitor.channels_, monitor.n_seen_) == (["scores"], 5)


def test_embeddings_do_not_depend_on_the_batch_and_are_in_the_order_of_the_images():
    features = np.random.default_rng(0).random((6, 2, 3, 40)).astype(np.float32)
    whole = embeddings_of(Patches.from_features(features))
    assert whole.shape == (6, N_COLUMNS)
    for i in range(6):
        np.testing.assert_array_equal(embeddings_of(Patches.from_features(features[i : i + 1]))[0], whole[i])
    few = features[..., :5]
    np.testing.assert_allclose(embeddings_of(Patches.from_features(few)), few.mean(axis=(1, 2)), rtol=1e-6)
    detector = PatchCoreDetector("precomputed", calibration=3, random_state=0).fit(features)
    np.testing.assert_array_equal(detector.embeddings_, whole)
    y = [1, -1, 1, 1, 1, 1]
    np.testing.assert_array_equal(detector.fit(features, y).embeddings_, np.delete(whole, 1, axis=0))


def test_whole_images_of_huge_or_constant_embeddings_have_finite_references():
    for embeddings in (np.full((10, 3), 2.5), np.random.default_rng(0).normal(size=(10, 3)) * 1e30):
        whole = fit_whole_images(embeddings.astype(np.float32), np.random.RandomState(0))
        assert np.isfinite(whole.reference).all()
    assert whole.values(np.array([[np.inf, 0, 0]]))[0, 0] == np.inf
