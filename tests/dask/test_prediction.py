"""Tests of the lazy methods: the values, indices and warnings are those of the local methods."""

from __future__ import annotations

import os
import pickle
import signal
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("distributed", reason="needs the extra dask")
import dask
import dask.array as da
import dask.bag as db
from distributed import wait

from skpatchcore import (
    ImageError,
    ImageWarning,
    MultiLightDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
)
from skpatchcore.dask import _prediction as lazy
from tests.dask.clusters import local_cluster
from tests.factories import CellMeans

METHODS = {
    "score_samples": lazy.score_samples,
    "decision_function": lazy.decision_function,
    "predict": lazy.predict,
    "p_values": lazy.p_values,
}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    images = rng.normal(0.6, 0.05, (14, 48, 64, 3)).clip(0, 1)
    images[-2:, 16:32, 16:40] = 0.0
    return images


@pytest.fixture(scope="module")
def paths(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    found = [str(folder / f"{i}.png") for i in range(len(images))]
    for i, path in enumerate(found):
        sides = (48 + 8 * (i % 3), 64)  # three sizes
        pixels = np.resize(images[i], (*sides, 3)) if i % 3 else images[i]
        Image.fromarray((255 * pixels).astype(np.uint8)).save(path)
    return found


@pytest.fixture(scope="module")
def detector(images):
    return PatchCoreDetector(CellMeans(), contamination=0.2, random_state=0).fit(images[:10])


@pytest.fixture
def threads():
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with local_cluster(tmp_path_factory.mktemp("dask")) as client:
        yield client


def forms_of(images, paths):
    """Return all forms in which images can be passed, each with the local form of the same images."""
    return {
        "paths": (paths, paths),
        "column": (pd.Series(paths), paths),
        "array": (images, images),
        "list": (list(images), images),
        "generator": ((image for image in images), images),
        "bag of paths": (db.from_sequence(paths, npartitions=3), paths),
        "bag of images": (db.from_sequence(list(images), partition_size=5), images),
        "bag with an empty partition": (
            db.from_delayed([dask.delayed(list)(part) for part in (paths[:5], [], paths[5:])]),
            paths,
        ),
        "dask array": (da.from_array(images, chunks=(4, 24, -1, -1)), images),
        "dask array of unknown length": (
            da.from_array(images, chunks=(4, -1, -1, -1))[da.ones(14, chunks=4) > 0],
            images,
        ),
    }


FORMS = list(forms_of(np.zeros((14, 8, 8, 3)), ["a"]))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("form", FORMS)
def test_lazy_methods_equal_the_local_methods(form, images, paths, detector):
    for name, method in METHODS.items():
        X, local = forms_of(images, paths)[form]
        found = method(detector, X, chunk=4)
        expected = getattr(detector, name)(local)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.compute(), expected)
    for name, method in {"segment": lazy.segment, "predict_mask": lazy.predict_mask}.items():
        X, local = forms_of(images, paths)[form]
        found, expected = method(detector, X, chunk=4).compute(), getattr(detector, name)(local)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "make",
    [
        lambda X: PaDiMDetector(CellMeans(), random_state=0).fit(X),
        lambda X: PatchCoreEnsemble(
            [
                ("a", PatchCoreDetector(CellMeans(), random_state=0)),
                ("b", PatchCoreDetector(CellMeans(), random_state=1)),
            ]
        ).fit(X),
    ],
    ids=["PaDiM", "ensemble"],
)
def test_lazy_methods_work_with_other_detectors(make, images):
    other = make(images[:10])
    np.testing.assert_array_equal(lazy.predict(other, images, chunk=5).compute(), other.predict(images))
    np.testing.assert_array_equal(np.stack(lazy.segment(other, images, chunk=5).compute()), other.segment(images))


@pytest.mark.usefixtures("threads")
def test_parts_with_several_lights_are_scored(images):
    parts = [list(pair) for pair in zip(images, images[::-1], strict=True)]
    other = MultiLightDetector(PatchCoreDetector(CellMeans(), random_state=0)).fit(parts[2:12])
    expected = other.score_samples(parts)
    np.testing.assert_array_equal(lazy.score_samples(other, parts, chunk=4).compute(), expected)
    np.testing.assert_array_equal(lazy.score_samples(other, np.array(parts), chunk=4).compute(), expected)
    np.testing.assert_array_equal(lazy.score_samples(other, db.from_sequence(parts, 5)).compute(), expected)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(12, 4, 4, 6), (12, 6)], ids=["grids", "table"])
