"""Run all of scikit-learn's estimator checks; expected failures are listed with their reasons."""

from __future__ import annotations

import pytest
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import (
    check_dict_unchanged,
    check_estimators_pickle,
    check_fit2d_1sample,
    check_n_features_in,
    parametrize_with_checks,
)

import skpatchcore
from skpatchcore import (
    DN2Detector,
    MahalanobisDetector,
    MultiLightDetector,
    MultiProductDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
    SPADEDetector,
)

OUT_OF_SAMPLE = (
    "the check expects the fraction of flagged *training* rows to be the contamination; here the threshold bounds the "
    "fraction of flagged new rows, because a threshold from in-sample scores flags far too many new rows"
)
NOT_IN_SAMPLE = dict.fromkeys(("check_outliers_train", "check_outliers_fit_predict"), OUT_OF_SAMPLE)

# How to make the estimators that need arguments, or need a download with their default parameters.
MADE = {
    "PatchCoreDetector": lambda: PatchCoreDetector("precomputed"),
    "PaDiMDetector": lambda: PaDiMDetector("precomputed"),
    "SPADEDetector": lambda: SPADEDetector("precomputed"),
    "MahalanobisDetector": lambda: MahalanobisDetector("precomputed"),
    "DN2Detector": lambda: DN2Detector("precomputed"),
    "PatchCoreEnsemble": lambda: PatchCoreEnsemble(
        [(name, PatchCoreDetector("precomputed", n_neighbors=b, random_state=0)) for name, b in (("a", 9), ("b", 1))]
    ),
    "MultiLightDetector": lambda: MultiLightDetector(PatchCoreDetector()),
    "MultiProductDetector": lambda: MultiProductDetector(PatchCoreDetector("precomputed")),
}
# Estimators that take no tables. scikit-learn's checks cannot test them; test_image_checks.py beside this file does.
IMAGES_ONLY = {
    "TorchFeatureExtractor",
    "PixelExtractor",
    "MultiLightDetector",
    "AutoencoderDetector",
    "GANDetector",
}
# scikit-learn's checks call `fit` without the product of each image, which this detector needs.
NEEDS_PRODUCTS = {"MultiProductDetector"}


def public_estimators():
    """Yield one seeded instance of every public estimator that takes tables."""
    for name in skpatchcore.__all__:
        found = getattr(skpatchcore, name)
        if isinstance(found, type) and issubclass(found, BaseEstimator):
            estimator = MADE.get(name, found)()
            if not get_tags(estimator).input_tags.two_d_array:
                assert name in IMAGES_ONLY, "takes images: add it to IMAGES_ONLY and to test_image_checks.py"
                continue
            if name in NEEDS_PRODUCTS:
                continue
            yield estimator.set_params(random_state=0) if hasattr(estimator, "random_state") else estimator


ESTIMATORS = list(public_estimators())


def expected_failures(estimator):
    return NOT_IN_SAMPLE if isinstance(estimator, OutlierMixin) else {}


@pytest.mark.filterwarnings("ignore::UserWarning")  # the checks fit on few rows, which causes warnings
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=expected_failures)
def test_estimator_passes_scikit_learn_check(estimator, check):
    check(estimator)


def test_input_tags_of_a_detector_are_those_of_its_extractor():
    assert get_tags(PatchCoreDetector("precomputed")).input_tags.two_d_array
    assert not get_tags(PatchCoreDetector()).input_tags.two_d_array
    assert get_tags(PatchCoreDetector()).input_tags.string


class OneProduct(MultiProductDetector):
    """Detector of several products for which all rows show the same product."""

    def fit(self, X, y=None, *, groups=None, roi=None):
        return super().fit(X, y, products=["all"] * len(X), groups=groups, roi=roi)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "check", [check_estimators_pickle, check_dict_unchanged, check_fit2d_1sample, check_n_features_in]
)
def test_detector_of_products_passes_checks_with_one_product(check):
    check("OneProduct", OneProduct(PatchCoreDetector("precomputed", random_state=0)))
