"""write_prediction_report: predictions as one page to look through; make_cards: predictions as cards."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore.detectors import ImageResult
from skpatchcore.images.reading import PixelFormat
from skpatchcore.protocols import pixel_format_of
from skpatchcore.reports.card_page import write_card_page
from skpatchcore.reports.cards import Card, Nearest, headline, problem_of, verdict_of
from skpatchcore.reports.explanations import explain
from skpatchcore.reports.groups import groups_of
from skpatchcore.reports.heat_maps import background_of
from skpatchcore.reports.inspection import describe_inspection
from skpatchcore.reports.layers import Layers, write_layers
from skpatchcore.reports.pictures import PictureFolder
from skpatchcore.reports.pipelines import as_image_detector, detector_of
from skpatchcore.reports.predictions import REPORT, REPORT_TITLE, Prediction, prediction_of

# Number of images that are explained in any case: the most anomalous ones.
_N_EXPLAINED = 50


def write_prediction_report(
    predictions: Sequence[Prediction],
    detector: Any,
    folder: str | os.PathLike[str],
    *,
    model: str = "",
    drift: str = "",
    embed: int | str | None = "10MB",
    on_explained: Callable[[int, int], Any] | None = None,
) -> Path:
    """Write ``report.html``: one card per image, the most anomalous first, and a viewer of the picture layers.

    Parameters
    ----------
    predictions : sequence of Prediction
        As :func:`write_predictions` returns them.
    detector : detector or Pipeline
        The detector that scored the images.
    folder : path
        Folder of the report. The pictures are written to its folder ``report_files``.
    model : str, default=""
        Name of the detector's file.
    drift : str, default=""
        Sentence about a drift of the images, which the page shows if it is not empty.
    embed : int, str or None, default="10MB"
        Largest size of a page with all pictures inside, in bytes or as a text. If the page would be larger, all
        pictures stay in ``report_files`` beside the page. None never embeds pictures.
    on_explained : callable or None, default=None
        Called with the number of images whose nearest nominal patch has been searched, and the number of all images to
        search, e.g. to show progress.

    Returns
    -------
    Path
        File of the report.

    Raises
    ------
    ValueError
        If there are no predictions, or `embed` is not an amount of memory.
    OSError
        If the page cannot be written.

    See Also
    --------
    write_predictions : With ``layers=True``, it also writes the pictures of the report.
    write_card_page : Writes a page of cards, also of several detectors.

    Notes
    -----
    Images without layers are scored once more. An image that cannot be shown any more has a card that says why.

    The page shows anomaly scores, **bigger = more anomalous**: minus the scores of the table.
    """
    if not predictions:
        raise ValueError("there are no predictions to report.")
    detector = as_image_detector(detector)
    cards = make_cards(predictions, detector, folder, on_explained=on_explained)
    parts = {card.path: card.layers.inspected for card in cards if card.layers.size is not None}
    return write_card_page(
        cards,
        Path(folder) / REPORT,
        title=f"{REPORT_TITLE} {headline(cards)}",
        about={"Model": model} if model else {},
        inspected=" ".join(text for text in (drift, describe_inspection(parts)) if text),
        embed=embed,
        review=True,
    )


def make_cards(
    images: Sequence[Prediction | str | os.PathLike[str]],
    detector: Any,
    folder: str | os.PathLike[str],
    *,
    group: str = "",
    truths: Sequence[Any] | None = None,
    notes: Sequence[str] | None = None,
    on_explained: Callable[[int, int], Any] | None = None,
) -> list[Card]:
    """Make the cards of images that one detector scored, and write their pictures.

    Parameters
    ----------
    images : sequence of Prediction or of paths
        Predictions, or images to score.
    detector : detector or Pipeline
        A fitted detector.
    folder : path
        Folder of the page. The pictures are written to its folder ``report_files``.
    group : str, default=""
        Name of the images of this detector, for a page with the images of several detectors.
    truths : sequence of (array of shape (height, width) or None) or None, default=None
        Masks, one per image: True (or non-zero) where the image is known to be defective.
    notes : sequence of str or None, default=None
        Further texts, one per image, e.g. the true label.
    on_explained : callable or None, default=None
        As for :func:`write_prediction_report`.

    Returns
    -------
    list of Card
        In the order of `images`. All images that are flagged, and the 50 most anomalous images, have their nearest
        nominal patch, if the detector has ``nearest_patches``.
    """
    detector, pictures = as_image_detector(detector), PictureFolder(folder)
    groups = groups_of(detector, group)
    predictions = _with_layers(images, detector, pictures, truths)
    worst = sorted((p for p in predictions if p.is_scored), key=lambda prediction: prediction.score)
    explained = [p.path for i, p in enumerate(worst) if i < _N_EXPLAINED or p.label == -1]
    product_of = {prediction.path: prediction.product for prediction in predictions}
    nearest: dict[str, Nearest] = {}
    for product, (own, _) in groups.items():
        paths = [path for path in dict.fromkeys(explained) if product_of[path] == product]
        if own is not None and paths:
            nearest.update(explain(own, paths, pictures, on_explained=on_explained))
    return [
        Card(
            path=prediction.path,
            verdict=verdict_of(prediction),
            score=-prediction.score,
            group=groups[prediction.product if prediction.product in groups else None][1],
            layers=prediction.layers or Layers(),
            problem=problem_of(prediction),
            nearest=nearest.get(prediction.path),
            note="" if notes is None else notes[i],
        )
        for i, prediction in enumerate(predictions)
    ]


def _with_layers(
    images: Sequence[Prediction | str | os.PathLike[str]],
    detector: Any,
    pictures: PictureFolder,
    truths: Sequence[Any] | None,
) -> list[Prediction]:
    """Return the predictions of images with layers. Images without layers are scored, one anomaly map at a time."""
    found: list[Any] = [image if isinstance(image, Prediction) else None for image in images]
    paths = [image.path if isinstance(image, Prediction) else os.fspath(image) for image in images]
    missing = [i for i, known in enumerate(found) if known is None or not _is_complete(known, pictures, truths)]
    if not missing:
        return found
    pixel_format = pixel_format_of(detector_of(detector))
    for result in detector.iter_results([paths[i] for i in missing], on_error="flag"):
        i = missing[result.index]
        truth = None if truths is None else truths[i]
        known = prediction_of(result, paths[i]) if found[i] is None else found[i]
        found[i] = known._replace(layers=_layers_of(result, detector, pictures, pixel_format, truth))
    return found


def _is_complete(known: Prediction, pictures: PictureFolder, truths: Sequence[Any] | None) -> bool:
    """Return whether the pictures of a prediction exist, or there can be none."""
    if not known.is_scored:
        return True
    if known.layers is None or truths is not None:
        return False
    return all((pictures.page_folder / file).is_file() for file in known.layers.files())


def _layers_of(
    result: ImageResult, detector: Any, pictures: PictureFolder, pixel_format: PixelFormat, truth: Any
) -> Layers:
    if result.error is not None:  # the image was readable when it was scored before
        return Layers(problem=f"the image cannot be shown: {result.error.message}")
    try:
        pixels = background_of(result, pixel_format)
    except Exception as error:  # one image that cannot be shown leaves the other cards
        return Layers(problem=f"the image cannot be shown: {error}")
    anomaly_map = None if result.anomaly_map is None else np.asarray(result.anomaly_map)
    return write_layers(pixels, anomaly_map, detector.pixel_offset_, pictures, truth=truth)
