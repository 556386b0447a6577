"""Tests of the checks of labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skpatchcore import OneClassSplit, PatchCoreDetector
from skpatchcore._utils.labels import image_labels, is_nominal

LABELS = {"+1": 1, "1.0": 1.0, "-1": -1, "int8": np.int8(-1), "0": 0, "NaN": np.nan, "None": None, "NA": pd.NA}
MEANING = {"+1": 1, "1.0": 1, "-1": -1, "int8": -1}


@given(st.lists(st.sampled_from(sorted(LABELS)), min_size=1, max_size=9))
def test_image_labels_returns_1_for_good_minus_1_for_anomalous_0_for_unknown(names):
    expected = [MEANING.get(name, 0) for name in names]
    y = [LABELS[name] for name in names]
    if {label for label in y if not pd.isna(label)} == {0, 1}:  # probably another convention, therefore refused
        with pytest.raises(ValueError, match="holds 0 and 1, and no -1"):
            image_labels(y, len(y))
        return
    for form in (y, np.array(y, object), pd.Series(y, index=range(5, 5 + len(y)), dtype=object)):
        assert image_labels(form, len(y)).tolist() == expected


@pytest.mark.parametrize(
    "y",
    [
        pd.Series([1, None, -1], dtype="Int64"),
        pd.Series([1, None, -1], dtype="float64"),
        pd.Series([1, None, -1]).astype("category"),
        pd.array([1, None, -1], dtype="Int8"),
        np.array([1, np.nan, -1]),
    ],
    ids=["Int64", "float64", "category", "Int8 array", "float array"],
)
def test_image_labels_reads_missing_values_of_any_kind(y):
    assert image_labels(y, 3).tolist() == [1, 0, -1]


def test_image_labels_refuses_several_columns():
    assert image_labels([[1], [-1]], 2).tolist() == [1, -1]
    with pytest.raises(ValueError, match=r"y has shape \(2, 2\)"):
        image_labels([[1, 1], [-1, 1]], 2)


@pytest.mark.parametrize("bad", [2, -2, 0.5, True, "good", "1", np.inf, 1j])
def test_image_labels_refuses_an_invalid_label_and_names_its_index(bad):
    with pytest.raises(ValueError, match=r"y\[2\] is .*convention is \+1 for good and -1 for anomalous"):
        image_labels([1, -1, bad, 1], 4)


def test_is_nominal_warns_of_unknown_labels_at_the_line_of_the_caller():
    with pytest.warns(UserWarning, match="1 of 3 images neither good nor anomalous: they are left out") as caught:
        assert is_nominal([1, np.nan, -1], 3).tolist() == [True, False, False]
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:y labels")
@pytest.mark.parametrize("unknown", [0, np.nan, None, pd.NA])
def test_fit_and_splits_leave_out_unknown_and_anomalous_images(unknown):
    X = np.random.default_rng(0).normal(size=(24, 4, 4, 8)).astype(np.float32)
    X[18:] += 8
    y = [1] * 18 + [unknown] * 2 + [-1] * 4
    detector = PatchCoreDetector("precomputed", random_state=0).fit(X, y)
    assert detector.bank_image_indices_.max() < 18
    assert len(detector.calibration_scores_) == 18
    assert (detector.predict(X[18:]) == -1).all()
    for train, test in OneClassSplit(2).split(X, y):
        assert train.max() < 18
        assert not np.isin([18, 19], test).any()
    assert (detector.fit_predict(X, y)[18:] == -1).all()
