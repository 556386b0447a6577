"""DetectionCapabilityDisplay: a figure of the probability of detection against the size of defects."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from skpatchcore._utils.names import shown_text
from skpatchcore.display.overlay import outline_mask

# Blue and orange of the palette of Okabe and Ito, which colour-blind readers can distinguish.
_FOUND, _MISSED = "#0072B2", "#D55E00"
_N_COLUMNS = 3


class DetectionCapabilityDisplay:
    """Plot of the probability of detection against the size of defects: curve, confidence band, a90 and a90/95.

    Use :meth:`from_result` or :meth:`from_detector` to create a display. Each panel shows one kind of defect. Ticks at
    the top are hits, and ticks at the bottom are misses. Each edge of the band is a one-sided 95 % confidence bound.
    The vertical lines mark a90, the size at which 90 % of the defects are found, and a90/95, its upper bound at 95 %
    confidence. Below each panel, the smallest found and the largest missed defect are shown with their outlines.

    Parameters
    ----------
    result : DetectionCapability
        Result of :func:`~skpatchcore.detection_capability` or :func:`~skpatchcore.capability_of_defects`.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The Figure of the last plot.
    axes_ : array of matplotlib Axes, of shape (n_curves,)
        The Axes of the curves.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from skpatchcore.display import DetectionCapabilityDisplay
    >>> from skpatchcore.evaluation import DetectionCapability, fit_pod
    >>> sizes = np.geomspace(1, 30, 60)
    >>> hits = sizes + np.tile([-2, 0, 2], 20) > 8
    >>> trials = pd.DataFrame({"image": 0, "kind": "blob", "size": sizes, "contrast": 0.6, "hit": hits})
    >>> result = DetectionCapability(
    ...     trials, {("blob", 0.6): fit_pod(sizes, hits)}, {"blob": "diameter"}, 0.01, -2.0, 20, 0, 0, None
    ... )
    >>> display = DetectionCapabilityDisplay.from_result(result, examples=False)
    >>> display.axes_[0].get_xlabel()
    'diameter in pixels'
    """

    def __init__(self, result: Any):
        self.result = result

    @classmethod
    def from_result(cls, result: Any, **options: Any) -> DetectionCapabilityDisplay:
        """Plot an existing result.

        Parameters
        ----------
        result : DetectionCapability
            The result to plot, as described for the class.
        **options : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        DetectionCapabilityDisplay
            The display, after its plot was drawn.

        Raises
        ------
        ValueError
            If the result has no curve.
        """
        if not result.curves:
            raise ValueError("the result has no curve to draw: there are too few defects.")
        return cls(result).plot(**options)

    @classmethod
    def from_detector(
        cls, detector: Any, good_images: Any, *, examples: bool = True, figure: Any = None, **parameters: Any
    ) -> DetectionCapabilityDisplay:
        """Measure the capability of a fitted detector with synthetic defects, and plot it.

        Parameters
        ----------
        detector, good_images, **parameters
            As for :func:`~skpatchcore.detection_capability`.
        examples, figure
            As for :meth:`plot`.

        Returns
        -------
        DetectionCapabilityDisplay
            The display, after its plot was drawn.

        Raises
        ------
        ImageError, ValueError
            As in :func:`~skpatchcore.detection_capability`.
        """
        import skpatchcore

        result = skpatchcore.detection_capability(detector, good_images, **parameters)
        return cls.from_result(result, examples=examples, figure=figure)

    def plot(self, *, examples: bool = True, figure: Any = None) -> DetectionCapabilityDisplay:
        """Plot one panel per curve.

        Parameters
        ----------
        examples : bool, default=True
            If True, draw the smallest found and the largest missed defect below each panel.
        figure : matplotlib Figure or None, default=None
            Figure to plot on. None creates a new figure.

        Returns
        -------
        DetectionCapabilityDisplay
            The display itself.
        """
        import matplotlib.pyplot as plt

        cells = list(self.result.curves)
        n_columns = min(len(cells), _N_COLUMNS)
        n_rows = math.ceil(len(cells) / n_columns)
        if figure is None:
            figure = plt.figure(figsize=(4 * n_columns, (4.9 if examples else 3.1) * n_rows))
        figure.set_layout_engine("constrained")
        grid = figure.add_gridspec(n_rows, n_columns)
        axes = []
        for number, cell in enumerate(cells):
            place = grid[divmod(number, n_columns)]
            if not examples:
                axes.append(figure.add_subplot(place))
            else:
                inner = place.subgridspec(2, 2, height_ratios=(3, 2))
                axes.append(figure.add_subplot(inner[0, :]))
                for column in range(2):
                    self._draw_example(figure.add_subplot(inner[1, column]), cell, column)
            self._draw_curve(axes[-1], cell)
        self.figure_, self.axes_ = figure, np.array(axes, object)
        return self

    def _draw_curve(self, ax: Any, cell: tuple[str, float]) -> None:
        """Draw the curve, its band, the hits and misses, and lines at a90 and a90/95."""
        curve = self.result.curves[cell]
        sizes = np.geomspace(curve.sizes.min(), max(curve.sizes.max(), 1.01 * curve.sizes.min()), 100)
        pod, low, high = curve.at(sizes)
        ax.fill_between(sizes, low, high, color=_FOUND, alpha=0.18, linewidth=0)
        ax.plot(sizes, pod, color=_FOUND)
        for found, height, color in ((True, 1.04, _FOUND), (False, -0.04, _MISSED)):
            own = curve.sizes[curve.hits == found]
            ax.plot(own, np.full(len(own), height), "|", color=color, markersize=7, alpha=0.7)
        for value, style, name in ((curve.a90, "-", "a90"), (curve.a90_95, "--", "a90/95")):
            if math.isfinite(value):
                ax.axvline(value, color="black", linewidth=1, linestyle=style, label=f"{name}: {value:.1f} px")
        ax.axhline(0.9, color="#999999", linewidth=0.8)
        ax.set_xscale("log")
        ticks = _ticks(sizes[0], sizes[-1])
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set(
            ylim=(-0.09, 1.09),
            xlabel=f"{self.result.size_names[cell[0]]} in pixels",
            ylabel="probability of detection",
        )
        ax.set_title(shown_text(self.result.name_of(*cell)), fontsize=10, loc="left", parse_math=False, usetex=False)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize="small", loc="best")

    def _draw_example(self, ax: Any, cell: tuple[str, float], column: int) -> None:
        """Draw the smallest found (column 0) or the largest missed defect (column 1) with its outline."""
        ax.set_axis_off()
        start = ("smallest found", "largest missed")[column]
        example = next((one for one in self.result.examples(*cell) if one.caption.startswith(start)), None)
        ax.set_title(example.caption if example is not None else f"{start}: none", fontsize=8, loc="left")
        if example is not None:
            ax.imshow(close_up(*self.result.draw(example.trial)))


def close_up(image: np.ndarray, mask: np.ndarray, least: int = 96) -> np.ndarray:
    """Return the part of an image around a defect, with a line around the defect.

    Parameters
    ----------
    image : array of shape (height, width, 1 or 3), float in [0, 1]
        The image.
    mask : array of shape (height, width), bool
        True for the pixels of the defect. If there are none, the complete image is returned.
    least : int, default=96
        Smallest side of the part in pixels. Otherwise, the part is a square three times as large as the defect.

    Returns
    -------
    array of shape (height, width, 3), uint8
        The part of the image, cut at the border of the image.
    """
    if not mask.any():
        return outline_mask(image, mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    side = max(least, 3 * max(int(np.ptp(rows)), int(np.ptp(columns))))
    slices = []
    for places, length in ((rows, mask.shape[0]), (columns, mask.shape[1])):
        start = min(max(0, int(places[0] + places[-1] - side) // 2), max(0, length - side))
        slices.append(slice(start, start + side))
    return outline_mask(image[slices[0], slices[1]], mask[slices[0], slices[1]])


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two sizes: 1, 2 and 5 times powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
