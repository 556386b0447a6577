from __future__ import annotations

import numpy as np

from skpatchcore.evaluation.promises import decisions_at_rates, describe_rates


def test_decisions_at_rates_use_calibration_scores_only():
    calibration = -np.arange(1.0, 100.0)  # 99 scores: the threshold of 1 % is the largest, 99
    scores = np.array([-98.0, -99.5, -96.0, -91.0, -50.0])
    labels = np.array([1, -1, -1, -1, -1])
    row = decisions_at_rates(calibration, scores, labels)
    assert row == {
        "found_at_01": 0.25, "flagged_at_01": 0.0, "found_at_05": 0.5, "flagged_at_05": 1.0, "found_at_10": 0.75,
        "flagged_at_10": 1.0,
    }  # fmt: skip
    text = describe_rates({**row, "n_good": 1})
    assert text.startswith(
        "Defects found: 25 % at a promised false-positive rate of 1 % (measured: 0 of 1 good images)"
    )
    assert text.endswith(", 75 % at a promised false-positive rate of 10 % (measured: 1 of 1 good images).")


def test_decisions_at_rates_are_nan_where_the_rate_cannot_be_promised():
    scores, labels = np.array([-1.0, -9.0]), np.array([1, -1])
    row = decisions_at_rates(-np.arange(1.0, 10.0), scores, labels)  # 9 scores promise 10 %
    assert np.isnan([row["found_at_01"], row["flagged_at_05"]]).all()
    assert (row["found_at_10"], row["flagged_at_10"]) == (0.0, 0.0)
    nothing = decisions_at_rates(np.zeros(0), scores, labels)
    assert np.isnan(list(nothing.values())).all()
    assert describe_rates(nothing) == ""
