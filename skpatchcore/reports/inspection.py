"""describe_inspection: the fraction of an image that a detector inspects, and the margins that it leaves out."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skpatchcore._utils.names import shown_name
from skpatchcore.evaluation.category import extractors_of
from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import image_size
from skpatchcore.images.views import View, placed
from skpatchcore.protocols import resizing_of
from skpatchcore.reports.pipelines import detector_of

_PNG = b"\x89PNG\r\n\x1a\n"
# Starts of text chunks that may state an orientation.
_MAY_TURN = (b"Raw profile type ", b"XML:com.adobe.xmp")


def inspected_share(view: View) -> float:
    """Return the fraction of an image's pixels that the network sees, from 0 to 1."""
    (height, width), (up, left, down, right) = view.image_size, uninspected_margins(view)
    return (height - up - down) * (width - left - right) / (height * width)


def uninspected_margins(view: View) -> tuple[float, float, float, float]:
    """Return the widths of the margins that the network does not see: top, left, bottom, right, in pixels."""
    (height, width), (top, left, tall, wide) = view.image_size, view.box
    sides = top, left, height - top - tall, width - left - wide
    return tuple(max(side, 0.0) for side in sides)  # type: ignore[return-value]


def smallest_inspection(detector: Any, sizes: Mapping[str, tuple[int, int]]) -> tuple[str, View] | None:
    """Return the image with the smallest inspected fraction, and its view.

    Parameters
    ----------
    detector : detector or Pipeline
        Fitted or not. The inspected area of an ensemble is the largest one of its members.
    sizes : mapping of str to (int, int)
        Height and width in pixels of each image, by its path.

    Returns
    -------
    (str, View) or None
        None if the extractor does not report its view, or there are no images.
    """
    views = _views_of(detector, set(sizes.values()))
    if not views:
        return None
    path = min((path for path in sizes if sizes[path] in views), key=lambda path: inspected_share(views[sizes[path]]))
    return path, views[sizes[path]]


def describe_inspection(detector: Any, sizes: Mapping[str, tuple[int, int]]) -> str | None:
    """Return a sentence about the part of the images that is not inspected; None if there is none, or it is unknown.

    Parameters
    ----------
    detector, sizes
        As for :func:`smallest_inspection`.
    """
    found = smallest_inspection(detector, sizes)
    if found is None:
        return None
    path, view = found
    share = inspected_share(view)
    if share > 1 - 1e-9:
        return None
    top, left, bottom, right = uninspected_margins(view)
    return (
        f"{100 * (1 - share):.1f} % of the image {shown_name(path)} is not inspected, the largest fraction of all "
        f"images. The crop leaves out {top:.0f} pixels at the top, {bottom:.0f} at the bottom, {left:.0f} at the left "
        f"and {right:.0f} at the right. Defects there are not found."
    )


def inspected_boxes(
    detector: Any, sizes: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], tuple[float, float, float, float]]:
    """Return the inspected area of images, by image size; without the sizes at which the whole image is inspected.

    Parameters
    ----------
    detector : detector or Pipeline
        As for :func:`smallest_inspection`.
    sizes : iterable of (int, int)
        Heights and widths in pixels.

    Returns
    -------
    dict of (int, int) to (float, float, float, float)
        Top, left, bottom and right in pixels. Empty if the extractor does not report its view.
    """
    boxes = {}
    for size, view in _views_of(detector, set(sizes)).items():
        top, left, bottom, right = uninspected_margins(view)
        if inspected_share(view) <= 1 - 1e-9:
            boxes[size] = top, left, size[0] - bottom, size[1] - right
    return boxes


def _views_of(detector: Any, sizes: set[tuple[int, int]]) -> dict[tuple[int, int], View]:
    """Return the view of images by their size; empty if an extractor does not report its view."""
    resizings = [resizing_of(extractor) for extractor in extractors_of(detector_of(detector))]
    views: dict[tuple[int, int], View] = {}
    if None in resizings:
        return views
    for size in sizes:
        seen = [view for resizing in resizings if (view := _view(size, resizing)) is not None]
        if seen:
            views[size] = max(seen, key=inspected_share)  # crops are central: the largest holds the others
    return views


def sizes_of(paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return heights and widths in pixels of image files, by path; files that cannot be read are left out.

    Parameters
    ----------
    paths : sequence of str
        Files. Only their headers are read, unless the orientation is stated outside the header.
    """
    sizes = {}
    for i, path in enumerate(paths):
        with contextlib.suppress(ImageError, OSError):
            sizes[path] = _size_in_png(path) or image_size(path, i)
    return sizes


def _size_in_png(path: str) -> tuple[int, int] | None:
    """Return the height and width of a PNG file; None for other files, and for files that may state an orientation.

    Pillow decodes all pixels of a PNG file to look for an orientation, because it may be stated at the end of the file.
    """
    size = None
    with open(path, "rb") as file:
        if file.read(len(_PNG)) != _PNG:
            return None
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            start = file.read(min(length, 32))
            if kind == b"IHDR" and len(start) >= 8:
                width, height = struct.unpack_from(">II", start)
                size = height, width
            elif kind == b"eXIf" or start.startswith(_MAY_TURN):
                return None
            elif kind == b"IEND":
                return size
            file.seek(length - len(start) + 4, os.SEEK_CUR)
    return None


def _view(size: tuple[int, int], resizing: Any) -> View | None:
    shorter_side, crop = resizing
    try:
        return placed(size, shorter_side, crop, 0)[2]
    except ImageError:  # the image is smaller than the crop, and is not scored
        return None
