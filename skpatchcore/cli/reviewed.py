"""reviewed_images: the answers of a report page as images for ``skpatchcore update --good`` and ``--bad``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from skpatchcore._utils.names import shown_name
from skpatchcore.cli.options import CommandError
from skpatchcore.cli.review import N_NAMED, require_files


class ReviewedImages(NamedTuple):
    """Images of a review that change a model.

    Attributes
    ----------
    good : list of str
        Images that a person calls fine and that the model flags.
    bad : list of str
        Images that a person calls defects.
    lines : list of str
        What was left out, and why.
    """

    good: list[str]
    bad: list[str]
    lines: list[str]


def reviewed_images(files: Sequence[str], detector: Any, product: str | None) -> ReviewedImages:
    """Return the images that the answers in some files add to an update.

    Parameters
    ----------
    files : sequence of str
        Files that a report page has saved.
    detector : detector
        The model before the update.
    product : str or None
        Product of all images, for a detector with products.

    Raises
    ------
    ValueError
        If a file is damaged, or if answers differ.
    CommandError
        If an image does not exist any more.
    """
    from skpatchcore.reports.labels import merge_labels

    labels = merge_labels(files, by_path=True)
    answered = {answer: labels["path"][labels["review"] == answer].tolist() for answer in ("defect", "fine", "unsure")}
    fine, defects = answered["fine"], answered["defect"]
    require_files([*fine, *defects], "--review")
    is_flagged, is_read = _decisions(detector, [*fine, *defects], product)
    alarms = [path for path, flag, ok in zip(fine, is_flagged, is_read, strict=False) if flag and ok]
    learnt = learnt_paths(detector)
    good = [path for path in alarms if os.path.abspath(path) not in learnt]
    n_passed = int(np.count_nonzero(~is_flagged[: len(fine)]))
    bad = [path for path, ok in zip(defects, is_read[len(fine) :], strict=True) if ok]
    unread = [path for path, ok in zip([*fine, *defects], is_read, strict=True) if not ok]
    n_unsure = len(answered["unsure"])
    lines = [f"--review: {_count(len(defects), 'defect')}, {len(fine)} fine, {n_unsure} unsure (ignored)."]
    if n_passed:
        lines.append(
            f"  {_count(n_passed, 'fine part')} ignored, because the model does not flag "
            f"{'it' if n_passed == 1 else 'them'}: nothing is to be corrected, and parts that a person has chosen are "
            "no random sample, which the thresholds need."
        )
    if n_known := len(alarms) - len(good):
        lines.append(
            f"  {_count(n_known, 'fine part')} still flagged although the model has learnt "
            f"{'it' if n_known == 1 else 'them'}: only another threshold can change this."
        )
    if unread:
        names = ", ".join(shown_name(path) for path in unread[:N_NAMED])
        more = f" and {len(unread) - N_NAMED} more" if len(unread) > N_NAMED else ""
        lines.append(f"  {_count(len(unread), 'part')} left out, because the image cannot be read: {names}{more}")
    return ReviewedImages(good, bad, lines)


def learnt_paths(detector: Any) -> set[str]:
    """Return the absolute paths of the training images of a detector, of all products."""
    members = getattr(detector, "estimators_", None) or [detector]
    return {path for member in members for path in member.training_paths_ or () if path is not None}


def _decisions(detector: Any, paths: list[str], product: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return which images are flagged, and which can be read. Arrays of shape (n_images,), bool."""
    is_flagged, is_read = np.ones(len(paths), bool), np.zeros(len(paths), bool)
    if not paths:
        return is_flagged, is_read
    given = {} if product is None else {"products": product}
    for result in detector.iter_results(paths, with_maps=False, on_error="flag", **given):
        if result.label is None:
            raise CommandError("--review: the model has no threshold, and so flags no part.")
        is_flagged[result.index], is_read[result.index] = result.label == -1, result.error is None
    return is_flagged, is_read


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
