"""ScoreHistogramDisplay: a histogram of the scores of good and defective images, with the image threshold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Blue and orange of the palette of Okabe and Ito, which colour-blind readers can distinguish.
_GOOD, _DEFECTIVE, _CALIBRATION = "#0072B2", "#D55E00", "#555555"


class ScoreHistogramDisplay:
    """Histogram of the anomaly scores of images, **bigger = more anomalous**, with the image threshold.

    The anomaly score of an image is the result of `score_samples` with the opposite sign. Scores are passed with the
    sign of `score_samples`, and the display changes the sign. Use :meth:`from_estimator` or :meth:`from_predictions` to
    create a display.

    Parameters
    ----------
    scores : array of shape (n_images,)
        Scores of `score_samples`, **bigger = more normal**.
    y : array of shape (n_images,) or None, default=None
        Labels: +1 for good and -1 for defective images. None if the labels are unknown.
    offset : float, default=nan
        The image threshold: the detector's ``offset_``. If NaN, no threshold is drawn.
    calibration_scores : array of shape (n_calibration,) or None, default=None
        The detector's ``calibration_scores_``. If None, no calibration scores are drawn.
    promise : float or None, default=None
        Upper bound on the fraction of good images that are labelled -1. The legend shows the bound. `from_estimator`
        computes the bound from the image threshold: ``(1 + number of calibration scores below offset_) /
        (n_calibration + 1)``. The bound assumes that new good images are exchangeable with the calibration images
        (their order carries no information). If the detector was fitted with `groups`, e.g. one group per workpiece,
        the bound is not guaranteed for images of new groups. If None, no bound is shown.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        The Axes and the Figure of the last plot.

    Examples
    --------
    >>> from skpatchcore.display import ScoreHistogramDisplay
    >>> display = ScoreHistogramDisplay.from_predictions([-1.0, -1.2, -3.0], [1, 1, -1], offset=-2.0)
    >>> display.ax_.get_xlabel()
    'anomaly score (bigger = more anomalous)'
    """

    def __init__(
        self,
        scores: Any,
        y: Any = None,
        *,
        offset: float = math.nan,
        calibration_scores: Any = None,
        promise: float | None = None,
    ):
        self.scores = scores
        self.y = y
        self.offset = offset
        self.calibration_scores = calibration_scores
        self.promise = promise

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any = None, **options: Any) -> ScoreHistogramDisplay:
        """Score images and plot the histogram of their scores, with the calibration scores and the threshold.

        Parameters
        ----------
        estimator : detector
            A fitted detector of this package.
        X : sequence of images
            Images as for the detector's `predict`.
        y : array of shape (n_images,) or None, default=None
            Labels: +1 for good and -1 for defective images. None if the labels are unknown.
        **options : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        ScoreHistogramDisplay
            The display, after its plot was drawn.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image.
        """
        known = estimator.calibration_scores_[~np.isnan(estimator.calibration_scores_)]
        # from the threshold itself, because `recalibrate` may have set it for another rate than `contamination`
        promise = (1 + np.count_nonzero(known < estimator.offset_)) / (len(known) + 1)
        return cls.from_predictions(
            estimator.score_samples(X),
            y,
            offset=estimator.offset_,
            calibration_scores=known,
            promise=promise,
            **options,
        )

    @classmethod
    def from_predictions(
        cls,
        scores: Any,
        y: Any = None,
        *,
        offset: float = math.nan,
        calibration_scores: Any = None,
        promise: float | None = None,
        **options: Any,
    ) -> ScoreHistogramDisplay:
        """Plot the histogram of existing scores.

        Parameters
        ----------
        scores, y, offset, calibration_scores, promise
            Parameters of the class.
        **options : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        ScoreHistogramDisplay
            The display, after its plot was drawn.

        Raises
        ------
        ValueError
            If there are no scores, if the lengths of `scores` and `y` differ, or if `y` contains labels other than +1
            and -1.
        """
        scores = np.asarray(scores, np.float64)
        if y is not None and (len(y) != len(scores) or not np.isin(y, (1, -1)).all()):
            raise ValueError("y: expected a label for each score, +1 for good and -1 for defective images.")
        if not len(scores):
            raise ValueError("there are no scores to draw: pass at least one score.")
        return cls(scores, y, offset=offset, calibration_scores=calibration_scores, promise=promise).plot(**options)

    def plot(self, *, ax: Any = None, bins: int = 30) -> ScoreHistogramDisplay:
        """Plot the histogram.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None creates a new figure.
        bins : int, default=30
            Number of bins of the histogram.

        Returns
        -------
        ScoreHistogramDisplay
            The display itself.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
        anomaly = -np.asarray(self.scores, np.float64)
        known = np.zeros(0) if self.calibration_scores is None else -np.asarray(self.calibration_scores, np.float64)
        known = known[~np.isnan(known)]
        edges = np.histogram_bin_edges(np.concatenate([anomaly, known]), bins=bins)
        if self.y is None:
            ax.hist(anomaly, edges, color=_GOOD, alpha=0.65, label="images")
        else:
            for label, name, color in ((1, "good", _GOOD), (-1, "defective", _DEFECTIVE)):
                ax.hist(anomaly[np.asarray(self.y) == label], edges, color=color, alpha=0.65, label=name)
        if len(known):
            ax.hist(known, edges, histtype="step", color=_CALIBRATION, label="calibration")
        if not math.isnan(self.offset):
            promise = "" if self.promise is None else f": flags at most {self.promise:.2g} of good images"
            ax.axvline(-self.offset, color="black", linestyle="--", label=f"threshold{promise}")
        ax.set(xlabel="anomaly score (bigger = more anomalous)", ylabel="images")
        ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        self.ax_, self.figure_ = ax, ax.figure
        return self
