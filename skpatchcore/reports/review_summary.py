"""summary_of_review: the answers of a person and the decisions of a model, as numbers in plain JSON types."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from skpatchcore._utils.answers import DEFECT, OPEN
from skpatchcore._utils.names import shown_name, shown_text
from skpatchcore.evaluation.reviewing import (
    Estimate,
    ReviewCounts,
    ThresholdCandidate,
    count_review,
    reviewed_rates,
    share_interval,
    threshold_candidates,
)
from skpatchcore.reports.cards import ANOMALOUS, UNDECIDED, UNREADABLE, anomaly_scores
from skpatchcore.reports.groups import promised_rates
from skpatchcore.reports.pipelines import detector_of

# Kinds of entries in the log of a model after which its scores differ.
_CHANGES_SCORES = ("fit", "partial_fit", "forget")
# Number of parts that are recommended for a review, and number of paths in a printed command.
_N_ENOUGH, _N_PATHS = 100, 20
# Largest relative difference between scores of the same image on two devices.
_ROUNDING = 2e-3
# Rows of the table of answers and decisions.
COUNTS = ("parts", "defect", "fine", "unsure", "open")


@dataclass(frozen=True, eq=False)
class Decisions:
    """Decisions about the parts of a review.

    Attributes
    ----------
    source : {"scores", "rescored", "file"}
        "scores" and "rescored" are decisions of the model as it is now, by the scores in the file and by new scores.
        "file" are the decisions that are written in the file.
    is_flagged : array of shape (n_parts,), bool
        True = flagged, also for a part that could not be read.
    scores : array of shape (n_parts,)
        Scores, bigger = more normal; NaN for a part that could not be read.
    reason : str
        Sentence that says why these decisions are used.
    """

    source: str
    is_flagged: np.ndarray
    scores: np.ndarray
    reason: str


def scores_are_of(detector: Any, thresholds: np.ndarray) -> tuple[bool, str]:
    """Return whether scores in a file are of a detector as it is now, and a sentence that gives the reason.

    The scores are recognised by the threshold beside them. The log of the detector states which thresholds it had, and
    which changes were made to its scores.

    Parameters
    ----------
    detector : detector
        Fitted, with a threshold.
    thresholds : array of shape (n_parts,)
        Thresholds in the file, bigger = more normal. NaN for a part without a threshold.
    """
    found = np.unique(thresholds[~np.isnan(thresholds)])
    if hasattr(detector, "for_product"):
        return False, "The model has several products, and the file does not show with which thresholds it was scored."
    if not len(found):
        return False, "There are no thresholds in the file."
    now, earlier = _known_thresholds(detector)
    if not all(any(_is_same(value, own) for own in now) for value in found):
        if all(any(_is_same(value, own) for own in now | earlier) for value in found):
            return False, "The model has learnt or forgotten images since these scores were computed."
        return False, "The threshold in the file is not one of this model: the scores are of another model."
    if any(_is_same(value, own) for own in earlier for value in found):
        return False, "The model has been changed without a new threshold: the scores may be of the model before."
    return True, "The scores in the file are of this model."


def changed_images(labels: pd.DataFrame, detector: Any, scores: np.ndarray) -> list[str]:
    """Return the paths of the images that were replaced after the review: their scores have changed.

    Parameters
    ----------
    labels : DataFrame
        Answers, as ``read_labels`` returns them.
    detector : detector
        Fitted, with a threshold.
    scores : array of shape (n_parts,)
        Scores of the files as they are now, by this detector, bigger = more normal. NaN for a file that cannot be read.

    Returns
    -------
    list of str
        Paths whose score differs from that in `labels` by more than the rounding of another device. Empty if the scores
        in `labels` are not known to be of this detector.
    """
    if not scores_are_of(detector, labels["threshold"].to_numpy())[0]:
        return []
    before = labels["score"].to_numpy()
    is_known = ~np.isnan(before) & ~np.isnan(scores)
    is_other = is_known & (np.abs(scores - before) > _ROUNDING * np.maximum(np.abs(scores), np.abs(before)))
    found: list[str] = labels["path"][is_other].tolist()
    return found


def _known_thresholds(detector: Any) -> tuple[set[float], set[float]]:
    """Return the thresholds that a detector had with the scores that it has now, and with other scores before."""
    now: set[float] = set()
    earlier: set[float] = set()
    for entry in getattr(detector, "updates_", []):
        before, after = entry["offset"]
        now |= {before} - {None}
        if entry["kind"] in _CHANGES_SCORES:
            earlier, now = earlier | now, set()
        now |= {after} - {None}
    return now | {float(detector.offset_)}, earlier


def _is_same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-12)  # spreadsheets keep 15 digits


def decisions_of_file(labels: pd.DataFrame, reason: str) -> Decisions:
    """Return the decisions that are written in the file. Raise a ValueError if a part has none."""
    verdicts = labels["verdict"].to_numpy()
    if (verdicts == UNDECIDED).any():
        raise ValueError(
            f"{reason} {int((verdicts == UNDECIDED).sum())} parts in the file have no decision. Pass --rescore to "
            "score the images again."
        )
    return Decisions("file", np.isin(verdicts, [ANOMALOUS, UNREADABLE]), labels["score"].to_numpy(), reason)


def summary_of_review(
    labels: pd.DataFrame,
    decisions: Decisions,
    model: Any,
    path: str,
    files: Sequence[str],
    trusted: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the numbers of a review in plain JSON types.

    Parameters
    ----------
    labels : DataFrame
        Answers, as ``read_labels`` returns them.
    decisions : Decisions
        Decisions about the same parts.
    model : detector or Pipeline
        The model.
    path : str
        File of the model.
    files : sequence of str
        Files of the answers.
    trusted : sequence of str
        Types that the model file may contain, for the commands.
    """
    detector = detector_of(model)
    answers = labels["review"].to_numpy()
    was_flagged = np.isin(labels["verdict"].to_numpy(), [ANOMALOUS, UNREADABLE])
    is_undecided = (labels["verdict"] == UNDECIDED).to_numpy()
    was_flagged = np.where(is_undecided, decisions.is_flagged, was_flagged)
    counts = count_review(decisions.is_flagged, answers)
    rates = reviewed_rates(count_review(decisions.is_flagged, answers, was_flagged))
    is_teachable = hasattr(model, "partial_fit") and not hasattr(detector, "for_product")
    unreadable = labels["path"][np.isnan(decisions.scores)].tolist()
    summary: dict[str, Any] = {
        "files": [str(file) for file in files],
        "model": path,
        "decisions": {"source": decisions.source, "reason": decisions.reason},
        "parts": {name: _of_strata(getattr(counts, f"n_{name}")) for name in COUNTS},
        "unreadable": [shown_name(name) for name in unreadable],
        "defects of flagged": _share(counts, 0),
        "defects of not flagged": _share(counts, 1),
        "false-alarm rate": _estimate(rates.false_alarm),
        "miss rate": _estimate(rates.miss),
        "changed decisions": int(np.count_nonzero(decisions.is_flagged != was_flagged)),
        "learnt": _n_learnt(detector, labels["path"][answers != OPEN].tolist()),
        "to review": _missing(counts),
        "teach": _teach(path, files, trusted) if is_teachable and counts.n_known.any() else None,
    }
    if decisions.source == "file" or hasattr(detector, "for_product"):
        return {**summary, "thresholds": None}
    promised = promised_rates(detector)
    candidates = threshold_candidates(
        anomaly_scores(decisions.scores),
        answers,
        anomaly_scores(detector.calibration_scores_),
        -float(detector.offset_),
        math.nan if promised is None else promised[0],
    )
    missed = labels["path"][(answers == DEFECT) & ~decisions.is_flagged & ~np.isnan(decisions.scores)].tolist()
    defects = labels["path"][(answers == DEFECT) & ~np.isnan(decisions.scores)].tolist()
    commands = _Commands(model, path, trusted, defects, bool(missed))
    return {
        **summary,
        "calibration images": int(np.count_nonzero(~np.isnan(detector.calibration_scores_))),
        "thresholds": [
            {**_threshold(one), "command": None if one.threshold == candidates[0].threshold else commands.of(one)}
            for one in candidates
        ],
    }


