"""write_prediction_report: predictions as one HTML page to look through."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from skpatchcore._version import __version__
from skpatchcore.display import ScoreHistogramDisplay
from skpatchcore.display.overlay import as_bytes
from skpatchcore.images.reading import PixelFormat, load_image
from skpatchcore.protocols import pixel_format_of
from skpatchcore.reports import page
from skpatchcore.reports.inspection import describe_inspection
from skpatchcore.reports.pipelines import as_image_detector, detector_of
from skpatchcore.reports.predictions import REPORT, REPORT_TITLE, Prediction


def write_prediction_report(
    predictions: Sequence[Prediction],
    detector: Any,
    folder: str | os.PathLike[str],
    *,
    model: str = "",
    n_pictures: int = 50,
) -> Path:
    """Write ``report.html``, with the heat maps of the most anomalous images inside.

    Parameters
    ----------
    predictions : sequence of Prediction
        As :func:`write_predictions` returns them.
    detector : detector or Pipeline
        That made them.
    folder : path
        Where the heat maps are, and the report is written.
    model : str, default=""
        Name of the detector's file.
    n_pictures : int, default=50
        How many images are shown.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    ValueError
        If there are no predictions.
    OSError
        If the page can't be written.

    Notes
    -----
    An image or a heat map that can't be read any more is left out, and the page says so in its place.
    """
    if not predictions:
        raise ValueError("there are no predictions to report.")
    detector = as_image_detector(detector)
    read = [image for image in predictions if image.is_scored]
    unread = [image for image in predictions if not image.is_scored]
    inspected = describe_inspection(detector, {image.path: image.image_size for image in read if image.image_size})
    has_threshold = not math.isnan(detector.offset_)
    n_flagged = sum(image.label == -1 for image in read)
    parts = [
        page.definitions(
            {
                "model": model,
                "images": f"{len(predictions)}"
                + (f", {n_flagged} anomalous" if has_threshold else ", no threshold")
                + (f", {len(unread)} not readable" if unread else ""),
                "threshold": f"score {detector.offset_:.4g}: lower ones are anomalous" if has_threshold else "none",
                "calibrated on": f"{len(detector.calibration_scores_)} good images",
                **({"inspected": inspected} if inspected else {}),
                "skpatchcore": __version__,
            }
        )
    ]
    if read:
        parts += [
            page.drawing(
                _histogram(read, detector),
                "Minus the scores, so that the anomalous ones are at the right; dashed: the threshold",
            ),
            page.heading("Images"),
        ]
    rows = [
        {
            "image": image.path,
            "score": image.score,
            "decision": image.decision,
            "label": {1: "normal", -1: "anomalous", None: ""}[image.label],
            "p value": image.p_value,
            "problem": image.problem,
        }
        for image in sorted(predictions, key=_order)
    ]
    # as objects: pandas' texts can't hold file names that are not UTF-8
    table = pd.DataFrame(rows, dtype=object).set_index("image")
    parts.append(page.table(table if table["problem"].any() else table.drop(columns="problem")))
    shown = sorted(read, key=_order)[:n_pictures]
    if shown:
        parts.append(page.heading("The most anomalous first"))
        if len(shown) < len(read):
            parts.append(page.paragraph(f"{len(shown)} of {len(read)}; the others' heat maps lie beside this page."))
    for image in shown:
        label = {1: "normal", -1: "anomalous", None: "no threshold"}[image.label]
        caption = f"{image.path}: {label}, score {image.score:.4g}"
        try:
            pair = _pair(image, Path(folder), pixel_format_of(detector_of(detector)))
            parts.append(page.picture(page.side_by_side(pair), caption))
        except Exception as error:  # an image that is gone by now leaves the others their place
            parts.append(page.paragraph(f"{caption}; it can't be shown: {error}"))
    parts.append(
        page.paragraph(
            "Left the image, right with its anomaly map: colour sets in at three quarters of the threshold; cyan "
            "encloses what is beyond it. Score: bigger = more normal. p value: how usual so low a score is among good "
            "images."
        )
    )
    target = Path(folder) / REPORT
    page.write_page(target, f"{REPORT_TITLE} {len(predictions)} images", parts)
    return target


def _pair(image: Prediction, folder: Path, pixel_format: PixelFormat) -> list[np.ndarray]:
    """Return an image beside its heat map; the heat map alone if that is not of the image's size."""
    if image.picture is None:
        raise ValueError(image.problem or "it has no heat map.")
    with Image.open(folder / image.picture) as overlay:
        heat = np.asarray(overlay.convert("RGB"))
    pixels = as_bytes(load_image(image.path, 0, pixel_format=pixel_format))
    return [np.broadcast_to(pixels, heat.shape), heat] if pixels.shape[:2] == heat.shape[:2] else [heat]


def _order(image: Prediction) -> float:
    return -math.inf if math.isnan(image.score) else image.score


def _histogram(read: Sequence[Prediction], detector: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    ScoreHistogramDisplay(
        [image.score for image in read], offset=detector.offset_, calibration_scores=detector.calibration_scores_
    ).plot(ax=figure.subplots())
    return figure
