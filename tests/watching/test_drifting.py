"""Drift of judged parts: evidence after each part, one alarm, and bounded memory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from skpatchcore import PatchCoreDetector
from skpatchcore.watching.drifting import Drift
from tests.watching.light import LightDetector


@pytest.fixture(scope="module")
def detector():
    rng = np.random.default_rng(0)
    return PatchCoreDetector("precomputed", random_state=0).fit(rng.random((60, 2, 2, 6)))


def scores_of(detector, n):
    return np.random.default_rng(1).choice(detector.calibration_scores_, n).tolist()


def test_evidence_is_that_of_the_monitor_and_one_per_part(detector):
    drift = Drift(detector)
    together = drift.update([*scores_of(detector, 8), math.nan], None)
    single = Drift(detector)
    one_by_one = [single.update([score], None)[0] for score in [*scores_of(detector, 8), math.nan]]
    assert together == one_by_one
    assert len(together) == 9
    assert not drift.alarm
    assert not drift.reason


def test_alarm_stays_after_the_comparison_begins_anew(detector):
    drift = Drift(detector, n_parts=50)
    low = float(detector.calibration_scores_.min()) - 1
    drift.update([low] * 50, None)
    alarm = drift.alarm
    assert "drift" in alarm
    after = drift.update(scores_of(detector, 3), None)
    assert max(after) < math.log(100)  # of the new comparison
    assert drift.alarm == alarm
    assert drift._monitor.n_seen_ == 3  # the memory of the monitor grows with this number


def test_detector_without_embeddings_says_why_there_is_no_drift():
    drift = Drift(LightDetector())
    assert drift.reason
    assert all(math.isnan(value) for value in drift.update([-0.1, -0.2], None))
