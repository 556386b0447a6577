"""Tests of forget: what a detector has learnt from given training images is removed."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.kernel_approximation import Nystroem

import skpatchcore
from skpatchcore import GreedyCoresetSampler, LearnedProxySampler, PatchCoreDetector, RandomSampler
from tests.factories import CellMeans

pytestmark = pytest.mark.filterwarnings("ignore:contamination=")
N = 50


def grids(n_images=N, seed=0, n_channels=6):
    """Return precomputed patch features: a few kinds of patches with noise, and odd patches in some images."""
    rng = np.random.default_rng(seed)
    kinds = rng.random((12, n_channels))
    X = kinds[rng.integers(0, 12, (n_images, 5, 5))] + rng.normal(0, 0.04, (n_images, 5, 5, n_channels))
    X[::7, 0, 0] += 0.5
    return X.astype(np.float32)


def fitted(X, ratio=0.03, **parameters):
    sampler = GreedyCoresetSampler(ratio, n_projections=None)
    defaults = {"extractor": "precomputed", "sampler": sampler, "random_state": 0, "calibration": None}
    return PatchCoreDetector(**{**defaults, **parameters}).fit(X)


def covering_radius(detector, X):
    """Return the largest distance from a patch to the nearest row of the bank."""
    rows, bank = X.reshape(-1, X.shape[-1]).astype(np.float64), detector.memory_bank_.astype(np.float64)
    return max(np.linalg.norm(bank - row, axis=1).min() for row in rows)


def holds_row_of(detector, X, images):
    """Return whether a patch of one of the images is anywhere in the detector."""
    own = {row.tobytes() for image in images for row in X[image].reshape(-1, X.shape[-1])}
    half = {np.frombuffer(row, np.float32).astype(np.float16).tobytes() for row in own}
    arrays = [detector.memory_bank_, detector.sampler_.components_, detector.index_._fit_X]
    if detector.reserve_rows_ is not None:
        arrays.append(detector.reserve_rows_)
    return any(row.tobytes() in own | half for array in arrays for row in array)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from([0.01, 0.03, 0.2]), st.integers(1, 3))
def test_no_row_is_left_and_the_rest_is_covered(seed, n_forgotten, ratio, n_calls):
    X = grids()
    detector = fitted(X, ratio)
    radius = detector.sampler_.radius_
    gone = np.random.default_rng(seed).choice(N, n_forgotten, replace=False)
    for part in np.array_split(gone, min(n_calls, n_forgotten)):
        detector.forget(part)
    left = np.setdiff1d(np.arange(N), gone)
    assert not holds_row_of(detector, X, gone)
    for name in ("bank_image_indices_", "reserve_image_indices_", "training_image_indices_"):
        assert not np.isin(getattr(detector, name), gone).any()
    assert covering_radius(detector, X[left]) <= radius * 1.01
    fresh = fitted(X[left], ratio)
    assert covering_radius(detector, X[left]) <= 1.05 * max(radius, fresh.sampler_.radius_)
    # Rows know where they come from, also those of the reserve.
    for row, image, (i, j) in zip(
        detector.memory_bank_, detector.bank_image_indices_, detector.bank_positions_, strict=True
    ):
        np.testing.assert_allclose(X[image, i, j], row, atol=2e-3)
    assert len(detector.sampler_.component_indices_) == len(detector.memory_bank_)
    assert len(np.unique(detector.sampler_.component_indices_)) == len(detector.memory_bank_)


def test_reserve_fills_holes_with_few_rows():
    X = grids()
    with_it, without = fitted(X), fitted(X, calibration=None, reserve=False)
    assert without.reserve_rows_ is None
    gone, left = [0, 7, 14, 21], np.setdiff1d(np.arange(N), [0, 7, 14, 21])
    n_bank = len(with_it.memory_bank_)
    with_it.forget(gone)
    with pytest.warns(UserWarning, match="no reserve"):
        without.forget(gone)
    assert len(without.memory_bank_) < len(with_it.memory_bank_) <= n_bank
    assert covering_radius(with_it, X[left]) <= with_it.sampler_.radius_ * 1.01
    assert covering_radius(without, X[left]) > covering_radius(with_it, X[left])


def test_scores_and_images_of_forgotten_images_are_removed():
    X = grids()
    detector = fitted(X, calibration="auto")
    scores, slope, n_bank = detector.calibration_scores_.copy(), detector.calibration_slope_, len(detector.memory_bank_)
    detector.forget([3, 10])
    left = np.setdiff1d(np.arange(N), [3, 10])
    assert detector.calibration_image_indices_.tolist() == left.tolist()
    shrinkage = max(1, min(N / (N - 2), n_bank / len(detector.memory_bank_)))
    np.testing.assert_allclose(detector.calibration_scores_, scores[left] * shrinkage**slope, rtol=1e-6)
    assert len(detector.embeddings_) == N - 2
    assert detector.n_images_seen_ == N
    assert [entry["kind"] for entry in detector.updates_] == ["fit", "forget"]
    assert detector.updates_[1]["n_images"] == 2
    detector.partial_fit(X[:4] + 1)
    assert detector.training_image_indices_.tolist() == [*left, *range(N, N + 4)]
    detector.forget(N + 1)
    assert not (detector.bank_image_indices_ == N + 1).any()


@pytest.mark.filterwarnings("ignore::skpatchcore.SuspectImageWarning")
@pytest.mark.parametrize("share", [None, 0.01])
def test_suspects_and_groups_of_forgotten_images_are_removed(share):
    X = np.random.default_rng(0).random((N, 5, 5, 6), np.float32)
    X[5] += 1
    X[20] += 2
    groups = [f"part {i}" for i in range(N)]
    detector = PatchCoreDetector("precomputed", random_state=0, suspect_share=share).fit(X, groups=groups)
    assert detector.suspect_image_indices_.tolist() == [20, 5]
    scores, slope, n_bank = detector.suspect_scores_, detector.calibration_slope_, len(detector.memory_bank_)
    detector.partial_fit(X[:10] + np.float32(0.01), groups=[f"new part {i}" for i in range(10)])
    growth = max(N / (N + 10), n_bank / len(detector.memory_bank_))
    np.testing.assert_allclose(detector.suspect_scores_, scores * growth**slope, rtol=1e-6)
    known = dict(zip(detector.calibration_image_indices_.tolist(), detector.calibration_scores_, strict=True))
    if share is None:
        np.testing.assert_allclose(detector.suspect_scores_, [known[20], known[5]], rtol=1e-12)
    detector.forget([20, 3])
    assert detector.suspect_image_indices_.tolist() == [5]
    grown = scores[1] * growth**slope
    assert grown * ((N + 10) / (N + 8)) ** slope - 1e-9 <= detector.suspect_scores_[0] <= grown
    expected = [None if i in (3, 20) else group for i, group in enumerate(groups)]
    assert detector.training_groups_ == [*expected, *(f"new part {i}" for i in range(10))]
    detector.forget(5)
    assert len(detector.suspect_image_indices_) == len(detector.suspect_scores_) == 0


def test_forgetting_new_images_restores_the_thresholds():
    X = grids()
    detector = fitted(X[:40], calibration="auto")
    offset, pixel_offset = detector.offset_, detector.pixel_offset_
    detector.partial_fit(X[40:]).forget(range(40, N))
    assert detector.offset_ == pytest.approx(offset, rel=1e-6)
    assert detector.pixel_offset_ == pytest.approx(pixel_offset, rel=1e-6)


def test_forget_works_after_load_with_the_same_result(tmp_path):
    X = grids()
    detector = fitted(X)
    skpatchcore.save(detector, tmp_path / "model.skops")
    loaded = skpatchcore.load(tmp_path / "model.skops").forget([1, 2, 3])
    detector.forget([1, 2, 3])
    assert loaded.memory_bank_.tobytes() == detector.memory_bank_.tobytes()
    assert loaded.score_samples(X[:5]).tolist() == detector.score_samples(X[:5]).tolist()
    skpatchcore.save(loaded, tmp_path / "model.skops")
    assert not holds_row_of(skpatchcore.load(tmp_path / "model.skops"), X, [1, 2, 3])


def of_images(X, **parameters):
    return PatchCoreDetector(
        CellMeans(), sampler=GreedyCoresetSampler(0.1), random_state=0, calibration=5, **parameters
    ).fit(X)


def test_images_are_named_by_path(tmp_path, monkeypatch):
    X = np.random.default_rng(0).integers(0, 256, (12, 32, 40, 3), np.uint8)
    paths = [str(tmp_path / f"{i}.png") for i in range(12)]
    for path, image in zip(paths, X, strict=True):
        Image.fromarray(image).save(path)
    detector = of_images(paths)
    monkeypatch.chdir(tmp_path)
    detector.forget(["3.png", paths[5]])
    assert detector.training_paths_ == [None if i in (3, 5) else path for i, path in enumerate(paths)]
    assert detector.updates_[-1]["paths"] == [paths[3], paths[5]]
    assert not np.isin(detector.bank_image_indices_, [3, 5]).any()
    with pytest.raises(ValueError, match=r"3\.png"):
        detector.forget("3.png")
    detector.partial_fit(["3.png"])  # a forgotten image can be added again
    assert detector.training_image_indices_[-1] == 12
    detector.forget("3.png")
    assert 12 not in detector.training_image_indices_


def test_appearance_of_a_forgotten_image_does_not_count():
    X = np.random.default_rng(0).integers(100, 150, (12, 32, 40, 3), np.uint8)
    X[4] = 255
    of_views = PatchCoreDetector(
        skpatchcore.TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None),
        random_state=0, calibration=None,
    ).fit(list(X))  # fmt: skip
    assert of_views.appearance_range_[1].max() == 1
    of_views.forget(4)
    assert of_views.appearance_range_[1].max() < 1
    assert len(of_views.appearances_) == 11


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (N, "unknown"),
        (-1, "unknown"),
        ("none.png", "none.png"),
        ([], "empty"),
        ([0.5], r"0\.5"),
        ([True], "True"),
        (range(N), "no training image would remain"),
        ([5, 60], "60"),
    ],
    ids=str,
)
def test_refused_images_leave_the_detector_unchanged(images, match):
    detector = fitted(grids())
    before = joblib.hash(vars(detector))
    with pytest.raises(ValueError, match=match):
        detector.forget(images)
    assert joblib.hash(vars(detector)) == before


def test_an_image_is_forgotten_once():
    detector = fitted(grids()).forget(5)
    with pytest.raises(ValueError, match="5 is not a training image of the detector: it has been forgotten"):
        detector.forget(5)


def test_forget_stopped_half_way_leaves_the_detector_unchanged(monkeypatch):
    X = grids()
    detector = fitted(X)
    before = joblib.hash(vars(detector))

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(PatchCoreDetector, "_recalibrate_to", stop)
    with pytest.raises(KeyboardInterrupt):
        detector.forget(5)
    assert joblib.hash(vars(detector)) == before


@pytest.mark.parametrize("sampler", [RandomSampler(0.2), Nystroem(n_components=100)], ids=str)
@pytest.mark.filterwarnings("ignore:forget")
def test_other_samplers_forget_without_refill(sampler):
    X = grids()
    detector = PatchCoreDetector("precomputed", sampler=sampler, random_state=0, calibration=None).fit(X)
    n_own = int(np.isin(detector.bank_image_indices_, [0, 1]).sum())
    n_bank = len(detector.memory_bank_)
    detector.forget([0, 1])
    assert len(detector.memory_bank_) == n_bank - n_own
    assert not holds_row_of(detector, X, [0, 1])


def test_computed_rows_cannot_be_forgotten():
    sampler = LearnedProxySampler(20, n_epochs=1)
    detector = PatchCoreDetector("precomputed", sampler=sampler, random_state=0, calibration=None).fit(grids())
    with pytest.raises(ValueError, match="Fit again"):
        detector.forget(0)


@pytest.mark.parametrize(
    "parameters",
    [
        {"augment": "flips"},
        {"roi": (0, 0, 16, 40)},
        {"index": skpatchcore.ExactIndex(storage="float16")},
        {"sampler": GreedyCoresetSampler(1.0)},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_forget_works_with_other_parameters(parameters):
    X = list(np.random.default_rng(0).integers(0, 256, (16, 32, 40, 3), np.uint8))
    detector = PatchCoreDetector(
        **{"extractor": CellMeans(), "sampler": GreedyCoresetSampler(0.1), "random_state": 0, **parameters}
    ).fit(X)
    dtype = detector.memory_bank_.dtype
    detector.forget([2, 9, 11])
    assert detector.memory_bank_.dtype == dtype
    assert not np.isin(detector.bank_image_indices_, [2, 9, 11]).any()
    assert detector.bank_image_indices_.max() == 15
    assert np.isfinite(detector.bank_boxes_).all()
    assert np.isfinite(detector.score_samples(X)).all()
    assert (detector.predict([X[0], np.zeros_like(X[0])]) == [1, -1]).all()
