"""Inspection: which fraction of the images a detector inspects, and how many pixels a patch covers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View, inspected_pixels
from skpatchcore.patches.patches import Patches

# A patch that covers at most this number of pixels along each side is small enough: a larger one is reported.
_SMALL_PATCH = 32
# The proposed image_size makes a patch at most this large.
_WANTED_PATCH = 16


@dataclass(frozen=True)
class Inspection:
    """The part of its training images that a detector inspects. ``print(inspection)`` describes it.

    Attributes
    ----------
    seen : float
        Fraction of the pixels that the network sees, from 0 to 1: the crop of the extractor leaves out the others. Mean
        over the images.
    inspected : float
        Fraction of the pixels that is inspected, i.e. of the pixels that are not NaN in the anomaly maps: seen by the
        network, in the region of interest, and in the cell of a patch that is scored.
    patch_size : (float, float)
        Height and width in pixels of the image of the cell of one patch in the patch grid. Median over the images. The
        network also uses the surroundings of the cell.
    proposal : int, (int, int) or None
        An `image_size` of the extractor with which the cell of a patch is at most 16 pixels large. None if the cells
        are not larger, if images are not made smaller, or if a crop leaves out pixels.
    has_own_regions : bool
        Whether each image had a region of interest of its own. The methods then need a region for each new image, too.
    proposed_patch : float or None
        Longer side of the cell of a patch with this `image_size`, in pixels. None if there is no proposal.
    """

    seen: float
    inspected: float
    patch_size: tuple[float, float]
    proposal: Any = None
    proposed_patch: float | None = None
    has_own_regions: bool = False

    def __str__(self) -> str:
        parts = [self._unseen(), self._small_defects()]
        if self.inspected == 1:
            parts.insert(0, "All pixels of the training images are inspected.")
        return " ".join(part for part in parts if part)

    def problem(self) -> str | None:
        """Return the text of a warning; None if all pixels are inspected and patches are not large."""
        is_large = max(self.patch_size) > _SMALL_PATCH and self.proposal is not None
        parts = [self._unseen(), self._small_defects() if is_large else ""]
        return " ".join(part for part in parts if part) or None

    def _unseen(self) -> str:
        if self.inspected == 1:
            return ""
        causes = ["outside the crop (crop_size)"] if self.seen < 1 else []
        causes += ["outside the region of interest (roi)"] if self.inspected < self.seen else []
        return (
            f"{100 * (1 - self.inspected):.1f} % of the pixels of the training images are not inspected: they lie "
            f"{' or '.join(causes)}. Defects there are not found."
        )

    def _small_defects(self) -> str:
        height, width = self.patch_size
        text = (
            f"One patch covers {height:.0f} × {width:.0f} pixels of the images. Defects smaller than about "
            f"{max(self.patch_size) / 2:.0f} pixels may be missed."
        )
        if self.proposal is not None:
            text += f" With image_size={self.proposal}, a patch would cover {self.proposed_patch:.0f} pixels."
        return text


class InspectionLog:
    """Collects what is inspected of images that arrive in batches. The same image may arrive several times."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[float, ...] | None] = {}
        self._last: tuple[Any, ...] = ()  # values that determine the shares of an image, and the shares

    def add(self, patches: Patches, numbers: np.ndarray) -> None:
        """Record a batch of images; `numbers` are the indices of the images."""
        for number, view, size, own, mask in zip(
            numbers.tolist(), patches.views, patches.sizes, patches.cells, patches.masks, strict=True
        ):
            if number not in self._rows:
                self._rows[number] = None if view is None else self._row_of(view, size, own, mask)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": ()}  # not the masks

    def _row_of(
        self, view: View, size: np.ndarray, own: np.ndarray | None, mask: PixelMask | None
    ) -> tuple[float, ...]:
        """Return the shares of seen and inspected pixels, the height and width of a cell, and the scale of resizing."""
        geometry = (view.image_size, view.box, view.region, *size.tolist())
        # images of one size usually have the same cells and the same mask, which are then the same objects
        if not self._last or self._last[0] != geometry or self._last[1] is not own or self._last[2] is not mask:
            self._last = (geometry, own, mask, _shares_of(view, size, own, mask))
        return (*self._last[3], view.box[2] / size[0], view.box[3] / size[1], max(view.scale))

    def include(self, other: InspectionLog) -> None:
        """Add the images of another log."""
        self._rows.update(other._rows)

    def summary(self, image_size: Any, has_own_regions: bool = False) -> Inspection | None:
        """Return the summary over all images; None if the view of an image is unknown.

        Parameters
        ----------
        image_size : int, (int, int) or None
            Parameter of the extractor.
        has_own_regions : bool, default=False
            Whether each image has a region of interest of its own.
        """
        rows = list(self._rows.values())
        if not rows or any(row is None for row in rows):
            return None
        table = np.array(rows)
        seen, inspected = (float(table[:, i].mean()) for i in (0, 1))
        height, width, scale = (float(np.median(table[:, i])) for i in (2, 3, 4))
        largest = max(height, width)
        # With a crop, a larger image_size would leave out more of the image.
        if image_size is None or largest <= _WANTED_PATCH or scale <= 1 or seen < 1:
            return Inspection(seen, inspected, (height, width), has_own_regions=has_own_regions)
        factor = 2 ** math.ceil(math.log2(largest / _WANTED_PATCH))
        proposal = tuple(int(side) * factor for side in image_size) if np.ndim(image_size) else int(image_size) * factor
        return Inspection(seen, inspected, (height, width), proposal, largest / factor, has_own_regions)


def _shares_of(view: View, size: np.ndarray, own: np.ndarray | None, mask: PixelMask | None) -> tuple[float, float]:
    """Return the fractions of the pixels that the network sees, and that are not NaN in the anomaly map."""
    is_counted = np.full(size, own is None)
    seen = inspected_pixels(np.ones(size, bool), view)
    if own is not None:
        is_counted.flat[own] = True
    inspected = inspected_pixels(is_counted, view)
    if mask is not None:
        inspected = mask.as_array() if inspected is None else inspected & mask.as_array()
    return _share_of(seen), _share_of(inspected)


def _share_of(pixels: np.ndarray | None) -> float:
    """Return the fraction of the pixels that are True; None stands for all pixels."""
    return 1.0 if pixels is None else float(pixels.mean())
