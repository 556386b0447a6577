"""PatchCore image anomaly detection as scikit-learn estimators.

Importing the package imports neither torch nor pynndescent: each public name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AnomalyMapDisplay": "skpatchcore.display.anomaly_map",
    "CoresetDisplay": "skpatchcore.display.coreset",
    "ExactIndex": "skpatchcore.index.exact",
    "GreedyCoresetSampler": "skpatchcore.coreset.greedy",
    "ImageError": "skpatchcore.features.images",
    "ImageWarning": "skpatchcore.features.images",
    "LearnedProxySampler": "skpatchcore.coreset.proxies",
    "ModelFileError": "skpatchcore.persistence",
    "OneClassSplit": "skpatchcore.model_selection",
    "PaDiMDetector": "skpatchcore.baselines.padim",
    "PatchCoreDetector": "skpatchcore.detector",
    "PatchCoreEnsemble": "skpatchcore.ensemble",
    "PyNNDescentIndex": "skpatchcore.index.pynndescent",
    "RandomSampler": "skpatchcore.coreset.random",
    "SPADEDetector": "skpatchcore.baselines.spade",
    "ScoreHistogramDisplay": "skpatchcore.display.score_histogram",
    "TorchFeatureExtractor": "skpatchcore.features.extractor",
    "WeightsError": "skpatchcore.features.backbones",
    "conformal_p_values": "skpatchcore.calibration",
    "evaluate": "skpatchcore.evaluation.category",
    "list_images": "skpatchcore.datasets",
    "load": "skpatchcore.persistence",
    "load_image_folder": "skpatchcore.datasets",
    "save": "skpatchcore.persistence",
}

__all__ = [
    "AnomalyMapDisplay",
    "CoresetDisplay",
    "ExactIndex",
    "GreedyCoresetSampler",
    "ImageError",
    "ImageWarning",
    "LearnedProxySampler",
    "ModelFileError",
    "OneClassSplit",
    "PaDiMDetector",
    "PatchCoreDetector",
    "PatchCoreEnsemble",
    "PyNNDescentIndex",
    "RandomSampler",
    "SPADEDetector",
    "ScoreHistogramDisplay",
    "TorchFeatureExtractor",
    "WeightsError",
    "__version__",
    "conformal_p_values",
    "evaluate",
    "list_images",
    "load",
    "load_image_folder",
    "save",
]

if TYPE_CHECKING:
    from skpatchcore.baselines.padim import PaDiMDetector
    from skpatchcore.baselines.spade import SPADEDetector
    from skpatchcore.calibration import conformal_p_values
    from skpatchcore.coreset.greedy import GreedyCoresetSampler
    from skpatchcore.coreset.proxies import LearnedProxySampler
    from skpatchcore.coreset.random import RandomSampler
    from skpatchcore.datasets import list_images, load_image_folder
    from skpatchcore.detector import PatchCoreDetector
    from skpatchcore.display.anomaly_map import AnomalyMapDisplay
    from skpatchcore.display.coreset import CoresetDisplay
    from skpatchcore.display.score_histogram import ScoreHistogramDisplay
    from skpatchcore.ensemble import PatchCoreEnsemble
    from skpatchcore.evaluation.category import evaluate
    from skpatchcore.features.backbones import WeightsError
    from skpatchcore.features.extractor import TorchFeatureExtractor
    from skpatchcore.features.images import ImageError, ImageWarning
    from skpatchcore.index.exact import ExactIndex
    from skpatchcore.index.pynndescent import PyNNDescentIndex
    from skpatchcore.model_selection import OneClassSplit
    from skpatchcore.persistence import ModelFileError, load, save


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'skpatchcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