def test_precomputed_features_are_scored(shape):
    features = np.random.default_rng(0).random(shape)
    other = PatchCoreDetector("precomputed", random_state=0).fit(features)
    expected = other.score_samples(features)
    np.testing.assert_array_equal(lazy.score_samples(other, features, chunk=5).compute(), expected)
    chunked = da.from_array(features, chunks=(5, *shape[1:-1], 3))
    np.testing.assert_array_equal(lazy.score_samples(other, chunked).compute(), expected)


def test_sizes_of_chunks_are_known_where_they_can_be(images, paths, detector):
    assert lazy.score_samples(detector, paths, chunk=9).chunks == ((8, 6),)  # batches of the extractor have 4 images
    assert lazy.score_samples(detector, paths, chunk=3).chunks == ((3, 3, 3, 3, 2),)
    assert lazy.predict(detector, da.from_array(images, chunks=(5, 24, 64, 3))).chunks == ((5, 5, 4),)
    assert np.isnan(lazy.predict(detector, db.from_sequence(paths, npartitions=2)).chunks[0]).all()


@pytest.mark.usefixtures("threads")
def test_adjusted_p_values_refer_to_all_images(images, paths, detector):
    expected = detector.p_values(images, adjust="bh")
    np.testing.assert_array_equal(lazy.p_values(detector, images, adjust="bh", chunk=4).compute(), expected)
    bag = db.from_sequence(list(images), npartitions=3)
    np.testing.assert_array_equal(lazy.p_values(detector, bag, adjust="bh").compute(), expected)
    with pytest.raises(ValueError, match="adjust"):
        lazy.p_values(detector, images, adjust="bonferroni")


@pytest.mark.usefixtures("threads")
def test_score_and_segment_scores_each_image_once(images, detector):
    calls = []

    class Counted(CellMeans):
        def iter_transform(self, X):
            calls.append(len(X))
            return super().iter_transform(X)

    counted = PatchCoreDetector(Counted(), random_state=0).fit(images[:10])
    pairs = lazy.score_and_segment(counted, images, chunk=5)
    calls.clear()
    scores, maps = zip(*pairs.compute(), strict=True)
    assert sum(calls) == len(images)
    expected = counted.score_and_segment(images)
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(np.stack(maps), expected[1])


@pytest.mark.usefixtures("threads")
def test_regions_of_interest_are_passed_with_their_images(images, detector):
    regions = [(0, 0, 48, 8 * (1 + i % 4)) for i in range(len(images))]
    expected = detector.score_samples(images, roi=regions)
    assert len({*expected}) == len(images)
    np.testing.assert_array_equal(lazy.score_samples(detector, images, roi=regions, chunk=5).compute(), expected)
    chunked = da.from_array(images, chunks=(5, 24, 64, 3))
    np.testing.assert_array_equal(lazy.score_samples(detector, chunked, roi=regions).compute(), expected)
    bags = [db.from_sequence(list(items), npartitions=3) for items in (images, regions)]
    np.testing.assert_array_equal(lazy.score_samples(detector, bags[0], roi=bags[1]).compute(), expected)
    with pytest.raises(TypeError, match="Bag with the same 3 partitions"):
        lazy.score_samples(detector, bags[0], roi=regions)
    with pytest.raises(ValueError, match="13 regions"):
        lazy.score_samples(detector, images, roi=regions[:-1])


@pytest.mark.usefixtures("threads")
def test_result_without_a_client_can_be_pickled(images, detector):
    again = pickle.loads(pickle.dumps(lazy.score_samples(detector, images, chunk=4)))
    np.testing.assert_array_equal(again.compute(), detector.score_samples(images))


def broken(paths, tmp_path, *indices):
    """Return the paths with files that are no images at some indices."""
    paths = list(paths)
    for i in indices:
        paths[i] = str(tmp_path / f"broken{i}.png")
        (tmp_path / f"broken{i}.png").write_bytes(b"no image")
    return paths


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("as_bag", [False, True])
def test_error_names_the_index_in_all_of_X(as_bag, paths, tmp_path, detector):
    some = broken(paths, tmp_path, 9)
    found = lazy.score_samples(detector, db.from_sequence(some, npartitions=4) if as_bag else some, chunk=4)
    with pytest.raises(ImageError) as expected:
        detector.score_samples(some)
    with pytest.raises(ImageError) as raised:
        found.compute()
    assert (raised.value.index, raised.value.path) == (9, some[9])
    assert str(raised.value) == str(expected.value)


