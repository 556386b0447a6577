"""Tests of MultiProductDetector: one model per product, recognition of products, and standardised scores."""

from __future__ import annotations

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import skpatchcore
from skpatchcore import (
    AppearanceWarning,
    ImageError,
    LayerScaling,
    MultiProductDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
    SPADEDetector,
    TorchFeatureExtractor,
)
from skpatchcore.detectors._product_scores import multiples
from skpatchcore.detectors._recognition import distances_to_nearest, radius_of, recognised

NAMES = ("bolt", "nut", "plate")


def grids(product, n, seed, spread=0.1):
    """Return patch features of good images: each product has its own mean, and another spread."""
    rng = np.random.default_rng([seed, product])
    return 10.0 * product + rng.normal(0, spread * (1 + product), (n, 5, 4, 6))


def training_set(n=20):
    X = np.concatenate([grids(product, n, seed=0) for product in range(3)])
    return X, np.repeat(NAMES, n)


def detector(**params):
    return MultiProductDetector(PatchCoreDetector("precomputed", random_state=0, **params))


@pytest.fixture(scope="module")
def fitted():
    X, names = training_set()
    order = np.random.default_rng(1).permutation(len(X))
    return detector().fit(X[order], products=names[order])


def test_each_product_is_scored_by_a_detector_of_its_own_images(fitted):
    for product, name in enumerate(NAMES):
        new = grids(product, 8, seed=1)
        own = fitted.for_product(name)
        assert len(own.embeddings_) == 20
        assert (fitted.identify(new) == name).all()
        np.testing.assert_allclose(fitted.score_samples(new), own.score_samples(new) / -own.offset_, rtol=1e-9)
        np.testing.assert_array_equal(fitted.predict(new), own.predict(new))
        np.testing.assert_allclose(fitted.p_values(new), own.p_values(new))


def test_scores_of_mixed_images_do_not_depend_on_the_other_images(fitted):
    new = np.concatenate([grids(product, 5, seed=2) for product in (2, 0, 1)])
    order = np.random.default_rng(0).permutation(len(new))
    whole = fitted.score_samples(new)
    np.testing.assert_array_equal(fitted.score_samples(new[order]), whole[order])
    np.testing.assert_array_equal([fitted.score_samples(image[None])[0] for image in new], whole)


def test_image_of_no_product_is_anomalous_and_is_named_none(fitted):
    strange = np.full((2, 5, 4, 6), 5.0)
    assert fitted.identify(strange).tolist() == [None, None]
    assert (fitted.predict(strange) == -1).all()
    assert np.isfinite(fitted.score_samples(strange)).all()
    assert [result.product for result in fitted.iter_results(strange)] == [None, None]


def test_image_of_no_product_is_anomalous_even_if_its_patches_are_all_known():
    """Half of the patches of the training images are 0, and half 1. All patches of the new image are 0."""
    rng = np.random.default_rng(0)
    pattern = np.zeros((20, 4, 4, 3))
    pattern[:, :2] = 1
    X = pattern + rng.normal(0, 0.01, pattern.shape)
    found = detector().fit(np.concatenate([X, X + 9]), products=["a"] * 20 + ["b"] * 20)
    strange = rng.normal(0, 0.01, (3, 4, 4, 3))
    assert (found.for_product("a").score_samples(strange) > found.for_product("a").offset_ * 3).all()
    assert (found.predict(strange) == -1).all()
    assert (found.predict(strange, products="a") == found.for_product("a").predict(strange)).all()


def test_given_product_is_used_even_if_another_one_is_more_similar(fitted):
    new = grids(0, 3, seed=3)
    scores = fitted.score_samples(new, products=["bolt", "plate", None])
    np.testing.assert_array_equal(scores[[0, 2]], fitted.score_samples(new)[[0, 2]])
    own = fitted.for_product("plate")
    np.testing.assert_allclose(scores[1], own.score_samples(new[1:2])[0] / -own.offset_)
    assert [r.product for r in fitted.iter_results(new, products=["bolt", "plate", None])] == ["bolt", "plate", "bolt"]


