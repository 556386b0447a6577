"""Predictions on disk: a table, a heat map of each image, and a page to look through."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from skpatchcore._version import __version__
from skpatchcore.detectors import ImageResult
from skpatchcore.display import ScoreHistogramDisplay, overlay_anomaly_map
from skpatchcore.display.overlay import as_bytes
from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.reading import load_image
from skpatchcore.reports import page


class Prediction(NamedTuple):
    """One line of the table.

    Attributes
    ----------
    path : str
        File of the image.
    score, decision, p_value : float
        As of the detector's methods; NaN if the image could not be scored. Without a threshold, `decision` and
        `p_value` are NaN.
    label : int or None
        +1 normal, -1 anomalous; None without a threshold.
    picture : str or None
        File name of its heat map; None if the image could not be scored.
    problem : str
        Why it could not be scored.
    """

    path: str
    score: float
    decision: float
    label: int | None
    p_value: float
    picture: str | None
    problem: str = ""


def write_predictions(
    detector: Any,
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    on_prediction: Callable[[Prediction], Any] | None = None,
) -> list[Prediction]:
    """Score images, and write ``scores.csv`` and a heat map of each.

    Each line is written as soon as its image is scored: an interruption loses none of them. An image that can't be
    scored gets the score NaN and the label -1, and its problem is in the table. Heat maps are named after their images,
    with as many of their folders as tell the images of this call apart.

    Parameters
    ----------
    detector : detector
        Fitted on images.
    paths : sequence of paths
        The images, at least one.
    folder : path
        Where the files are written; created if it does not exist.
    on_prediction : callable or None, default=None
        Called with each prediction, e.g. to show progress.

    Returns
    -------
    list of Prediction
        In the order of `paths`.

    Raises
    ------
    ValueError
        If `paths` is empty, or a single path.

    Examples
    --------
    >>> import csv, pathlib, tempfile
    >>> import numpy as np
    >>> from PIL import Image
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.reports import write_predictions
    >>> good = np.random.default_rng(0).integers(120, 130, (6, 64, 64, 3), dtype=np.uint8)
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0).fit(good)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "part.png"
    ...     Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    ...     predictions = write_predictions(detector, [str(path)], pathlib.Path(folder) / "out")
    ...     sorted(file.name for file in (pathlib.Path(folder) / "out").iterdir())
    ['part.png', 'scores.csv']
    >>> predictions[0].label
    -1
    """
    files = [os.fspath(path) for path in as_image_sequence(paths)]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = picture_names(files)
    predictions = []
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "score", "decision", "label", "p_value", "map", "problem"])
        for result in detector.iter_results(files, on_error="flag"):
            prediction = _prediction_of(result, pictures[result.image])
            if result.anomaly_map is not None:
                _write_overlay(
                    folder / pictures[result.image], result.image, result.anomaly_map, detector.pixel_offset_
                )
            table.writerow(_cells(prediction))
            file.flush()
            predictions.append(prediction)
            if on_prediction is not None:
                on_prediction(prediction)
    return predictions


def _prediction_of(result: ImageResult, picture: str) -> Prediction:
    """Return the line of an image; one that could not be scored is anomalous, even without a threshold."""
    if result.error is not None:
        return Prediction(result.image, math.nan, math.nan, -1, math.nan, None, result.error.message)
    return Prediction(result.image, result.score, result.decision, result.label, result.p_value, picture)


def _cells(prediction: Prediction) -> list[Any]:
    path, score, decision, label, p_value, picture, problem = prediction
    if picture is None:
        return [path, "nan", "nan", -1, "nan", "", problem]
    decided = ["", ""] if label is None else [label, repr(p_value)]
    return [path, repr(score), repr(decision), *decided, picture, problem]


def picture_names(paths: Sequence[str]) -> dict[str, str]:
    """Return a file name for each path: its stem after the folders in which it lies, below one that all share."""
    places = {path: Path(path).resolve().with_suffix("") for path in paths}
    root = os.path.commonpath([place.parent for place in places.values()])
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path, place in places.items():
        base = "_".join(place.relative_to(root).parts)
        name = next(n for i in count() if (n := base if i == 0 else f"{base}-{i + 1}") not in taken)
        taken.add(name)
        names[path] = f"{name}.png"
    return names


def _write_overlay(target: Path, path: str, anomaly_map: Any, threshold: float) -> None:
    if math.isnan(threshold):  # no calibration: the map's own range is all there is
        threshold = float(anomaly_map.max()) / 2
    Image.fromarray(overlay_anomaly_map(load_image(path, 0), anomaly_map, threshold)).save(target)


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
    detector : detector
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
    """
    if not predictions:
        raise ValueError("there are no predictions to report.")
    read = [image for image in predictions if image.picture is not None]
    unread = [image for image in predictions if image.picture is None]
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
    table = pd.DataFrame(rows).set_index("image")
    parts.append(page.table(table if unread else table.drop(columns="problem")))
    shown = sorted(read, key=_order)[:n_pictures]
    if shown:
        parts.append(page.heading("The most anomalous first"))
        if len(shown) < len(read):
            parts.append(page.paragraph(f"{len(shown)} of {len(read)}; the others' heat maps lie beside this page."))
    for image in shown:
        with Image.open(Path(folder) / str(image.picture)) as overlay:
            pixels = as_bytes(load_image(image.path, 0))
            heat = np.asarray(overlay.convert("RGB"))
            pair = [np.broadcast_to(pixels, heat.shape), heat]
        label = {1: "normal", -1: "anomalous", None: "no threshold"}[image.label]
        parts.append(page.picture(page.side_by_side(pair), f"{image.path}: {label}, score {image.score:.4g}"))
    parts.append(
        page.paragraph(
            "Left the image, right with its anomaly map: colour sets in at three quarters of the threshold; cyan "
            "encloses what is beyond it. Score: bigger = more normal. p value: how usual so low a score is among good "
            "images."
        )
    )
    target = Path(folder) / "report.html"
    page.write_page(target, f"skpatchcore predict: {len(predictions)} images", parts)
    return target


def _order(image: Prediction) -> float:
    return -math.inf if math.isnan(image.score) else image.score


def _histogram(read: Sequence[Prediction], detector: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    ScoreHistogramDisplay(
        [image.score for image in read], offset=detector.offset_, calibration_scores=detector.calibration_scores_
    ).plot(ax=figure.subplots())
    return figure
