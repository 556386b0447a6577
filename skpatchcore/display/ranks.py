"""CriticalDifferenceDisplay: average ranks of detectors on an axis. Bars join detectors that may be equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Dark grey of the lines, and blue of the bars, in the palette of Okabe and Ito.
_LINE, _BAR = "#333333", "#0072B2"


class CriticalDifferenceDisplay:
    """Critical-difference diagram: average ranks of detectors (1 = best), and groups that may be equal.

    Use :meth:`skpatchcore.evaluation.DetectorComparison.plot` to create a display.

    Parameters
    ----------
    ranks : mapping of str to float
        Average rank of each detector over the data sets, **smaller = better**.
    critical_difference : float
        Detectors whose average ranks differ by more than this number differ by Nemenyi's test.
    metric : str, default=""
        Name of the metric, for the label of the axis.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        The Axes and the Figure of the last plot.

    References
    ----------
    Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.

    Examples
    --------
    >>> from skpatchcore.display import CriticalDifferenceDisplay
    >>> display = CriticalDifferenceDisplay({"PatchCore": 1.2, "PaDiM": 2.1, "SPADE": 2.7}, critical_difference=0.9)
    >>> display.groups()
    [('PatchCore', 'PaDiM'), ('PaDiM', 'SPADE')]
    """

    def __init__(self, ranks: Mapping[str, float], *, critical_difference: float, metric: str = ""):
        self.ranks = ranks
        self.critical_difference = critical_difference
        self.metric = metric

    def groups(self) -> list[tuple[str, ...]]:
        """Return the largest groups of at least two detectors whose average ranks lie within the critical difference.

        Returns
        -------
        list of tuple of str
            Names in the order of their ranks.
        """
        names = sorted(self.ranks, key=self.ranks.__getitem__)
        found: list[tuple[str, ...]] = []
        last_end = -1
        for start, name in enumerate(names):
            limit = self.ranks[name] + self.critical_difference
            end = max(i for i, other in enumerate(names) if self.ranks[other] <= limit)
            if end > start and end > last_end:
                found.append(tuple(names[start : end + 1]))
                last_end = end
        return found

    def plot(self, *, ax: Any = None) -> CriticalDifferenceDisplay:
        """Draw the diagram.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None creates a new figure.

        Returns
        -------
        CriticalDifferenceDisplay
            The display itself.
        """
        names, groups = sorted(self.ranks, key=self.ranks.__getitem__), self.groups()
        n, n_rows = len(names), (len(names) + 1) // 2
        low, top = 0.4 * len(groups) + 1.0 * n_rows + 0.3, 3.2  # below and above the axis, in units of 0.28 inches
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(6.4, 0.28 * (low + top)), layout="constrained")
        ax.set_xlim(0.9, n + 0.1)
        ax.set_ylim(-low, top)
        ax.spines[["left", "right", "bottom"]].set_visible(False)
        ax.spines["top"].set_position(("data", 0))
        ax.xaxis.tick_top()
        ax.xaxis.set_label_position("top")
        ax.set_yticks([])
        ax.set_xticks(range(1, n + 1))
        ax.set_xlabel(f"average rank{f' of {self.metric}' if self.metric else ''}, 1 = best")
        for i, (first, *_, last) in enumerate(groups):
            y = -0.4 * (i + 0.9)
            ends = self.ranks[first] - 0.03, self.ranks[last] + 0.03
            ax.plot(ends, [y, y], color=_BAR, linewidth=4, solid_capstyle="butt", clip_on=False)
        for i, name in enumerate(names):
            is_left = i < n_rows
            y, edge = -0.4 * len(groups) - 0.8 - (i if is_left else n - 1 - i), 0.85 if is_left else n + 0.15
            rank = self.ranks[name]
            ax.plot([rank, rank, edge], [0, y, y], color=_LINE, linewidth=1, clip_on=False)
            side = "right" if is_left else "left"
            ax.text(edge, y, f" {name} ({rank:.2f}) ", ha=side, va="center", fontsize="small")
        ax.plot([1, 1 + self.critical_difference], [2.3, 2.3], color=_LINE, linewidth=2, clip_on=False)
        ax.text(1, 2.4, f"critical difference {self.critical_difference:.2f}", va="bottom", fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self
