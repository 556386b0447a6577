"""DetectionCapabilityDisplay: one panel per curve, ticks, lines, close-ups and empty results."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from skpatchcore.display import DetectionCapabilityDisplay
from skpatchcore.display.capability import close_up
from tests.factories import detector
from tests.reports.test_capability import HITS, SIZES, result_of


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_display_draws_one_panel_per_curve_with_examples():
    result = result_of()
    display = DetectionCapabilityDisplay.from_result(result)
    assert len(display.axes_) == 4
    assert len(display.figure_.axes) == 4 * 3
    display.figure_.canvas.draw()
    for ax, (kind, hits) in zip(display.axes_, HITS.items(), strict=True):
        ticks = {line.get_ydata()[0]: len(line.get_ydata()) for line in ax.lines if line.get_marker() == "|"
                 and len(line.get_ydata())}  # fmt: skip
        assert ticks.get(1.04, 0) == hits.sum()
        assert ticks.get(-0.04, 0) == (~hits).sum()
        assert ax.get_xlabel() == ("width" if kind == "scratch" else "diameter") + " in pixels"
        assert ax.get_title(loc="left").endswith("contrast 0.6")
    labels = display.axes_[0].get_legend_handles_labels()[1]
    curve = result.curves["scratch", 0.6]
    assert labels == [f"a90: {curve.a90:.1f} px", f"a90/95: {curve.a90_95:.1f} px"]


def test_display_without_examples_draws_on_a_given_figure():
    figure = plt.figure()
    display = DetectionCapabilityDisplay.from_result(result_of({"blob": SIZES > 5}), examples=False, figure=figure)
    assert display.figure_ is figure
    assert len(figure.axes) == 1


def test_display_refuses_a_result_without_curves():
    with pytest.raises(ValueError, match="no curve"):
        DetectionCapabilityDisplay.from_result(result_of({"blob": SIZES > 5}).__class__(
            result_of().trials, {}, {}, 0.01, -1.0, 1, 0, 0, None))  # fmt: skip


@pytest.mark.filterwarnings("ignore:contamination")
def test_from_detector_measures_and_draws(parts):
    train, good, _ = parts
    fitted = detector(contamination=0.3).fit(train)
    display = DetectionCapabilityDisplay.from_detector(fitted, good, kinds=["blob"], n_trials=12, examples=False)
    assert len(display.result.trials) == 12


def test_close_up_shows_the_defect_at_its_place():
    image, mask = np.zeros((300, 400, 1)), np.zeros((300, 400), bool)
    mask[2:6, 390:395] = True
    part = close_up(image, mask)
    assert part.shape == (96, 96, 3)
    assert (part[..., 2] == 255).any()
    assert close_up(image, np.zeros((300, 400), bool)).shape == (300, 400, 3)
    mask[20:220, 10:300] = True
    assert close_up(image, mask).shape == (300, 400, 3)
