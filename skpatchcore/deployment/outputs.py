"""OUTPUTS: names, data types and meanings of the outputs of an exported file."""

from __future__ import annotations

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
