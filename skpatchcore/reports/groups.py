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
    """Return what a detector's threshold promises about false positives, in one or two sentences.

    Parameters
    ----------
    detector : detector
        Fitted. The promised rate is given only if the threshold is the one of this rate and of the calibration scores.
    """
    detector = detector_of(detector)
    scores = anomaly_scores(detector.calibration_scores_)
    scores, threshold = scores[~np.isnan(scores)], -float(detector.offset_)
    if math.isnan(threshold):
        return "The model has no threshold: it was not calibrated."
    n, n_flagged = len(scores), int((scores > threshold).sum())
    counted = (
        f"{n_flagged:,} of {n:,} calibration images would be flagged."
        if n_flagged
        else f"The threshold is the most anomalous of {n:,} calibration scores."
    )
    rate = getattr(detector, "promised_rate_", math.nan)
    if math.isnan(rate):
        return counted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if conformal_threshold(scores, min(rate, 0.5)) != threshold:  # another threshold was set by hand
            return counted
    limit = f"{100 * likely_rate(n, min(rate, 0.5)):.2g} %"
    return (
        f"On average over calibrations, at most {100 * rate:.3g} % of good parts like the calibration images are "
        f"flagged. This one threshold flags at most {limit} with 95 % confidence. {counted}"
    )


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
    return settings


def _way(detector: Any) -> str:
    """Return how the calibration images were scored, in brackets."""
    plan = getattr(detector, "calibration_plan_", "unknown")
    return "" if plan == "unknown" else f" ({plan})"


def _sides(size: Any, without: str) -> str:
    if size is None:
        return without
    return "×".join(map(str, size)) if isinstance(size, list | tuple) else str(size)
