"""``skpatchcore predict``: judge images by a model file; a table, and a heat map of each."""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib

import skpatchcore
from skpatchcore.cli.options import CommandError, Formatter, add_debug, require_matplotlib
from skpatchcore.datasets import list_images
from skpatchcore.reports._judged import Judged

if TYPE_CHECKING:
    from skpatchcore import PatchCoreDetector

_CHUNK = 16  # images whose maps are held at once


def add_parser(commands: Any) -> None:
    """Add the command to argparse's."""
    predict = commands.add_parser("predict", help="judge images by a fitted model", formatter_class=Formatter)
    predict.add_argument(
        "model",
        metavar="MODEL",
        help="what 'fit' wrote. A .joblib file is a pickle: open only one that you trust",
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    predict.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="folder for scores.csv and a heat map of each image"
    )
    predict.add_argument("--report", action="store_true", help="also write report.html, with pictures inside")
    predict.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    add_debug(predict)
    predict.set_defaults(run=_predict)


def _load(path: str) -> PatchCoreDetector:
    from skpatchcore import PatchCoreDetector

    if not Path(path).is_file():
        raise CommandError(f"there is no model file {path!r}.")
    try:
        detector = joblib.load(path) if path.endswith(".joblib") else skpatchcore.load(path)
    except skpatchcore.ModelFileError:
        raise
    except Exception as error:  # unpickling foreign or damaged bytes raises anything
        raise CommandError(f"{path!r} can't be read as a model: {error}") from error
    if not isinstance(detector, PatchCoreDetector) or not hasattr(detector, "memory_bank_"):
        raise CommandError(f"{path!r} holds no fitted PatchCoreDetector, but a {type(detector).__name__}.")
    return detector


def _predict(options: argparse.Namespace) -> int:
    from skpatchcore._utils.progress import progress_bar

    if options.report:
        require_matplotlib()
    detector = _load(options.model).set_params(verbose=0)
    missing = [given for given in options.images if not os.path.lexists(given)]
    if missing:  # a mistyped name is no defective part
        raise CommandError(f"there is no file or folder {', '.join(map(repr, missing))}.")
    paths = [path for given in options.images for path in (list_images(given) if Path(given).is_dir() else [given])]
    folder = Path(options.output)
    own = folder.resolve()  # pictures of an earlier run, in a folder below the images, are not images to judge
    paths = [path for path in dict.fromkeys(paths) if own not in Path(path).resolve().parents]
    if not paths:
        raise CommandError(f"all images lie in the output folder {str(folder)!r}: choose another one.")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _picture_names(paths)
    judged: list[Judged] = []
    # Lines go out as images are judged: an interruption loses none of them.
    with (
        (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file,
        progress_bar(len(paths), "judging", "image", not options.quiet) as bar,
    ):
        table = csv.writer(file)
        table.writerow(["path", "score", "decision", "label", "p_value", "map", "problem"])
        for path, result in _judge(detector, paths):
            if isinstance(result, skpatchcore.ImageError):
                # unreadable is never normal
                image = Judged(path, math.nan, math.nan, -1, math.nan, None, result.message)
                table.writerow([path, "nan", "nan", -1, "nan", "", result.message])
                bar.write(f"skpatchcore: {path}: {result.message}", file=sys.stderr)
            else:
                score, anomaly_map = result
                image = _judged(detector, path, float(score), pictures[path])
                has_threshold = image.label is not None
                decided = [image.label, repr(image.p_value)] if has_threshold else ["", ""]
                table.writerow([path, repr(image.score), repr(image.decision), *decided, image.picture, ""])
                _write_overlay(folder / pictures[path], path, anomaly_map, detector.pixel_offset_)
            judged.append(image)
            file.flush()
            bar.update(1)
    n_failures = sum(image.picture is None for image in judged)
    if options.report:
        from skpatchcore.reports.predictions import write_predict_report

        write_predict_report(folder, judged, detector, options.model)
    if not options.quiet:
        n_flagged = sum(image.label == -1 for image in judged) - n_failures
        where = f"{folder / 'scores.csv'}{' and report.html' if options.report else ''}"
        print(f"{len(judged) - n_failures} images judged, {n_flagged} of them anomalous: {where}")
    if n_failures:
        raise CommandError(
            f"{n_failures} of {len(paths)} images could not be judged; they are in scores.csv with score nan and "
            "label -1."
        )
    return 0


def _judged(detector: PatchCoreDetector, path: str, score: float, picture: str) -> Judged:
    decision = float(score - detector.offset_)
    if math.isnan(detector.offset_):
        return Judged(path, score, decision, None, math.nan, picture)
    p_value = float(skpatchcore.conformal_p_values(detector.calibration_scores_, [score])[0])
    return Judged(path, score, decision, 1 if decision >= 0 else -1, p_value, picture)


def _judge(detector: PatchCoreDetector, paths: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield each path with its score and map, or with the error where the image can't be used."""
    for i in range(0, len(paths), _CHUNK):
        chunk = paths[i : i + _CHUNK]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", skpatchcore.ImageWarning)
            scores, maps = detector.score_and_segment(chunk, on_error="flag")
        failures: dict[int, skpatchcore.ImageError] = {}
        for warning in caught:
            if isinstance(warning.message, skpatchcore.ImageWarning):
                failures |= {failure.index: failure for failure in warning.message.failures}
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        for n, path in enumerate(chunk):
            yield path, failures.get(n) or (scores[n], maps[n])


def _picture_names(paths: list[str]) -> dict[str, str]:
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
    from PIL import Image

    from skpatchcore.display import overlay_anomaly_map
    from skpatchcore.images.reading import load_image

    if math.isnan(threshold):  # no calibration: the map's own range is all there is
        threshold = float(anomaly_map.max()) / 2
    Image.fromarray(overlay_anomaly_map(load_image(path, 0), anomaly_map, threshold)).save(target)
