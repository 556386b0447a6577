"""Detectors with the settings of the paper's experiments, and one that needs no download."""

from __future__ import annotations

from typing import Any

from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.detectors.padim import PaDiMDetector
from skpatchcore.detectors.patchcore import PatchCoreDetector
from skpatchcore.detectors.spade import SPADEDetector
from skpatchcore.features.extractor import TorchFeatureExtractor

# Share of the patches in the memory bank.
PRESETS = {"paper-1": 0.01, "paper-10": 0.1, "paper-25": 0.25, "offline": 0.1}
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
    """Return a detector by the names that the command line has for it.

    Parameters
    ----------
    preset : {"paper-1", "paper-10", "paper-25", "offline"}
        The paper's: ``wide_resnet50_2`` with torchvision's first ImageNet weights, 256 pixels and a crop of 224, 1024
        channels, and 1, 10 or 25 % of the patches. Or ``efficientnet_lite2``, whose weights come with pip, 224 × 224
        pixels without a crop, and 10 %.
    method : {"patchcore", "spade", "padim"}, default="patchcore"
        PatchCore, or one of the baselines on the same features.
    ratio : float or None, default=None
        Another share of the patches.
    device : str, default="auto"
        Of the detector, and so of all stages.
    contamination : float or "auto", default="auto"
        As of the detectors.
    random_state : int, default=0
        Seed.
    **extractor
        Other parameters of :class:`~skpatchcore.TorchFeatureExtractor`.

    Returns
    -------
    estimator
        Not fitted.

    Raises
    ------
    ValueError
        If there is no such preset or method, or a baseline is given a ratio.

    References
    ----------
    Roth et al., CVPR 2022, section 4.1.
    """
    if preset not in PRESETS or method not in METHODS:
        raise ValueError(f"preset={preset!r}, method={method!r}: expected one of {[*PRESETS]} and of {[*METHODS]}.")
    settings: dict[str, Any]
    if preset == "offline":
        settings = {"backbone": "efficientnet_lite2", "image_size": (224, 224), "crop_size": None}
    else:
        settings = {
            "backbone": "wide_resnet50_2", "weights": "IMAGENET1K_V1", "image_size": 256, "crop_size": 224,
            "n_channels": 1024,
        }  # fmt: skip
    features = TorchFeatureExtractor(**{**settings, **extractor})
    common = {"contamination": contamination, "device": device, "random_state": random_state}
    if method != "patchcore":
        if ratio is not None:
            raise ValueError(f"ratio={ratio}: method={method!r} has no memory bank to choose the size of.")
        return (SPADEDetector if method == "spade" else PaDiMDetector)(features, **common)
    sampler = GreedyCoresetSampler(PRESETS[preset] if ratio is None else ratio)
    return PatchCoreDetector(features, sampler=sampler, **common)


def default_resolution(preset: str) -> str:
    """Return where pixels are compared: the paper does so where the network sees them."""
    return "own" if preset == "offline" else "seen"
