"""write_worst: pictures of the worst mistakes of an evaluation; worst_cards: the stored pictures as cards of a page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore._utils.names import shown_name
from skpatchcore._utils.warning import warn_user
from skpatchcore.datasets import read_mask
from skpatchcore.evaluation.category import CategoryResult
from skpatchcore.images.reading import load_image
from skpatchcore.protocols import pixel_format_of
from skpatchcore.reports.cards import ANOMALOUS, NORMAL, UNDECIDED, Card, CardGroup, Nearest
from skpatchcore.reports.explanations import explain
from skpatchcore.reports.inspection import InspectedPart
from skpatchcore.reports.layers import Layers, Region, write_layers
from skpatchcore.reports.pictures import PICTURES, PictureFolder, remove_pictures

# Starts of captions of mistakes.
MISSED, FALSE_ALARM = "Missed defect", "False alarm: a good image"
_MISS, _FALSE_POSITIVE = "miss", "false positive"
_LAYERS = ("thumb", "image", "heat", "outline", "truth", "unseen")
_CROPS = ("patch", "nominal")


def write_worst(result: CategoryResult, fitted: Any, dataset: Any, folder: Path, n: int = 6) -> list[dict[str, Any]]:
    """Write pictures of the most anomalous good images and of the most normal defective images of a category.

    These test images are the worst mistakes of the detector. If the detector makes fewer than `n` mistakes of a kind,
    the images with the scores nearest to a mistake follow.

    Parameters
    ----------
    result : CategoryResult
        Scores and thresholds of the category.
    fitted : estimator
        The fitted detector. If it has no anomaly maps, the pictures show the images and the known defects.
    dataset : ImageFolder or TextureTask
        The images of the category.
    folder : path
        Folder in which the folder ``report_files`` is created. The pictures are written to ``report_files``. Pictures
        of an earlier call are removed.
    n : int, default=6
        Maximum number of good images, and maximum number of defective images.

    Returns
    -------
    list of dict
        One dict per image, first the defective images, then the good images. The keys are:

        - ``kind``: ``"miss"`` for every defective image, and ``"false positive"`` for every good image.
        - ``is_mistake``: whether the detector classifies the image wrongly. If False, the image is only near to a
          mistake, or the detector has no threshold.
        - ``caption``: a text about the image.
        - ``index``: the index of the image in the test images.
        - ``layers``: the pictures and the regions, as a dict with the attributes of ``Layers``.
        - ``nearest``: the most anomalous patch and the nearest good patch, or None.

    Warns
    -----
    UserWarning
        If a picture of an image cannot be drawn or written. If the image cannot be read or scored, the image is left
        out of the list.
    """
    remove_pictures(folder)
    pictures, found = PictureFolder(folder), []
    order = result.scores.argsort(kind="stable")
    missed = [int(i) for i in order[::-1] if result.labels[i] == -1][:n]
    flagged = [int(i) for i in order if result.labels[i] == 1][:n]
    for kind, images in ((_MISS, missed), (_FALSE_POSITIVE, flagged)):
        for i in images:
            try:
                image = load_image(dataset.test_images[i], i, pixel_format=pixel_format_of(fitted))
                (scored,) = fitted.iter_results(dataset.test_images[i : i + 1])
                anomaly_map = None if scored.anomaly_map is None else np.asarray(scored.anomaly_map)
                mask = read_mask(dataset.test_masks[i], image.shape[:2])
                truth = mask if mask.any() else None
                layers = write_layers(image, anomaly_map, result.pixel_offset, pictures, truth=truth)
            except (OSError, ValueError) as error:  # the metrics are complete, and other pictures may be drawn
                warn_user(f"category {shown_name(result.category)!r}: no picture of test image {i}: {error}")
                continue
            if layers.problem:
                warn_user(f"category {shown_name(result.category)!r}: no picture of test image {i}: {layers.problem}")
            found.append({"kind": kind, **_described(result, i, kind), "layers": asdict(layers)})
    paths = {i: text for i in (one["index"] for one in found) if isinstance(text := dataset.test_images[i], str)}
    nearest = explain(fitted, list(dict.fromkeys(paths.values())), pictures)
    for one in found:
        patch = nearest.get(paths.get(one["index"], ""))
        one["nearest"] = None if patch is None else asdict(patch)
    return found


def _described(result: CategoryResult, i: int, kind: str) -> dict[str, Any]:
    """Return whether an image is a mistake, and a sentence about it."""
    decided = not math.isnan(result.offset)
    is_mistake = bool(decided and (result.scores[i] < result.offset) == (result.labels[i] == 1))
    if kind == _MISS:
        defect = f"({shown_name(str(result.defects[i]))})"
        caption = f"{MISSED} {defect}" if is_mistake else f"Defective {defect}{', found' * decided}"
    else:
        caption = FALSE_ALARM if is_mistake else f"Good{', not flagged' * decided}"
    return {"index": i, "is_mistake": is_mistake, "caption": caption}


def worst_cards(
    result: CategoryResult, stored: list[dict[str, Any]], place: Path, pictures: PictureFolder
) -> list[Card]:
    """Return the cards of stored pictures, and copy the pictures to the folder of a page.

    Parameters
    ----------
    result : CategoryResult
        Scores and thresholds of the category.
    stored : list of dict
        As returned by :func:`write_worst`. Other dicts are left out.
    place : path
        Folder that was given to :func:`write_worst`.
    pictures : PictureFolder
        Folder of the pictures of the page.

    Returns
    -------
    list of Card
        Mistakes first. A picture that cannot be copied is left out, and the card contains the reason.
    """
    group = CardGroup(
        name=result.category,
        threshold=-result.offset,
        pixel_threshold=result.pixel_offset,
        calibration_scores=-result.calibration_scores,
    )
    cards = []
    known = [one for one in stored if isinstance(one.get("layers"), dict) and 0 <= one["index"] < len(result.scores)]
    for one in sorted(known, key=lambda one: not one["is_mistake"]):
        i = one["index"]
        problems: list[str] = []
        layers = _layers_of({**one["layers"], **_copied(one["layers"], _LAYERS, place, pictures, problems)})
        near = one.get("nearest")
        score, is_file = result.scores[i], isinstance(result.paths[i], str)
        cards.append(
            Card(
                path=result.paths[i] if is_file else f"test image {result.paths[i]}",
                verdict=UNDECIDED if math.isnan(result.offset) else ANOMALOUS if score < result.offset else NORMAL,
                score=-float(score),
                group=group,
                layers=layers,
                problem="; ".join(dict.fromkeys([*([layers.problem] if layers.problem else []), *problems])),
                nearest=None
                if near is None
                else Nearest(**{**near, **_copied(near, _CROPS, place, pictures, problems)}),
                note=one["caption"],
                is_file=is_file,
            )
        )
    return cards


def _copied(
    values: Mapping[str, Any], names: tuple[str, ...], place: Path, pictures: PictureFolder, problems: list[str]
) -> dict[str, str | None]:
    """Copy the pictures of one image. Return the new files by name, and add reasons of failures to `problems`."""
    stem, files = pictures.new_stem(), dict.fromkeys(names)
    for name in names:
        if values.get(name):
            file = os.path.basename(values[name])
            try:
                files[name] = pictures.copy(place / PICTURES / file, f"{stem}.{file.split('.', 1)[1]}")
            except OSError as error:
                problems.append(f"a picture cannot be shown: {error.strerror}: {error.filename!r}")
    return files


def _layers_of(values: dict[str, Any]) -> Layers:
    size = values["size"]
    regions = tuple(Region(**region) for region in values["regions"])
    share, margins, is_rectangle = values.get("inspected", InspectedPart())
    inspected = InspectedPart(share, tuple(margins), is_rectangle)
    size = None if size is None else (size[0], size[1])
    return Layers(**{**values, "size": size, "regions": regions, "inspected": inspected})
