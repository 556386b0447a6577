"""Estimator checks for estimators that take images; scikit-learn's own checks use tables only."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags

from skpatchcore import (
    AutoencoderDetector,
    DN2Detector,
    GANDetector,
    ImageError,
    MahalanobisDetector,
    MultiLightDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PixelExtractor,
    SPADEDetector,
    TorchFeatureExtractor,
)

EXTRACTOR = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None, batch_size=4)
DETECTOR = PatchCoreDetector(EXTRACTOR, random_state=0)
PIXELS = PixelExtractor(image_size=(16, 32), batch_size=4)
TRAINED = {"max_epochs": 2, "patience": 2, "width": 4, "latent_size": 8, "random_state": 0}
ESTIMATORS = {
    "extractor": EXTRACTOR,
    "pixels": PIXELS,
    "detector": DETECTOR,
    "detector with images held out": PatchCoreDetector(EXTRACTOR, calibration=0.3, random_state=0),
    "SPADE": SPADEDetector(EXTRACTOR),
    "PaDiM": PaDiMDetector(EXTRACTOR, n_channels=20, random_state=0),
    "ensemble": PatchCoreEnsemble([("a", DETECTOR), ("b", clone(DETECTOR).set_params(n_neighbors=1))]),
    "Mahalanobis": MahalanobisDetector(EXTRACTOR, random_state=0),
    "DN2": DN2Detector(EXTRACTOR),
    "autoencoder": AutoencoderDetector(PIXELS, **TRAINED),
    "GAN": GANDetector(PIXELS, **TRAINED),
    "lights": MultiLightDetector(DETECTOR),
}
WITHOUT_MAPS = MahalanobisDetector, DN2Detector
# Checks with single images. tests/detectors/test_lights.py has these checks for parts, which are lists of images.
OF_IMAGES = ("check_image_containers", "check_image_nothing_and_nonsense_are_refused")
METHODS = ("transform", "score_samples", "decision_function", "predict", "segment", "predict_mask", "p_values")
OF_MAPS = ("segment", "predict_mask")
# An invalid value for each of some parameters.
WRONG = {
    "patch_size": 0,
    "batch_size": "all",
    "n_neighbors": -1,
    "smoothing": "much",
    "contamination": 2,
    "max_epochs": 0,
}


def methods_of(estimator):
    """Return the estimator's bound methods among `METHODS`."""
    names = [name for name in METHODS if hasattr(estimator, name)]
    if isinstance(estimator, WITHOUT_MAPS):
        names = [name for name in names if name not in OF_MAPS]
    return [getattr(estimator, name) for name in names]


def same(first, second):
    """Assert that two pairs of a fitted estimator and its images give equal results in all methods."""
    for a, b in zip(methods_of(first[0]), methods_of(second[0]), strict=True):
        np.testing.assert_allclose(a(first[1]), b(second[1]), rtol=1e-4, atol=1e-6)


def check_image_clone(estimator, X):
    """A clone has the same parameters and no fitted attributes."""
    copy = clone(estimator.fit(X))
    assert repr(copy) == repr(estimator)
    assert set(copy.get_params()) == set(estimator.get_params())
    assert not [name for name in vars(copy) if name.endswith("_")]


def check_image_parameters_are_kept_by_fit(estimator, X):
    """`fit` does not change parameters."""
    before = {name: repr(value) for name, value in estimator.get_params().items()}
    estimator.fit(X)
    assert {name: repr(value) for name, value in estimator.get_params().items()} == before


def check_image_fit_returns_itself(estimator, X):
    """`fit` returns the estimator."""
    assert estimator.fit(X) is estimator


def check_image_fitted_attributes_end_in_an_underscore(estimator, X):
    """All attributes that `fit` sets end in an underscore."""
    before = set(vars(estimator))
    estimator.fit(X)
    assert all(name.endswith("_") for name in set(vars(estimator)) - before)


def check_image_pickle(estimator, X):
    """A pickled and unpickled estimator gives the same results."""
    estimator.fit(X)
    same((estimator, X), (pickle.loads(pickle.dumps(estimator)), X))


def check_image_dict_unchanged_by_predict(estimator, X):
    """No method except `fit` changes an attribute."""
    estimator.fit(X)
    before = {name: joblib.hash(value) for name, value in vars(estimator).items()}
    for method in methods_of(estimator):
        method(X)
    assert {name: joblib.hash(value) for name, value in vars(estimator).items()} == before


def check_image_fit_is_idempotent(estimator, X):
    """A second fit on the same images gives the same results."""
    if "random_state" in estimator.get_params(deep=False):
        estimator.set_params(random_state=0)
    same((clone(estimator).fit(X), X), (estimator.fit(X).fit(X), X))


def check_image_fit_twice_forgets_the_first(estimator, X):
    """A fit on other images leaves no trace of the first fit."""
    if "random_state" in estimator.get_params(deep=False):
        estimator.set_params(random_state=0)
    same((clone(estimator).fit(X), X), (estimator.fit(X[:5] * 0.5).fit(X), X))


