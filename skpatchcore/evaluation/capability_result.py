"""DetectionCapability: which sizes of defects a detector finds, as a table, curves and sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from skpatchcore.datasets.defects import DEFECT_SIZES
from skpatchcore.evaluation.pod import PodCurve

# Kind of the curve of all real defects together.
ALL_KINDS = "all"
_PLURALS = {
    "scratch": "scratches",
    "blob": "blobs",
    "stain": "stains",
    "foreign": "spots of foreign texture",
    "missing": "missing pieces",
    "shift": "colour shifts",
    "crack": "cracks",
    "misplaced": "misplaced pieces",
    "warped": "warped spots",
    "rough": "rough spots",
    "worn": "worn spots",
}


class Example(NamedTuple):
    """A trial that is shown as an example.

    Attributes
    ----------
    trial : int
        Row of the trial in the table of trials.
    caption : str
        E.g. ``"smallest found: 2.1 px"``.
    """

    trial: int
    caption: str


@dataclass(frozen=True, eq=False)
class DetectionCapability:
    """Result of :func:`~skpatchcore.detection_capability` and :func:`~skpatchcore.capability_of_defects`.

    Attributes
    ----------
    trials : DataFrame
        One row per defect: ``image`` (index of the image), ``kind``, ``size`` (pixels), ``contrast`` (NaN for real
        defects), ``score`` (**bigger = more normal**), ``decision`` (score minus threshold, negative = flagged) and
        ``hit`` (whether the image was flagged). Real defects also have ``diameter``, ``width`` and ``area``.
    curves : dict of (str, float) to PodCurve
        Probability of detection by kind and contrast. The contrast of real defects is NaN.
    size_names : dict of str to str
        Meaning of the size of each kind: ``"width"`` or ``"diameter"``.
    promised_rate : float
        Upper bound on the fraction of good images that are flagged, which the threshold promises.
    offset : float
        The threshold: an image is flagged if its score is below.
    n_good, n_flagged : int
        Number of good images without a defect, and how many of them are flagged. 0 if there were none.
    seed : int or None
        Seed of the drawing; None for real defects.
    drawable : float, default=1.0
        Fraction of the pixels that the detector inspects and that lie in `region`. Only they can have a drawn defect.
    """

    trials: pd.DataFrame
    curves: Mapping[tuple[str, float], PodCurve]
    size_names: Mapping[str, str]
    promised_rate: float
    offset: float
    n_good: int
    n_flagged: int
    seed: int | None
    _draw: Callable[[int], tuple[np.ndarray, np.ndarray]] = field(repr=False)
    drawable: float = 1.0

    @property
    def is_synthetic(self) -> bool:
        """Whether the defects were drawn."""
        return self.seed is not None

    def to_frame(self) -> pd.DataFrame:
        """Return one row per kind and contrast.

        Returns
        -------
        DataFrame
            Columns: ``kind``, ``contrast``, ``size`` (``"width"`` or ``"diameter"``), ``n_trials``, ``n_images``,
            ``n_found``, ``a90`` and ``a90_95`` (pixels; see :class:`PodCurve` for infinite values and NaN), ``state``,
            ``smallest_found`` and ``largest_missed`` (pixels, NaN if there is none).
        """
        rows = []
        for (kind, contrast), curve in self.curves.items():
            own = self.trials_of(kind, contrast)
            rows.append({
                "kind": kind, "contrast": contrast, "size": self.size_names[kind], "n_trials": len(own),
                "n_images": own["image"].nunique(), "n_found": int(own["hit"].sum()), "a90": curve.a90,
                "a90_95": curve.a90_95, "state": curve.state,
                "smallest_found": own.loc[own["hit"], "size"].min(),
                "largest_missed": own.loc[~own["hit"], "size"].max(),
            })  # fmt: skip
        return pd.DataFrame(rows)

    def trials_of(self, kind: str, contrast: float) -> pd.DataFrame:
        """Return the rows of the table of trials of one kind and contrast.

        Parameters
        ----------
        kind : str
            Kind of the defects.
        contrast : float
            Their contrast; NaN for real defects.

        Returns
        -------
        DataFrame
            The rows, with their labels in `trials`.
        """
        same = self.trials["contrast"].isna() if math.isnan(contrast) else self.trials["contrast"] == contrast
        of_kind = self.trials["kind"] == kind
        if kind == ALL_KINDS and not of_kind.any():
            return self.trials[same]
        return self.trials[of_kind & same]

    def sentences(self) -> list[str]:
        """Return one sentence per kind and contrast, e.g. ``"... finds 90 % of scratches wider than 6.2 px ..."``.

        Returns
        -------
        list of str
            The sentences, in the order of `curves`.
        """
        return [
            f"At a promised false-alarm rate of {percent(self.promised_rate)}, the detector "
            f"{_finding(self.name_of(kind, contrast), self.size_names[kind], curve)}"
            for (kind, contrast), curve in self.curves.items()
        ]

    def name_of(self, kind: str, contrast: float) -> str:
        """Return the plural of a kind of defect, with its contrast.

        Parameters
        ----------
        kind : str
            Kind of the defects.
        contrast : float
            Their contrast; NaN for real defects.

        Returns
        -------
        str
            E.g. ``"scratches of contrast 0.6"``.
        """
        if not self.is_synthetic:
            return "real defects" if kind == ALL_KINDS else f"real defects of the kind {kind!r}"
        name = _PLURALS[kind]
        return name if math.isnan(contrast) else f"{name} of contrast {contrast:g}"

    def false_alarms(self) -> str:
        """Return a sentence about the false alarms on good images without a defect.

        Returns
        -------
        str
            The sentence; empty if no good images were scored.
        """
        if not self.n_good:
            return ""
        interval = binomtest(self.n_flagged, self.n_good).proportion_ci(0.9, method="wilson")
        return (
            f"Without a defect, {self.n_flagged} of {self.n_good} good images are flagged "
            f"({percent(self.n_flagged / self.n_good)}; 90 % interval: {percent(interval.low)} to "
            f"{percent(interval.high)})."
        )

    def coverage(self) -> str:
        """Return a sentence about the pixels that can have a drawn defect.

        Returns
        -------
        str
            The sentence; empty if these are all pixels.
        """
        if self.drawable == 1:
            return ""
        return (
            f"Defects were drawn in only {percent(self.drawable)} of the pixels, which the detector inspects and which "
            "lie in the given region. No statement is made about defects elsewhere."
        )

    def summary(self) -> str:
        """Return all sentences, one per line.

        Returns
        -------
        str
            The text.
        """
        return "\n".join(line for line in (*self.sentences(), self.coverage(), self.false_alarms()) if line)

    def examples(self, kind: str, contrast: float) -> Iterator[Example]:
        """Yield the smallest found and the largest missed defect of one kind and contrast, if there are any.

        Parameters
        ----------
        kind : str
            Kind of the defects.
        contrast : float
            Their contrast; NaN for real defects.

        Yields
        ------
        Example
            Row of the trial, and a caption.
        """
        own = self.trials_of(kind, contrast)
        found, missed = own[own["hit"]], own[~own["hit"]]
        if len(found):
            yield Example(_row_of_size(found, found["size"].min()), f"smallest found: {pixels(found['size'].min())}")
        if len(missed):
            yield Example(_row_of_size(missed, missed["size"].max()), f"largest missed: {pixels(missed['size'].max())}")

    def draw(self, trial: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the image of a trial and the mask of its defect.

        Parameters
        ----------
        trial : int
            Row of the trial in the table of trials.

        Returns
        -------
        image : array of shape (height, width, 1 or 3), float32
            Pixels in [0, 1].
        mask : array of shape (height, width), bool
            True for defective pixels.
        """
        return self._draw(trial)