@pytest.mark.usefixtures("threads")
def test_flagged_images_are_anomalous_and_named(paths, tmp_path, detector):
    some = broken(paths, tmp_path, 1, 6)
    with pytest.warns(ImageWarning):
        expected = detector.score_samples(some, on_error="flag")
    found = lazy.score_samples(detector, db.from_sequence(some, npartitions=4), on_error="flag")
    with pytest.warns(ImageWarning) as caught:
        np.testing.assert_array_equal(found.compute(), expected)
    assert sorted(error.index for one in caught for error in one.message.failures) == [1, 6]
    with pytest.warns(ImageWarning):
        labels = lazy.predict(detector, some, chunk=4, on_error="flag").compute()
    assert labels[[1, 6]].tolist() == [-1, -1]
    with pytest.warns(ImageWarning):
        pairs = lazy.score_and_segment(detector, some, chunk=4, on_error="flag").compute()
    assert [i for i, (score, anomaly_map) in enumerate(pairs) if np.isnan(score) and anomaly_map is None] == [1, 6]


def test_invalid_arguments_are_refused_before_the_computation(paths, detector):
    with pytest.raises(ValueError, match="on_error"):
        lazy.predict(detector, paths, on_error="ignore")
    with pytest.raises(ValueError, match="chunk=0"):
        lazy.predict(detector, paths, chunk=0)
    with pytest.raises(TypeError, match="Delayed"):
        lazy.predict(detector, dask.delayed(list)(paths))
    with pytest.raises(ValueError, match="single path"):
        lazy.predict(detector, paths[0])
    with pytest.raises(ValueError, match="no images"):
        lazy.predict(detector, [])


def test_nothing_is_read_before_compute(client, detector):
    lazy.score_samples(detector, ["missing.png"])
    lazy.segment(detector, db.from_sequence(["missing.png"]))


class Counted(PatchCoreDetector):
    """A detector that counts in each process how often it is unpickled."""

    n_loads = 0

    def __setstate__(self, state):
        type(self).n_loads += 1
        super().__setstate__(state)


def test_each_worker_receives_the_detector_once(client, images, paths):
    # The padding exceeds the size of 10 MB from which Dask warns of large graphs; warnings are errors in this test.
    counted = Counted(CellMeans(), random_state=0).fit(images[:10])
    counted.padding = np.zeros(4_000_000)
    client.amm.stop()  # it removes copies that no task needs, between two computations
    try:
        scores, labels = lazy.score_samples(counted, paths, chunk=2), lazy.predict(counted, paths, chunk=2)
        np.testing.assert_array_equal(scores.compute(), counted.score_samples(paths))
        np.testing.assert_array_equal(labels.compute(), counted.predict(paths))
        assert set(client.run(lambda: Counted.n_loads).values()) <= {0, 1}
    finally:
        client.amm.start()


def test_tasks_have_names_for_the_dashboard(client, paths, detector):
    scores = client.persist(lazy.score_samples(detector, paths, chunk=4))
    maps = client.persist(lazy.segment(detector, db.from_sequence(paths, npartitions=3)))
    wait([scores, maps], timeout=60)
    names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
    assert {"skpatchcore-model", "skpatchcore-score", "skpatchcore-segment", "skpatchcore-count"} <= {*names}


def test_warning_of_a_worker_reaches_the_client(client, paths, tmp_path, detector):
    some = broken(paths, tmp_path, 6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        labels = lazy.predict(detector, some, chunk=4, on_error="flag").compute()
        client.run_on_scheduler(lambda: None)  # the warning was sent before this answer
    assert labels[6] == -1
    failures = [one.message.failures for one in caught if isinstance(one.message, ImageWarning)]
    assert [(error.index, error.path) for error in failures[0]] == [(6, some[6])]


def test_error_of_a_worker_names_the_index(client, paths, tmp_path, detector):
    some = broken(paths, tmp_path, 9)
    with pytest.raises(ImageError, match="image 9 "):
        lazy.score_samples(detector, some, chunk=4).compute()


def test_result_is_computed_after_the_loss_of_a_worker(client, paths, detector):
    expected = detector.score_samples(paths)
    lazy_scores = lazy.score_samples(detector, paths, chunk=2)
    np.testing.assert_array_equal(lazy_scores.compute(), expected)
    for _ in range(2):  # whichever worker has the detector
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGKILL)
        np.testing.assert_array_equal(client.compute(lazy_scores).result(timeout=120), expected)
    client.wait_for_workers(2, timeout=120)