def check_image_subsets_give_the_same(estimator, X):
    """Results of an image do not depend on the number of images in the call."""
    estimator.fit(X)
    X = X * 0.97  # other images than in fit: scores of calibration images tie with the calibration scores
    for method in methods_of(estimator):
        whole = method(X)
        np.testing.assert_allclose(
            np.concatenate([method(X[i : i + 1]) for i in range(4)]), whole[:4], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(np.concatenate([method(X[:3]), method(X[3:])]), whole, rtol=1e-4, atol=1e-5)


def check_image_order_does_not_matter(estimator, X):
    """Results of an image do not depend on the order of the images."""
    order = np.random.default_rng(0).permutation(len(X))
    estimator.fit(X)
    X = X * 0.97
    for method in methods_of(estimator):
        np.testing.assert_allclose(method(X[order]), method(X)[order], rtol=1e-4, atol=1e-5)


def check_image_input_is_not_written_to(estimator, X):
    """No method changes its input."""
    before = X.copy()
    for method in methods_of(estimator.fit(X)):
        method(X)
    np.testing.assert_array_equal(X, before)


def check_image_readonly_memmap(estimator, X, folder):
    """A read-only memory map gives the same results as an array in memory."""
    np.save(folder / "X.npy", X)
    mapped = np.load(folder / "X.npy", mmap_mode="r")
    if "random_state" in estimator.get_params(deep=False):
        estimator.set_params(random_state=0)
    same((clone(estimator).fit(X), X), (estimator.fit(mapped), mapped))


def check_image_containers(estimator, X, folder):
    """Paths, arrays and PIL images give the same results in every container."""
    pixels = (X * 255).astype(np.uint8)
    paths = [str(folder / f"{i}.png") for i in range(len(X))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    if "random_state" in estimator.get_params(deep=False):
        estimator.set_params(random_state=0)
    expected = clone(estimator).fit(pixels), pixels
    series = pd.Series(paths, index=range(7, 7 + len(X)), name="path")
    frame = pd.DataFrame({"path": paths, "part": "a"})
    for given in (paths, tuple(paths), np.array(paths), series, frame["path"], list(pixels), map_to_pil(pixels)):
        same(expected, (clone(estimator).fit(given), given))


def map_to_pil(pixels):
    return [Image.fromarray(image) for image in pixels]


def check_image_unfitted_says_so(estimator, X):
    """Methods of an unfitted estimator raise a NotFittedError."""
    if not get_tags(estimator).requires_fit:
        return
    for method in methods_of(estimator):
        with pytest.raises(NotFittedError):
            method(X)


def check_image_wrong_parameters_are_named(estimator, X):
    """Invalid and unknown parameters raise an error with the parameter's name."""
    for name, value in WRONG.items():
        if name in estimator.get_params(deep=False):
            with pytest.raises(ValueError, match=f"The '{name}' parameter of {type(estimator).__name__} must be"):
                clone(estimator).set_params(**{name: value}).fit(X)
    with pytest.raises(ValueError, match="Invalid parameter 'speed'"):
        estimator.set_params(speed=1)


def check_image_nothing_and_nonsense_are_refused(estimator, X):
    """Empty and invalid inputs are refused, and images with NaN are refused with their index."""
    fitted = clone(estimator).fit(X)
    for method in methods_of(fitted):
        for wrong in ([], np.zeros((0, 8, 8, 3)), X[0], "part.png", None, pd.DataFrame({"path": ["a.png"], "id": 1})):
            with pytest.raises(ValueError, match="X "):
                method(wrong)
        with pytest.raises(ImageError, match="image 1: holds NaN"):
            method(np.stack([X[0], X[0] * np.nan]))


def check_image_processes_give_the_same(estimator, X):
    """Worker processes give the same results."""
    estimator.fit(X)
    method = methods_of(estimator)[0]
    for found in joblib.Parallel(2)(joblib.delayed(method)(X) for _ in range(2)):
        np.testing.assert_array_equal(found, method(X))


def check_image_representations_compute_nothing(estimator, X):
    """`repr` and the HTML representation work before `fit` and with weights that do not exist."""
    for shown in (estimator, clone(estimator).fit(X)):
        assert type(shown).__name__ in repr(shown)
        html = shown._repr_html_()
        assert "TorchFeatureExtractor" in html or "PixelExtractor" in html
        if isinstance(shown, PatchCoreDetector):
            places = [html.index(f'data-param-prefix="{stage}__"') for stage in ("extractor", "sampler", "index")]
            assert places == sorted(places)
    names = [name for name in estimator.get_params() if name.endswith("weights")]
    if not names:  # no network with weights
        return
    name = names[0]
    broken = clone(estimator).set_params(**{name: "nowhere.pth"})
    assert "nowhere.pth" in broken._repr_html_()


CHECKS = [check for name, check in sorted(globals().items()) if name.startswith("check_image_")]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # the training of the test is short
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_estimator_passes_image_check(estimator, check, parts, tmp_path):
    X = np.concatenate(parts[:2]).astype(np.float32)
    if isinstance(estimator, MultiLightDetector):
        if check.__name__ in OF_IMAGES:
            pytest.skip("the check passes single images, and this detector takes parts")
        X = np.stack([X, X**2], axis=1)
    given = (tmp_path,) if "folder" in check.__code__.co_varnames[: check.__code__.co_argcount] else ()
    check(clone(estimator), X.copy(), *given)
