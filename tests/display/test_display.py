"""Tests that the displays draw the right images, scores, thresholds and texts."""

from __future__ import annotations

from copy import deepcopy

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from skimage.morphology import dilation, footprint_rectangle

from skpatchcore import DriftMonitor, GreedyCoresetSampler, PatchCoreDetector, PatchWhitening, TorchFeatureExtractor
from skpatchcore.display import (
    AnomalyMapDisplay,
    CoresetDisplay,
    DriftDisplay,
    ScoreHistogramDisplay,
    outline_mask,
    overlay_anomaly_map,
)
from skpatchcore.display.anomaly_map import tag_places
from skpatchcore.display.overlay import dilated

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted(parts):
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None)
    return PatchCoreDetector(extractor, random_state=0).fit(parts[0])


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_anomaly_map_display_draws_images_beside_their_maps(fitted, parts):
    _, good, bad = parts
    X = np.concatenate([good[:1], bad])
    masks = [None, np.zeros((48, 64), bool)]
    masks[1][16:28, 20:34] = True
    display = AnomalyMapDisplay.from_estimator(fitted, X, masks=masks)
    assert display.axes_.shape == (2, 2)
    assert [ax.get_title(loc="left").split(": ")[1] for ax in display.axes_[:, 0]] == ["normal", "anomalous"]
    maps = fitted.segment(X)
    shown = display.axes_[1, 1].images[0].get_array()
    np.testing.assert_array_equal(shown, overlay_anomaly_map(bad[0], maps[1], fitted.pixel_offset_, contour=False))
    assert texts(display.axes_[1, 1])[0] == f"{maps[1].max() / fitted.pixel_offset_:.1f}"
    assert not texts(display.axes_[0, 1])
    assert len(display.axes_[1, 0].collections) == 1  # the outline of the mask
    assert not display.axes_[0, 0].collections
    bar = [ax for ax in display.figure_.axes if ax not in display.axes_]
    assert bar[0].get_ylabel() == "anomaly in units of the threshold"
    plain = AnomalyMapDisplay.from_estimator(fitted, X, regions=False, n_columns=2)
    assert not texts(plain.axes_[1, 1])


def test_anomaly_map_display_draws_many_images_of_different_sizes(parts):
    images = [parts[0][0], parts[0][1].transpose(1, 0, 2), parts[0][2][:20]] * 3
    maps = [np.random.default_rng(i).random(image.shape[:2]) for i, image in enumerate(images)]
    display = AnomalyMapDisplay.from_predictions(images, maps, threshold=0.9, titles=[str(i) for i in range(9)])
    assert display.axes_.shape == (9, 2)
    assert display.axes_[4, 0].get_title(loc="left") == "4"
    display.figure_.savefig("/dev/null", format="png")


def test_anomaly_map_display_without_threshold_shows_no_labels(parts):
    display = AnomalyMapDisplay.from_predictions(parts[2], [np.eye(48, 64)])
    assert display.figure_.axes[-1].get_ylabel() == "anomaly, no threshold"
    assert not texts(display.axes_[0, 1])
    uncalibrated = PatchCoreDetector(
        TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None), calibration=None
    ).fit(parts[0])
    display = AnomalyMapDisplay.from_estimator(uncalibrated, parts[2])
    assert ":" not in display.axes_[0, 0].get_title(loc="left")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([np.zeros((2, 2))], []), "1 images and 0 anomaly_maps"),
        (([], []), "no images"),
        (([np.zeros((2, 2))], [np.zeros((2, 3))]), "differ in size"),
    ],
)
def test_anomaly_map_display_refuses_maps_that_do_not_match_the_images(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnomalyMapDisplay.from_predictions(*arguments)


def test_score_histogram_counts_all_images_and_shows_the_bound(fitted, parts):
    _, good, bad = parts
    X, y = np.concatenate([good, bad]), np.array([1] * len(good) + [-1])
    display = ScoreHistogramDisplay.from_estimator(fitted, X, y, bins=7)
    heights = [sum(patch.get_height() for patch in container) for container in display.ax_.containers[:2]]
    assert heights == [len(good), 1]
    assert to_rgb(display.ax_.containers[0][0].get_facecolor()) == to_rgb("#0072B2")
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["good", "defective", "calibration", "threshold: flags at most 0.091 of good images"]
    (line,) = display.ax_.lines
    assert line.get_xdata()[0] == -fitted.offset_
    unlabelled = ScoreHistogramDisplay.from_predictions(np.arange(5.0))
    assert len(unlabelled.ax_.containers) == 1
    _, ax = plt.subplots()
    assert unlabelled.plot(ax=ax).ax_ is ax
    with pytest.raises(ValueError, match="expected a label for each score"):
        ScoreHistogramDisplay.from_predictions([1.0, 2.0], [0, 1])
    with pytest.raises(ValueError, match="no scores"):
        ScoreHistogramDisplay.from_predictions([])


def test_score_histogram_shows_the_bound_of_a_recalibrated_threshold(fitted, parts):
    recalibrated = deepcopy(fitted).recalibrate(contamination=0.5)
    n = len(fitted.calibration_scores_)
    assert ScoreHistogramDisplay.from_estimator(fitted, parts[1]).promise == 1 / (n + 1)
    n_above = (fitted.calibration_scores_ < recalibrated.offset_).sum()
    assert ScoreHistogramDisplay.from_estimator(recalibrated, parts[1]).promise == (1 + n_above) / (n + 1)
    assert 0.3 < (1 + n_above) / (n + 1) <= 0.5


def test_coreset_display_draws_bank_and_patches(fitted, parts):
    display = CoresetDisplay.from_estimator(fitted, parts[0])
    assert display.components.shape == (len(fitted.memory_bank_), 2)
    assert display.patches.shape == (10 * 6 * 8, 2)
    assert 0 < display.explained <= 1
    assert f"{display.explained:.0%}" in display.ax_.get_xlabel()
    rows = np.random.default_rng(0).normal(size=(50_000, 2))
    bank = GreedyCoresetSampler(10, random_state=0).fit(rows).components_
    display = CoresetDisplay.from_predictions(rows, bank)
    np.testing.assert_array_equal(display.components, bank)
    assert len(display.patches) <= 20_000
    assert display.explained is None
    features = PatchCoreDetector("precomputed", random_state=0).fit(rows[:300])
    assert CoresetDisplay.from_estimator(features, rows[:300]).patches.shape == (300, 2)
    grids = np.random.default_rng(0).normal(size=(9, 4, 4, 5))
    whitened = PatchCoreDetector("precomputed", transformer=PatchWhitening(n_components=2), random_state=0).fit(grids)
    np.testing.assert_array_equal(CoresetDisplay.from_estimator(whitened, grids).components, whitened.memory_bank_)
    for wrong in ((rows, bank[:, :1]), (rows[:, :1], bank[:, :1]), (rows[:1], bank)):
        with pytest.raises(ValueError, match=r"do not fit|one channel"):
            CoresetDisplay.from_predictions(*wrong)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 12), width=st.integers(1, 12), radius=st.integers(1, 6), seed=st.integers(0, 99))
