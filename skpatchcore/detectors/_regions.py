"""area_rule and joined_regions: which regions of an anomaly map count, and the table of the regions of all images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from skpatchcore.calibration.conformal import upper_tail_p_values

if TYPE_CHECKING:
    import pandas as pd


def area_rule(min_area: int | str, auto: float) -> Callable[[np.ndarray], int]:
    """Return a function that returns the minimum area of a region in pixels, for an anomaly map.

    Parameters
    ----------
    min_area : int or "auto"
        The given area.
    auto : float
        The largest area of a region that does not count, as a fraction of the image's inspected pixels.

    Raises
    ------
    ValueError
        If `min_area` is invalid, or if it is "auto" and `auto` is NaN.
    """
    if isinstance(min_area, str):
        if min_area != "auto":
            raise ValueError(f"min_area={min_area!r}: expected a number of pixels or 'auto'.")
        if np.isnan(auto):
            raise ValueError(
                "min_area='auto' needs sketches of the calibration images' anomaly maps, and this detector has none: "
                "fit again, or pass good images to recalibrate."
            )
        return lambda anomaly_map: int(auto * np.count_nonzero(~np.isnan(anomaly_map))) + 1
    if min_area < 1:
        raise ValueError(f"min_area={min_area}: expected at least 1 pixel.")
    return lambda anomaly_map: min_area


def joined_regions(tables: Sequence[pd.DataFrame], calibration_peaks: np.ndarray) -> pd.DataFrame:
    """Return the regions of all images as one table, with a p-value for each region.

    Parameters
    ----------
    tables : sequence of DataFrame
        The regions of each image, as :func:`~skpatchcore.maps.regions_of_map` returns them.
    calibration_peaks : array of shape (n_calibration,)
        Maxima of the anomaly maps of good images, bigger = more anomalous.

    Returns
    -------
    DataFrame
        The columns of `tables`, the index of the image as the first column ``image``, and ``p_value`` as the last
        column, small = anomalous.
    """
    import pandas as pd

    found: pd.DataFrame = pd.concat(tables, keys=range(len(tables)), names=["image", None])
    found = found.reset_index(level="image").reset_index(drop=True).astype({"image": np.int64})
    return found.assign(p_value=upper_tail_p_values(calibration_peaks, found["peak"].to_numpy()))
