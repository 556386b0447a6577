"""Recorder: writes the results of files exactly once: heat map, journal, both tables, and the move of the file."""

from __future__ import annotations

import errno
import math
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from skpatchcore._utils.names import escape_name
from skpatchcore.reports.cards import verdict_of
from skpatchcore.reports.predictions import TABLE, Prediction
from skpatchcore.watching.candidates import Place
from skpatchcore.watching.heartbeat import utc
from skpatchcore.watching.journal import Journal, Line, Part, Row
from skpatchcore.watching.judging import MAPS, Judge, Judged
from skpatchcore.watching.known import KnownVersions
from skpatchcore.watching.live import N_PARTS, LiveReport
from skpatchcore.watching.moving import move, target_of
from skpatchcore.watching.notices import Notices
from skpatchcore.watching.records import csv_header, csv_line, json_line
from skpatchcore.watching.settings import WatchSettings
from skpatchcore.watching.storing import Storing, flush
from skpatchcore.watching.tables import Table

JSON_TABLE = "scores.jsonl"
# Number of moves that are tried again at once.
_N_MOVES = 100
# Errors of a move that another try soon may not have.
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@dataclass
class Counts:
    """Numbers of files since the start of the process."""

    judged: int = 0
    anomalous: int = 0
    unreadable: int = 0
    not_moved: int = 0


