from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skpatchcore.calibration import conformal_threshold, leave_group_out


@given(
    scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60, unique=True),
    contamination=st.floats(0.01, 0.5),
)
def test_the_threshold_is_the_conformal_quantile(scores, contamination):
    scores, n = np.array(scores), len(scores)
    if contamination < 1 / (n + 1) - 1e-9:
        with pytest.warns(UserWarning, match=rf"1/{n + 1} "):
            assert conformal_threshold(scores, contamination) == scores.max()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at the very limit, rounding decides
        threshold = conformal_threshold(scores, contamination)
    # The promise: a new exchangeable score is above with probability (images at or beyond it) / (n + 1).
    assert (1 + (scores > threshold).sum()) / (n + 1) <= contamination + 1e-6 or threshold == scores.max()
    # And no threshold below it would keep it.
    below = scores[scores < threshold]
    if len(below):
        assert (1 + (scores > below.max()).sum()) / (n + 1) > contamination - 1e-6


@given(scores=st.lists(st.floats(-10, 10), min_size=12, max_size=40))
def test_the_threshold_falls_as_contamination_grows(scores):
    shares = [0.1, 0.2, 0.3, 0.5]
    thresholds = [conformal_threshold(np.array(scores), share) for share in shares]
    assert thresholds == sorted(thresholds, reverse=True)


def test_fresh_images_are_flagged_as_promised():
    rng = np.random.default_rng(0)
    rates = [(rng.normal(size=500) > conformal_threshold(rng.normal(size=99), 0.1)).mean() for _ in range(200)]
    assert np.mean(rates) == pytest.approx(0.1, abs=0.01)


def test_auto_flags_no_calibration_image():
    scores = np.array([1.0, 5.0, np.nan, 3.0])
    assert conformal_threshold(scores, "auto") == 5.0


def test_nothing_to_calibrate_gives_no_threshold():
    assert math.isnan(conformal_threshold(np.array([np.nan]), "auto"))
    assert math.isnan(conformal_threshold(np.array([]), 0.1))


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], ["b", "a", "b", "a"]])
def test_groups_are_left_out_whole(groups):
    groups = np.array(groups)
    bank_groups = groups[[3, 0, 0, 2, 1]]
    seen = []
    for images, rows in leave_group_out(groups, bank_groups):
        own = groups[images[0]]
        assert (groups[images] == own).all()
        assert rows.tolist() == np.flatnonzero(bank_groups == own).tolist()
        seen += images.tolist()
    assert sorted(seen) == [0, 1, 2, 3]
