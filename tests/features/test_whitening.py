"""Tests of PatchWhitening and LayerScaling: formulas, streaming, independence of the batch, errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.covariance import ShrunkCovariance
from sklearn.decomposition import PCA

from skpatchcore import LayerScaling, PatchWhitening


def correlated(n_rows, n_columns, seed=0, offset=3.0):
    """Return rows with different variances and correlated columns."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(n_columns, n_columns)) * np.geomspace(1, 0.05, n_columns)
    return rng.normal(size=(n_rows, n_columns)) @ mixing + offset


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_whitening_is_the_symmetric_root_of_the_shrunk_covariance(shrinkage):
    X = correlated(500, 6)
    whitening = PatchWhitening(shrinkage).fit(X)
    covariance = ShrunkCovariance(shrinkage=shrinkage).fit(X)
    np.testing.assert_allclose(whitening.covariance_, np.cov(X.T, bias=True), rtol=1e-10)
    np.testing.assert_allclose(whitening.components_, np.linalg.inv(sqrtm(covariance.covariance_)), 1e-4, 1e-6)
    # Squared distances after the whitening are Mahalanobis distances.
    np.testing.assert_allclose((whitening.transform(X) ** 2).sum(axis=1), covariance.mahalanobis(X), rtol=1e-4)
    np.testing.assert_allclose(whitening.inverse_transform(whitening.transform(X)), X, atol=1e-4)


def test_kept_components_are_those_of_pca():
    X = correlated(500, 8)
    found = PatchWhitening(shrinkage=0, n_components=3).fit_transform(X)
    expected = PCA(3, whiten=True).fit_transform(X)
    np.testing.assert_allclose(np.abs(found), np.abs(expected) * np.sqrt(500 / 499), rtol=1e-3, atol=1e-4)
    assert PatchWhitening(n_components=3).fit(X).get_feature_names_out().tolist() == [
        "patchwhitening0", "patchwhitening1", "patchwhitening2"
    ]  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(
    cuts=st.lists(st.integers(1, 399), max_size=6, unique=True), offset=st.sampled_from([0.0, 3.0, 1000.0]),
    kind=st.sampled_from([PatchWhitening(), PatchWhitening(0.3, 4), LayerScaling((2, 5)), LayerScaling()]),
    is_float32=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_fit_in_parts_equals_fit_at_once(cuts, offset, kind, is_float32, seed):
    X = correlated(400, 7, seed, offset).astype(np.float32 if is_float32 else np.float64)
    at_once = type(kind)(**kind.get_params()).fit(X)
    in_parts = type(kind)(**kind.get_params())
    for part in np.split(X, sorted(cuts)):
        in_parts.partial_fit(part)
    np.testing.assert_allclose(in_parts.transform(X), at_once.transform(X), rtol=1e-5, atol=1e-5)
    assert in_parts.n_samples_seen_ == 400


@pytest.mark.parametrize("kind", [PatchWhitening(), PatchWhitening(n_components=9), LayerScaling()])
def test_result_for_a_row_does_not_depend_on_the_other_rows(kind):
    X = correlated(700, 40).astype(np.float32)
    whole = kind.fit(X).transform(X)
    assert whole.dtype == np.float32
    for start, stop in [(0, 1), (3, 40), (255, 258), (100, 700)]:
        np.testing.assert_array_equal(kind.transform(X[start:stop]), whole[start:stop])


def test_layer_scaling_gives_each_layer_a_root_mean_square_of_1():
    X = correlated(300, 7) * np.repeat([1.0, 100.0, 0.0], [2, 4, 1])
    scaled = LayerScaling((2, 4, 1)).fit_transform(X)
    roots = [np.sqrt((part**2).mean()) for part in np.split(scaled, [2, 6], axis=1)]
    np.testing.assert_allclose(roots, [1, 1, 0], rtol=1e-6)
    scaling = LayerScaling((2, 4, 1)).fit(X)
    assert len(set(scaling.scale_[2:6].tolist())) == 1
    np.testing.assert_allclose(scaling.inverse_transform(scaled), X, rtol=1e-6)


def test_second_fit_forgets_the_first():
    X = correlated(300, 5)
    for kind in (PatchWhitening(), LayerScaling()):
        twice = kind.fit(10 * X).fit(X).transform(X)
        np.testing.assert_array_equal(twice, type(kind)().fit(X).transform(X))


def test_whitening_without_its_covariance_transforms_but_takes_no_more_rows():
    X = correlated(300, 5)
    whitening = PatchWhitening().partial_fit(X)
    whitening.drop_fit_state()
    assert not hasattr(whitening, "covariance_")
    np.testing.assert_allclose(whitening.transform(X), PatchWhitening().fit(X).transform(X), rtol=1e-6)
    with pytest.raises(ValueError, match="covariance_ was dropped"):
        whitening.partial_fit(X)
    assert whitening.fit(X).covariance_.shape == (5, 5)


@pytest.mark.parametrize(
    ("estimator", "X", "message"),
    [
        (PatchWhitening(), np.ones((9, 3)), "whitening needs rows that differ"),
        (PatchWhitening(0), np.random.default_rng(0).random((3, 5)), "singular with shrinkage=0"),
        (PatchWhitening(n_components=4), np.eye(3), "n_components=4 is larger than the number of columns of X, 3"),
        (PatchWhitening(shrinkage=1.5), np.eye(3), "The 'shrinkage' parameter"),
        (LayerScaling((1, 3)), np.eye(3), "layer_channels="),
        (LayerScaling((3, 0)), np.eye(3), "layer_channels="),
    ],
)
def test_fit_refuses(estimator, X, message):
    with pytest.raises(ValueError, match=message):
        estimator.fit(X)
