"""Drift: evidence of drift after each judged part, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from skpatchcore.reports.pipelines import detector_of

# Bound on the probability of a false alarm, and the fraction of defective parts that is no drift.
_ALPHA, _DEFECT_RATE = 0.01, 0.05
# Number of parts after which the comparison begins anew. A part takes up to 72 bytes in the monitor, and the time per
# part grows with their number.
N_PARTS = 100_000


class Drift:
    """Watch judged parts for drift, in the order in which they arrive.

    Parameters
    ----------
    detector : detector or Pipeline
        The detector that judges the parts.
    n_parts : int, default=100_000
        Number of parts after which the comparison begins anew.

    Attributes
    ----------
    alarm : str
        Sentence about the first alarm; empty without an alarm. It stays after the comparison begins anew.
    reason : str
        Why no drift can be found; empty if the parts are compared.
    """

    def __init__(self, detector: Any, n_parts: int = N_PARTS):
        self.alarm, self.reason, self._n_parts = "", "", n_parts
        self._monitor: Any = None
        if hasattr(detector_of(detector), "runtime"):
            self.reason = "an exported file has no embeddings of training images, so drift is not found."
            return
        from skpatchcore.calibration.drift import DriftMonitor

        try:
            self._monitor = DriftMonitor(detector_of(detector), alpha=_ALPHA, defect_rate=_DEFECT_RATE)
        except ValueError as error:  # no threshold, and too few embeddings
            self.reason = f"drift is not found: {error}"

    def update(self, scores: Sequence[float], log: Any) -> list[float]:
        """Compare the next parts.

        Parameters
        ----------
        scores : sequence of float
            Their scores, bigger = more normal. NaN if a part could not be scored.
        log : EmbeddingLog or None
            Embeddings of the parts that were scored.

        Returns
        -------
        list of float
            Natural logarithm of the evidence of drift after each part, bigger = drift is more probable. NaN if the
            parts are not compared.
        """
        if self._monitor is None:
            return [math.nan] * len(scores)
        if self._monitor.n_seen_ >= self._n_parts:
            self._monitor.reset()
        self._monitor.update_scores(scores, log)
        if self._monitor.alarm_ and not self.alarm:
            self.alarm = (
                f"The parts look unlike the training images (drift): {self._monitor.causes()} The promised "
                "false-positive rate does not hold for such parts, and defects may be missed."
            )
        history = self._monitor.log_evidence_
        return [float(value) for value in history[len(history) - len(scores) :]]