def test_maps_are_relative_to_the_pixel_threshold_of_the_product(fitted):
    new = np.concatenate([grids(0, 2, seed=4), grids(2, 2, seed=4)])
    new[1, 0, 0] += 3
    new[3, 2, 2] += 3
    masks = fitted.predict_mask(new)
    for i, name in enumerate(["bolt", "bolt", "plate", "plate"]):
        np.testing.assert_array_equal(masks[i], fitted.for_product(name).predict_mask(new[i : i + 1])[0])
    assert masks[1, 0, 0]
    assert masks[3, 2, 2]
    assert set(fitted.regions(new)["image"]) >= {1, 3}


def test_results_one_by_one_equal_those_of_the_methods(fitted):
    new = np.concatenate([grids(1, 3, seed=5), np.full((1, 5, 4, 6), 5.0)])
    results = list(fitted.iter_results(list(new)))
    np.testing.assert_array_equal([r.score for r in results], fitted.score_samples(new))
    np.testing.assert_array_equal([r.p_value for r in results], fitted.p_values(new))
    np.testing.assert_array_equal([r.label for r in results], fitted.predict(new))
    np.testing.assert_array_equal(np.stack([r.anomaly_map for r in results]), fitted.segment(new))
    assert all(r.anomaly_map is None for r in fitted.iter_results(iter(list(new)), with_maps=False))
    assert [r.product for r in results] == ["nut", "nut", "nut", None]


def test_false_alarms_stay_within_the_promise_for_each_product():
    X, names = training_set(60)
    found = MultiProductDetector(PatchCoreDetector("precomputed", random_state=0), contamination=0.1)
    found.fit(X, products=names)
    for product in range(3):
        rate = np.mean(found.predict(grids(product, 300, seed=6)) == -1)
        assert 0.02 < rate < 0.2


def test_thresholds_are_a_table_with_one_row_per_product(fitted):
    table = fitted.thresholds()
    assert table["product"].tolist() == sorted(NAMES)
    for row in table.itertuples():
        own = fitted.for_product(row.product)
        assert (row.offset, row.pixel_offset, row.n_calibration) == (own.offset_, own.pixel_offset_, 20)
        assert row.n_bank == len(own.memory_bank_)


def test_calibration_indices_refer_to_the_images_of_fit(fitted):
    X, names = training_set()
    order = np.random.default_rng(1).permutation(len(X))
    np.testing.assert_array_equal(names[order][fitted.calibration_image_indices_], fitted.calibration_products_)
    assert sorted(fitted.calibration_image_indices_) == list(range(60))


@pytest.mark.parametrize("estimator", [
    PaDiMDetector("precomputed", n_channels=4, random_state=0),
    SPADEDetector("precomputed", n_neighbors=3),
    PatchCoreDetector("precomputed", transformer=LayerScaling((3, 3)), random_state=0),
])  # fmt: skip
def test_other_detectors_and_transformers_score_as_alone(estimator):
    X, names = training_set(12)
    found = MultiProductDetector(estimator).fit(X, products=names)
    new = np.concatenate([grids(2, 3, seed=7), grids(0, 3, seed=7)])
    assert found.identify(new).tolist() == ["plate"] * 3 + ["bolt"] * 3
    expected = [*found.for_product("plate").predict(new[:3]), *found.for_product("bolt").predict(new[3:])]
    assert found.predict(new).tolist() == expected


def test_fit_leaves_out_anomalous_images_and_predicts_training_images():
    X, names = training_set()
    X[5] += 3
    y = np.ones(len(X), int)
    y[5] = -1
    found = detector()
    labels = found.fit_predict(X, y, products=names)
    assert labels[5] == -1
    assert len(found.for_product("bolt").embeddings_) == 19
    assert np.mean(labels == 1) > 0.8


def test_recalibration_of_one_product_leaves_the_others(fitted):
    found = joblib.load(_pickled(fitted))
    before = found.thresholds()
    found.recalibrate(grids(1, 40, seed=8), products="nut", contamination=0.1)
    after = found.thresholds()
    assert after["n_calibration"].tolist() == [20, 40, 20]
    assert after["offset"][1] != before["offset"][1]
    found.recalibrate(contamination=0.3)
    assert (found.thresholds()["promised_rate"] == 0.3).all()
    assert (found.thresholds()["offset"] > before["offset"]).all()
    with pytest.raises(ValueError, match="image 0 shows none of the products"):
        found.recalibrate(np.full((2, 5, 4, 6), 5.0))


