"""InspectionDisplay: draw which pixels of an image a detector inspects."""

from __future__ import annotations

from typing import Any

import numpy as np

from skpatchcore.display.overlay import hatched, outline_mask, shown_images
from skpatchcore.images.reading import load_image
from skpatchcore.protocols import pixel_format_of


class InspectionDisplay:
    """Picture of an image in which the pixels that are not inspected have stripes.

    Use :meth:`from_estimator` to create this display.

    Parameters
    ----------
    image : array of shape (height, width, 1 or 3), float in [0, 1]
        The image.
    inspected : array of shape (height, width), bool
        True for pixels that are inspected.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure. Set by :meth:`plot`.
    ax_ : matplotlib Axes
        The axes. Set by :meth:`plot`.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import InspectionDisplay
    >>> inspected = np.zeros((40, 60), bool)
    >>> inspected[10:30, 10:50] = True
    >>> display = InspectionDisplay(np.full((40, 60, 1), 0.5), inspected).plot()
    >>> display.ax_.get_title()
    '33.3 % of the pixels are inspected'
    """

    def __init__(self, image: np.ndarray, inspected: np.ndarray):
        self.image, self.inspected = image, inspected

    @classmethod
    def from_estimator(cls, estimator: Any, image: Any, *, roi: Any = None, ax: Any = None) -> InspectionDisplay:
        """Draw which pixels of an image a fitted detector inspects.

        Parameters
        ----------
        estimator : detector
            A fitted detector of this package.
        image : path, array or PIL image
            One image, in any form that the detector accepts. For a :class:`~skpatchcore.MultiLightDetector`, one part:
            the image of its first light is drawn.
        roi : region of interest of this image or None, default=None
            In the form of one item of the argument `roi` of the detector's `predict`.
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None creates a new figure.

        Returns
        -------
        InspectionDisplay
            The display, after its plot was drawn.

        Raises
        ------
        ImageError
            If the image cannot be read, or if no patch of it lies in the region of interest.
        """
        anomaly_map = next(iter(estimator.iter_results([image], roi=None if roi is None else [roi]))).anomaly_map
        pixels = load_image(shown_images(estimator, [image])[0], 0, pixel_format=pixel_format_of(estimator))
        return cls(pixels, ~np.isnan(anomaly_map)).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> InspectionDisplay:
        """Draw the image with stripes over the pixels that are not inspected, and a line around the inspected pixels.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None creates a new figure.

        Returns
        -------
        InspectionDisplay
            The display itself.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        picture = hatched(np.broadcast_to(self.image, (*self.image.shape[:2], 3)), ~self.inspected)
        ax.imshow(picture if self.inspected.all() else outline_mask(picture, self.inspected))
        ax.set_title(f"{100 * self.inspected.mean():.1f} % of the pixels are inspected", fontsize=10)
        ax.set_axis_off()
        self.figure_, self.ax_ = ax.figure, ax
        return self
