"""manifest_of: the description of a detector that an exported file carries as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from skpatchcore._utils.version import __version__
from skpatchcore.deployment._build import resize_of
from skpatchcore.deployment._graph import OPSET
from skpatchcore.deployment._settings import ExportSettings
from skpatchcore.deployment.container import FORMAT
from skpatchcore.deployment.outputs import OUTPUTS
from skpatchcore.features import _efficientnet_lite
from skpatchcore.features._backbones import Network
from skpatchcore.features._timm import is_timm
from skpatchcore.protocols import pixel_format_of

_LICENSES = {
    "efficientnet_lite": "Weights of Google's EfficientNet-Lite: Apache License 2.0.",
    "torchvision": "Weights of torchvision (BSD 3-Clause), trained on ImageNet. The terms of ImageNet may apply.",
    "timm": "Weights that timm downloaded. Their licence is stated where they are published.",
    "file": "Weights from a file of the user. Their licence is not known to skpatchcore.",
    "random": "Random weights.",
}
# Parameters that are not part of a file: folders, devices, and settings of the fit only.
_LEFT_OUT = ("memory", "cache_dtype", "cache_limit", "verbose", "device", "roi", "weights")


def manifest_of(
    detector: Any, network: Network, settings: ExportSettings, tolerances: Mapping[str, float]
) -> dict[str, Any]:
    """Return the description of an exported file, ready for JSON.

    Parameters
    ----------
    detector : PatchCoreDetector or PaDiMDetector
        The fitted detector.
    network : Network
        Its backbone.
    settings : ExportSettings
        Parameters of the export.
    tolerances : mapping
        Largest accepted difference of each stage from the golden results.
    """
    extractor = detector.extractor_
    return {
        "format": FORMAT,
        "skpatchcore": __version__,
        "detector": type(detector).__name__,
        "parameters": _parameters(detector),
        "backbone": {
            "name": extractor.backbone,
            "weights": _name_of_weights(extractor.weights),
            "layers": list(network.layers),
            "digest": network.digest,
            "license": _license(extractor),
        },
        "precision": settings.precision,
        "max_flipped": settings.max_flipped,
        "opset": OPSET,
        "thresholds": {
            "offset": float(detector.offset_),
            "pixel_offset": _number(detector.pixel_offset_),
            "min_area": _number(detector.min_area_),
            "promised_rate": _number(detector.promised_rate_),
            "contamination": _plain(detector.contamination),
            "calibration_plan": detector.calibration_plan_,
        },
        "calibration_scores": [_number(score) for score in detector.calibration_scores_],
        "calibration_peaks": [_number(peak) for peak in detector.calibration_peaks_],
        **input_of(extractor, settings),
        "patches": {"stride": int(extractor.stride), "smoothing": float(detector.smoothing)},
        "map_size": settings.map_size,
        "inspected": "unknown" if detector.inspection_ is None else str(detector.inspection_),
        "outputs": {name: description for name, (_, description) in OUTPUTS.items()},
        "tolerances": dict(tolerances),
    }


def input_of(extractor: Any, settings: ExportSettings) -> dict[str, Any]:
    """Return the part of the description that states which images the graph takes, and how it resizes them."""
    pixel_format = pixel_format_of(extractor)
    return {
        "input": {
            "dtype": settings.input_dtype,
            "channel_order": pixel_format.channel_order,
            "value_range": None if pixel_format.value_range is None else [float(v) for v in pixel_format.value_range],
            "max_pixels": _plain(extractor.max_pixels),
            "image_size": None if settings.image_size is None else list(settings.image_size),
        },
        "resize": resize_of(extractor),
    }


def _parameters(detector: Any) -> dict[str, Any]:
    """Return the parameters of a detector and of its fitted stages; estimators by the names of their classes."""
    found: dict[str, Any] = {}
    for name, value in detector.get_params(deep=False).items():
        if name in _LEFT_OUT:
            continue
        fitted = getattr(detector, f"{name}_", None)
        stage = fitted if isinstance(fitted, BaseEstimator) else value
        if name == "calibration" and not isinstance(value, str | int | float | np.generic | None):
            found[name] = "images"  # their paths are not part of a file
            continue
        found[name] = _plain(stage)
        if isinstance(stage, BaseEstimator):
            own = stage.get_params(deep=False).items()
            found |= {f"{name}__{key}": _plain(item) for key, item in own if key not in _LEFT_OUT}
    return found


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: None for NaN and infinity, and a text for other objects."""
    if isinstance(value, BaseEstimator):
        return type(value).__name__
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return _number(value)
    return value if value is None or isinstance(value, str | int) else repr(value)


def _number(value: float) -> float | None:
    """Return a number, or None for NaN, which JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


def _name_of_weights(weights: Any) -> str | None:
    """Return the name of weights, or the name of their file without its folder."""
    return None if weights is None else PurePath(str(weights)).name


def _license(extractor: Any) -> str:
    """Return the licence note of the weights."""
    if extractor.weights is None:
        return _LICENSES["random"]
    if str(extractor.weights).endswith((".pth", ".pt", ".safetensors")):
        return _LICENSES["file"]
    if extractor.backbone in _efficientnet_lite.NAMES:
        return _LICENSES["efficientnet_lite"]
    return _LICENSES["timm" if is_timm(extractor.backbone) else "torchvision"]