def _pickled(fitted):
    from io import BytesIO

    buffer = BytesIO()
    joblib.dump(fitted, buffer)
    buffer.seek(0)
    return buffer


def test_saved_detector_gives_the_same_results(fitted, tmp_path):
    skpatchcore.save(fitted, tmp_path / "parts.skops")
    loaded = skpatchcore.load(tmp_path / "parts.skops")
    new = np.concatenate([grids(1, 3, seed=9), np.full((1, 5, 4, 6), 5.0)])
    np.testing.assert_array_equal(loaded.score_samples(new), fitted.score_samples(new))
    assert loaded.identify(new).tolist() == fitted.identify(new).tolist()
    pd.testing.assert_frame_equal(loaded.thresholds(), fitted.thresholds())


def test_wrong_products_raise_errors_that_name_the_index(fitted):
    X, names = training_set()
    with pytest.raises(ValueError, match="products=None: pass the name"):
        detector().fit(X)
    with pytest.raises(ValueError, match=r"products\[2\] is missing"):
        detector().fit(X, products=["bolt", "nut", None, *names[3:]])
    with pytest.raises(ValueError, match="products has 2 names for 60 images"):
        detector().fit(X, products=["bolt", "nut"])
    with pytest.raises(ValueError, match=r"products\[1\] is 'screw', but the detector knows 'bolt', 'nut', 'plate'"):
        fitted.predict(X[:2], products=["bolt", "screw"])
    with pytest.raises(ValueError, match="'screw'"):
        fitted.for_product("screw")
    with (
        pytest.warns(UserWarning, match="could not be scored"),
        pytest.raises(ValueError, match="product 'single' has no threshold"),
    ):
        detector().fit(X[:21], products=["bolt"] * 20 + ["single"])
    with pytest.raises(ValueError, match="product 'bolt' has no threshold"):
        detector(calibration=None).fit(X, products=names)
    with pytest.raises(NotFittedError):
        detector().identify(X)
    with pytest.raises(ValueError, match="estimator"):
        MultiProductDetector(PatchCoreEnsemble([])).fit(X, products=names)


def test_failed_fit_leaves_the_detector_as_it_was(fitted):
    X, names = training_set()
    found = clone(fitted).fit(X, products=names)
    scores = found.score_samples(X[:3])
    with pytest.raises(ValueError, match="NaN"):
        found.fit(np.where(np.arange(60)[:, None, None, None] == 50, np.nan, X), products=names)
    np.testing.assert_array_equal(found.score_samples(X[:3]), scores)


def images(mean, n, seed):
    return np.random.default_rng(seed).normal(mean, 0.02, (n, 64, 64, 3)).clip(0, 1)


@pytest.fixture(scope="module")
def of_images():
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, batch_size=4)
    found = MultiProductDetector(PatchCoreDetector(extractor, random_state=0))
    return found.fit(np.concatenate([images(0.3, 8, 0), images(0.7, 8, 1)]), products=["dark"] * 8 + ["light"] * 8)


def test_network_runs_once_per_image_whether_the_product_is_given_or_not(of_images, monkeypatch):
    n_images = []
    original = TorchFeatureExtractor.iter_transform

    def counted(self, X):
        for features, views in original(self, X):
            n_images.append(len(views))
            yield features, views

    monkeypatch.setattr(TorchFeatureExtractor, "iter_transform", counted)
    new = np.concatenate([images(0.3, 3, 2), images(0.7, 3, 3)])
    of_images.score_and_segment(new)
    assert sum(n_images) == 6
    assert max(n_images) == 4  # batches contain several products


def test_unreadable_image_is_flagged_and_an_error_names_it(of_images, tmp_path):
    paths = []
    for i, mean in enumerate([0.3, 0.7]):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray((images(mean, 1, i)[0] * 255).astype(np.uint8)).save(paths[-1])
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = [paths[0], tmp_path / "broken.png", paths[1]]
    with pytest.raises(ImageError, match="broken"):
        of_images.predict(files)
    with pytest.warns(skpatchcore.ImageWarning):
        assert of_images.predict(files, on_error="flag")[1] == -1
    results = list(of_images.iter_results(files, on_error="flag"))
    assert [r.product for r in results] == ["dark", None, "light"]
    assert results[1].error is not None
    with pytest.raises(ImageError) as raised:
        clone(of_images).fit([*files, *files], products=["a", "b", "a"] * 2)
    assert raised.value.index in (1, 4)


