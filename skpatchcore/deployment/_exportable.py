"""check_detector: which detectors can be exported, and the reasons why others cannot."""

from __future__ import annotations

import math
from typing import Any

from sklearn.pipeline import Pipeline

from skpatchcore.deployment._build import input_size_of
from skpatchcore.deployment._linear import linear_map_of
from skpatchcore.deployment._settings import ExportSettings
from skpatchcore.deployment.errors import ExportError
from skpatchcore.detectors.padim import PaDiMDetector
from skpatchcore.detectors.patchcore import PatchCoreDetector
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.index.exact import ExactIndex
from skpatchcore.protocols import pixel_format_of


def detector_of(detector: Any) -> Any:
    """Return the detector of a pipeline with one step; other objects unchanged."""
    if isinstance(detector, Pipeline):
        if len(detector) > 1:
            raise ExportError(
                f"the pipeline has {len(detector)} steps, and only a detector can be exported. Export its last step, "
                "if the images need no other step."
            )
        return detector[-1]
    return detector


def check_detector(detector: Any, settings: ExportSettings) -> None:
    """Raise an ExportError with the reason if a fitted detector cannot be exported."""
    name = type(detector).__name__
    if type(detector) not in (PatchCoreDetector, PaDiMDetector):
        raise ExportError(f"{name} cannot be exported: only PatchCoreDetector and PaDiMDetector can.")
    if math.isnan(detector.offset_):
        raise ExportError("the detector has no threshold: fit with calibration, or pass good images to recalibrate.")
    extractor = detector.extractor_
    if type(extractor) is not TorchFeatureExtractor:
        kind = "precomputed features" if extractor is None else type(extractor).__name__
        raise ExportError(f"extractor: {kind} cannot be exported: only a TorchFeatureExtractor can.")
    if not isinstance(extractor.backbone, str):
        raise ExportError(
            "backbone: a function cannot be exported, because the file must name the network and its weights. Use the "
            "name of a network, and the path of its weights."
        )
    if extractor.dtype != "float32":
        raise ExportError(
            f"dtype={extractor.dtype!r} of the extractor: the exported network computes in float32, and its features "
            "would differ by a few per cent. Fit again with dtype='float32'."
        )
    if extractor.memory is not None and extractor.cache_dtype != "float32":
        raise ExportError(
            f"cache_dtype={extractor.cache_dtype!r} of the extractor: its cache rounds the layer maps, and the "
            "exported network does not. Fit again with cache_dtype='float32'."
        )
    if pixel_format_of(extractor).value_range is not None and settings.input_dtype == "uint8":
        raise ExportError(
            f"value_range={extractor.value_range} of the extractor: such images do not fit into uint8. Export with "
            "input_dtype='float32'."
        )
    transformer = detector.transformer_ if isinstance(detector, PatchCoreDetector) else None
    if transformer is not None and linear_map_of(transformer) is None:
        raise ExportError(
            f"transformer: a {type(transformer).__name__} cannot be exported, because it is not known to be linear. "
            "Fit again with PatchWhitening, LayerScaling, StandardScaler, PCA, IncrementalPCA or a pipeline of these."
        )
    if isinstance(detector, PatchCoreDetector) and type(detector.index_) is not ExactIndex:
        raise ExportError(
            f"index: a {type(detector.index_).__name__} cannot be exported, because its trees or graphs have no ONNX "
            "operators. Fit again with index='exact', or assign an ExactIndex that is fitted on memory_bank_."
        )
    if detector.inspection_ is not None and detector.inspection_.has_own_regions:
        raise ExportError("roi: the detector was fitted with a region for each image, and the file takes images only.")
    if detector.roi_ is not None and detector.roi_.function is not None:
        raise ExportError("roi: a function cannot be exported. Use a mask, a box or a polygon.")
    if isinstance(detector, PaDiMDetector) and input_size_of(extractor, settings.image_size) is None:
        raise ExportError(
            "PaDiM scores images with one patch grid only, and the size of the network's input depends on the image. "
            "Export with image_size=(height, width), the size of the images."
        )
    if detector.roi_ is not None and settings.image_size is None:
        raise ExportError("roi: the region is stored for images of one size. Pass image_size=(height, width).")
