"""Which share of an image a detector inspects, and where the rest lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skpatchcore._utils.names import shown_name
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.images.errors import ImageError
from skpatchcore.images.views import View, placed
from skpatchcore.protocols import resizing_of
from skpatchcore.reports.pipelines import detector_of


def inspected_share(view: View) -> float:
    """Return which share of an image's pixels the network sees, from 0 to 1."""
    (height, width), (up, left, down, right) = view.image_size, uninspected_margins(view)
    return (height - up - down) * (width - left - right) / (height * width)


def uninspected_margins(view: View) -> tuple[float, float, float, float]:
    """Return the widths of the margins that the network does not see: top, left, bottom, right, in pixels."""
    (height, width), (top, left, tall, wide) = view.image_size, view.box
    sides = top, left, height - top - tall, width - left - wide
    return tuple(max(side, 0.0) for side in sides)  # type: ignore[return-value]


def smallest_inspection(detector: Any, sizes: Mapping[str, tuple[int, int]]) -> tuple[str, View] | None:
    """Return the image of which the smallest share is inspected, and its view.

    Parameters
    ----------
    detector : detector or Pipeline
        Fitted or not. An ensemble inspects what at least one of its members sees.
    sizes : mapping of str to (int, int)
        Height and width in pixels of each image, by its path.

    Returns
    -------
    (str, View) or None
        None if the extractor does not say what it sees, or there are no images.
    """
    resizings = [resizing_of(extractor) for extractor in _extractors_of(detector_of(detector))]
    if None in resizings:
        return None
    views: dict[tuple[int, int], View] = {}
    for size in set(sizes.values()):
        seen = [view for resizing in resizings if (view := _view(size, resizing)) is not None]
        if seen:
            views[size] = max(seen, key=inspected_share)  # crops are central: the largest holds the others
    if not views:
        return None
    path = min((path for path in sizes if sizes[path] in views), key=lambda path: inspected_share(views[sizes[path]]))
    return path, views[sizes[path]]


def describe_inspection(detector: Any, sizes: Mapping[str, tuple[int, int]]) -> str | None:
    """Return a sentence on what is not inspected of images; None if that is nothing, or not known.

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
        f"{100 * (1 - share):.1f} % of the image {shown_name(path)} is not inspected, which is the largest share: the "
        f"crop leaves out {top:.0f} pixels at the top, {bottom:.0f} at the bottom, {left:.0f} at the left and "
        f"{right:.0f} at the right. Defects there are not found."
    )


def _extractors_of(detector: Any) -> list[Any]:
    members = getattr(detector, "estimators_", None) or [detector]
    return [getattr(member, "extractor", "precomputed") or TorchFeatureExtractor() for member in members]


def _view(size: tuple[int, int], resizing: Any) -> View | None:
    shorter_side, crop = resizing
    try:
        return placed(size, shorter_side, crop, 0)[2]
    except ImageError:  # it is smaller than the crop: such an image is not scored
        return None
