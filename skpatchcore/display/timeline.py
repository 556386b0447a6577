"""ScoreTimelineDisplay: anomaly scores over time, with the threshold and the spans that are known to be anomalous."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Blue, orange and grey of the palette of Okabe and Ito, which colour-blind readers can distinguish.
_SCORE, _FLAGGED, _TRUTH = "#0072B2", "#D55E00", "#999999"


class ScoreTimelineDisplay:
    """Curve of the anomaly scores of frames over time, **bigger = more anomalous**, with the known anomalous spans.

    Use :meth:`from_scores` to create a display.

    Parameters
    ----------
    anomaly_scores : array of shape (n_frames,)
        Anomaly scores of the frames, in their order.
    threshold : float, default=NaN
        Threshold for anomaly scores. NaN draws no line.
    labels : array of shape (n_frames,) or None, default=None
        +1 for normal frames and -1 for anomalous ones. Spans of anomalous frames are shaded.
    times : array of shape (n_frames,) or None, default=None
        Times of the frames, e.g. in seconds, or as datetime64. None uses the numbers of the frames.
    time_label : str, default="frame"
        Label of the time axis.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        The Axes and the Figure of the last plot.

    Examples
    --------
    >>> from skpatchcore.display import ScoreTimelineDisplay
    >>> display = ScoreTimelineDisplay.from_scores([-1.0, -1.2, -3.0, -2.8], offset=-2.0, labels=[1, 1, -1, -1])
    >>> display.spans()
    [(2, 4)]
    """

    def __init__(
        self,
        anomaly_scores: Any,
        *,
        threshold: float = math.nan,
        labels: Any = None,
        times: Any = None,
        time_label: str = "frame",
    ):
        self.anomaly_scores = anomaly_scores
        self.threshold = threshold
        self.labels = labels
        self.times = times
        self.time_label = time_label

    @classmethod
    def from_scores(
        cls,
        scores: Any,
        *,
        offset: float = math.nan,
        labels: Any = None,
        times: Any = None,
        time_label: str = "frame",
        ax: Any = None,
    ) -> ScoreTimelineDisplay:
        """Plot scores of scikit-learn's sign over time.

        Parameters
        ----------
        scores : array of shape (n_frames,)
            Result of `score_samples`, bigger = more normal.
        offset : float, default=NaN
            ``offset_`` of the detector. NaN draws no threshold.
        labels, times, time_label
            As for the class.
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None creates a new figure.

        Returns
        -------
        ScoreTimelineDisplay
        """
        anomaly_scores = -np.asarray(scores, np.float64)
        return cls(anomaly_scores, threshold=-offset, labels=labels, times=times, time_label=time_label).plot(ax=ax)

    def spans(self) -> list[tuple[int, int]]:
        """Return the first frame and the frame after the last one of each span of anomalous frames.

        Returns
        -------
        list of (int, int)
            Places in `anomaly_scores`, in ascending order. Empty without `labels`.
        """
        if self.labels is None:
            return []
        is_anomalous = np.asarray(self.labels) == -1
        ends = np.flatnonzero(np.diff(np.r_[0, is_anomalous.astype(int), 0]))
        return list(zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True))

    def plot(self, *, ax: Any = None) -> ScoreTimelineDisplay:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None creates a new figure.

        Returns
        -------
        ScoreTimelineDisplay
            The display itself.

        Raises
        ------
        ValueError
            If there are no scores, or `labels` or `times` have another length.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(7.2, 2.8), layout="constrained")
        scores = np.asarray(self.anomaly_scores, np.float64)
        if not len(scores):
            raise ValueError("anomaly_scores is empty: there are no frames to draw.")
        for name in ("labels", "times"):
            if (given := getattr(self, name)) is not None and len(given) != len(scores):
                raise ValueError(f"{name} has {len(given)} items for {len(scores)} scores: pass one for each frame.")
        times = np.arange(len(scores), dtype=float) if self.times is None else np.asarray(self.times)
        if times.dtype.kind == "M":
            times = times.astype("datetime64[us]")  # half of a step of one second must not become zero
        step = np.median(np.diff(times)) if len(times) > 1 else (times + 2 - times)[0]
        for i, (start, end) in enumerate(self.spans()):
            label = "known to be anomalous" if i == 0 else None
            ax.axvspan(times[start] - step / 2, times[end - 1] + step / 2, color=_TRUTH, alpha=0.35, lw=0, label=label)
        ax.plot(times, scores, color=_SCORE, linewidth=1.2, label="anomaly score")
        if not math.isnan(self.threshold):
            flagged = scores > self.threshold
            ax.axhline(self.threshold, color="black", linestyle="--", linewidth=1, label="threshold")
            ax.plot(times[flagged], scores[flagged], ".", color=_FLAGGED, markersize=4, label="flagged")
        ax.set(xlabel=self.time_label, ylabel="anomaly score", xlim=(times[0] - step / 2, times[-1] + step / 2))
        ax.legend(loc="upper left", fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self
