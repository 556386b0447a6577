"""AnomalyMapDisplay: a figure of images beside their anomaly maps, in colours relative to the pixel threshold."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore._utils.missing import is_missing
from skpatchcore._utils.names import shown_name, shown_text
from skpatchcore.datasets import read_mask
from skpatchcore.display.overlay import HEAT_RANGE, heat_colors, overlay_anomaly_map, shown_images
from skpatchcore.images.containers import listed
from skpatchcore.images.reading import load_image
from skpatchcore.maps import regions_of_map
from skpatchcore.protocols import pixel_format_of

# Width of one image in the figure, in inches.
_INCHES = 2.6
# Height and width of a region's tag, as fractions of the image's width.
_TAG_HEIGHT, _TAG_WIDTH = 0.08, 0.13
_MASK_COLOR, _REGION_COLOR = "#56B4E9", "#00E5FF"


def _digits(score: float) -> str:
    """Return a score with at least three significant digits: scores of some methods are below 1."""
    return f"{score:.1f}" if abs(score) >= 10 else f"{score:#.3g}"


def _name(image: Any) -> str:
    """Return a title line with the last two parts of an image's path; an empty string if the image is not a path."""
    return shown_name("/".join(Path(image).parts[-2:])) + "\n" if isinstance(image, str | os.PathLike) else ""


