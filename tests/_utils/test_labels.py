"""Tests of the checks of labels."""

from __future__ import annotations

import re

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


CONVENTIONS = {
    "good and bad": ["good", "bad", "good", "bad"],
    "OK and NG": ["NG", "OK", "OK", "NG"],
    "kinds of defects": ["scratch", "good", "dent", "good"],
    "normal and anomaly": ["anomaly", "normal", "normal", "normal"],
    "texts of numbers": ["1", "-1", "1", "1"],
    "unknown words": ["a", "b", "a", "a"],
    "bool": [True, False, True, True],
    "all True": [True] * 4,
    "0 and 1": [0, 1, 1, 0],
    "1 and 2": [1, 2, 2, 1],
    "one other number": [2, 2, 2, 2],
}
FORMS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "object array": lambda y: np.array(y, object),
    "Series": pd.Series,
    "category": lambda y: pd.Series(y, dtype="category"),
    "column": lambda y: np.array(y, object)[:, None],
}


@pytest.mark.parametrize("has_missing", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_code_in_the_error_of_image_labels_maps_the_labels(convention, form, has_missing):
    given = [*CONVENTIONS[convention], *([None] if has_missing else [])]
    y = FORMS[form](given)
    if form in ("list", "tuple") and not has_missing:
        y = type(y)(np.array(given).tolist())
    with pytest.raises(ValueError, match="the convention is") as caught:
        image_labels(y, len(given))
    advice = re.findall(r"If (\S+) stands for good images, pass (.+?)\.(?= If|$)", str(caught.value))
    assert 1 <= len(advice) <= 2
    for good, code in advice:
        expected = [0 if label is None else 1 if label == eval(good) else -1 for label in given]
        mapped = eval(code, {"np": np, "pd": pd, "y": y})
        assert image_labels(mapped, len(given)).tolist() == expected
    known = {good for good, _ in advice}
    unambiguous = {
        "good and bad": "'good'",
        "OK and NG": "'OK'",
        "kinds of defects": "'good'",
        "texts of numbers": "'1'",
    }
    assert known == {unambiguous[convention]} if convention in unambiguous else len(known) >= 1
    if convention in ("bool", "0 and 1", "1 and 2", "unknown words"):
        assert len(known) == 2


def test_error_of_image_labels_gives_no_code_for_one_wrong_label_or_for_scores():
    with pytest.raises(ValueError, match=r"Replace 2 with one of these labels\.$"):
        image_labels([1, -1, 2, 1], 4)
    with pytest.raises(ValueError, match=r"unlabelled images\.$"):
        image_labels(np.linspace(0.1, 0.9, 50), 50)


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
