"""Tests that a fit on a Dask cluster has the same result as a fit on one machine, for all forms of images."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import KFold
from sklearn.neighbors import NearestNeighbors

pytest.importorskip("distributed", reason="needs the extra dask")
import dask
import dask.array as da
import dask.bag as db
import distributed

from skpatchcore import GreedyCoresetSampler, ImageError, PatchWhitening, RandomSampler, TorchFeatureExtractor
from skpatchcore.dask import DaskPatchCoreDetector
from tests.dask.helpers import LoggedMeans, assert_same_fit, local_fit
from tests.factories import CellMeans

PLANS = ["auto", "leave-one-out", 0.25, 4, KFold(3, shuffle=True, random_state=1), None]


def settings(**parameters):
    default = {"extractor": CellMeans(), "sampler": GreedyCoresetSampler(0.1), "random_state": 0, "calibration": 3}
    return {**default, **parameters}


def load(path):
    return np.asarray(Image.open(path))


def check(client, parameters, X, same=None, **arguments):
    """Fit on the cluster and on one worker, compare the results, and return the distributed detector."""
    detector = DaskPatchCoreDetector(**parameters, client=client).fit(X, **arguments)
    local = {name: value for name, value in parameters.items() if name not in ("max_memory", "n_shards")}
    expected = local_fit(client, local, X if same is None else same, **arguments)
    if same is not None:
        expected.training_paths_ = detector.training_paths_
    assert_same_fit(detector.to_local(), expected)
    return detector


@pytest.mark.parametrize("calibration", PLANS, ids=str)
def test_fit_equals_a_local_fit_for_each_calibration_plan(cluster_client, image_paths, calibration):
    check(cluster_client, settings(calibration=calibration), image_paths)


@pytest.mark.parametrize("calibration", ["leave-one-out", 4, 0.25])
@pytest.mark.parametrize("image_score", ["map-max", 0.1])
def test_image_score_is_calibrated_as_in_a_local_fit(cluster_client, image_paths, image_score, calibration):
    detector = check(cluster_client, settings(image_score=image_score, calibration=calibration), image_paths)
    with cluster_client.as_current():
        found = detector.score_samples(image_paths).compute()
    np.testing.assert_allclose(found, detector.to_local().score_samples(image_paths), rtol=1e-6)


def test_fit_refuses_a_transformer_with_a_reason(cluster_client, image_paths):
    detector = DaskPatchCoreDetector(**settings(transformer=PatchWhitening()), client=cluster_client)
    with pytest.raises(ValueError, match="transformer=PatchWhitening: a fit on a Dask cluster has no transformer"):
        detector.fit(image_paths)


@pytest.mark.parametrize("calibration", [4, 0.25])
def test_network_sees_the_same_batches_as_in_a_local_fit(cluster_client, image_paths, calibration):
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=64)
    detector = check(cluster_client, settings(extractor=extractor, calibration=calibration, n_shards=5), image_paths)
    assert len(detector.shard_sizes_) > 3


@pytest.mark.parametrize("calibration", [3, "leave-one-out", 0.25])
def test_small_max_memory_changes_nothing(cluster_client, image_paths, calibration):
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=64)
    parameters = settings(extractor=extractor, calibration=calibration, max_memory=2_000_000)
    check(cluster_client, parameters, image_paths)


@pytest.mark.parametrize("calibration", [3, "leave-one-out", 0.25])
def test_labels_groups_and_regions_are_used_as_in_a_local_fit(cluster_client, image_paths, calibration):
    check(
        cluster_client,
        settings(calibration=calibration, roi=(0.1, 0.1, 0.9, 0.8)),
        image_paths,
        y=[-1 if i in (3, 17) else 1 for i in range(26)],
        groups=[i // 2 for i in range(26)],
        roi=[None if i % 3 else (0, 0, 40, 40) for i in range(26)],
    )


def test_any_index_can_be_used(cluster_client, image_paths):
    check(cluster_client, settings(index=NearestNeighbors()), image_paths)


def test_bag_of_paths_is_read_on_the_workers(cluster_client, image_paths):
    bag = db.from_sequence(image_paths, partition_size=7)
    detector = check(cluster_client, settings(), bag, same=image_paths, y=[1] * 20 + [-1] * 6)
    assert detector.shard_sizes_.tolist() == [7, 7, 6]
    assert detector.training_paths_ == [os.path.abspath(path) for path in image_paths]


@pytest.mark.parametrize("max_memory", ["auto", 1_000_000])
def test_bag_of_images_may_have_empty_partitions(cluster_client, image_paths, max_memory):
    bag = db.from_sequence(image_paths, partition_size=2).filter(lambda path: "04" not in path and "05" not in path)
    kept = [path for path in image_paths if "04" not in path and "05" not in path]
    parameters = settings(max_memory=max_memory)
    detector = check(cluster_client, parameters, bag.map(load), same=[load(path) for path in kept])
    assert detector.shard_sizes_.tolist() == [2] * 12


def test_array_has_one_shard_per_block(cluster_client, image_paths):
    images = np.stack([load(path) for path in image_paths[:10]])
    arrays = da.from_array(images, chunks=(4, 24, -1, -1))
    detector = check(cluster_client, settings(), arrays, same=images, groups=da.from_array(np.arange(10) // 2))
    assert detector.shard_sizes_.tolist() == [4, 4, 2]


def test_images_in_memory_are_sent_to_the_workers(cluster_client, image_paths):
    images = [load(path) for path in image_paths]
    check(cluster_client, settings(), images)
    check(cluster_client, settings(), np.stack(images[:10]))


@pytest.mark.parametrize("calibration", [3, "leave-one-out", 0.25])
@pytest.mark.parametrize("form", ["2-D", "4-D", "list"])
def test_precomputed_features_in_each_form(cluster_client, form, calibration):
    rng = np.random.default_rng(0)
    features = {
        "2-D": rng.random((60, 20)),
        "4-D": rng.random((30, 4, 5, 16)).astype(np.float32),
        "list": [rng.random((3 + i % 3, 4, 8)).astype(np.float32) for i in range(30)],
    }[form]
    parameters = settings(extractor="precomputed", calibration=calibration)
    detector = check(cluster_client, parameters, features)
    assert hasattr(detector, "n_features_in_") == (form == "2-D")
    if form == "list":
        lazy = db.from_sequence(features, partition_size=8)
    else:
        lazy = da.from_array(features, chunks=(11, *features.shape[1:]))
    check(cluster_client, parameters, lazy, same=features)


def test_region_of_precomputed_features(cluster_client):
    features = np.random.default_rng(0).random((20, 4, 6, 8)).astype(np.float32)
    check(cluster_client, settings(extractor="precomputed", roi=(0.0, 0.0, 0.5, 1.0)), features)


@pytest.mark.parametrize(("n_images", "n_shards"), [(1, None), (2, 8), (7, 1), (5, 5)])
def test_few_images_and_any_number_of_shards(cluster_client, image_paths, n_images, n_shards):
    parameters = settings(n_shards=n_shards, calibration=2 if n_images > 2 else None)
    detector = check(cluster_client, parameters, image_paths[:n_images])
    assert 1 <= len(detector.shard_sizes_) <= (n_shards or 4)


def test_each_image_is_read_once_if_the_features_fit_in_memory(cluster_client, image_paths, tmp_path):
    log = tmp_path / "log"
    parameters = settings(extractor=LoggedMeans(str(log)), n_shards=4)
    DaskPatchCoreDetector(**parameters, client=cluster_client).fit(image_paths)
    reads = Counter(log.read_text().splitlines())
    assert reads.keys() == set(image_paths)
    assert [reads[path] for path in image_paths[4:]] == [1] * 22  # the first batch is read once more


def test_features_are_extracted_again_if_they_do_not_fit_in_memory(cluster_client, image_paths, tmp_path):
    log = tmp_path / "log"
    parameters = settings(extractor=LoggedMeans(str(log)), calibration=None, max_memory=2_000_000)
    DaskPatchCoreDetector(**parameters, client=cluster_client).fit(image_paths)
    assert max(Counter(log.read_text().splitlines()[-10:]).values()) == 1
    assert len(log.read_text().splitlines()) > 40


def test_projected_rows_that_do_not_fit_in_memory_are_an_error(cluster_client, image_paths):
    detector = DaskPatchCoreDetector(**settings(max_memory=10_000), client=cluster_client)
    with pytest.raises(ValueError, match="Use more workers"):
        detector.fit(image_paths)


@pytest.mark.parametrize("as_bag", [False, True])
def test_unreadable_image_is_named_with_index_path_and_worker(cluster_client, image_paths, tmp_path, as_bag):
    bad = tmp_path / "bad.png"
    bad.write_bytes(Path(image_paths[0]).read_bytes()[:200])  # the header is whole
    paths = [*image_paths[:17], str(bad), *image_paths[17:]]
    X = db.from_sequence(paths, partition_size=5) if as_bag else paths
    detector = DaskPatchCoreDetector(**settings(), client=cluster_client)
    with pytest.raises(ImageError, match="on the Dask worker tcp://127") as caught:
        detector.fit(X, y=[-1, *[1] * 26])
    assert (caught.value.index, caught.value.path) == (17, str(bad))
    assert not hasattr(detector, "memory_bank_")


def test_missing_image_among_calibration_images_is_an_error(cluster_client, image_paths, tmp_path):
    missing = str(tmp_path / "missing.png")
    for i in range(0, 20, 5):
        paths = list(image_paths)
        paths[i] = missing
        with pytest.raises(ImageError, match="missing") as caught:
            DaskPatchCoreDetector(**settings(calibration=0.5), client=cluster_client).fit(paths)
        assert caught.value.index == i


def test_features_with_several_numbers_of_channels_are_an_error(cluster_client):
    features = [np.ones((2, 2, 4)), np.ones((2, 2, 4)), np.ones((2, 2, 5)), np.ones((2, 2, 5))]
    with pytest.raises(ValueError, match=r"image 2 .*5"):
        DaskPatchCoreDetector("precomputed", n_shards=2, client=cluster_client).fit(features)


def test_invalid_features_are_named_by_their_index(cluster_client):
    features = np.ones((20, 2, 2, 4))
    features[13, 1, 1, 2] = np.nan
    with pytest.raises(ValueError, match="image 13"):
        DaskPatchCoreDetector("precomputed", client=cluster_client).fit(features)


@pytest.mark.parametrize(
    ("sampler", "text"),
    [
        (RandomSampler(0.1), "needs a GreedyCoresetSampler"),
        (GreedyCoresetSampler(n_projections="auto"), "n_projections='auto'"),
        (GreedyCoresetSampler(10**6), "more rows"),
    ],
)
def test_samplers_that_cannot_select_on_a_cluster_are_an_error(cluster_client, image_paths, sampler, text):
    with pytest.raises(ValueError, match=text):
        DaskPatchCoreDetector(CellMeans(), sampler=sampler, client=cluster_client).fit(image_paths)


@pytest.mark.parametrize(
    "X", [db.from_sequence([1, 2]).filter(lambda x: x > 2), da.zeros((0, 4, 4, 3)), da.zeros((4, 4, 3)), []]
)
def test_wrong_collections_are_an_error(cluster_client, X):
    with pytest.raises(ValueError, match="X"):
        DaskPatchCoreDetector(CellMeans(), client=cluster_client).fit(X)


def test_progress_has_one_bar_with_images_rounds_and_rows(cluster_client, image_paths, capfd):
    DaskPatchCoreDetector(**settings(), verbose=1, client=cluster_client).fit(image_paths)
    shown = capfd.readouterr().err
    for text in ("extracting features", "selecting the coreset: round", "calibrating", "52/52"):
        assert text in shown


def test_tasks_have_names_and_leave_nothing_on_the_cluster(cluster_client, image_paths):
    DaskPatchCoreDetector(**settings(), client=cluster_client).fit(image_paths)
    names = cluster_client.run_on_scheduler(_prefixes)
    assert {f"skpatchcore-{name}" for name in ("extract", "project", "collect", "calibrate")} <= set(names)
    end = time.monotonic() + 30
    while (left := cluster_client.run_on_scheduler(_tasks)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left


def _prefixes(dask_scheduler):
    return list(dask_scheduler.task_prefixes)


def _tasks(dask_scheduler):
    return [str(key) for key in dask_scheduler.tasks if str(key).startswith("skpatchcore")]


@pytest.mark.parametrize("ratio", [60, 170])
def test_number_of_rows_can_be_larger_than_the_rows_of_a_shard(cluster_client, ratio):
    X = np.random.default_rng(0).random((20, 3, 3, 6))
    parameters = {
        "extractor": "precomputed",
        "sampler": GreedyCoresetSampler(ratio),
        "random_state": 0,
        "calibration": 3,
    }
    detector = DaskPatchCoreDetector(**parameters, client=cluster_client, n_shards=10, max_memory="4GB").fit(X)
    assert_same_fit(detector.to_local(), local_fit(cluster_client, parameters, X))


def test_bag_of_vectors_sets_the_number_of_features(cluster_client):
    X = np.random.default_rng(0).random((20, 6))
    bag = db.from_sequence(list(X), npartitions=3)
    parameters = {"extractor": "precomputed", "random_state": 0, "calibration": 3}
    detector = DaskPatchCoreDetector(**parameters, client=cluster_client).fit(bag)
    assert detector.n_features_in_ == 6
    assert_same_fit(detector.to_local(), local_fit(cluster_client, parameters, X))


def test_array_with_unknown_chunks_is_counted_on_the_workers(cluster_client):
    X = np.random.default_rng(0).random((20, 3, 3, 6))

    def part(i):
        distributed.get_worker()  # raises an error in this process
        return X[5 * i : 5 * i + 5]

    parts = [dask.delayed(part)(i) for i in range(4)]
    array = da.concatenate([da.from_delayed(p, (np.nan, 3, 3, 6), X.dtype) for p in parts])
    detector = DaskPatchCoreDetector("precomputed", random_state=0, calibration=3, client=cluster_client).fit(array)
    assert detector.shard_sizes_.tolist() == [5, 5, 5, 5]


def test_list_of_delayed_objects_is_an_error(cluster_client):
    with pytest.raises(TypeError, match=r"pass dask\.bag\.from_delayed"):
        DaskPatchCoreDetector("precomputed", client=cluster_client).fit([dask.delayed(np.zeros)((3, 3, 6))] * 4)


def test_local_detector_grows_and_forgets_without_refill(cluster_client, image_paths):
    half = len(image_paths) // 2
    detector = DaskPatchCoreDetector(**settings(), client=cluster_client).fit(image_paths[:half]).to_local()
    expected = local_fit(cluster_client, settings(), image_paths[:half])
    for some in (detector, expected):
        some.partial_fit(image_paths[half:])
    assert detector.memory_bank_.tobytes() == expected.memory_bank_.tobytes()
    assert detector.n_images_seen_ == len(image_paths)
    with pytest.warns(UserWarning, match="no reserve"):
        detector.forget(image_paths[0])
    assert 0 not in detector.bank_image_indices_