class AnomalyMapDisplay:
    """Figure of images beside their anomaly maps, **bigger = more anomalous**, with known masks and found regions.

    Use :meth:`from_estimator` or :meth:`from_predictions` to create a display. The colour of a pixel depends only on
    the ratio of its map value to the detector's pixel threshold ``pixel_offset_``. Therefore colours of different
    images can be compared. In most good images, the ratio is at most 1 at all pixels.

    Parameters
    ----------
    images : list of arrays of shape (height, width, 1 or 3)
        Images with float values in [0, 1].
    anomaly_maps : list of arrays of shape (height, width)
        One anomaly map per image, bigger = more anomalous.
    threshold : float
        The pixel threshold: the detector's ``pixel_offset_``. If NaN, the colour scale uses the middle between the
        smallest and the largest value of all maps instead, and colours do not show whether a pixel is normal.
    masks : list of (array of shape (height, width) or None) or None, default=None
        One mask per image: True (or non-zero) for pixels that are known to be defective. None for an image without a
        mask.
    titles : list of str or None, default=None
        One title per image. Titles are drawn as plain text, not as formulas.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The Figure of the last plot.
    axes_ : array of matplotlib Axes, of shape (n_images, 2)
        The Axes of the images (first column) and of the overlays (second column).

    See Also
    --------
    skpatchcore.display.overlay_anomaly_map : Return the overlay of one image as an array.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.display import AnomalyMapDisplay
    >>> scored = np.zeros((24, 32))
    >>> scored[8:14, 10:20] = 3
    >>> display = AnomalyMapDisplay.from_predictions([np.zeros((24, 32))], [scored], threshold=2.0)
    >>> display.axes_.shape
    (1, 2)
    """

    def __init__(
        self,
        images: Sequence[Any],
        anomaly_maps: Sequence[Any],
        *,
        threshold: float,
        masks: Sequence[Any] | None = None,
        titles: Sequence[str] | None = None,
    ):
        self.images = images
        self.anomaly_maps = anomaly_maps
        self.threshold = threshold
        self.masks = masks
        self.titles = titles

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, *, masks: Sequence[Any] | None = None, roi: Any = None, **options: Any
    ) -> AnomalyMapDisplay:
        """Score images with a fitted detector, and plot the images and their anomaly maps.

        Parameters
        ----------
        estimator : detector
            A fitted detector of this package.
        X : sequence of images
            Images as for the detector's `predict`. Of parts with several lights, the image of the first light is drawn.
        masks : list or None, default=None
            Masks as for :meth:`from_predictions`.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for the detector's `predict`.
        **options : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        AnomalyMapDisplay
            The display, after its plot was drawn.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image.
        """
        X = listed(X)
        scores, maps = estimator.score_and_segment(X, **({} if roi is None else {"roi": roi}))
        offset = estimator.offset_
        images = shown_images(estimator, X)
        titles = [
            f"{_name(image)}score {_digits(score)}"
            + ("" if math.isnan(offset) else ": anomalous" if score < offset else ": normal")
            for image, score in zip(images, scores, strict=True)
        ]
        pixel_format = pixel_format_of(estimator)
        images = [load_image(image, i, pixel_format=pixel_format) for i, image in enumerate(images)]
        return cls.from_predictions(
            images, list(maps), threshold=estimator.pixel_offset_, masks=masks, titles=titles, **options
        )

    @classmethod
    def from_training_image(
        cls, estimator: Any, index: int, X: Any = None, *, roi: Any = None, **options: Any
    ) -> AnomalyMapDisplay:
        """Plot a training image and its anomaly map, compared with the rows of the memory bank from other images.

        A defect in a training image is in the memory bank, so that :meth:`from_estimator` would show the defect as
        normal. Here, the rows of the image itself and of its group do not count.

        Parameters
        ----------
        estimator : PatchCoreDetector
            A fitted detector.
        index : int
            Index of the image in the `X` of `fit`: the column ``image`` of `training_report`.
        X : as for `fit`, or None, default=None
            The same images as in `fit`, in the same order. None reads the image from its path.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, the same as in `fit`.
        **options : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        AnomalyMapDisplay
            The display, already plotted.

        Raises
        ------
        ImageError
            If the image cannot be read.
        ValueError
            If there is no training image with this index, if its path is unknown and `X` is None, or if all rows of the
            memory bank come from the image or its group.
        """
        given, anomaly_map, score = estimator._training_map(index, X, roi)
        image = load_image(given, index, pixel_format=pixel_format_of(estimator))
        title = f"{_name(given)}training image {index}" + ("" if math.isnan(score) else f", score {_digits(score)}")
        return cls.from_predictions(
            [image], [anomaly_map], threshold=estimator.pixel_offset_, titles=[title], **options
        )

    @classmethod
    def from_predictions(
        cls,
        images: Sequence[Any],
        anomaly_maps: Sequence[Any],
        *,
        threshold: float = math.nan,
        masks: Sequence[Any] | None = None,
        titles: Sequence[str] | None = None,
        **options: Any,
    ) -> AnomalyMapDisplay:
        """Plot images and existing anomaly maps.

        Parameters
        ----------
        images : sequence of paths, arrays or PIL images
            Images in any form that a detector accepts.
        anomaly_maps, threshold, titles
            Parameters of the class.
        masks : list of (array of shape (height, width), path or None) or None, default=None
            One mask per image: an array that is True (or non-zero) for defective pixels, or the path of a mask that
            :func:`~skpatchcore.datasets.read_mask` can read. None or NaN for an image without a mask.
        **options : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        AnomalyMapDisplay
            The display, after its plot was drawn.

        Raises
        ------
        ValueError
            If there are no images, if the lengths of the arguments differ, if a mask cannot be read, or if a mask and
            its image differ in size.
        ImageError
            If an image cannot be read or is not an image.
        """
        for name, given in (("anomaly_maps", anomaly_maps), ("masks", masks), ("titles", titles)):
            if given is not None and len(given) != len(images):
                raise ValueError(f"{len(images)} images and {len(given)} {name}: expected one per image.")
        if not len(images):
            raise ValueError("there are no images to draw: pass at least one image.")
        loaded = [load_image(image, i) for i, image in enumerate(images)]
        if masks is not None:
            masks = [
                None if is_missing(mask) else read_mask(mask, (image.shape[0], image.shape[1]))
                for mask, image in zip(masks, loaded, strict=True)
            ]
        return cls(loaded, anomaly_maps, threshold=threshold, masks=masks, titles=titles).plot(**options)

    def plot(self, *, n_columns: int | None = None, regions: bool = True, figure: Any = None) -> AnomalyMapDisplay:
        """Plot each image, and beside it the image with its anomaly map.

        Parameters
        ----------
        n_columns : int or None, default=None
            Number of pairs (image and overlay) per row. None uses one pair per row for up to 2 images, two pairs for up
            to 6 images, and otherwise three pairs.
        regions : bool, default=True
            If True, a line is drawn around each region above the threshold, and the three regions of an image with the
            highest map values get a tag: the highest map value of the region as a multiple of the threshold. If False,
            or if the threshold is NaN, neither lines nor tags are drawn.
        figure : matplotlib Figure or None, default=None
            Figure to plot on. None creates a new figure.

        Returns
        -------
        AnomalyMapDisplay
            The display itself.
        """
        import matplotlib.pyplot as plt
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, Normalize

        n = len(self.images)
        columns = min(n, n_columns or (1 if n < 3 else 2 if n < 7 else 3))
        rows = math.ceil(n / columns)
        shape = np.mean([image.shape[:2] for image in self.images], axis=0)
        aspect = float(np.clip(shape[0] / shape[1], 0.3, 2.5))
        if figure is None:
            figure = plt.figure(figsize=(2 * columns * _INCHES + 0.9, rows * (aspect * _INCHES + 0.5)))
        figure.set_layout_engine("constrained")
        axes = figure.subplots(rows, 2 * columns, squeeze=False).reshape(rows * columns, 2)
        for pair in axes:
            for ax in pair:
                ax.set_axis_off()
        threshold = self._scale()
        for i, pair in enumerate(axes[:n]):
            self._draw_pair(i, pair, threshold, regions and not math.isnan(self.threshold))
        mappable = ScalarMappable(Normalize(*HEAT_RANGE), ListedColormap(heat_colors(np.linspace(0, 1, 256))))
        bar = figure.colorbar(mappable, ax=axes.ravel().tolist(), shrink=min(1.0, 1.6 / rows + 0.2), pad=0.015)
        if math.isnan(self.threshold):
            bar.set_label("anomaly, no threshold")
            bar.set_ticks([])
        else:
            bar.set_label("anomaly in units of the threshold")
            bar.ax.axhline(1.0, color="black", linewidth=1)
        self.figure_, self.axes_ = figure, axes[:n]
        return self

    def _scale(self) -> float:
        """Return the map value with the ratio 1 on the colour scale."""
        if not math.isnan(self.threshold):
            return float(self.threshold)
        values = [float(extreme(m)) for m in self.anomaly_maps for extreme in (np.nanmin, np.nanmax)]
        return (min(values) + max(values)) / 2

    def _draw_pair(self, i: int, pair: Sequence[Any], threshold: float, with_regions: bool) -> None:
        """Draw image `i` with its mask, and the overlay with regions and tags."""
        image, anomaly_map = self.images[i], np.asarray(self.anomaly_maps[i])
        plain, overlay = pair
        plain.imshow(np.broadcast_to(image, (*image.shape[:2], 3)))
        overlay.imshow(overlay_anomaly_map(image, anomaly_map, threshold, contour=False))
        mask = None if self.masks is None else self.masks[i]
        if not is_missing(mask) and np.any(mask):
            plain.contour(np.asarray(mask) != 0, levels=[0.5], colors=_MASK_COLOR, linewidths=1.5)
        if self.titles is not None:
            plain.set_title(shown_text(self.titles[i]), fontsize=9, loc="left", parse_math=False, usetex=False)
        if not with_regions:
            return
        found = regions_of_map(anomaly_map, threshold, 1)
        if len(found):
            overlay.contour(anomaly_map > threshold, levels=[0.5], colors=_REGION_COLOR, linewidths=1.2)
        boxes = found[["top", "left", "bottom", "right"]].to_numpy()
        for peak, (row, column) in zip(found["peak"], tag_places(boxes, anomaly_map.shape, 3), strict=False):
            overlay.annotate(
                f"{peak / threshold:.1f}", (column, row), color="white", fontsize=8, ha="center", va="center",
                bbox={"boxstyle": "round,pad=0.15", "color": "black", "alpha": 0.55},
            )  # fmt: skip


