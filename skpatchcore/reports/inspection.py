"""describe_inspection: a sentence about the part of the images that is not inspected."""

from __future__ import annotations

from collections.abc import Mapping

from skpatchcore._utils.names import shown_name


def describe_inspection(shares: Mapping[str, float]) -> str | None:
    """Return a sentence about the part of the images that is not inspected; None if all pixels are inspected.

    Parameters
    ----------
    shares : mapping of str to float
        Fraction of the pixels that is inspected, from 0 to 1, by the path of the image.
    """
    if not shares:
        return None
    path = min(shares, key=lambda one: shares[one])
    if shares[path] == 1:
        return None
    return (
        f"{100 * (1 - shares[path]):.1f} % of the image {shown_name(path)} is not inspected, the largest fraction of "
        "all images: these pixels lie outside the crop or the region of interest. Defects there are not found."
    )
