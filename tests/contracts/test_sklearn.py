"""scikit-learn's own checks: all of them, each failure that is meant listed with its reason."""

from __future__ import annotations

import pytest
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

import skpatchcore
from skpatchcore import PaDiMDetector, PatchCoreDetector, PatchCoreEnsemble, SPADEDetector

OUT_OF_SAMPLE = (
    "checks that the share of flagged *training* rows is the contamination; here the threshold promises a share of new "
    "rows, because a threshold from in-sample scores flags far too many of these"
)
NOT_IN_SAMPLE = dict.fromkeys(("check_outliers_train", "check_outliers_fit_predict"), OUT_OF_SAMPLE)

# How those are made that can't be made without arguments, or whose defaults need a download.
MADE = {
    "PatchCoreDetector": lambda: PatchCoreDetector("precomputed"),
    "PaDiMDetector": lambda: PaDiMDetector("precomputed"),
    "SPADEDetector": lambda: SPADEDetector("precomputed"),
    "PatchCoreEnsemble": lambda: PatchCoreEnsemble(
        [(name, PatchCoreDetector("precomputed", n_neighbors=b, random_state=0)) for name, b in (("a", 9), ("b", 1))]
    ),
}
# Those of which scikit-learn's checks can test nothing: tests/test_image_checks.py does.
IMAGES_ONLY = {"TorchFeatureExtractor"}


def public_estimators():
    """Yield one of every public estimator that takes tables, seeded."""
    for name in skpatchcore.__all__:
        found = getattr(skpatchcore, name)
        if isinstance(found, type) and issubclass(found, BaseEstimator):
            estimator = MADE.get(name, found)()
            if not get_tags(estimator).input_tags.two_d_array:
                assert name in IMAGES_ONLY, "a new estimator that takes images: give it the checks of images"
                continue
            yield estimator.set_params(random_state=0) if hasattr(estimator, "random_state") else estimator


ESTIMATORS = list(public_estimators())


def expected_failures(estimator):
    return NOT_IN_SAMPLE if isinstance(estimator, OutlierMixin) else {}


@pytest.mark.filterwarnings("ignore::UserWarning")  # the checks fit on a handful of rows, on purpose
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=expected_failures)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_the_detector_takes_the_input_of_its_extractor():
    assert get_tags(PatchCoreDetector("precomputed")).input_tags.two_d_array
    assert not get_tags(PatchCoreDetector()).input_tags.two_d_array
    assert get_tags(PatchCoreDetector()).input_tags.string
