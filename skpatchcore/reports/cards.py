"""Card and CardGroup: everything that a report page shows of one image, and of the detector that scored it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skpatchcore.reports.layers import Layers

ANOMALOUS, NORMAL, UNDECIDED, UNREADABLE = "anomalous", "normal", "undecided", "unreadable"
# Texts of the verdicts.
VERDICTS = {
    ANOMALOUS: "Anomalous",
    NORMAL: "Normal",
    UNDECIDED: "Scored, no threshold",
    UNREADABLE: "Not readable",
}


@dataclass(frozen=True, eq=False)
class CardGroup:
    """Thresholds, calibration scores and settings of one detector, which all cards of its images share.

    A card is the part of a report page that shows one image (:class:`Card`). The attribute ``group`` of a card is the
    CardGroup of the detector that scored the image. A page with images of several detectors has several groups.

    Attributes
    ----------
    name : str
        Name of the group, e.g. the name of a surface. The page shows the names if it has several groups.
    threshold : float
        Image threshold for anomaly scores, bigger = more anomalous: minus ``offset_`` of the detector. NaN if the
        detector has no threshold.
    pixel_threshold : float
        Pixel threshold, bigger = more anomalous: ``pixel_offset_`` of the detector. NaN if the detector has no
        threshold.
    calibration_scores : array of shape (n_calibration,)
        Anomaly scores of the calibration images, bigger = more anomalous, in ascending order. Scores that are
        NaN are left out.
    promise : str
        Text about the false positives of the detector: a bound on their rate, if there is one, and the number of
        calibration images that would be flagged.
    settings : dict of str to str
        Names and values of the detector's settings, as shown on the page.
    """

    name: str = ""
    threshold: float = math.nan
    pixel_threshold: float = math.nan
    calibration_scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    promise: str = ""
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scores = np.asarray(self.calibration_scores, np.float64)
        object.__setattr__(self, "calibration_scores", np.sort(scores[~np.isnan(scores)]))


@dataclass(frozen=True)
class Nearest:
    """The most anomalous patch of an image, and the patch of a training image that is nearest to it.

    Attributes
    ----------
    name : str
        Name of the training image; empty if it is unknown.
    distance : float
        Distance of the two patch features, bigger = more anomalous.
    patch, nominal : str or None
        Files of the two crops relative to the page; None if there is no such picture.
    problem : str
        Why a crop is missing; empty if none is.
    """

    name: str
    distance: float
    patch: str | None = None
    nominal: str | None = None
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Card:
    """Everything that a report page shows of one image.

    Attributes
    ----------
    path : str
        File of the image.
    verdict : {"anomalous", "normal", "undecided", "unreadable"}
        Verdict. "undecided" is an image that was scored by a detector without a threshold.
    score : float
        Anomaly score, **bigger = more anomalous**; NaN if the image could not be read.
    group : CardGroup
        The detector's thresholds.
    layers : Layers
        Pictures and regions.
    problem : str
        Why the image could not be read or why a picture is missing; empty if nothing is wrong.
    nearest : Nearest or None
        The nearest nominal patch; None if it was not searched.
    note : str
        Further text, e.g. the true label.
    is_file : bool
        Whether `path` is the path of a file, which the page links to. Otherwise `path` is only a name.
    own_threshold : float or None
        Threshold that decided, bigger = more anomalous, if it was not the threshold of `group`, e.g. because the part
        was judged before the detector was changed; NaN if there was none. None if it was the threshold of `group`.
    """

    path: str
    verdict: str
    score: float
    group: CardGroup
    layers: Layers = field(default_factory=Layers)
    problem: str = ""
    nearest: Nearest | None = None
    note: str = ""
    is_file: bool = True
    own_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict={self.verdict!r}: expected one of {', '.join(map(repr, VERDICTS))}.")

    @property
    def n_as_bad(self) -> int | None:
        """Number of calibration images with a score that is at least as high; None if that cannot be counted."""
        scores = self.group.calibration_scores
        if math.isnan(self.score) or not len(scores):
            return None
        return int(len(scores) - np.searchsorted(scores, self.score, side="left"))

    @property
    def rarity(self) -> str:
        """Sentence that compares the score with those of good images, e.g. "1 of 214 good images scores as badly"."""
        n, found = len(self.group.calibration_scores), self.n_as_bad
        if found is None:
            return ""
        images = "good image" if n == 1 else "good images"
        if found == 0:
            return f"None of {n:,} {images} scores as badly"
        return f"{found:,} of {n:,} {images} score{'s' if found == 1 else ''} as badly"

    @property
    def decision(self) -> str:
        """Sentence that says which threshold decided, and whether the pixels agree."""
        if self.verdict == UNREADABLE:
            return "The image could not be read. It is not a normal image."
        if self.verdict == UNDECIDED:
            return "The detector has no threshold: it was not calibrated."
        if math.isnan(self.group.pixel_threshold):
            state, above = ("Normal", "not above") if self.verdict == NORMAL else ("Anomalous", "above")
            has_map = self.layers.heat is not None or bool(self.layers.problem)
            why = "There is no pixel threshold." if has_map else "There is no anomaly map."
            return f"{state}: the anomaly score is {above} the image threshold. {why}"
        n = self.layers.n_regions
        exceed = f"{n:,} region{' is' if n == 1 else 's are'} above the pixel threshold"
        if self.verdict == NORMAL:
            if n:
                return f"Normal: the anomaly score is not above the image threshold. {exceed}."
            return "Normal: neither the anomaly score nor a pixel is above its threshold."
        if n:
            return f"Anomalous: the anomaly score is above the image threshold, and {exceed}."
        return "Anomalous: the anomaly score is above the image threshold. No pixel is above the pixel threshold."

    @property
    def disagrees(self) -> bool:
        """Whether the image verdict and the outline differ."""
        if math.isnan(self.group.pixel_threshold):
            return False
        has_regions = self.layers.n_regions > 0
        return (self.verdict == NORMAL and has_regions) or (self.verdict == ANOMALOUS and not has_regions)

    @property
    def extent(self) -> str:
        """Number of regions and size of the largest one, e.g. "2 regions, largest 1,240 pixels"."""
        n = self.layers.n_regions
        if self.verdict in (UNREADABLE, UNDECIDED) or not n:
            return ""
        pixels = f"{self.layers.largest:,} pixel{'s' if self.layers.largest != 1 else ''}"
        return f"1 region of {pixels}" if n == 1 else f"{n:,} regions, largest {pixels}"


def worst_first(card: Card) -> tuple[bool, float, float]:
    """Return the sort key of a card: images that could not be read first, then the highest scores.

    Scores of different groups are compared as distances from their thresholds.
    """
    is_read = card.verdict != UNREADABLE
    if not is_read:
        return False, 0.0, 0.0
    return True, -relative_score(card), -card.score


def relative_score(card: Card) -> float:
    """Return the score on a scale that groups share: a multiple of the threshold if the threshold is positive."""
    threshold = card.group.threshold
    if math.isnan(threshold):
        return card.score
    return card.score / threshold if threshold > 0 else 1 + card.score - threshold


def headline(cards: list[Card], noun: str = "part") -> str:
    """Return the result in one sentence, e.g. "12 of 230 parts are anomalous, 1 could not be read"."""
    n, counts = len(cards), {verdict: sum(card.verdict == verdict for card in cards) for verdict in VERDICTS}
    nouns = f"{n:,} {noun}{'' if n == 1 else 's'}"
    n_anomalous = counts[ANOMALOUS]
    if counts[UNDECIDED]:
        text = f"{nouns} scored, no threshold"
    elif n_anomalous == 0:
        text = f"None of {nouns} is anomalous"
    else:
        text = f"{n_anomalous:,} of {nouns} {'is' if n_anomalous == 1 else 'are'} anomalous"
    return text + (f", {counts[UNREADABLE]:,} could not be read" if counts[UNREADABLE] else "")


def anomaly_scores(scores: Any) -> np.ndarray:
    """Return scikit-learn's scores (bigger = more normal) as anomaly scores (bigger = more anomalous)."""
    return -np.asarray(scores, np.float64)


def verdict_of(prediction: Any) -> str:
    """Return the verdict about an image from its :class:`~skpatchcore.reports.Prediction`."""
    if not prediction.is_scored:
        return UNREADABLE
    return {1: NORMAL, -1: ANOMALOUS, None: UNDECIDED}[prediction.label]


def problem_of(prediction: Any) -> str:
    """Return all problems of an image from its :class:`~skpatchcore.reports.Prediction`, each once."""
    layers = prediction.layers.problem if prediction.layers and prediction.is_scored else ""
    return "; ".join(dict.fromkeys(text for text in (prediction.problem, layers) if text))