def _row_of_size(table: pd.DataFrame, size: float) -> int:
    """Return the label of the first row with a size."""
    return int(table.index.to_numpy()[np.flatnonzero(table["size"] == size)[0]])


def percent(share: float) -> str:
    """Return a fraction in per cent, with two significant digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.3g} %"


def pixels(size: float) -> str:
    """Return a size in pixels, with two or three significant digits."""
    return f"{size:.1f} px" if size < 99.95 else f"{size:.0f} px"


def size_name_of(kind: str) -> str:
    """Return the meaning of the size of a synthetic defect."""
    return DEFECT_SIZES[kind]


def _finding(name: str, size_name: str, curve: PodCurve) -> str:
    """Return the end of a sentence: which defects are found."""
    larger = "wider than" if size_name == "width" else "with a diameter above"
    n, tested = len(curve.hits), f"{size_name}s from {pixels(curve.sizes.min())} to {pixels(curve.sizes.max())} tested"
    level = f"{100 * curve.confidence:g} %"
    bound = (
        f"with {level} confidence, 90 % of those {larger} {pixels(curve.a90_95)}"
        if math.isfinite(curve.a90_95)
        else f"with {level} confidence, no size within the tested range can be stated"
    )
    if curve.state == "none found":
        return f"finds none of {n} {name} ({tested})."
    if curve.state == "not reached":
        return f"does not find 90 % of {name} at any tested size: {int(curve.hits.sum())} of {n} are found ({tested})."
    if curve.state == "all found":
        return f"finds all {n} {name} ({tested}); {bound}."
    if curve.state == "always reached":
        return f"finds 90 % of {name} at all tested sizes ({tested}); {bound}."
    return f"finds 90 % of {name} {larger} {pixels(curve.a90)}; {bound}."