def _of_strata(values: np.ndarray) -> dict[str, int]:
    return {"flagged": int(values[0]), "not flagged": int(values[1])}


def _share(counts: ReviewCounts, stratum: int) -> dict[str, Any]:
    k, n = int(counts.n_defect[stratum]), int(counts.n_known[stratum])
    return {"defects": k, "reviewed": n, "interval": None if n == 0 else list(share_interval(k, n))}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    if math.isnan(estimate.value):
        return {"rate": None, "interval": None, "missing": estimate.reason}
    return {"rate": estimate.value, "interval": [estimate.low, estimate.high], "missing": None}


def _n_learnt(detector: Any, paths: Sequence[str]) -> int:
    """Return how many of some images are training images of the detector."""
    members = getattr(detector, "estimators_", None) or [detector]
    learnt = {path for member in members for path in getattr(member, "training_paths_", None) or ()}
    return sum(os.path.abspath(path) in learnt for path in paths)


def _missing(counts: ReviewCounts) -> dict[str, int]:
    """Return how many more parts to review in each stratum until there are enough."""
    values = [int(min(n, max(0, _N_ENOUGH - k))) for n, k in zip(counts.n_open, counts.n_known, strict=True)]
    return {"flagged": values[0], "not flagged": values[1]}


def _threshold(candidate: ThresholdCandidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "anomaly score": candidate.threshold,
        "promised rate": None if math.isnan(candidate.promised_rate) else candidate.promised_rate,
        "contamination": None if math.isnan(candidate.contamination) else candidate.contamination,
        "defects found": candidate.n_defects_found,
        "fine flagged": candidate.n_fine_flagged,
    }


