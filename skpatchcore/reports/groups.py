"""group_of: the thresholds, the calibration and the settings of a detector, as a report page shows them."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from skpatchcore.calibration.conformal import conformal_threshold, likely_rate
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.reports.cards import CardGroup, anomaly_scores
from skpatchcore.reports.pipelines import detector_of

# Promise for images that show none of the products.
_OF_NONE = "images of none of the products are always flagged."


def group_of(detector: Any, name: str = "") -> CardGroup:
    """Return the group of the images that a detector scores.

    Parameters
    ----------
    detector : detector or Pipeline
        A fitted detector.
    name : str, default=""
        Name of the group, e.g. of a surface.
    """
    detector = detector_of(detector)
    return CardGroup(
        name=name,
        threshold=-float(detector.offset_),
        pixel_threshold=float(detector.pixel_offset_),
        calibration_scores=anomaly_scores(detector.calibration_scores_),
        promise=promise_of(detector),
        settings=settings_of(detector),
    )


def groups_of(detector: Any, name: str = "") -> dict[str | None, tuple[Any, CardGroup]]:
    """Return the detector and the group of each product; the detector itself as product None if it has no products.

    Parameters
    ----------
    detector : detector or Pipeline
        A fitted detector. A :class:`~skpatchcore.MultiProductDetector` has one group per product, and one group for
        images that show none of the products (None), for which the detector is None.
    name : str, default=""
        Name of the group, as for :func:`group_of`.
    """
    own = detector_of(detector)
    if not hasattr(own, "for_product"):
        return {None: (detector, group_of(detector, name))}
    whole = group_of(own)
    start = f"{name}, " if name else ""
    groups: dict[str | None, tuple[Any, CardGroup]] = {
        None: (
            None,
            replace(whole, name=f"{start}none of the products", calibration_scores=np.zeros(0), promise=_OF_NONE),
        )
    }
    for product in own.products_.tolist():
        member = own.for_product(product)
        scores = anomaly_scores(own.calibration_scores_[own.calibration_products_ == product])
        group = replace(
            whole,
            name=f"{start}{product}",
            calibration_scores=scores,
            promise=promise_of(member),
            settings=settings_of(member),
        )
        groups[product] = member, group
    return groups


def promise_of(detector: Any) -> str:
    """Return the promise of a detector's threshold about false positives, in the words of an operator.

    Parameters
    ----------
    detector : detector
        Fitted. The promised rate is given only if the threshold was computed from this rate and the calibration scores.
    """
    detector = detector_of(detector)
    scores, threshold = _calibration_of(detector)
    if math.isnan(threshold):
        return "The model has no threshold: it was not calibrated."
    n, n_flagged = len(scores), int((scores > threshold).sum())
    flagged = f"{n_flagged:,} of the" if n_flagged else "None of the"
    counted = f"{flagged} {n:,} good images of the calibration would be flagged."
    if (rates := promised_rates(detector)) is None:
        return counted
    average, limit = rates
    base = 100 if average >= 0.0095 else 1000
    usual, most = max(1, round(base * average)), math.ceil(base * limit - 1e-9)
    return (
        f"On average, at most about {usual:,} of {base:,} good parts are flagged; this model may flag up to {most:,} "
        f"(95 % confidence). This holds for good parts like those of the calibration. {counted}"
    )


def _calibration_of(detector: Any) -> tuple[np.ndarray, float]:
    """Return the anomaly scores of the calibration images without NaN, and the threshold for anomaly scores."""
    scores = anomaly_scores(detector.calibration_scores_)
    return scores[~np.isnan(scores)], -float(detector.offset_)


def promised_rates(detector: Any) -> tuple[float, float] | None:
    """Return the promised false-positive rate, and the rate that this threshold exceeds in 5 % of all calibrations.

    None if there is no such promise, e.g. because another threshold was set by hand.
    """
    (scores, threshold), rate = _calibration_of(detector), getattr(detector, "promised_rate_", math.nan)
    if math.isnan(rate) or math.isnan(threshold):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if conformal_threshold(scores, min(rate, 0.5)) != threshold:
            return None
    return float(rate), likely_rate(len(scores), min(rate, 0.5))


def settings_of(detector: Any) -> dict[str, str]:
    """Return the settings of a detector by their names. What a detector does not report is left out.

    Parameters
    ----------
    detector : detector or Pipeline
        Fitted.
    """
    detector = detector_of(detector)
    members = list(getattr(detector, "estimators_", ()))
    first = members[0] if members else detector
    settings = {"detector": type(detector).__name__ + (f" of {len(members)} members" if members else "")}
    extractor = getattr(first, "extractor_", None) or getattr(first, "extractor", None)
    if extractor is None:
        extractor = TorchFeatureExtractor()
    backbone = getattr(extractor, "backbone", None)
    if backbone is not None:
        settings["backbone"] = backbone if isinstance(backbone, str) else getattr(backbone, "__name__", repr(backbone))
    if hasattr(extractor, "image_size"):
        settings["image size"] = _sides(extractor.image_size, "each image's own size")
    if hasattr(extractor, "crop_size"):
        settings["crop"] = _sides(extractor.crop_size, "none: the whole image is inspected")
    bank, sampler = getattr(first, "memory_bank_", None), getattr(first, "sampler_", None)
    if bank is not None:
        ratio = getattr(sampler, "ratio", None)
        kept = f", {100 * ratio:g} % of all" if isinstance(ratio, float) else ""
        settings["memory bank"] = f"{len(bank):,} patches{kept}"
    n = len(detector.calibration_scores_)
    if n:
        settings["calibration"] = f"{n:,} good images{_way(detector)}"
    contamination = getattr(detector, "contamination", None)
    if contamination is not None:
        settings["contamination"] = contamination if isinstance(contamination, str) else f"{contamination:g}"
    if (rates := promised_rates(detector)) is not None:
        settings["flagged good parts"] = (
            f"at most {100 * rates[0]:.3g} % on average over calibrations; at most {100 * rates[1]:.2g} % with this "
            "threshold, with 95 % confidence"
        )
    return settings


def _way(detector: Any) -> str:
    """Return how the calibration images were scored, in brackets."""
    plan = getattr(detector, "calibration_plan_", "unknown")
    return "" if plan == "unknown" else f" ({plan})"


def _sides(size: Any, without: str) -> str:
    if size is None:
        return without
    return "×".join(map(str, size)) if isinstance(size, list | tuple) else str(size)
