"""Connected regions of anomaly maps above a threshold: functions of arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.ndimage import maximum_position
from skimage.measure import label, regionprops_table

_COLUMNS = {"bbox-0": "top", "bbox-1": "left", "bbox-2": "bottom", "bbox-3": "right", "area": "area"}


def regions_of_map(anomaly_map: np.ndarray, threshold: float, min_area: int = 1) -> pd.DataFrame:
    """Return the regions of one map in which all pixels are above the threshold, the highest peak first.

    Parameters
    ----------
    anomaly_map : array of shape (height, width)
        Bigger = more anomalous.
    threshold : float
        Pixels above it belong to a region; they are connected over edges and corners.
    min_area : int, default=1
        Regions of fewer pixels are left out.

    Returns
    -------
    DataFrame
        One row a region: ``top``, ``left``, ``bottom``, ``right`` (pixels; bottom and right are the first ones outside,
        as in slices), ``area`` (pixels), ``peak`` (the largest value in it), ``peak_row`` and ``peak_column``.
    """
    labels: np.ndarray = label(anomaly_map > threshold, connectivity=2)  # type: ignore[no-untyped-call]
    table = regionprops_table(labels, properties=["label", "bbox", "area"])  # type: ignore[no-untyped-call]
    found = pd.DataFrame(table).rename(columns=_COLUMNS)
    places = np.array(maximum_position(anomaly_map, labels, found["label"]), np.int64).reshape(-1, 2)
    found = found.assign(
        area=found["area"].astype(np.int64),
        peak=anomaly_map[tuple(places.T)].astype(np.float64),
        peak_row=places[:, 0],
        peak_column=places[:, 1],
    )
    found = found[found["area"] >= min_area].drop(columns="label")
    return found.sort_values("peak", ascending=False, kind="stable", ignore_index=True)
