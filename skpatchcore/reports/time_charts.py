"""rate_chart, p_value_chart and evidence_chart: the results of a running inspection over time, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from functools import cache

import numpy as np
from scipy.stats import binomtest

from skpatchcore.reports.svg import LEFT, RIGHT, WIDTH, Axes, figure, straight

# Number of parts that one point of the rate summarizes.
N_PARTS = 50
# Number of parts before the first point of the rate.
_N_FIRST = 10
# Largest number of points of a curve, and of dots of each colour.
_N_POINTS, _N_DOTS = 300, 500
# Distances of the labels of the time axis, in seconds.
_STEPS = (
    10, 30, 60, 120, 300, 600, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600, 24 * 3600, 2 * 24 * 3600, 7 * 24 * 3600,
    30 * 24 * 3600,
)  # fmt: skip
_MINUTE, _DAY = 60, 24 * 3600
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def rate_chart(times: np.ndarray, flagged: np.ndarray, promised: float = math.nan) -> str:
    """Return a chart of the fraction of flagged parts over time.

    Parameters
    ----------
    times : array of shape (n_parts,)
        Times in seconds since 1970, ascending.
    flagged : array of shape (n_parts,), bool
        Whether each part was flagged.
    promised : float, default=NaN
        Promised false-positive rate. NaN draws no line.

    Returns
    -------
    str
        Each point is the fraction among the last 50 parts up to this time, with its 95 % interval (Wilson). The first
        50 points are fractions of all parts so far.
    """
    at, rates = recent_rates(flagged)
    sizes = np.minimum(at + 1, N_PARTS).tolist()
    ends = [_interval(round(n * rate), n) for n, rate in zip(sizes, rates.tolist(), strict=True)]
    low, high = np.reshape(ends, (-1, 2)).T
    x = np.asarray(times, float)[at]
    top = _rounded_up(max([0.05, *high.tolist(), 0 if math.isnan(promised) else 1.2 * promised]))
    axes, ticks = _time_axes(times, (0.0, top))
    heights = {value: f"{100 * value:.3g} %" for value in np.linspace(0, top, 5).tolist()}
    band = [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
    parts = [
        axes.frame("time", "flagged parts", ticks, heights),
        f'<polygon class="band c1" points="{axes.points(band)}"/>',
        f'<polyline class="line c1" points="{axes.points(list(zip(x, rates, strict=True)))}"/>',
    ]
    keys = [("c1", f"flagged among the last {N_PARTS} parts, with its 95 % interval")]
    if not math.isnan(promised):
        parts.append(straight("threshold", LEFT, axes.y(promised), WIDTH - RIGHT, axes.y(promised)))
        keys.append(("dashed", f"promised for good parts: at most {100 * promised:.3g} %"))
    return figure("Rate of anomalous parts", parts, keys)


def p_value_chart(times: np.ndarray, p_values: np.ndarray, flagged: np.ndarray) -> str:
    """Return a chart of the p-values over time, one dot per part, small = anomalous.

    Parameters
    ----------
    times : array of shape (n_parts,)
        Times in seconds since 1970, ascending.
    p_values : array of shape (n_parts,)
        P-values. NaN has no dot.
    flagged : array of shape (n_parts,), bool
        Whether each part was flagged. The flagged parts are drawn above the others.

    Returns
    -------
    str
        At most 500 flagged parts (the last ones) and 500 others (at even distances) have a dot.
    """
    p_values, flagged = np.asarray(p_values, float), np.asarray(flagged, bool)
    known = np.isfinite(p_values) & (p_values > 0)
    lowest = math.floor(math.log10(p_values[known].min())) if known.any() else -2
    axes, ticks = _time_axes(times, (float(min(lowest, -1)), 0.0))
    heights = {float(power): _power(power) for power in range(min(lowest, -1), 1)}
    parts = [axes.frame("time", "p-value, small = anomalous", ticks, heights)]
    fine, bad = np.flatnonzero(known & ~flagged), np.flatnonzero(known & flagged)
    chosen = fine[_spread(len(fine), _N_DOTS)], bad[-_N_DOTS:]
    for rows, number in zip(chosen, (0, 1), strict=True):
        places = zip(np.asarray(times, float)[rows].tolist(), np.log10(p_values[rows]).tolist(), strict=True)
        parts += [f'<circle class="dot c{number}" cx="{axes.x(a)}" cy="{axes.y(b)}" r="2.4"/>' for a, b in places]
    n_left_out = len(fine) + len(bad) - len(chosen[0]) - len(chosen[1])
    rest = f" ({n_left_out:,} dots are left out)" if n_left_out else ""
    return figure("P-values", parts, [("c0", f"not flagged{rest}"), ("c1", "flagged")])


def evidence_chart(times: np.ndarray, log_evidence: np.ndarray, alpha: float) -> str:
    """Return a chart of the evidence of drift over time, bigger = drift is more probable, with the alarm level.

    Parameters
    ----------
    times : array of shape (n_parts,)
        Times in seconds since 1970, ascending.
    log_evidence : array of shape (n_parts,)
        Natural logarithm of the evidence. NaN if it is unknown. The curve is interrupted there.
    alpha : float
        Bound on the probability of a false alarm. The alarm level is ``1 / alpha``.
    """
    log_evidence = np.asarray(log_evidence, float)
    level = -math.log(alpha)
    known = np.isfinite(log_evidence)
    values = log_evidence[known].tolist()
    low, high = min([0.0, *values]), max([1.2 * level, *values])
    axes, ticks = _time_axes(times, (low, high))
    decades = range(math.ceil(low / math.log(10)), math.floor(high / math.log(10)) + 1)
    step = max(1, len(decades) // 5)
    heights = {power * math.log(10): _power(power) for power in decades if power % step == 0}
    parts = [axes.frame("time", "evidence of drift", ticks, heights)]
    ends = np.flatnonzero(np.diff(np.r_[0, known.astype(int), 0]))
    for start, end in zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True):
        rows = start + _spread(end - start, _N_POINTS)
        points = list(zip(np.asarray(times, float)[rows].tolist(), log_evidence[rows].tolist(), strict=True))
        parts.append(f'<polyline class="line c0" points="{axes.points(points)}"/>')
    parts.append(straight("threshold", LEFT, axes.y(level), WIDTH - RIGHT, axes.y(level)))
    return figure("Drift", parts, [("c0", "evidence"), ("dashed", f"alarm level {1 / alpha:g}")])


def recent_rates(flagged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the fraction of flagged parts among the last 50, or among all if there are fewer, at up to 300 parts.

    Parameters
    ----------
    flagged : array of shape (n_parts,), bool
        Whether each part was flagged.

    Returns
    -------
    indices : array of int
        The parts, ascending. The first one is the tenth part, or the last one if there are fewer.
    rates : array of float
        The fractions at these parts.
    """
    n = len(flagged)
    if not n:
        return np.zeros(0, int), np.zeros(0)
    first = min(_N_FIRST, n) - 1
    sums = np.r_[0, np.cumsum(np.asarray(flagged, int))]
    at = first + _spread(n - first, _N_POINTS)
    widths = np.minimum(at + 1, N_PARTS)
    return at, (sums[at + 1] - sums[at + 1 - widths]) / widths


