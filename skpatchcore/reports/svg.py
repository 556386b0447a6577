"""Axes, figure, straight and label: the parts of a chart as SVG. Colours come from the page's style."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from skpatchcore._utils.names import shown_name

# Size of a chart in its own units, and its margins: left, top, right, bottom.
WIDTH, HEIGHT = 400, 260
LEFT, TOP, RIGHT, BOTTOM = 52, 12, 14, 46


class Axes:
    """Horizontal and vertical axis of a chart: from values to places.

    Parameters
    ----------
    x_range, y_range : (float, float)
        Values at the ends of the axes. Values outside are placed at the ends.
    is_log : bool, default=False
        Whether the horizontal axis is logarithmic.
    """

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float], is_log: bool = False):
        self._x, self._y, self._is_log = x_range, y_range, is_log

    def x(self, value: float) -> float:
        """Return the place of a value on the horizontal axis."""
        low, high = self._x
        if self._is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (min(max(value, low), high) - low) / ((high - low) or 1)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return the place of a value on the vertical axis."""
        low, high = self._y
        share = (min(max(value, low), high) - low) / ((high - low) or 1)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)

    def points(self, pairs: Sequence[tuple[float, float]]) -> str:
        """Return the places of points (x, y) for the attribute ``points``."""
        return " ".join(f"{self.x(a)},{self.y(b)}" for a, b in pairs)

    def frame(
        self,
        x_title: str,
        y_title: str,
        x_ticks: Sequence[float] | Mapping[float, str] | None,
        y_ticks: Mapping[float, str] | None = None,
    ) -> str:
        """Return axes with labels, and lines at the labelled heights.

        Parameters
        ----------
        x_title, y_title : str
            Titles of the axes.
        x_ticks : sequence of float, mapping of float to str, or None
            Labelled values, and their labels. If None, five values at even distances.
        y_ticks : mapping of float to str or None, default=None
            The same for the vertical axis.
        """
        bottom, middle = HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2
        parts = []
        for value, text in _labels(y_ticks, self._y).items():
            parts.append(straight("rule", LEFT, self.y(value), WIDTH - RIGHT, self.y(value)))
            parts.append(label(LEFT - 6, self.y(value) + 4, text, "end"))
        for value, text in _labels(x_ticks, self._x).items():
            parts.append(label(self.x(value), bottom + 16, text, "middle"))
        parts.append(straight("axis", LEFT, bottom, WIDTH - RIGHT, bottom))
        parts.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_title, "middle"))
        parts.append(f'<text transform="rotate(-90 13 {middle})" x="13" y="{middle}" text-anchor="middle">')
        parts.append(f"{html.escape(y_title)}</text>")
        return "".join(parts)


def _labels(ticks: Sequence[float] | Mapping[float, str] | None, ends: tuple[float, float]) -> Mapping[float, str]:
    if isinstance(ticks, Mapping):
        return ticks
    values = np.linspace(*ends, 5).tolist() if ticks is None else ticks
    return {value: short_number(float(value)) for value in values}


def figure(title: str, parts: Sequence[str], keys: Sequence[tuple[str, str]], height: float = HEIGHT) -> str:
    """Return a chart.

    Parameters
    ----------
    title : str
        Title above the chart, and its text for screen readers.
    parts : sequence of str
        SVG elements.
    keys : sequence of (str, str)
        Legend: the class of a colour, and its name.
    height : float
        Height in the chart's own units.
    """
    text = html.escape(shown_name(title))
    legend = "".join(f'<span><i class="{kind}"></i>{html.escape(shown_name(name))}</span>' for kind, name in keys)
    return (
        f'<figure class="chart"><figcaption>{text}</figcaption><svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{text}">{"".join(parts)}</svg>{f"<p class=keys>{legend}</p>" if legend else ""}</figure>'
    )


def straight(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a line. `kind` is its class in the style."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def label(x: float, y: float, text: str, anchor: str) -> str:
    """Return a text at a place. `anchor` is "start", "middle" or "end"."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def short_number(value: float) -> str:
    """Return a number with at most four figures."""
    return f"{value:.4g}"
