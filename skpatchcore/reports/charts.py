"""Charts of a report as SVG: curves, score histograms, and values per setting. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from skpatchcore._utils.names import shown_name
from skpatchcore.reports.svg import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axes, figure, label, short_number, straight

_N_BINS = 30
# Classes of lines in the style, in order. Further lines are grey.
_N_COLORS = 5
_LABEL_CHARACTERS = 26


@dataclass(frozen=True, eq=False)
class Line:
    """Line of a chart.

    Attributes
    ----------
    x, y : array of shape (n_points,)
        Points of the line. Points that are not finite are left out.
    name : str
        Name in the legend; empty for no entry.
    spread : array of shape (n_points,) or None
        Half height of the band around the line.
    is_main : bool
        Whether the line is drawn bold, e.g. the mean over categories.
    has_dots : bool
        Whether the points are marked.
    """

    x: np.ndarray
    y: np.ndarray
    name: str = ""
    spread: np.ndarray | None = None
    is_main: bool = False
    has_dots: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_title: str,
    y_title: str,
    x_range: tuple[float, float] = (0, 1),
    y_range: tuple[float, float] = (0, 1),
    x_ticks: Sequence[float] | None = None,
    is_log: bool = False,
) -> str:
    """Return a chart of lines.

    Parameters
    ----------
    lines : sequence of Line
        The lines. The first five have colours, unless there are more.
    title : str
        Title above the chart, and its text for screen readers.
    x_title, y_title : str
        Titles of the axes.
    x_range, y_range : (float, float), default=(0, 1)
        Ranges of the axes.
    x_ticks : sequence of float or None, default=None
        Labelled values of the horizontal axis. If None, five values at even distances.
    is_log : bool, default=False
        Whether the horizontal axis is logarithmic.
    """
    axes = Axes(x_range, y_range, is_log)
    parts = [axes.frame(x_title, y_title, x_ticks)]
    named = [line for line in lines if not line.is_main]
    keys = []
    for line in lines:
        number = "main" if line.is_main else named.index(line) if len(named) <= _N_COLORS else "other"
        finite = np.isfinite(line.x) & np.isfinite(line.y)
        x, y = np.asarray(line.x)[finite], np.asarray(line.y)[finite]
        if line.spread is not None and len(x) > 1:
            spread = np.asarray(line.spread)[finite]
            band = [*zip(x, y + spread, strict=True), *zip(x[::-1], (y - spread)[::-1], strict=True)]
            parts.append(f'<polygon class="band c{number}" points="{axes.points(band)}"/>')
        pairs = list(zip(x, y, strict=True))
        parts.append(f'<polyline class="line c{number}" points="{axes.points(pairs)}"/>')
        if line.has_dots:
            parts += [f'<circle class="dot c{number}" cx="{axes.x(a)}" cy="{axes.y(b)}" r="3.5"/>' for a, b in pairs]
        if line.name:
            keys.append((f"c{number}", line.name))
    return figure(title, parts, keys)


def score_chart(
    good: np.ndarray, defective: np.ndarray, calibration: np.ndarray, threshold: float, *, title: str
) -> str:
    """Return a histogram of anomaly scores, higher = more anomalous: good and defective images, and the threshold.

    Parameters
    ----------
    good, defective, calibration : arrays
        Anomaly scores. Calibration images are drawn below the axis. NaN is left out.
    threshold : float
        Image threshold; NaN draws no line.
    title : str
        Title above the chart, and its text for screen readers.
    """
    kinds = [np.asarray(scores, float) for scores in (good, defective, calibration)]
    kinds = [scores[np.isfinite(scores)] for scores in kinds]
    known = np.concatenate([*kinds, [] if math.isnan(threshold) else [threshold]])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if low == high:
        low, high = low - 1, high + 1
    edges = np.linspace(low, high, _N_BINS + 1)
    counts = [np.histogram(scores, edges)[0] for scores in kinds]
    # square roots keep single images visible beside hundreds
    tallest, deepest = max(1, (counts[0] + counts[1]).max()), max(1, counts[2].max())
    base, depth = 168.0, 38.0
    axes = Axes((low, high), (0, 1))
    parts = []
    for i in range(_N_BINS):
        left, width = axes.x(edges[i]) + 0.5, axes.x(edges[i + 1]) - axes.x(edges[i]) - 1
        n_good, n_bad, n_known = (int(count[i]) for count in counts)
        height = math.sqrt((n_good + n_bad) / tallest) * (base - TOP - 6)
        fine = height * n_good / max(1, n_good + n_bad)
        rectangles = (
            ("fine", base - fine, fine),
            ("bad", base - height, height - fine),
            ("known", base + 3, math.sqrt(n_known / deepest) * depth),
        )
        parts += [
            f'<rect class="{kind}" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{h:.1f}"/>'
            for kind, y, h in rectangles
            if h
        ]
    parts.append(straight("axis", LEFT, base + 1.5, WIDTH - RIGHT, base + 1.5))
    at = HEIGHT - 22
    parts += [label(axes.x(low), at, short_number(low), "start"), label(axes.x(high), at, short_number(high), "end")]
    if not math.isnan(threshold):
        place = axes.x(threshold)
        parts.append(straight("threshold", place, TOP, place, base + depth + 6))
        parts.append(
            label(min(max(place, LEFT + 55), WIDTH - 75), at - 14, f"threshold {short_number(threshold)}", "middle")
        )
    parts.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "anomaly score, higher = more anomalous", "middle"))
    keys = [("fine", "good"), ("bad", "defective")] + (
        [("known", "calibration images (below)")] if len(kinds[2]) else []
    )
    return figure(title, parts, keys)


def pod_chart(
    curve: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    found: np.ndarray,
    missed: np.ndarray,
    marks: Mapping[str, float],
    *,
    title: str,
    x_title: str,
) -> str:
    """Return a chart of the probability of detection against size, with ticks for hits (top) and misses (bottom).

    Parameters
    ----------
    curve : tuple of four arrays of shape (n_sizes,)
        Ascending sizes, the probability of detection, and its lower and upper confidence bounds.
    found, missed : arrays
        Sizes of the found and of the missed defects.
    marks : mapping of str to float
        Sizes with a vertical line, by their names. The first line is solid, and the others are dashed. Values that are
        not finite have no line.
    title : str
        Title above the chart, and its text for screen readers.
    x_title : str
        Title of the horizontal axis, which is logarithmic.
    """
    sizes, pod, low, high = curve
    ends = float(sizes[0]), float(sizes[-1])
    axes = Axes(ends, (0, 1), is_log=True)
    powers = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if ends[0] <= m * 10.0**p <= ends[1]]
    band = [*zip(sizes, high, strict=True), *zip(sizes[::-1], low[::-1], strict=True)]
    parts = [
        axes.frame(x_title, "probability of detection", ticks or ends),
        f'<polygon class="band c0" points="{axes.points(band)}"/>',
        f'<polyline class="line c0" points="{axes.points(list(zip(sizes, pod, strict=True)))}"/>',
        straight("goal", LEFT, axes.y(0.9), WIDTH - RIGHT, axes.y(0.9)),
    ]
    for values, number, top in ((found, 0, axes.y(1) - 7), (missed, 1, axes.y(0) - 7)):
        parts += [straight(f"tick c{number}", axes.x(v), top, axes.x(v), top + 7) for v in values]
    keys = [("c0", "found"), ("c1", "missed")]
    for i, (name, value) in enumerate(marks.items()):
        if math.isfinite(value):
            place = axes.x(value)
            parts.append(straight("threshold" if i else "exact", place, axes.y(1), place, axes.y(0)))
            keys.append(("dashed" if i else "solid", f"{name}: {value:.1f} px"))
    return figure(title, parts, keys)


def value_chart(values: Mapping[str, float], *, title: str) -> str:
    """Return a chart of one value per setting, as dots beside the names of the settings.

    Parameters
    ----------
    values : mapping of str to float
        Values by setting. Values that are not finite have no dot.
    title : str
        Title above the chart, and its text for screen readers.
    """
    finite = [value for value in values.values() if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.05
    left, step = 175, 24
    height = TOP + step * len(values) + 34

    def place(value: float) -> float:
        return left + (value - low + margin) / (high - low + 2 * margin) * (WIDTH - RIGHT - left)

    parts = []
    for row, (name, value) in enumerate(values.items()):
        y = TOP + step * (row + 0.5)
        text = shown_name(name)
        shown = text if len(text) <= _LABEL_CHARACTERS else f"{text[: _LABEL_CHARACTERS - 1]}…"
        parts.append(label(left - 8, y + 4, shown, "end"))
        if math.isfinite(value):
            parts.append(straight("rule", left, y, place(value), y))
            parts.append(f'<circle class="dot c0" cx="{place(value):.1f}" cy="{y:.1f}" r="4.5"/>')
    bottom = height - 30
    parts.append(straight("axis", left, bottom, WIDTH - RIGHT, bottom))
    for value in dict.fromkeys((low, high)):
        parts.append(label(place(value), bottom + 16, f"{value:.3f}", "middle"))
    return figure(title, parts, [], height)