class _Commands:
    """Commands that set a proposed threshold in a model file."""

    def __init__(self, model: Any, path: str, trusted: Sequence[str], defects: Sequence[str], has_missed: bool):
        self._model, self._path, self._trusted = model, path, list(trusted)
        # `update --bad` scores the images again, and moves the threshold only if one of them is missed
        is_possible = has_missed and len(defects) <= _N_PATHS and hasattr(model, "partial_fit")
        is_possible = is_possible and not _n_learnt(detector_of(model), defects)  # `update --bad` refuses learnt images
        is_usable = is_possible and all(os.path.isfile(path) and _is_printable(path) for path in defects)
        self._defects = list(defects) if is_usable else []

    def of(self, candidate: ThresholdCandidate) -> str | None:
        """Return the command; None if there is none."""
        if math.isnan(candidate.contamination):
            return None
        if candidate.name == "all defects" and self._defects:
            trust = [word for name in self._trusted for word in ("--trust", name)]
            images = map(_as_argument, self._defects)
            return _joined(["skpatchcore", "update", self._path, "--bad", *images, "--move-threshold", *trust])
        file, step = _literal(self._path), "[-1]" if hasattr(self._model, "steps") else ""
        if self._path.endswith(".joblib"):
            read, write, module = f"joblib.load({file})", f"joblib.dump(d, {file})", "joblib"
        else:
            trusted = f", trusted={json.dumps(self._trusted)}" if self._trusted else ""
            read, module = f"skpatchcore.load({file}{trusted})", "skpatchcore"
            write = f"skpatchcore.save(d, {file}{self._bank_dtype()})"
        code = f"import {module}; d = {read}; d{step}.recalibrate(contamination={candidate.contamination!r}); {write}"
        return _joined(["python", "-c", code])

    def _bank_dtype(self) -> str:
        """Return the argument that keeps the data type of the memory bank in the file."""
        from skpatchcore.deployment.files import manifest_of_file

        bank = manifest_of_file(self._path)["bank"]
        stored = None if bank is None else bank["stored as"]
        return "" if stored is None else f", bank_dtype={json.dumps(stored)}"


def _teach(path: str, files: Sequence[str], trusted: Sequence[str]) -> str | None:
    trust = [word for name in trusted for word in ("--trust", name)]
    return _joined(["skpatchcore", "update", path, "--review", *map(_as_argument, map(str, files)), *trust])


def _is_printable(word: str) -> bool:
    """Return whether a word can be printed and typed. Bytes that are no text, and control characters, cannot."""
    return shown_text(word) == word and "\n" not in word


def _as_argument(path: str) -> str:
    """Return a path that the command line does not take as an option."""
    return os.path.join(os.curdir, path) if path.startswith("-") else path


def _literal(text: str) -> str:
    """Return the code of a text in Python, in double quotes and in ASCII."""
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'


def _joined(words: Sequence[str]) -> str | None:
    """Return a command for the shell; None if a word cannot be printed."""
    if not all(map(_is_printable, words)):
        return None
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