def tag_places(boxes: np.ndarray, shape: tuple[int, ...], n_tags: int) -> list[tuple[float, float]]:
    """Return positions for the tags of the first regions; if possible, a tag hides no region and no previous tag.

    Parameters
    ----------
    boxes : array of shape (n_regions, 4)
        Top, left, bottom and right of all regions, in pixels.
    shape : tuple of int
        Height and width of the map.
    n_tags : int
        Number of regions with a tag.

    Returns
    -------
    list of (float, float)
        Row and column of the centre of each tag.
    """
    # For each region, try four positions in this order: above, below, right, left.
    # Take the first position at which the tag lies inside the map and overlaps neither a region nor a previous tag.
    # If there is none, place the tag above the region, moved into the map.
    height, width = _TAG_HEIGHT * shape[1], _TAG_WIDTH * shape[1]
    taken = [tuple(box) for box in boxes]
    places = []
    for top, left, bottom, right in boxes[:n_tags]:
        row = np.clip((top + bottom) / 2, height / 2, shape[0] - height / 2)
        column = np.clip((left + right) / 2, width / 2, shape[1] - width / 2)
        tried = [
            (top - height / 2, column),
            (bottom + height / 2, column),
            (row, right + width / 2),
            (row, left - width / 2),
        ]
        tags = [(r - height / 2, c - width / 2, r + height / 2, c + width / 2) for r, c in tried]
        is_free = [
            tag[0] >= 0 and tag[1] >= 0 and tag[2] <= shape[0] and tag[3] <= shape[1]
            and not any(tag[0] < b and t < tag[2] and tag[1] < r and left_ < tag[3] for t, left_, b, r in taken)
            for tag in tags
        ]  # fmt: skip
        chosen = is_free.index(True) if any(is_free) else 0
        if not any(is_free):  # the tag may then hide a region or another tag
            tried[0] = np.clip(tried[0][0], height / 2, shape[0] - height / 2), column
        places.append(tried[chosen])
        taken.append(tags[chosen])
    return places
