"""LivePage: the page of a running inspection, which is written again and again and reloads itself."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore._utils.names import shown_name
from skpatchcore.reports.card_page import Frame, asset, filled, write_card_page
from skpatchcore.reports.cards import ANOMALOUS, NORMAL, UNDECIDED, UNREADABLE, Card, problem_of, verdict_of
from skpatchcore.reports.groups import groups_of
from skpatchcore.reports.inspection import InspectedPart, describe_inspection
from skpatchcore.reports.layers import Layers, Region
from skpatchcore.reports.page import escaped
from skpatchcore.reports.pipelines import as_image_detector, detector_of
from skpatchcore.reports.predictions import REPORT, Prediction
from skpatchcore.reports.time_charts import evidence_chart, p_value_chart, rate_chart

#: Number of parts on the page.
N_CARDS = 200
#: Start of the title of the page.
LIVE_TITLE = "skpatchcore watch:"
# Without a new page for this multiple of the time between pages, the page says that the program may have stopped.
_LATE = 6
# Headline of a page with one part.
_SINGLE = {
    ANOMALOUS: "is anomalous",
    NORMAL: "is normal",
    UNDECIDED: "was scored, without a threshold",
    UNREADABLE: "could not be read",
}


class LivePage:
    """Page of the last parts of a running inspection, with charts of the results over time.

    The page is a file. A browser that shows it loads it again every few seconds, unless a person uses the page at this
    moment. If the file gets too old, the page says that the program may have stopped.

    Parameters
    ----------
    folder : path
        Folder of the page ``report.html`` and of its pictures ``report_files``.
    detector : detector or Pipeline
        The detector that scores the images.
    model : str, default=""
        Name of the detector's file.
    refresh : float, default=10
        Seconds between two versions of the page.
    alpha : float, default=0.01
        Bound on the probability of a false alarm of drift.

    See Also
    --------
    write_prediction_report : Page of images that were scored at once.

    Notes
    -----
    The page shows anomaly scores, **bigger = more anomalous**. It does not show the nearest good patches, because their
    search would take as long as another score of the image.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        detector: Any,
        *,
        model: str = "",
        refresh: float = 10.0,
        alpha: float = 0.01,
    ):
        self.folder = Path(folder)
        self.model = model
        self.refresh = refresh
        self.alpha = alpha
        self._groups = {key: group for key, (_, group) in groups_of(as_image_detector(detector)).items()}
        self._promised = float(getattr(detector_of(detector), "promised_rate_", math.nan))

    def card_of(self, prediction: Prediction) -> Card:
        """Return the card of an image.

        Parameters
        ----------
        prediction : Prediction
            Result of the image, with its `layers` if pictures were written.

        Returns
        -------
        Card
        """
        return Card(
            path=prediction.path,
            verdict=verdict_of(prediction),
            score=-prediction.score,
            group=self._groups[prediction.product if prediction.product in self._groups else None],
            layers=prediction.layers or Layers(),
            problem=problem_of(prediction),
        )

    def stored(self, card: Card) -> str:
        """Return a card as one line of JSON, which a journal can keep.

        Parameters
        ----------
        card : Card
            The card. Of its group, only the name is stored.

        Returns
        -------
        str
        """
        values = {
            "path": card.path,
            "verdict": card.verdict,
            "score": None if math.isnan(card.score) else card.score,
            "threshold": None if math.isnan(card.group.threshold) else card.group.threshold,
            "group": card.group.name,
            "layers": asdict(card.layers),
            "problem": card.problem,
            "note": card.note,
        }
        return json.dumps(values, allow_nan=True)

    def write(
        self,
        *,
        cards: Sequence[tuple[float, str]],
        times: Any,
        labels: Any,
        p_values: Any,
        evidence: Any,
        drift: str = "",
        status: Mapping[str, str] | None = None,
        stopped: str = "",
    ) -> Path:
        """Write the page in one step, and remove the pictures that no card uses any more.

        Parameters
        ----------
        cards : sequence of (float, str)
            Time in seconds since 1970 and result of :meth:`stored` of the last parts, oldest first. The page shows the
            last 200.
        times : array of shape (n_parts,)
            Times of the last parts in seconds since 1970, ascending. The charts show all of them.
        labels : array of shape (n_parts,), int
            +1 for normal parts and -1 for anomalous ones; 0 without a threshold.
        p_values : array of shape (n_parts,)
            P-values, small = anomalous. NaN if unknown.
        evidence : array of shape (n_parts,)
            Natural logarithm of the evidence of drift after each part. NaN if unknown.
        drift : str, default=""
            Sentence about a drift; empty if there is none.
        status : mapping of str to str or None, default=None
            Names and values for the head of the page.
        stopped : str, default=""
            Sentence that the inspection has ended; empty while it runs.

        Returns
        -------
        Path
            File of the page.

        Raises
        ------
        OSError
            If the page cannot be written. The earlier page stays.
        """
        shown = [self._restored(text, seconds) for seconds, text in list(cards)[-N_CARDS:]]
        shown.reverse()
        parts = {card.path: card.layers.inspected for card in shown if card.layers.size is not None}
        head = _headline(shown)
        frame = Frame(
            headline=head,
            before=_notices(drift, stopped) + self._charts(times, labels, p_values, evidence),
            style=asset("evaluation.css") + asset("live.css"),
            script=filled(
                asset("live.js"),
                {
                    "made": f"{time.time():.0f}",
                    "refresh": f"{self.refresh:g}",
                    "late": f"{_LATE * self.refresh:g}",
                    "running": "false" if stopped else "true",
                },
            ),
            order="newest first",
        )
        return write_card_page(
            shown,
            self.folder / REPORT,
            title=f"{LIVE_TITLE} {head}",
            about={**({"Model": self.model} if self.model else {}), **(status or {})},
            inspected=describe_inspection(parts) or "",
            embed=None,
            frame=frame,
            review=True,
        )

    def _charts(self, times: Any, labels: Any, p_values: Any, evidence: Any) -> str:
        """Return the charts as a section; empty without parts."""
        times, labels = np.asarray(times, float), np.asarray(labels)
        if not len(times):
            return ""
        charts = []
        if (labels != 0).any():
            charts.append(rate_chart(times, labels == -1, self._promised))
        if np.isfinite(np.asarray(p_values, float)).any():
            charts.append(p_value_chart(times, p_values, labels == -1))
        if np.isfinite(np.asarray(evidence, float)).any():
            charts.append(evidence_chart(times, evidence, self.alpha))
        title = f"The last {len(times):,} parts" if len(times) > 1 else "The last part"
        return (
            f'<section class="part" id="over-time"><details class="headed" open><summary>{title} over time</summary>'
            f'<div class="charts">{"".join(charts)}</div></details></section>'
        )

    def _restored(self, text: str, seconds: float) -> Card:
        """Return a stored card. A part that an earlier model judged keeps its verdict."""
        values = json.loads(text)
        layers = values["layers"]
        layers["regions"] = tuple(Region(**region) for region in layers["regions"])
        layers["inspected"] = InspectedPart(*_tuples(layers["inspected"]))
        layers["size"] = None if layers["size"] is None else tuple(layers["size"])
        group = next((g for g in self._groups.values() if g.name == values["group"]), next(iter(self._groups.values())))
        notes = [f"judged on {local_time(seconds)}", values["note"]]
        threshold = math.nan if values["threshold"] is None else values["threshold"]
        is_earlier = not _same(threshold, group.threshold)
        if is_earlier:
            notes.append(f"judged by an earlier model, whose threshold was {threshold:.4g}")
        return Card(
            path=values["path"],
            verdict=values["verdict"],
            score=math.nan if values["score"] is None else values["score"],
            group=group,
            layers=Layers(**layers),
            problem=values["problem"],
            note="; ".join(note for note in notes if note),
            is_file=os.path.exists(values["path"]),
            own_threshold=threshold if is_earlier else None,
        )


