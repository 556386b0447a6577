"""SettingsDisplay: a figure of how many more synthetic defects each setting finds than the given one."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import numpy as np

from skpatchcore._utils.names import shown_text
from skpatchcore.display.capability import close_up

# Blue and orange of the palette of Okabe and Ito, which colour-blind readers can distinguish.
_CHOSEN, _OTHER, _KIND = "#0072B2", "#555555", "#D55E00"
# Settings below the first ones are left out of the figure.
_N_SHOWN = 30
# Names longer than this number of characters take two lines. The names of stages before parameters are not shown.
_LONGEST_NAME = 62
_PREFIX = re.compile(r"\b\w+?__")


class SettingsDisplay:
    """Plot of the gain of each setting over the given setting, with standard errors and examples of the defects.

    Use :meth:`from_result` to create a display. The given setting is the setting of the detector that was passed to
    :func:`~skpatchcore.select_settings`. Each row is a setting. The setting that finds most defects is at the top. At
    most 30 settings are drawn, always including the given and the chosen setting. The dot is the gain in percentage
    points, and the line is one standard error to each side. Each small tick is the gain for one kind of defect. The
    chosen setting is blue.

    Parameters
    ----------
    result : SelectedSettings
        Result of :func:`~skpatchcore.select_settings`.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The Figure of the last plot.
    ax_ : matplotlib Axes
        The Axes of the gains.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, SettingsDisplay, TorchFeatureExtractor, select_settings
    >>> from skpatchcore.datasets import make_textures
    >>> good = make_textures("gravel").train_images[:12]
    >>> detector = PatchCoreDetector(TorchFeatureExtractor("efficientnet_lite0", image_size=64), random_state=0)
    >>> result = select_settings(detector, {"image_score": ["max"]}, good, n_defects=3)
    >>> display = SettingsDisplay.from_result(result, examples=False)
    >>> display.ax_.get_xlabel()
    'additional defects found, percentage points'
    """

    def __init__(self, result: Any):
        self.result = result

    @classmethod
    def from_result(cls, result: Any, **options: Any) -> SettingsDisplay:
        """Plot a result.

        Parameters
        ----------
        result : SelectedSettings
            The result to plot, as described for the class.
        **options : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        SettingsDisplay
            The display, after its plot was drawn.
        """
        return cls(result).plot(**options)

    def plot(self, *, examples: bool = True, figure: Any = None) -> SettingsDisplay:
        """Plot the gains, and examples of the synthetic defects.

        Parameters
        ----------
        examples : bool, default=True
            If True, two synthetic defects of each kind are drawn below the gains, with their outlines.
        figure : matplotlib Figure or None, default=None
            Figure to plot on. None creates a new figure.

        Returns
        -------
        SettingsDisplay
            The display itself.
        """
        import matplotlib.pyplot as plt

        n_rows = min(len(self.result.table), _N_SHOWN)
        height = 1.2 + 0.33 * n_rows
        if figure is None:
            figure = plt.figure(figsize=(11, height + (2.6 if examples else 0)))
        figure.set_layout_engine("constrained")
        grid = figure.add_gridspec(2 if examples else 1, 1, height_ratios=(height, 2.6) if examples else None)
        self.figure_, self.ax_ = figure, figure.add_subplot(grid[0])
        self._draw_gains(self.ax_, n_rows)
        if examples:
            self._draw_examples(figure, grid[1])
        return self

    def _draw_gains(self, ax: Any, n_rows: int) -> None:
        shown = self._rows_shown(n_rows)
        table, by_kind = self.result.table.iloc[shown], self.result.by_kind.iloc[shown]
        given = self.result.by_kind[self.result.table["n_changes"] == 0].iloc[0, 1:].to_numpy(float)
        for row, (_, setting) in enumerate(table.iterrows()):
            color = _CHOSEN if setting["chosen"] else _OTHER
            kinds = 100 * (by_kind.iloc[row, 1:].to_numpy(float) - given)
            ax.plot(kinds, np.full(len(kinds), row), "|", color=_KIND, markersize=6, alpha=0.45)
            gain, error = 100 * setting["gain"], 100 * setting["gain_se"]
            ax.plot([gain - error, gain + error], [row, row], color=color, linewidth=2.2, solid_capstyle="butt")
            ax.plot(gain, row, "o", color=color, markersize=7 if setting["chosen"] else 5)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_ylim(-0.6, len(table) - 0.4)
        ax.set_yticks(range(len(table)), [self._name(text, chosen) for text, chosen in zip(
            table["setting"], table["chosen"], strict=True)], fontsize=8, parse_math=False)  # fmt: skip
        ax.invert_yaxis()
        ax.set_xlabel("additional defects found, percentage points")
        ax.grid(axis="x", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)

    def _rows_shown(self, n_rows: int) -> list[int]:
        """Return the rows of the table that are drawn: the first ones, and always the given and the chosen setting."""
        table = self.result.table
        must = np.flatnonzero((table["n_changes"] == 0) | table["chosen"]).tolist()
        others = [row for row in range(len(table)) if row not in must]
        return sorted(must + others[: max(0, n_rows - len(must))])

    def _name(self, text: str, is_chosen: bool) -> str:
        lines = textwrap.wrap(_PREFIX.sub("", text), _LONGEST_NAME, max_lines=2, placeholder=" …")
        return "\n".join(shown_text(line) for line in [*lines[:-1], lines[-1] + ("  (chosen)" if is_chosen else "")])

    def _draw_examples(self, figure: Any, place: Any) -> None:
        """Draw two defects of each kind: one of the smaller and one of the larger ones."""
        trials = self.result.trials
        kinds = list(self.result.by_kind.columns[1:])
        inner = place.subgridspec(2, len(kinds))
        for column, kind in enumerate(kinds):
            own = trials[trials["kind"] == kind]
            in_order = own["size"].sort_values().index
            for row, share in enumerate((0.25, 0.75)):
                trial = int(in_order[int(share * (len(in_order) - 1) + 0.5)])
                ax = figure.add_subplot(inner[row, column])
                ax.imshow(close_up(*self.result.draw(trial)))
                ax.set_title(f"{own.loc[trial, 'size']:.1f} px" if row else kind, fontsize=7)
                ax.set_axis_off()