@cache
def _interval(n_flagged: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a probability."""
    found = binomtest(n_flagged, n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def _spread(n: int, most: int) -> np.ndarray:
    """Return at most `most` indices below `n` at even distances, including the first and the last one."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)) if n else np.zeros(0, int)


def _power(exponent: int) -> str:
    """Return a power of ten as a short text."""
    return f"{10.0**exponent:g}" if -4 < exponent < 4 else f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def _rounded_up(value: float) -> float:
    """Return the next number above a fraction among 0.05, 0.1, 0.2, 0.4 and 1."""
    return next((top for top in (0.05, 0.1, 0.2, 0.4) if value <= top), 1.0)


def _time_axes(times: np.ndarray, y_range: tuple[float, float]) -> tuple[Axes, Mapping[float, str]]:
    """Return axes for times, and the labels of the time axis: full minutes, hours or days of the local time."""
    first, last = (float(times[0]), float(times[-1])) if len(times) else (0.0, 0.0)
    last = max(last, first + 20)
    step = next((s for s in _STEPS if (last - first) / s <= 5), _STEPS[-1])
    zone = datetime.fromtimestamp(first).astimezone().utcoffset()
    shift = zone.total_seconds() if zone is not None else 0.0
    form = "%H:%M:%S" if step < _MINUTE else "%H:%M" if step < _DAY else "%d %b"
    start = math.ceil((first + shift) / step) * step - shift
    ticks = {start + i * step: f"{datetime.fromtimestamp(start + i * step):{form}}" for i in range(6)}
    return Axes((first, last), y_range), {value: text for value, text in ticks.items() if value <= last}
