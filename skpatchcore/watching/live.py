"""LiveReport: keeps the page of the last parts current."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore.reports.predictions import Prediction
from skpatchcore.watching.journal import Journal
from skpatchcore.watching.notices import Notices

# Number of the last parts in the curves, and number of those with pictures.
N_PARTS = (10_000, 200)
# Seconds between two writings of the page, while files wait and while none waits.
_REFRESH, _IDLE_REFRESH = 10.0, 2.0


class LiveReport:
    """The page ``report.html`` of a watched folder.

    Parameters
    ----------
    output : path
        Folder of the page.
    detector : detector
        The detector that judges the parts.
    model : str
        Name of the model.
    journal : Journal
        Holds the parts of the page.
    notices : Notices
        Where problems are said.
    """

    def __init__(self, output: Path, detector: Any, model: str, journal: Journal, notices: Notices):
        from skpatchcore.reports.live_page import LivePage, local_time

        self._local_time = local_time
        self._page = LivePage(output, detector, model=model, refresh=_REFRESH)
        self._journal, self._notices = journal, notices
        self._last = -float("inf")
        self._is_changed = True

    def card(self, prediction: Prediction) -> str | None:
        """Return the card of a part as text; None if it cannot be made."""
        self._is_changed = True
        try:
            return str(self._page.stored(self._page.card_of(prediction)))
        except Exception as error:  # the result does not depend on its card
            self._notices.say_once(f"a card of the report could not be made: {error}", "card")
            return None

    def write_if_due(self, drift: str, status: dict[str, str], is_idle: bool, is_end: bool = False) -> None:
        """Write the page: every 10 seconds, or at the end; after 2 seconds if it has changed and nothing waits.

        A page that has not changed is written, too, because a reader takes an old page for that of a dead process.

        Raises
        ------
        OSError
            If the page cannot be written.
        """
        pause = 0.0 if is_end else _IDLE_REFRESH if is_idle and self._is_changed else _REFRESH
        if time.monotonic() - self._last < pause:
            return
        parts = self._journal.parts()
        try:
            self._page.write(
                cards=[(part.time, part.card) for part in parts if part.card is not None],
                times=np.array([part.time for part in parts], np.float64),
                labels=np.array([part.label for part in parts], np.int64),
                p_values=np.array([part.p_value for part in parts], np.float64),
                evidence=np.array([part.evidence for part in parts], np.float64),
                drift=drift,
                status=status,
                stopped=f"The program was stopped on {self._local_time(time.time())}." if is_end else "",
            )
        except OSError:
            raise
        except Exception as error:  # the results do not depend on the page
            self._notices.say_once(f"the report could not be made: {error}", "page")
        self._last, self._is_changed = time.monotonic(), False
