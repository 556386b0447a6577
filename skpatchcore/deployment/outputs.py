"""OUTPUTS: names, data types and meanings of the outputs of an exported file. TIE: which scores count as equal."""

from __future__ import annotations

import numpy as np

#: For the p-value, an image's score that is below a calibration score by less than this fraction of the largest
#: calibration score counts as equal to it. The score of a calibration image is rounded in another way in each runtime.
TIE = 1e-6

#: Data type and description of each output of an exported graph, in order.
OUTPUTS: dict[str, tuple[str, str]] = {
    "score": ("float32", "image score, bigger = more normal"),
    "decision": ("float32", "score minus the threshold, negative = anomalous"),
    "label": ("int64", "+1 for a normal image, -1 for an anomalous image and for an image that could not be scored"),
    "p_value": ("float32", "conformal p-value, small = anomalous"),
    "anomaly_map": ("float32", "anomaly map, bigger = more anomalous, NaN = not inspected"),
    "mask": ("bool", "True for anomalous pixels: the anomaly map is above the pixel threshold"),
    "patch_scores": ("float32", "score of each patch, bigger = more anomalous, NaN = not inspected"),
    "pixels": ("float32", "the network's input before normalisation: resized and cropped RGB image in [0, 1]"),
    "features": ("float32", "patch features"),
    "grid": ("int64", "height and width of the patch grid before the stride is applied"),
}


def with_ties(calibration_scores: np.ndarray) -> np.ndarray:
    """Return the smallest scores that count as equal to calibration scores, computed in float32 as in the graph.

    Parameters
    ----------
    calibration_scores : array of shape (n_calibration,)
        Scores of good images, bigger = more normal. NaN for images without a score.

    Returns
    -------
    array of shape (n_calibration,), float32
        Bigger = more normal. NaN for images without a score.
    """
    scores = np.asarray(calibration_scores, np.float32)
    largest = np.abs(scores[~np.isnan(scores)]).max(initial=0)
    lowered: np.ndarray = scores - np.float32(TIE * largest)
    return lowered
