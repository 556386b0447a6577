"""Tests of the parameter `transformer`: a fitted step between the extractor and the sampler."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skpatchcore
from skpatchcore import (
    GreedyCoresetSampler,
    LayerScaling,
    OneClassSplit,
    PatchCoreDetector,
    PatchWhitening,
    TorchFeatureExtractor,
)
from skpatchcore.patches.transform import equal_parts
from tests.factories import CellMeans, extractor

TRANSFORMERS = [PatchWhitening(), PatchWhitening(n_components=3), LayerScaling(), StandardScaler(), IncrementalPCA(3)]
IN_MEMORY_ONLY = [PCA(3), make_pipeline(StandardScaler(), PCA(4))]


def grids(n=60, seed=0):
    """Return patch features with channels of different sizes."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 10, 10, 6)) * np.geomspace(1, 20, 6) + 5).astype(np.float32)


def make(transformer, X="precomputed", **parameters):
    own = {"sampler": GreedyCoresetSampler(0.02), "random_state": 0}
    return PatchCoreDetector(X, transformer=transformer, **{**own, **parameters})


def assert_same_model(found, expected):
    for name in ("memory_bank_", "bank_image_indices_", "bank_positions_", "calibration_scores_", "embeddings_"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(found.offset_, expected.offset_)


@pytest.mark.parametrize("transformer", [*TRANSFORMERS, *IN_MEMORY_ONLY], ids=repr)
def test_bank_holds_transformed_rows_of_its_images(transformer):
    X = grids()
    detector = make(transformer).fit(X)
    rows = X[(detector.bank_image_indices_, *detector.bank_positions_.T)]
    np.testing.assert_allclose(detector.memory_bank_, detector.transformer_.transform(rows), rtol=1e-4, atol=1e-5)
    assert detector.memory_bank_.dtype == np.float32
    expected = clone(transformer).fit(X.reshape(-1, 6)).transform(rows)
    # An incremental PCA depends on the division into parts.
    tolerance = 0.3 if isinstance(transformer, IncrementalPCA) else 1e-3
    np.testing.assert_allclose(np.abs(detector.memory_bank_), np.abs(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("transformer", [None, *TRANSFORMERS], ids=repr)
def test_scores_are_those_of_transformed_features(transformer):
    X, new = grids(), grids(5, 1) * 1.5
    detector = make(transformer, calibration=None).fit(X)

    def transformed(some):
        if transformer is None:
            return some
        return detector.transformer_.transform(some.reshape(-1, 6)).reshape(*some.shape[:3], -1)

    expected = make(None, calibration=None).fit(transformed(X))
    np.testing.assert_array_equal(detector.memory_bank_, expected.memory_bank_)
    np.testing.assert_allclose(detector.score_samples(new), expected.score_samples(transformed(new)), rtol=1e-6)
    np.testing.assert_allclose(detector.segment(new), expected.segment(transformed(new)), rtol=1e-6)
    table = detector.nearest_patches(new)
    np.testing.assert_array_equal(table["distance"], expected.nearest_patches(transformed(new))["distance"])


@pytest.mark.filterwarnings("ignore:leave-one-out scores images with a transformer")
@pytest.mark.parametrize("calibration", ["auto", "leave-one-out", 0.25, None])
@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=repr)
def test_streamed_fit_is_bit_identical_to_a_fit_at_once(transformer, calibration):
    X = list(grids(200))
    detector = make(transformer, calibration=calibration, sampler=GreedyCoresetSampler(0.01))
    at_once = clone(detector).set_params(max_memory=None).fit(X)
    estimate = detector.estimate_memory(200, X[0])
    for n_bytes in (estimate.only_transformed, estimate.two_passes):
        assert_same_model(clone(detector).set_params(max_memory=n_bytes).fit(X), at_once)


def test_estimate_counts_the_raw_and_the_transformed_columns():
    grid = np.zeros((32, 32, 1000), np.float32)
    estimates = [make(some, max_memory=None).estimate_memory(1000, grid) for some in (None, PatchWhitening(), PCA(100))]
    raw = 1000 * 32 * 32 * 1000 * 4
    none, whitening, pca = estimates
    assert (none.transformed, none.only_transformed, none.transforming) == (None, None, 0)
    assert none.features == 0  # precomputed features are in memory already
    assert (whitening.features, whitening.transformed) == (0, raw)
    assert whitening.at_once == whitening.only_transformed > none.at_once + raw
    assert (pca.transformed, pca.transforming) == (raw // 10, 2 * raw)
    assert pca.only_transformed is pca.two_passes is pca.least is None
    few = make(PatchWhitening(n_components=100)).estimate_memory(1000, grid)
    assert few.transformed == raw // 10
    assert few.only_transformed < whitening.only_transformed
    assert few.model == pca.model < whitening.model
    # Each fold copies the patch features and fits its own transformer.
    folds = make(PatchWhitening(n_components=100), calibration=5).estimate_memory(1000, grid)
    assert folds.features == raw
    assert folds.way(folds.only_transformed) == "transformed"


@pytest.mark.parametrize("transformer", IN_MEMORY_ONLY, ids=repr)
def test_fit_names_transformers_that_need_less_memory(transformer):
    detector = make(transformer, calibration=None)
    n_bytes = detector.estimate_memory(60, grids()[0]).at_once
    with pytest.raises(ValueError, match=r"has no partial_fit .*PatchWhitening or .*IncrementalPCA"):
        detector.set_params(max_memory=n_bytes - 10**6).fit(list(grids()))
    detector.set_params(max_memory=n_bytes + 10**6).fit(list(grids()))


def test_each_fold_fits_its_own_transformer():
    X = grids(30)
    folds = KFold(3, shuffle=True, random_state=0)
    detector = make(PatchWhitening(), calibration=folds).fit(X)
    for learnt, scored in folds.split(X):
        alone = make(PatchWhitening(), calibration=None).fit(X[learnt])
        # The seed of the sampler is the first draw of the detector in both fits.
        np.testing.assert_allclose(detector.calibration_scores_[scored], alone.score_samples(X[scored]), rtol=1e-6)


def test_leave_one_out_warns_that_the_transformer_has_seen_the_images():
    with pytest.warns(UserWarning, match="leave-one-out scores images with a transformer that was fitted on them"):
        make(PatchWhitening(), calibration="leave-one-out").fit(grids())


def test_default_calibration_keeps_its_promise_with_few_images():
    # Many channels and few images: a shared transformer would make the scores of the folds far too small.
    rng = np.random.default_rng(0)

    def images(n):
        own = rng.normal(size=(n, 1, 1, 60)) * np.geomspace(3, 0.3, 60)
        return own + 0.2 * rng.normal(size=(n, 4, 4, 60))

    rates = []
    for _ in range(5):
        detector = PatchCoreDetector("precomputed", transformer=PatchWhitening(), contamination=0.1, random_state=0)
        detector.fit(images(20))
        rates.append((detector.predict(images(200)) == -1).mean())
    assert np.mean(rates) < 0.15
    assert detector.calibration_plan_ == "5 folds"


def test_transformer_is_not_fitted_on_held_out_or_anomalous_images():
    X = grids()
    detector = make(StandardScaler(), calibration=0.25).fit(X)
    learnt = np.setdiff1d(np.arange(60), detector.calibration_image_indices_)
    np.testing.assert_allclose(detector.transformer_.mean_, X[learnt].reshape(-1, 6).mean(axis=0), rtol=1e-4)
    y = np.where(np.arange(60) < 50, 1, -1)
    detector = make(StandardScaler(), calibration=None).fit(X, y)
    np.testing.assert_allclose(detector.transformer_.mean_, X[:50].reshape(-1, 6).mean(axis=0), rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), n_rows=st.integers(1, 20))
def test_parts_of_the_fit_do_not_depend_on_the_batches(sizes, n_rows):
    rows = np.arange(2.0 * sum(sizes)).reshape(-1, 2)
    found = [part.copy() for part in equal_parts(np.split(rows, np.cumsum(sizes)[:-1]), n_rows)]
    np.testing.assert_array_equal(np.concatenate(found), rows)
    assert all(len(part) == n_rows for part in found[:-1])
    assert len(found[-1]) < 2 * n_rows
    assert len(found) == 1 or len(found[-1]) >= n_rows


def test_drift_and_inspection_stay_those_of_the_extractor():
    rng = np.random.default_rng(0)
    images = [rng.normal(0.5, 0.1, (48, 64, 3)).clip(0, 1) for _ in range(12)]
    plain, whitened = make(None, CellMeans()).fit(images), make(PatchWhitening(n_components=2), CellMeans()).fit(images)
    np.testing.assert_array_equal(whitened.embeddings_, plain.embeddings_)
    assert str(whitened.inspection_) == str(plain.inspection_)
    whitened.recalibrate(images[:6])
    np.testing.assert_array_equal(whitened.embeddings_, plain.embeddings_[:6])


def test_region_of_interest_and_image_score_work_with_a_transformer():
    rng = np.random.default_rng(0)
    images = [rng.normal(0.5, 0.1, (48, 64, 3)).clip(0, 1) for _ in range(12)]
    roi = (0.2, 0.1, 0.6, 0.7)
    detector = make(PatchWhitening(), CellMeans(), roi=roi, image_score="map-max").fit(images)
    changed = [image.copy() for image in images]
    for image in changed:
        image[:8] = 0  # outside the region
    np.testing.assert_array_equal(detector.score_samples(changed), detector.score_samples(images))
    np.testing.assert_allclose(
        -detector.score_samples(images), np.nanmax(detector.segment(images), axis=(1, 2)), rtol=1e-6
    )


def test_layer_scaling_takes_the_layers_of_the_extractor():
    rng = np.random.default_rng(0)
    images = [rng.normal(0.5, 0.1, (64, 64, 3)).clip(0, 1) for _ in range(6)]
    scaling = LayerScaling()
    detector = make(scaling, extractor()).fit(images)
    assert detector.transformer_.layer_channels == (128, 256)
    assert scaling.layer_channels is None
    assert len(np.unique(detector.transformer_.scale_)) == 2
    with pytest.warns(UserWarning, match="does not state which channels come from which layer"):
        pooled = make(LayerScaling(), extractor(n_channels=64)).fit(images)
    assert len(np.unique(pooled.transformer_.scale_)) == 1
    in_pipeline = make(make_pipeline(LayerScaling(), PatchWhitening()), extractor()).fit(images)
    assert in_pipeline.transformer_[0].layer_channels == (128, 256)


def test_nested_parameters_can_be_set_and_searched():
    detector = make(PatchWhitening())
    assert detector.get_params()["transformer__shrinkage"] == 0.1
    X = np.concatenate([grids(20), grids(4, 1) * 3])
    y = np.repeat([1, -1], [20, 4])
    search = GridSearchCV(
        make(None),
        [
            {"transformer": [None, StandardScaler()]},
            {"transformer": [PatchWhitening()], "transformer__shrinkage": [0.5]},
        ],
        scoring="roc_auc",
        cv=OneClassSplit(2),
        error_score="raise",
    )
    search.fit(X, y)
    assert len(search.cv_results_["params"]) == 3
    with pytest.raises(ValueError, match="transformer__shrinkage cannot be set, because transformer=None"):
        make(None).set_params(transformer__shrinkage=0.5)


def test_fit_clones_the_transformer_and_draws_its_seed():
    given = PCA(2)
    detector = make(given).fit(grids())
    assert not hasattr(given, "components_")
    assert isinstance(detector.transformer_.random_state, int)
    assert "transformer" in detector._repr_html_()
    assert "transformer:" not in make(None)._repr_html_()


@pytest.mark.parametrize("transformer", [*TRANSFORMERS[:3], PCA(3)], ids=repr)
def test_saved_detector_keeps_its_transformer(tmp_path, transformer):
    detector, new = make(transformer).fit(grids()), grids(3, 1)
    skpatchcore.save(detector, tmp_path / "model.skops")
    joblib.dump(detector, tmp_path / "model.joblib")
    for loaded in (skpatchcore.load(tmp_path / "model.skops"), joblib.load(tmp_path / "model.joblib")):
        np.testing.assert_array_equal(loaded.score_samples(new), detector.score_samples(new))


def test_model_of_an_older_version_has_no_transformer():
    detector = make(None).fit(grids())
    state = {n: v for n, v in detector.__getstate__().items() if n not in ("transformer", "transformer_")}
    older = PatchCoreDetector.__new__(PatchCoreDetector)
    older.__setstate__(state)
    assert older.transformer_ is None
    np.testing.assert_array_equal(older.score_samples(grids(3, 1)), detector.score_samples(grids(3, 1)))


class Broken(TransformerMixin, BaseEstimator):
    """Transformer with a wrong result."""

    def __init__(self, kind):
        self.kind = kind

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        if self.kind == "vector":
            return X[:, 0]
        if self.kind == "fewer rows":
            return X[1:]
        X = X.copy()
        X[150, 2] = np.nan
        return X


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vector", r"Broken.transform returned ndarray of shape \(1600,\)"),
        ("fewer rows", r"Expected a dense array of shape \(1600, n_columns\)"),
        ("nan", "the result of Broken holds NaN"),
    ],
)
def test_fit_refuses_a_wrong_result_of_the_transformer(kind, message):
    with pytest.raises(ValueError, match=message):
        make(Broken(kind)).fit(grids())


def test_errors_name_the_numbers_of_channels():
    detector = make(PatchWhitening()).fit(grids())
    with pytest.raises(ValueError, match="patch features have 5 channels, but the training features have 6"):
        detector.score_samples(grids()[..., :5])
    with pytest.raises(ValueError, match="The 'transformer' parameter"):
        make("whitening").fit(grids())


def test_real_network_with_whitening_separates_the_defect(parts):
    train, good, bad = parts
    network = TorchFeatureExtractor("resnet18", weights=None, image_size=None)
    detector = PatchCoreDetector(network, transformer=PatchWhitening(), random_state=0).fit(train)
    assert detector.score_samples(bad).max() < detector.score_samples(good).min()