def _tuples(values: Any) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def local_time(seconds: float) -> str:
    """Return a time in seconds since 1970 as a text with the time zone."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def _headline(cards: Sequence[Card]) -> str:
    """Return the result in one sentence, e.g. "3 of the last 200 parts are anomalous, 1 could not be read"."""
    verdicts = [card.verdict for card in cards]
    if not cards:
        return "No part has been judged yet"
    if len(cards) == 1:
        return f"The last part {_SINGLE[verdicts[0]]}"
    n_bad, n_unread, parts = verdicts.count(ANOMALOUS), verdicts.count(UNREADABLE), f"the last {len(cards):,} parts"
    text = f"{n_bad or 'None'} of {parts} {'is' if n_bad <= 1 else 'are'} anomalous"
    if UNDECIDED in verdicts:
        text = f"{len(cards):,} parts scored, no threshold"
    return text + (f", {n_unread} could not be read" if n_unread else "")


def _notices(drift: str, stopped: str) -> str:
    """Return the alarm of drift and the notice that the program has stopped. The script fills the third one."""
    texts = (("drift", drift), ("stopped", stopped))
    shown = "".join(
        f'<p class="notice" id="{kind}" role="alert">{escaped(shown_name(text))}</p>' for kind, text in texts if text
    )
    return f'{shown}<p class="notice" id="late" role="alert" hidden></p><p id="refresh" class="note" role="status"></p>'
