"""``skpatchcore review``: how often a model is right, from the answers of a person on a report page."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from skpatchcore._utils.names import shown_name, shown_text
from skpatchcore.cli.options import CommandError, Formatter, add_debug

# Number of names that a message lists.
_N_NAMED = 5


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "review",
        help="print how often a model is right, from the answers of a person on a report page",
        description="Compare the decisions of a model with the answers that a person has given on the page of 'predict "
        "--report' or of 'watch --report'. Prints how many parts were reviewed, the false-alarm rate and the miss rate "
        "with 95 % intervals, and the effect of other thresholds. Nothing is changed.",
        formatter_class=Formatter,
    )
    parser.add_argument(
        "labels",
        nargs="+",
        metavar="LABELS",
        help="files that the page has saved (review.csv or review.json)",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        required=True,
        help="model file of 'fit'. A .joblib file is a pickle, which may run code: use only files that you trust",
    )
    parser.add_argument(
        "--rescore",
        action="store_true",
        help="score the images again with MODEL. Without this option, the scores in the files are used if they are of "
        "this model",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--trust",
        action="append",
        default=None,
        metavar="NAME",
        help="a type or function of yours that MODEL may contain; can be repeated",
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    add_debug(parser)
    parser.set_defaults(run=_review)


def _review(options: argparse.Namespace) -> int:
    from skpatchcore.cli.predict import load_detector
    from skpatchcore.reports.labels import merge_labels
    from skpatchcore.reports.pipelines import detector_of
    from skpatchcore.reports.review_summary import (
        Decisions,
        decisions_of_file,
        scores_are_of,
        summary_of_review,
    )
    from skpatchcore.reports.review_text import text_of

    labels = merge_labels(options.labels, by_path=options.rescore)
    if labels.empty:
        raise CommandError(f"there are no parts in {', '.join(map(repr, options.labels))}.")
    model = load_detector(options.model, options.trust or ())
    detector = detector_of(model)
    if math.isnan(detector.offset_):
        raise CommandError(
            f"the model {options.model!r} has no threshold, and so makes no decisions. Pass good images to recalibrate."
        )
    if options.rescore:
        decisions = _rescored(model, labels, options)
    else:
        is_current, why = scores_are_of(detector, labels["threshold"].to_numpy())
        if is_current:
            scores = labels["score"].to_numpy()
            decisions = Decisions("scores", ~(scores >= detector.offset_), scores, why)
        else:
            decisions = decisions_of_file(labels, why)
    summary = summary_of_review(labels, decisions, model, options.model, options.labels, options.trust or ())
    if options.json:
        print(json.dumps(summary, indent=1))
    else:
        print(shown_text(text_of(summary)))
    return 0


def _rescored(model: Any, labels: Any, options: argparse.Namespace) -> Any:
    """Return the decisions of the model about the images as they are now."""
    from skpatchcore._utils.progress import progress_bar
    from skpatchcore.reports.pipelines import as_image_detector, detector_of
    from skpatchcore.reports.review_summary import Decisions, changed_images

    paths = labels["path"].tolist()
    require_files(paths, "--rescore")
    detector = as_image_detector(model)
    scores, is_flagged = np.full(len(paths), np.nan), np.ones(len(paths), bool)
    given = {} if detector is not model else {"with_maps": False}  # a pipeline has no such parameter
    with progress_bar(len(paths), "scoring", "image", not options.quiet) as bar:
        for result in detector.iter_results(paths, on_error="flag", **given):
            scores[result.index], is_flagged[result.index] = result.score, result.label == -1
            bar.update(1)
    reason = "The images were scored again."
    if changed := changed_images(labels, detector_of(model), scores):
        reason += (
            f" ATTENTION: {len(changed)} of {len(paths)} images have another score than in the file of answers. The "
            f"files were replaced after the review: {named(changed)}."
        )
    return Decisions("rescored", is_flagged, scores, reason)


def named(paths: Sequence[str]) -> str:
    """Return the names of the first files, and the number of the others."""
    more = f" and {len(paths) - _N_NAMED} more" if len(paths) > _N_NAMED else ""
    return ", ".join(shown_name(path) for path in paths[:_N_NAMED]) + more


def require_files(paths: list[str], option: str) -> None:
    """Raise a CommandError that names files that do not exist."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        relative = "" if os.path.isabs(missing[0]) else " Relative paths begin where the report was made."
        raise CommandError(
            f"{option}: {len(missing)} of {len(paths)} files do not exist any more: {named(missing)}.{relative}"
        )
