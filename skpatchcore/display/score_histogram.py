"""ScoreHistogramDisplay: scores of good and defective images, the threshold, and what it promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Blue and orange of Okabe and Ito's palette, which the colour-blind tell apart.
_GOOD, _DEFECTIVE, _CALIBRATION = "#0072B2", "#D55E00", "#555555"


class ScoreHistogramDisplay:
    """Histogram of anomaly scores, **bigger = more anomalous**: minus what `score_samples` returns.

    Make one by :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    scores : array of shape (n_images,)
        **Bigger = more normal**, as `score_samples` has them.
    y : array of shape (n_images,) or None, default=None
        +1 good, -1 defective; None where nobody knows.
    offset : float, default=nan
        The detector's ``offset_``; NaN draws no threshold.
    calibration_scores : array of shape (n_calibration,) or None, default=None
        The detector's, of good images.
    promise : float or None, default=None
        Share of good images that at most is flagged, where they are exchangeable with those that calibrated: of parts
        that come in groups it promises less.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        What was drawn last.

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
        """Score images and draw them, with the scores that the threshold comes from.

        Parameters
        ----------
        estimator : detector
            A fitted one of this package.
        X : sequence of images
            As for its `predict`.
        y : array of shape (n_images,) or None, default=None
            +1 good, -1 defective.
        **options : dict
            As for :meth:`plot`.

        Returns
        -------
        ScoreHistogramDisplay
            Drawn.

        Raises
        ------
        ImageError
            If an image can't be read.
        """
        known = estimator.calibration_scores_[~np.isnan(estimator.calibration_scores_)]
        least = 1 / (len(known) + 1)
        share = estimator.contamination
        return cls.from_predictions(
            estimator.score_samples(X),
            y,
            offset=estimator.offset_,
            calibration_scores=known,
            promise=least if share == "auto" else max(share, least),
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
        """Draw scores that are there already.

        Parameters
        ----------
        scores, y, offset, calibration_scores, promise
            As of the class.
        **options : dict
            As for :meth:`plot`.

        Returns
        -------
        ScoreHistogramDisplay
            Drawn.

        Raises
        ------
        ValueError
            If there are no scores, lengths differ, or `y` holds other labels than +1 and -1.
        """
        scores = np.asarray(scores, np.float64)
        if y is not None and (len(y) != len(scores) or not np.isin(y, (1, -1)).all()):
            raise ValueError("y: expected a label for each score, +1 for good and -1 for defective images.")
        if not len(scores):
            raise ValueError("there are no scores to draw.")
        return cls(scores, y, offset=offset, calibration_scores=calibration_scores, promise=promise).plot(**options)

    def plot(self, *, ax: Any = None, bins: int = 30) -> ScoreHistogramDisplay:
        """Draw the histogram.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to; None makes a figure.
        bins : int, default=30
            Of the histogram.

        Returns
        -------
        ScoreHistogramDisplay
            Itself.
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
            promise = "" if self.promise is None else f": flags at most {self.promise:.2g} of good ones"
            ax.axvline(-self.offset, color="black", linestyle="--", label=f"threshold{promise}")
        ax.set(xlabel="anomaly score (bigger = more anomalous)", ylabel="images")
        ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        self.ax_, self.figure_ = ax, ax.figure
        return self
