"""describe_inspection: a sentence about the part of the images that is not inspected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from skpatchcore._utils.names import shown_name


class InspectedPart(NamedTuple):
    """Part of an image that is inspected.

    Attributes
    ----------
    share : float
        Fraction of the pixels that is inspected, from 0 to 1.
    margins : (int, int, int, int)
        Numbers of rows at the top, columns at the left, rows at the bottom and columns at the right of which no pixel
        is inspected.
    is_rectangle : bool
        Whether all other pixels are inspected.
    """

    share: float = 1.0
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)
    is_rectangle: bool = True


def inspected_part(anomaly_map: np.ndarray) -> InspectedPart:
    """Return the part of an image that is inspected: the pixels of the anomaly map that are not NaN."""
    known = ~np.isnan(anomaly_map)
    if known.all() or not known.any():
        return InspectedPart(float(known.mean()))
    rows, columns = (np.flatnonzero(known.any(axis=axis)) for axis in (1, 0))
    (top, last_row), (left, last_column) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    margins = top, left, known.shape[0] - 1 - last_row, known.shape[1] - 1 - last_column
    is_rectangle = bool(known[top : last_row + 1, left : last_column + 1].all())
    return InspectedPart(float(known.mean()), margins, is_rectangle)


def describe_inspection(parts: Mapping[str, InspectedPart]) -> str | None:
    """Return a sentence about the part of the images that is not inspected; None if all pixels are inspected.

    Parameters
    ----------
    parts : mapping of str to InspectedPart
        The inspected part of each image, by the path of the image.
    """
    if not parts:
        return None
    path = min(parts, key=lambda one: parts[one].share)
    share, (top, left, bottom, right), is_rectangle = parts[path]
    if share == 1:
        return None
    between = "" if is_rectangle else ", and parts in the middle"
    return (
        f"{100 * (1 - share):.1f} % of the image {shown_name(path)} is not inspected, the largest fraction of all "
        f"images. The crop or the region of interest leaves out {top} pixels at the top, {bottom} at the bottom, "
        f"{left} at the left and {right} at the right{between}. Defects there are not found."
    )
