"""Tests of `warn_user`: warnings point to the line of the user."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

import skpatchcore
from skpatchcore import PatchCoreDetector
from skpatchcore._utils.warning import _is_inner

X = np.random.default_rng(0).random((6, 4, 4, 8), np.float32)


class Squared(NearestNeighbors):
    """An index with distances that are not Euclidean."""

    def kneighbors(self, X=None, n_neighbors=None, return_distance=True):
        distances, indices = super().kneighbors(X, n_neighbors, return_distance)
        return 100 * distances + 100, indices


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"index": Squared(), "calibration": None}, "not Euclidean"),
        ({"contamination": 0.001}, "cannot be promised"),
    ],
    ids=["index", "contamination"],
)
def test_warnings_of_a_detector_point_to_the_line_of_the_user(parameters, message):
    detector = PatchCoreDetector("precomputed", random_state=0, **parameters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detector.fit(X).score_samples(X)
    places = [warning.filename for warning in caught if message in str(warning.message)]
    assert places
    assert set(places) == {__file__}


def test_a_user_file_beside_the_package_does_not_count_as_inner():
    package = Path(skpatchcore.__file__).parent
    assert _is_inner(str(package / "bank" / "answers.py"))
    assert not _is_inner(str(package.with_name("skpatchcore_of_mine.py")))