class Recorder:
    """Write the results of judged files. The order of the steps makes each result appear once.

    1. The heat map is written. A kill after this step leaves a map without a row, which the next start removes.
    2. The row is committed to the journal, with both lines and the places where they belong.
    3. Both lines are appended. After a kill, the next start looks at their places and writes what is missing.
    4. The file is moved, if it is to be moved. The next start completes moves.
    5. The next transaction notes that the lines are written.

    Parameters
    ----------
    place : Place
        The watched folder.
    output : path
        Folder of the results.
    settings : WatchSettings
        The options.
    journal : Journal
        The journal of the output folder.
    storing : Storing
        Repeats writes if the disk is full.
    notices : Notices
        Where problems are said.
    """

    def __init__(
        self,
        place: Place,
        output: Path,
        settings: WatchSettings,
        journal: Journal,
        storing: Storing,
        notices: Notices,
    ):
        self._place, self._output, self._settings = place, output, settings
        self._journal, self._storing, self._notices = journal, storing, notices
        self.known = KnownVersions(journal.versions())
        self.counts = Counts()
        self._last_tried, self._is_first = 0, True
        self._json = Table(output / JSON_TABLE, b"", settings.fsync)
        self._csv: Table | None = None
        self._header = b""

    def use(self, judge: Judge) -> None:
        """Write results of this judge from now on. Its table may have other columns."""
        self._is_first = True
        header = csv_header(judge.has_products)
        if header != self._header:
            self.close()
            self._header, self._csv = (
                header,
                Table(
                    self._output / TABLE,
                    header,
                    self._settings.fsync,
                    lambda path: self._notices.say(
                        f"the table {TABLE!r} has other columns, and was renamed to {path.name!r}."
                    ),
                ),
            )

    def recover(self) -> int:
        """Complete what an earlier process began. Return how many lines and moves were looked at."""
        rows = self._journal.unwritten()
        for row in rows:
            self._append(row)
            self._journal.mark_written(row.number)
        unmoved = self._journal.unmoved()
        for row in unmoved:
            self._move(row)
        self._storing.insist(self._journal.flush)
        self._remove_leftovers()
        return len(rows) + len(unmoved)

    def record(self, judge: Judge, judged: Judged, report: LiveReport | None) -> Prediction:
        """Write the result of a file. Return its prediction.

        Raises
        ------
        Stopped
            If the process ends before the result could be written.
        """
        number = self._journal.last + 1
        self._storing.insist(lambda: self._draw(judge, judged, f"{self._journal.id[:8]}-{number}"))
        prediction, arrival = judged.prediction, judged.arrival
        verdict = verdict_of(prediction)
        folder = self._settings.move
        target = None if folder is None else target_of(folder, verdict, arrival.version.path)
        # A review names the files of the page, which must exist after the move.
        shown = prediction if target is None else prediction._replace(path=target)
        card = None if report is None else report.card(shown)
        row = self._storing.insist(lambda: self._commit(judge, judged, verdict, target, card, report is not None))
        self.known.add(arrival.version)
        self._append(row)
        self._journal.mark_written(number)
        if row.target is not None:
            self._move(row)
        self.counts.judged += 1
        self.counts.anomalous += verdict == "anomalous"
        self.counts.unreadable += verdict == "unreadable"
        return prediction

    def messages_of(self, verdict: str) -> list[str]:
        """Return the kinds of messages about a file with this verdict."""
        settings, is_told = self._settings, verdict in ("anomalous", "unreadable")
        kinds = ["webhook"] if settings.webhook is not None and (is_told or settings.webhook_all) else []
        return [*kinds, "exec"] if settings.exec is not None and is_told else kinds

    def move_rest(self) -> None:
        """Try again to move files that could not be moved."""
        rows = self._journal.unmoved(_N_MOVES, after=self._last_tried)
        self._last_tried = rows[-1].number if rows else 0  # files that stay must not block the others
        for row in rows:
            self._move(row)
        self._storing.insist(self._journal.flush)
        self.counts.not_moved = self._journal.n_unmoved()

    def close(self) -> None:
        """Close the tables."""
        for table in (self._csv, self._json):
            if table is not None:
                table.close()

    def _draw(self, judge: Judge, judged: Judged, name: str) -> None:
        judge.draw(judged, name)
        if self._settings.fsync and judged.prediction.picture is not None:
            flush(self._output / judged.prediction.picture)
            flush(self._output / MAPS)

    def _commit(
        self, judge: Judge, judged: Judged, verdict: str, target: str | None, card: str | None, has_report: bool
    ) -> Row:
        assert self._csv is not None
        prediction, arrival = judged.prediction, judged.arrival
        number, now = self._journal.last + 1, time.time()
        more = {
            "id": f"{self._journal.id}-{number}",
            "verdict": verdict,
            "size": arrival.version.size,
            "mtime": _utc_or_none(arrival.version.mtime_ns / 1e9),
            "moved_to": None if target is None else escape_name(target),
            "n_regions": judge.n_regions(judged),
            "seconds": round(max(0.0, time.monotonic() - arrival.completed), 4),
            "log_evidence": judged.evidence,
        }
        lines = (
            csv_line(prediction, judge.has_products, utc(now), judge.digest),
            json_line(prediction, judge.has_products, utc(now), judge.digest, **more),
        )
        row = Row(
            number,
            arrival.version,
            now,
            target,
            Line(lines[0], *self._csv.end()),
            Line(lines[1], *self._json.end()),
        )
        part = None
        if has_report:
            # The comparison with earlier parts has begun anew: the curve of the evidence is interrupted.
            evidence = math.nan if self._is_first else judged.evidence
            part = Part(now, prediction.label or 0, prediction.p_value, evidence, card)
        self._is_first = False
        self._journal.add(row, self.messages_of(verdict), part, N_PARTS)
        return row

    def _append(self, row: Row) -> None:
        assert self._csv is not None
        csv, json = self._csv, self._json
        if row.csv is not None:
            self._storing.insist(lambda: csv.append(row.csv))  # type: ignore[arg-type]
        if row.json is not None:
            self._storing.insist(lambda: json.append(row.json))  # type: ignore[arg-type]

    def _move(self, row: Row) -> None:
        """Move a judged file. A file that cannot be moved stays, and is tried again later."""
        target = row.target
        assert target is not None

        def moved() -> str | None:
            try:
                return move(self._place, row.version, target, self._settings.fsync)
            except OSError as error:
                if error.errno in _OF_DISK:
                    raise
                self._notices.say_once(
                    f"{self._place.full(row.version.path)!r} was judged, but cannot be moved: {error.strerror}. It is "
                    "tried again later.",
                    "move",
                )
                return ""

        place = self._storing.insist(moved)
        if place == "":
            self.counts.not_moved += 1
            return
        if place is None:
            self._journal.mark_kept(row.number)
            self._notices.say_once(
                f"{self._place.full(row.version.path)!r} was judged, but is not moved: it was removed or replaced.",
                "kept",
            )
            return
        if place != target:
            self._notices.say(f"{self._place.full(row.version.path)!r} was moved to {place!r}.")
        self._journal.mark_moved(row.number)
        self.known.discard(row.version)

    def _remove_leftovers(self) -> None:
        """Remove files that a killed process left: maps without a row, and temporary files."""
        own = re.compile(rf"-{self._journal.id[:8]}-([0-9]+)\.png$")
        for folder in (self._output, self._output / MAPS):
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    is_partial = entry.name.startswith(".") and entry.name.endswith(".partial")
                    found = own.search(entry.name) if folder != self._output else None
                    if is_partial or (found is not None and int(found[1]) > self._journal.last):
                        with suppress(OSError):
                            os.unlink(entry.path)


def _utc_or_none(seconds: float) -> str | None:
    """Return a time of a file as text; None if the calendar has no such year."""
    try:
        return utc(seconds)
    except (OverflowError, OSError, ValueError):
        return None
