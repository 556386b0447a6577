"""reviewed_images: the answers of a report page as images for ``skpatchcore update --good`` and ``--bad``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from skpatchcore.cli.options import CommandError
from skpatchcore.cli.review import named, require_files


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
        Product of the images, for a detector with products. Images of other products are left out.

    Raises
    ------
    ValueError
        If a file is damaged, or if answers differ.
    CommandError
        If an image does not exist any more.
    """
    from skpatchcore.reports.labels import merge_labels
    from skpatchcore.reports.review_summary import changed_images

    labels = merge_labels(files, by_path=True)
    answered = {answer: labels["path"][labels["review"] == answer].tolist() for answer in ("defect", "fine", "unsure")}
    fine, defects = answered["fine"], answered["defect"]
    require_files([*fine, *defects], "--review")
    decisions = _decisions(detector, [*fine, *defects])
    unread = [path for path, one in decisions.items() if not one.is_read]
    others = [path for path, one in decisions.items() if product is not None and one.product not in (product, None)]
    given = labels[np.isin(labels["review"], ["fine", "defect"])]
    changed = changed_images(given, detector, np.array([decisions[path].score for path in given["path"]]))
    usable = set(decisions).difference(unread, others, changed)
    passed = [path for path in fine if path in usable and not decisions[path].is_flagged]
    alarms = [path for path in fine if path in usable and decisions[path].is_flagged]
    learnt = learnt_paths(detector)
    good = [path for path in alarms if os.path.abspath(path) not in learnt]
    n_known, n_unsure = len(alarms) - len(good), len(answered["unsure"])
    lines = [f"--review: {_count(len(defects), 'defect')}, {len(fine)} fine, {n_unsure} unsure (ignored)."]
    if passed:
        lines.append(
            f"  {_count(len(passed), 'fine part')} ignored, because the model does not flag {_them(len(passed))}: "
            "nothing is to be corrected, and parts that a person has chosen are no random sample, which the thresholds "
            "need."
        )
    if n_known:
        lines.append(
            f"  {_count(n_known, 'fine part')} still flagged although the model has learnt {_them(n_known)}: only "
            "another threshold can change this."
        )
    if others:
        lines.append(f"  {_count(len(others), 'part')} left out, because the model recognises another product.")
    if unread:
        lines.append(f"  {_count(len(unread), 'part')} left out, because the image cannot be read: {named(unread)}")
    if changed:
        lines.append(
            f"  {_count(len(changed), 'part')} left out, because the image has another score now, and so is not "
            f"the one that was reviewed: {named(changed)}"
        )
    return ReviewedImages(good, [path for path in defects if path in usable], lines)


def learnt_paths(detector: Any) -> set[str]:
    """Return the absolute paths of the training images of a detector, of all products."""
    members = getattr(detector, "estimators_", None) or [detector]
    return {path for member in members for path in member.training_paths_ or () if path is not None}


class _Decision(NamedTuple):
    """Score (bigger = more normal), whether an image is flagged and can be read, and the product that is recognised."""

    score: float
    is_flagged: bool
    is_read: bool
    product: str | None


def _decisions(detector: Any, paths: list[str]) -> dict[str, _Decision]:
    """Return the decision about each image."""
    if not paths:
        return {}
    found = {}
    for result in detector.iter_results(paths, with_maps=False, on_error="flag"):
        if result.label is None:
            raise CommandError("--review: the model has no threshold, and so flags no part.")
        product = getattr(result, "product", None)
        found[paths[result.index]] = _Decision(result.score, result.label == -1, result.error is None, product)
    return found


def _them(n: int) -> str:
    return "it" if n == 1 else "them"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