def test_images_that_look_unlike_their_product_are_reported(of_images):
    with pytest.warns(AppearanceWarning, match="product 'dark'"):
        of_images.predict(images(0.95, 6, 5), products="dark")


def test_distances_to_nearest_leave_out_the_image_itself():
    rows = np.array([[0.0, 0], [3, 4], [0, 1]], np.float32)
    np.testing.assert_allclose(distances_to_nearest(rows, rows, is_same=True), [1, np.sqrt(18), 1])
    np.testing.assert_allclose(distances_to_nearest(rows, rows), 0)
    assert np.isinf(distances_to_nearest(rows[:1], rows[:1], is_same=True)).all()
    assert radius_of(rows) == pytest.approx(np.sqrt(18))
    assert radius_of(np.ones((3, 2), np.float32)) > 0


def test_product_is_the_nearest_one_and_the_distance_has_its_unit():
    of_products = [np.array([[0.0], [1]]), np.array([[10.0], [14]])]
    codes, distances = recognised(np.array([[4.0], [8.0], [np.inf]]), of_products, np.array([1.0, 4.0]))
    assert codes[:2].tolist() == [0, 1]
    np.testing.assert_allclose(distances, [3, 0.5, np.inf])


def test_copies_of_training_images_do_not_make_the_radius_small():
    rows = np.random.default_rng(0).normal(0, 1, (20, 5)).astype(np.float32)
    copies = np.concatenate([rows, rows + 1e-4])
    assert radius_of(copies) > 0.8 * np.sqrt(5)


@given(
    values=st.lists(st.floats(0, 1e6), min_size=1, max_size=9), threshold=st.sampled_from([0.0, 1e-3, 0.1, 7.0, 1e5])
)
def test_multiples_keep_the_side_of_the_threshold(values, threshold):
    some = np.array([*values, threshold, np.nextafter(threshold, 1e9)])
    np.testing.assert_array_equal(multiples(some, threshold) > 1, some > threshold)


def test_growing_adds_images_to_their_product_and_new_products(fitted):
    found = joblib.load(_pickled(fitted))
    before = found.thresholds()
    bank = found.for_product("nut").memory_bank_
    found.partial_fit(
        np.concatenate([grids(1, 6, seed=10), grids(3, 20, seed=10)]), products=["nut"] * 6 + ["screw"] * 20
    )
    assert found.products_.tolist() == ["bolt", "nut", "plate", "screw"]
    assert found.n_images_seen_ == 86
    after = found.thresholds()
    assert after["n_calibration"].tolist() == [20, 26, 20, 20]
    np.testing.assert_array_equal(found.for_product("nut").memory_bank_[: len(bank)], bank)
    pd.testing.assert_frame_equal(after.iloc[[0]], before.iloc[[0]])
    assert found.identify(grids(3, 3, seed=11)).tolist() == ["screw"] * 3
    indices = found.calibration_image_indices_
    assert set(indices[found.calibration_products_ == "screw"]) == set(range(66, 86))
    assert set(range(60, 66)) <= set(indices[found.calibration_products_ == "nut"])
    # The indices of the product's detector are positions in product_image_indices_.
    own = found.for_product("screw")
    assert set(found.product_image_indices_[3][own.bank_image_indices_]) <= set(range(66, 86))


def test_first_call_of_partial_fit_is_a_fit():
    X, names = training_set(12)
    first, second = detector().fit(X, products=names), detector().partial_fit(X, products=names)
    np.testing.assert_array_equal(first.score_samples(X), second.score_samples(X))


def test_forgotten_images_leave_their_product_only(fitted):
    found = joblib.load(_pickled(fitted))
    place = int(found.product_image_indices_[1][3])
    found.forget(place)
    own = found.for_product("nut")
    assert 3 not in own.bank_image_indices_
    assert place not in found.calibration_image_indices_
    assert found.thresholds()["n_calibration"].tolist() == [20, 19, 20]
    with pytest.raises(ValueError, match=f"{place}"):
        found.forget(place)
    with pytest.raises(ValueError, match="99 is not a training image"):
        found.forget([0, 99])
    with pytest.raises(ValueError, match="product 'nut'"):
        found.forget(np.setdiff1d(found.product_image_indices_[1], place))


