"""DriftDisplay: a curve of the evidence of drift over the images, with the alarm level."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Blue and orange of the palette of Okabe and Ito, which colour-blind readers can distinguish.
_EVIDENCE, _ALARM = "#0072B2", "#D55E00"


class DriftDisplay:
    """Curve of the evidence that images have drifted, **bigger = drift is more probable**, with the alarm level.

    Use :meth:`from_monitor`, or the method `plot` of a :class:`~skpatchcore.DriftMonitor`, to create a display.

    Parameters
    ----------
    log_evidence : array of shape (n_images,)
        Natural logarithm of the evidence after each image.
    alpha : float
        Upper bound on the probability of a false alarm. The alarm level is ``1 / alpha``.
    alarm_image : int or None, default=None
        Index of the image at which the alarm was raised. None if there was no alarm.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        The Axes and the Figure of the last plot.

    Examples
    --------
    >>> from skpatchcore.display import DriftDisplay
    >>> display = DriftDisplay([0.0, 2.5, 5.0], alpha=0.01, alarm_image=2).plot()
    >>> display.ax_.get_xlabel()
    'images'
    """

    def __init__(self, log_evidence: Any, *, alpha: float, alarm_image: int | None = None):
        self.log_evidence = log_evidence
        self.alpha = alpha
        self.alarm_image = alarm_image

    @classmethod
    def from_monitor(cls, monitor: Any, **options: Any) -> DriftDisplay:
        """Plot the evidence of a monitor.

        Parameters
        ----------
        monitor : DriftMonitor
            The monitor. It may have seen no images yet.
        **options : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        DriftDisplay
            The display, after its plot was drawn.
        """
        display = cls(monitor.log_evidence_, alpha=monitor.alpha, alarm_image=monitor.alarm_image_)
        return display.plot(**options)

    def plot(self, *, ax: Any = None) -> DriftDisplay:
        """Plot the evidence on a logarithmic axis.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None creates a new figure.

        Returns
        -------
        DriftDisplay
            The display itself.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
        # The axis shows powers of 10 of the logarithm, because the evidence itself can exceed the largest float.
        powers = np.asarray(self.log_evidence, np.float64) / math.log(10)
        ax.plot(np.arange(1, len(powers) + 1), powers, color=_EVIDENCE, label="evidence")
        level = -math.log10(self.alpha)
        ax.axhline(level, color="black", linestyle="--", label=f"alarm level {1 / self.alpha:.4g}")
        if self.alarm_image is not None:
            n_images = self.alarm_image + 1
            ax.plot([n_images], [powers[self.alarm_image]], "o", color=_ALARM, label=f"alarm after {n_images} images")
        ax.yaxis.set_major_formatter(_power_of_ten)
        ax.yaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="images", ylabel="evidence of drift")
        ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _power_of_ten(exponent: float, _: int) -> str:
    """Return the label of a tick, e.g. ``$10^{2}$``."""
    return f"$10^{{{exponent:.3g}}}$"
