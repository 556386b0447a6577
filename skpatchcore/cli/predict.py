"""``skpatchcore predict``: judge images by a model file; a table, and a heat map of each."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import joblib

import skpatchcore
from skpatchcore.cli.options import CommandError, Formatter, add_debug, require_matplotlib
from skpatchcore.datasets import list_images


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


def _load(path: str) -> Any:
    from sklearn.utils.validation import check_is_fitted

    from skpatchcore.detectors import ImageDetector

    if not Path(path).is_file():
        raise CommandError(f"there is no model file {path!r}.")
    try:
        detector = joblib.load(path) if path.endswith(".joblib") else skpatchcore.load(path)
    except skpatchcore.ModelFileError:
        raise
    except Exception as error:  # unpickling foreign or damaged bytes raises anything
        raise CommandError(f"{path!r} can't be read as a model: {error}") from error
    if not isinstance(detector, ImageDetector):
        raise CommandError(f"{path!r} holds no detector of this package, but a {type(detector).__name__}.")
    check_is_fitted(detector, "offset_")
    for part in (detector, *getattr(detector, "estimators_", ())):
        params = part.get_params(deep=False)
        if isinstance(params.get("extractor"), str):
            raise CommandError(f"{path!r} holds a detector of precomputed patch features, which can't read images.")
        if "verbose" in params:  # progress is shown once, for all images
            part.set_params(verbose=0)
    return detector


def _predict(options: argparse.Namespace) -> int:
    from skpatchcore._utils.progress import progress_bar
    from skpatchcore.reports.predictions import Prediction, write_prediction_report, write_predictions

    if options.report:
        require_matplotlib()
    detector = _load(options.model)
    paths, folder = _images_of(options.images, Path(options.output)), Path(options.output)
    with progress_bar(len(paths), "predicting", "image", not options.quiet) as bar:

        def show(prediction: Prediction) -> None:
            if prediction.problem:
                bar.write(f"skpatchcore: {prediction.path}: {prediction.problem}", file=sys.stderr)
            bar.update(1)

        predictions = write_predictions(detector, paths, folder, on_prediction=show)
    if options.report:
        write_prediction_report(predictions, detector, folder, model=options.model)
    n_failures = sum(prediction.picture is None for prediction in predictions)
    if not options.quiet:
        n_flagged = sum(prediction.label == -1 for prediction in predictions) - n_failures
        where = f"{folder / 'scores.csv'}{' and report.html' if options.report else ''}"
        print(f"{len(predictions) - n_failures} images judged, {n_flagged} of them anomalous: {where}")
    if n_failures:
        raise CommandError(
            f"{n_failures} of {len(paths)} images could not be judged; they are in scores.csv with score nan and "
            "label -1."
        )
    return 0


def _images_of(given: list[str], output: Path) -> list[str]:
    """Return the files that are named, and those in the folders that are named; each once."""
    missing = [name for name in given if not os.path.lexists(name)]
    if missing:  # a mistyped name is not a defective part
        raise CommandError(f"there is no file or folder {', '.join(map(repr, missing))}.")
    paths = [path for name in given for path in (list_images(name) if Path(name).is_dir() else [name])]
    own = output.resolve()  # pictures of an earlier run, in a folder below the images, are not images to predict
    paths = [path for path in dict.fromkeys(paths) if own not in Path(path).resolve().parents]
    if not paths:
        raise CommandError(f"all images lie in the output folder {str(output)!r}: choose another one.")
    return paths