def test_failed_growth_changes_no_product(fitted):
    found = joblib.load(_pickled(fitted))
    before = found.thresholds()
    X = np.concatenate([grids(0, 3, seed=12), np.full((1, 5, 4, 6), np.nan)])
    with pytest.raises(ValueError, match="NaN"):
        found.partial_fit(X, products=["bolt"] * 3 + ["plate"])
    pd.testing.assert_frame_equal(found.thresholds(), before)
    assert found.n_images_seen_ == 60


def test_detectors_that_cannot_grow_have_no_such_methods():
    assert not hasattr(MultiProductDetector(PaDiMDetector("precomputed")), "partial_fit")
    assert hasattr(detector(), "forget")


def test_recalibration_does_not_change_which_products_are_recognised(fitted):
    found = joblib.load(_pickled(fitted))
    new = grids(1, 30, seed=13)
    found.recalibrate(new[:1] + 0.3, products="nut", contamination=0.5)
    assert (found.identify(new) == "nut").all()
    found.partial_fit(grids(0, 3, seed=14), products="bolt")
    assert (found.identify(new) == "nut").all()
    assert np.isfinite(found.product_radii_).all()
    assert found.identify(new[:1] - 1000).tolist() == [None]


def test_recalibration_without_images_changes_the_named_products_only(fitted):
    found = joblib.load(_pickled(fitted))
    found.recalibrate(products=["nut"], contamination=0.4)
    rates = found.thresholds()["promised_rate"]
    assert rates[1] == 0.4
    assert (rates[[0, 2]] < 0.1).all()
    with pytest.raises(ValueError, match="products=1"):
        found.recalibrate(products=1)


def test_labels_of_training_images_are_in_the_order_of_the_images():
    X, names = training_set()
    order = np.random.default_rng(3).permutation(len(X))
    X, names = X[order], names[order]
    X[7] = X[7] * 3 + 20
    found = MultiProductDetector(PatchCoreDetector("precomputed", random_state=0), contamination=0.1)
    labels = found.fit_predict(X, products=names)
    assert labels[7] == -1
    assert np.count_nonzero(labels == -1) <= 6
    with_share = MultiProductDetector(PatchCoreDetector("precomputed", random_state=0, suspect_share=0.05))
    assert with_share.fit_predict(X, products=names)[7] == -1


def test_path_is_forgotten_in_all_products(tmp_path):
    paths = []
    for i in range(12):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray((images(0.3 + 0.03 * i, 1, i)[0] * 255).astype(np.uint8)).save(paths[-1])
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None)
    found = MultiProductDetector(PatchCoreDetector(extractor, random_state=0))
    found.fit([*paths[:6], paths[0], *paths[6:], paths[0]], products=["a"] * 7 + ["b"] * 7)
    found.forget(paths[0])
    for member in found.estimators_:
        assert paths[0] not in member.training_paths_
    assert not set(found.product_image_indices_[0][found.estimators_[0].bank_image_indices_]) & {0, 6}
    for wrong in (True, 1.0, []):
        with pytest.raises(ValueError, match="forget"):
            found.forget(wrong)


def test_detector_of_a_product_is_a_copy(fitted):
    found = joblib.load(_pickled(fitted))
    own = found.for_product("nut")
    own.partial_fit(grids(1, 5, seed=15))
    assert found.for_product("nut").n_images_seen_ == 20
    found.partial_fit(grids(1, 2, seed=16), products="nut")
    assert found.n_images_seen_ == 62


def test_new_product_needs_images_that_calibrate(fitted):
    found = joblib.load(_pickled(fitted))
    with pytest.raises(ValueError, match=r"'screw' is a new product.*'bolt', 'nut', 'plate'"):
        found.partial_fit(grids(3, 20, seed=10), products="screw", calibrate=False)
    with pytest.raises(ValueError, match="calibrate=False"):
        detector().partial_fit(*training_set()[:1], products=training_set()[1], calibrate=False)