def test_dilated_equals_the_dilation_of_scikit_image(height, width, radius, seed):
    mask = np.random.default_rng(seed).random((height, width)) > 0.9
    square = footprint_rectangle((2 * radius + 1, 2 * radius + 1))
    np.testing.assert_array_equal(dilated(mask, radius), dilation(mask, square))


def test_outline_mask_changes_only_the_pixels_around_the_mask():
    image, mask = np.full((9, 9, 1), 0.5), np.zeros((9, 9))
    mask[3:6, 3:6] = 1
    picture = outline_mask(image, mask)
    changed = (picture != 128).any(axis=2)
    assert changed[2:7, 2:7].sum() == changed.sum() == 16
    with pytest.raises(ValueError, match="differ in size"):
        outline_mask(image, mask[:4])


def crosses(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize(
    "boxes",
    [
        [(10, 4, 14, 8), (30, 50, 33, 56)],
        [(20, 10, 40, 30), (20, 70, 40, 90), (42, 40, 50, 60)],  # side by side
        [(0, 40, 10, 60), (11, 40, 15, 60), (17, 40, 99, 60)],  # on top of each other
        [(0, 0, 2, 2), (98, 98, 100, 100)],  # in the corners
    ],
)
def test_tag_places_overlap_neither_regions_nor_tags(boxes):
    places = tag_places(np.array(boxes), (100, 100), 3)
    tags = [(row - 4, column - 6.5, row + 4, column + 6.5) for row, column in places]
    assert len(tags) == len(boxes)
    for i, tag in enumerate(tags):
        assert not any(crosses(tag, other) for other in [*boxes, *tags[:i]])
        assert min(tag) >= 0
        assert max(tag) <= 100


def test_tags_show_peaks_and_titles_show_file_names(fitted, parts, tmp_path):
    scored = np.zeros((40, 60))
    scored[10:14, 4:8], scored[30:33, 50:56] = 3, 2
    display = AnomalyMapDisplay.from_predictions([np.zeros((40, 60))], [scored], threshold=1.0)
    assert texts(display.axes_[0, 1]) == ["3.0", "2.0"]
    path = tmp_path / "line 3" / "part.png"
    path.parent.mkdir()
    plt.imsave(path, parts[1][0])
    title = AnomalyMapDisplay.from_estimator(fitted, [path]).axes_[0, 0].get_title(loc="left")
    assert title.startswith("line 3/part.png\nscore -")


HARD_TEXTS = [
    "$x^$.png",
    "lot$7_part$_2.png",
    "a$1.png",
    "\\frac{",
    "a_b^c%d&e#f{g}~h",
    "ros\udce9",
    "a\tb\x07",
    "_x",
    "",
]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_titles_are_drawn_as_text_not_as_formulas(text, tmp_path):
    display = AnomalyMapDisplay.from_predictions(
        [np.zeros((8, 9, 3))], [np.ones((8, 9))], threshold=0.5, titles=[f"{text}\nscore 1"]
    )
    display.figure_.savefig(tmp_path / "a.png")
    display.figure_.savefig(tmp_path / "a.svg")
    title = display.axes_[0, 0].get_title(loc="left")
    assert title.endswith("\nscore 1")
    if text.isprintable():
        assert title.startswith(text)


def test_drift_display_draws_evidence_alarm_level_and_alarm(fitted):
    monitor = DriftMonitor(fitted, alpha=0.02)
    display = monitor.plot()
    assert isinstance(display, DriftDisplay)
    assert [line.get_label() for line in display.ax_.lines] == ["evidence", "alarm level 50"]
    monitor.update_scores(np.full(40, -1e9))
    _, ax = plt.subplots()
    evidence, level, alarm = monitor.plot(ax=ax).ax_.lines
    np.testing.assert_array_equal(evidence.get_xdata(), np.arange(1, 41))
    np.testing.assert_allclose(evidence.get_ydata(), monitor.log_evidence_ / np.log(10))
    np.testing.assert_allclose(level.get_ydata(), np.log10(50))
    assert alarm.get_xdata() == [monitor.alarm_image_ + 1]
    assert alarm.get_label() == f"alarm after {monitor.alarm_image_ + 1} images"
    ax.figure.canvas.draw()
    assert "$10^{2}$" in [label.get_text() for label in ax.get_yticklabels()]
