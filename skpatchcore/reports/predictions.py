"""The page that ``skpatchcore predict --report`` writes: how many, which, where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

import skpatchcore
from skpatchcore.display import ScoreHistogramDisplay
from skpatchcore.display.overlay import as_bytes
from skpatchcore.images.reading import load_image
from skpatchcore.reports import page as report
from skpatchcore.reports._judged import Judged


def write_predict_report(
    folder: Path, judged: Sequence[Judged], detector: Any, model: str, n_pictures: int = 50
) -> Path:
    """Write ``report.html``, with the most anomalous images' heat maps inside.

    Parameters
    ----------
    folder : path
        Where the heat maps are, and the report goes.
    judged : sequence of Judged
        All images.
    detector : PatchCoreDetector
        That judged them.
    model : str
        Its file, as the user named it.
    n_pictures : int, default=50
        How many images are shown.

    Returns
    -------
    Path
        Of the report.
    """
    read = [image for image in judged if image.picture is not None]
    unread = [image for image in judged if image.picture is None]
    has_threshold = not math.isnan(detector.offset_)
    n_flagged = sum(image.label == -1 for image in read)
    parts = [
        report.definitions(
            {
                "model": model,
                "images": f"{len(judged)}"
                + (f", {n_flagged} anomalous" if has_threshold else ", no threshold")
                + (f", {len(unread)} not readable" if unread else ""),
                "threshold": f"score {detector.offset_:.4g}: lower ones are anomalous" if has_threshold else "none",
                "calibrated on": f"{len(detector.calibration_scores_)} good images",
                "skpatchcore": skpatchcore.__version__,
            }
        )
    ]
    if read:
        parts += [
            report.drawing(
                _histogram(read, detector),
                "Minus the scores, so that the anomalous ones are at the right; dashed: the threshold",
            ),
            report.heading("Images"),
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
        for image in sorted(judged, key=_order)
    ]
    table = pd.DataFrame(rows).set_index("image")
    parts.append(report.table(table if unread else table.drop(columns="problem")))
    shown = sorted(read, key=_order)[:n_pictures]
    if shown:
        parts.append(report.heading("The most anomalous first"))
        if len(shown) < len(read):
            parts.append(report.paragraph(f"{len(shown)} of {len(read)}; the others' heat maps lie beside this page."))
    for image in shown:
        with Image.open(folder / str(image.picture)) as overlay:
            judged_image = as_bytes(load_image(image.path, 0))
            heat = np.asarray(overlay.convert("RGB"))
            pair = [np.broadcast_to(judged_image, heat.shape), heat]
        label = {1: "normal", -1: "anomalous", None: "no threshold"}[image.label]
        parts.append(report.picture(report.side_by_side(pair), f"{image.path}: {label}, score {image.score:.4g}"))
    parts.append(
        report.paragraph(
            "Left the image, right with its anomaly map: colour sets in at three quarters of the threshold; cyan "
            "encloses what is beyond it. Score: bigger = more normal. p value: how usual so low a score is among good "
            "images."
        )
    )
    report.write_page(folder / "report.html", f"skpatchcore predict: {len(judged)} images", parts)
    return folder / "report.html"


def _order(image: Judged) -> float:
    return -math.inf if math.isnan(image.score) else image.score


def _histogram(read: Sequence[Judged], detector: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    ScoreHistogramDisplay(
        [image.score for image in read], offset=detector.offset_, calibration_scores=detector.calibration_scores_
    ).plot(ax=figure.subplots())
    return figure
