# The list of public names. lazy_loader reads this file at run time, and type checkers read it too.
from .calibration.conformal import conformal_p_values as conformal_p_values
from .calibration.drift import DriftMonitor as DriftMonitor
from .coreset.greedy import GreedyCoresetSampler as GreedyCoresetSampler
from .coreset.proxies import LearnedProxySampler as LearnedProxySampler
from .coreset.uniform import RandomSampler as RandomSampler
from .datasets import list_images as list_images
from .datasets import load_image_folder as load_image_folder
from .deployment.errors import ModelFileError as ModelFileError
from .deployment.files import TRUSTED_TYPES as TRUSTED_TYPES
from .deployment.files import load as load
from .deployment.files import save as save
from .deployment.onnx_detector import OnnxDetector as OnnxDetector
from .detectors.ensemble import PatchCoreEnsemble as PatchCoreEnsemble
from .detectors.lights import MultiLightDetector as MultiLightDetector
from .detectors.padim import PaDiMDetector as PaDiMDetector
from .detectors.patchcore import PatchCoreDetector as PatchCoreDetector
from .detectors.spade import SPADEDetector as SPADEDetector
from .display.anomaly_map import AnomalyMapDisplay as AnomalyMapDisplay
from .display.capability import DetectionCapabilityDisplay as DetectionCapabilityDisplay
from .display.coreset import CoresetDisplay as CoresetDisplay
from .display.drift import DriftDisplay as DriftDisplay
from .display.inspection import InspectionDisplay as InspectionDisplay
from .display.score_histogram import ScoreHistogramDisplay as ScoreHistogramDisplay
from .evaluation.capability import capability_of_defects as capability_of_defects
from .evaluation.capability import detection_capability as detection_capability
from .evaluation.category import evaluate as evaluate
from .features._backbones import WeightsError as WeightsError
from .features.extractor import TorchFeatureExtractor as TorchFeatureExtractor
from .images.errors import AppearanceWarning as AppearanceWarning
from .images.errors import ImageError as ImageError
from .images.errors import ImageWarning as ImageWarning
from .images.errors import InspectionWarning as InspectionWarning
from .index.exact import ExactIndex as ExactIndex
from .index.pynndescent import PyNNDescentIndex as PyNNDescentIndex
from .model_selection import OneClassSplit as OneClassSplit

__version__: str
