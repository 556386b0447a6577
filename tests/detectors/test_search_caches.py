"""Caches of a search: a detector with caches gives the results of a detector without caches, to the bit."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from skpatchcore import (
    ExactIndex,
    GreedyCoresetSampler,
    InspectionWarning,
    OneClassSplit,
    PatchCoreDetector,
    PatchWhitening,
)
from skpatchcore.bank.budget import MemoryEstimate
from skpatchcore.coreset import greedy
from tests import factories

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RNG = np.random.default_rng(0)
GOOD = [np.clip(RNG.normal(0.5, 0.1, (40, 48, 3)), 0, 1).astype(np.float32) for _ in range(10)]
BAD = [np.where(np.arange(48)[None, :, None] > 30, 0, image) for image in GOOD[:3]]
MASK = np.zeros((40, 48), bool)
MASK[4:36, 8:40] = True


def detector(memory=None, patch_size=3, ratio=0.1, cache_limit=None, **parameters):
    memory = None if memory is None else str(memory)
    # One image per batch: the network rounds equally for any number of cached images.
    extractor = factories.extractor(
        layers=["layer2"], patch_size=patch_size, memory=memory, cache_limit=cache_limit, batch_size=1
    )
    sampler = GreedyCoresetSampler(ratio, memory=memory)
    return PatchCoreDetector(extractor, sampler=sampler, **{"random_state": 0, "calibration": None, **parameters})


def results_of(fitted):
    """Return everything that a fit and the scores of images yield."""
    scores, maps = fitted.score_and_segment([*GOOD[:2], *BAD])
    found = [fitted.score_samples(BAD), scores, *maps, fitted.memory_bank_, fitted.bank_positions_, fitted.bank_boxes_]
    found += [fitted.reserve_rows_, fitted.reserve_supports_, fitted.reserve_indices_, fitted.embeddings_]
    found += [fitted.calibration_scores_, fitted.calibration_sketches_, fitted.sampler_.selection_distances_]
    return [*found, np.array([fitted.offset_, fitted.pixel_offset_, fitted.min_area_])]


def require_same(found, expected):
    for some, other in zip(found, expected, strict=True):
        assert (some is None) == (other is None)
        if some is not None:
            np.testing.assert_array_equal(some, other)


SETTINGS = {
    "defaults": {},
    "folds": {"calibration": "auto", "sampler__ratio": 0.3},
    "leave-one-out": {"calibration": "leave-one-out"},
    "held out": {"calibration": 0.3},
    "region": {"roi": MASK, "calibration": 3},
    "turned views": {"augment": "flips", "calibration": 3},
    "suspects": {"suspect_share": 0.05, "calibration": 3},
    "map-max": {"image_score": "map-max", "calibration": 3},
    "transformer": {"transformer": PatchWhitening(), "calibration": 3},
    "no reserve": {"reserve": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_results_are_the_same_with_empty_filled_partial_and_damaged_caches(tmp_path, name):
    groups = [i // 2 for i in range(len(GOOD))]
    expected = {}
    for ratio in (0.1, 0.3):
        parameters = {"sampler__ratio": ratio, **SETTINGS[name]}
        expected[ratio] = results_of(detector().set_params(**parameters).fit(GOOD, groups=groups))
    states = ["empty", "filled", "partial", "damaged"]
    for state in states:
        files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        for path in files[:: 2 if state == "partial" else 3] if state in ("partial", "damaged") else ():
            if state == "partial":
                path.unlink()
            else:
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 5
                path.write_bytes(bytes(content[: len(content) - 3]) if path.suffix == ".grid" else bytes(content))
        for ratio in (0.1, 0.3):
            parameters = {"sampler__ratio": ratio, **SETTINGS[name]}
            found = detector(tmp_path).set_params(**parameters).fit(GOOD, groups=groups)
            require_same(results_of(found), expected[ratio])


def test_features_that_are_not_held_give_the_same_results(tmp_path, monkeypatch):
    expected = results_of(detector(calibration=3).fit(GOOD))
    require_same(results_of(detector(tmp_path, calibration=3).fit(GOOD)), expected)
    monkeypatch.setattr(MemoryEstimate, "way", lambda *args: "two passes")
    for _ in range(2):
        require_same(results_of(detector(tmp_path, calibration=3).fit(GOOD)), expected)


def test_results_are_the_same_if_the_cache_is_too_small(tmp_path):
    expected = {size: results_of(detector(patch_size=size).fit(GOOD)) for size in (1, 3)}
    for limit in (1, 50_000, 400_000):
        for size in (1, 3, 1):
            found = detector(tmp_path, patch_size=size, cache_limit=limit).fit(GOOD)
            require_same(results_of(found), expected[size])


def test_regions_of_images_have_their_own_results(tmp_path):
    masks = [np.roll(MASK, 2 * i, axis=1) for i in range(len(GOOD))]
    for roi in (masks, masks[::-1], None):
        expected = detector().fit(GOOD, roi=roi)
        found = detector(tmp_path).fit(GOOD, roi=roi)
        np.testing.assert_array_equal(found.memory_bank_, expected.memory_bank_)
        scores = found.score_samples(BAD, roi=None if roi is None else masks[:3])
        np.testing.assert_array_equal(scores, expected.score_samples(BAD, roi=None if roi is None else masks[:3]))


def test_settings_of_n_neighbors_select_and_search_once(tmp_path, monkeypatch):
    first = detector(tmp_path, n_neighbors=1, calibration=3).fit(GOOD)
    first.score_samples(BAD)
    expected = results_of(detector(n_neighbors=5, calibration=3).fit(GOOD))[0]

    def fail(*args, **kwargs):
        raise AssertionError("the selection or the search ran again")

    monkeypatch.setattr(greedy, "k_center_greedy", fail)
    monkeypatch.setattr(ExactIndex, "kneighbors", fail)
    monkeypatch.setattr(ExactIndex, "farthest", fail)
    again = detector(tmp_path, n_neighbors=5, calibration=3).fit(GOOD)
    np.testing.assert_array_equal(again.score_samples(BAD), expected)


def test_updates_of_a_detector_are_the_same(tmp_path):
    def updated(memory):
        fitted = detector(memory, calibration=3).fit(GOOD[:8])
        fitted.partial_fit(GOOD[8:])
        fitted.forget([1])
        return results_of(fitted)

    expected = updated(None)
    for _ in range(2):
        require_same(updated(tmp_path), expected)


def test_search_in_two_processes_gives_the_same_scores(tmp_path):
    X, y = [*GOOD, *BAD], np.repeat([1, -1], [len(GOOD), len(BAD)])
    grid = {"extractor__patch_size": [1, 3], "sampler__ratio": [0.05, 0.2], "n_neighbors": [1, 4]}

    def mean_score(fitted, images, labels):
        return float(fitted.score_samples(images).mean())

    def scores_of(memory, n_jobs):
        search = GridSearchCV(
            detector(memory), grid, scoring=mean_score, cv=OneClassSplit(2), refit=False, n_jobs=n_jobs
        )
        return search.fit(X, y).cv_results_["mean_test_score"]

    expected = scores_of(None, None)
    for n_jobs in (2, None):
        np.testing.assert_array_equal(scores_of(tmp_path, n_jobs), expected)
    assert not list(Path(tmp_path).rglob("*.partial"))


def test_clone_and_fitted_state_do_not_refer_to_mapped_files(tmp_path):
    fitted = detector(tmp_path).fit(GOOD)
    for name, value in vars(clone(fitted).fit(GOOD)).items():
        if isinstance(value, np.ndarray):
            assert type(value) is np.ndarray, name
            base = value
            while isinstance(base, np.ndarray):
                assert not isinstance(base, np.memmap), name
                base = base.base


def test_fit_with_caches_warns_as_without(tmp_path):
    for memory in (None, tmp_path, tmp_path):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            detector(memory, roi=MASK).fit(GOOD)
        assert [warning.category for warning in caught] == [InspectionWarning]
