"""read_labels: the answers of a person about the parts of a report page, from the files that the page saves."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from skpatchcore._utils.answers import ANSWERS, DEFECT, FINE
from skpatchcore._utils.names import shown_name, unescape_name
from skpatchcore.reports.cards import VERDICTS

COLUMNS = ["path", "verdict", "score", "threshold", "review", "note", "time"]
_REQUIRED = COLUMNS[:5]
# A note that a spreadsheet would take as a formula begins with an additional apostrophe in a CSV file.
_GUARDED = re.compile(r"'+[=+\-@\t\r]")


def read_labels(path: str | os.PathLike[str]) -> pd.DataFrame:
    r"""Read the answers that a report page has saved as CSV or JSON.

    Parameters
    ----------
    path : path
        File of the button "Save as CSV" or "Save as JSON" of a page of ``skpatchcore predict --report``. A CSV file
        that a spreadsheet has saved with semicolons or tabs is read, too.

    Returns
    -------
    DataFrame
        One row per part of the page, in the order of the file, with these columns:

        - ``path``: file of the image.
        - ``verdict``: decision of the program, "anomalous", "normal", "undecided" or "unreadable".
        - ``score``, ``threshold``: **bigger = more normal**, as in ``scores.csv``. A part with a score below the
          threshold is flagged. NaN if there is none.
        - ``review``: "defect", "fine", "unsure", or empty if the part was not reviewed.
        - ``note``: text of the person.
        - ``time``: time of the answer in UTC (ISO 8601), or empty.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file was not saved by a report page, or has a wrong value. The message names the row.

    See Also
    --------
    write_prediction_report : Writes the page.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from skpatchcore.reports import read_labels
    >>> text = "path,verdict,score,threshold,review,note,time\r\nnew/1.png,anomalous,-9.5,-8.0,defect,scratch,\r\n"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "review.csv"
    ...     _ = file.write_text(text, encoding="utf-8")
    ...     labels = read_labels(file)
    >>> labels[["path", "review"]].to_numpy().tolist()
    [['new/1.png', 'defect']]
    """
    name = shown_name(os.fspath(path))
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name!r} is not a UTF-8 text. In a spreadsheet, save it as 'CSV UTF-8'.") from error
    rows = _json_rows(text, name) if text.lstrip().startswith("{") else _csv_rows(text, name)
    return _table([_checked(row, number, name) for number, row in rows])


def merge_labels(paths: Sequence[str | os.PathLike[str]], *, by_path: bool = False) -> pd.DataFrame:
    """Read several files of answers. Each part gets one row.

    Parameters
    ----------
    paths : sequence of paths
        The files, as for :func:`read_labels`.
    by_path : bool, default=False
        Whether rows with the same path are the same part. If False, their scores must agree, too: a file name can come
        back with another image.

    Returns
    -------
    DataFrame
        As :func:`read_labels`. An answer in one file completes a row without an answer in another file.

    Raises
    ------
    ValueError
        If two answers for a part differ. The message names the part and the files. Without `by_path`, also if two files
        have scores of two models for a path: both the scores and the thresholds differ.
    """
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    places: dict[tuple[str, str], str] = {}
    thresholds: dict[str, tuple[float, str, str]] = {}
    for path in paths:
        file = shown_name(os.fspath(path))
        for values in read_labels(path).to_numpy(object):
            row = dict(zip(COLUMNS, values, strict=True))
            shown = shown_name(row["path"])
            score = f"{row['score']:.8e}"
            key = row["path"], "" if by_path else score
            if not by_path and not math.isnan(row["threshold"]):
                known, first_score, first = thresholds.setdefault(row["path"], (row["threshold"], score, file))
                # equal scores beside another threshold: the threshold was moved. Spreadsheets keep 15 digits.
                if file != first and score != first_score and not math.isclose(known, row["threshold"], rel_tol=1e-12):
                    raise ValueError(
                        f"{shown!r} has the threshold {known:.6g} in {first!r} and {row['threshold']:.6g} in {file!r}: "
                        "these are scores of two models. Pass only one of the files, or score the images again."
                    )
            if key not in parts:
                parts[key], places[key] = row, file
                continue
            answered = parts[key]["review"]
            if answered and row["review"] and answered != row["review"]:
                raise ValueError(
                    f"{shown!r} is {answered!r} in {places[key]!r} and {row['review']!r} in {file!r}. Correct one of "
                    "them."
                )
            if row["review"] and not answered:
                parts[key], places[key] = row, file
    return _table([[row[column] for column in COLUMNS] for row in parts.values()])


def _table(rows: list[list[Any]]) -> pd.DataFrame:
    """Return rows as a table. Texts stay Python's: pandas' own texts cannot hold names with bytes that are no text."""
    columns = zip(*rows, strict=True) if rows else ([] for _ in COLUMNS)
    return pd.DataFrame({
        name: pd.Series(list(values), dtype="float64" if name in ("score", "threshold") else "object")
        for name, values in zip(COLUMNS, columns, strict=True)
    })  # fmt: skip


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the values of each row of a CSV text, with the delimiter of its first line."""
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    _require(rows.fieldnames or (), name)
    try:
        for number, row in enumerate(rows, 1):
            if _GUARDED.match(row.get("note") or ""):
                row["note"] = row["note"][1:]
            yield number, row
    except csv.Error as error:
        raise ValueError(f"{name!r} is damaged after line {rows.line_num}: {error}.") from error


def _json_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the values of each part of a JSON text."""
    try:
        rows = json.loads(text)["parts"]
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name!r} is no file of answers, or is damaged.") from error
    for number, row in enumerate(rows, 1):
        _require(row, name)
        yield number, {key: "" if value is None else str(value) for key, value in row.items()}


def _require(columns: Any, name: str) -> None:
    if missing := [column for column in _REQUIRED if column not in columns]:
        raise ValueError(
            f"{name!r} is no file of answers: it has no {', '.join(missing)}. Save the answers on the report page."
        )


def _checked(row: dict[str, Any], number: int, name: str) -> list[Any]:
    """Return the values of a row in the order of the columns. Raise a ValueError that names the row."""
    start = f"part {number} of {name!r}"
    if None in row or any(row[column] is None for column in _REQUIRED):
        raise ValueError(f"{start} has more or fewer values than the table has columns.")
    review, verdict = row["review"].strip().lower(), row["verdict"].strip().lower()
    if review not in ANSWERS:
        raise ValueError(f"{start}: the answer is {review!r}, expected {DEFECT!r}, {FINE!r}, 'unsure' or nothing.")
    if verdict not in VERDICTS:
        raise ValueError(f"{start}: the verdict is {verdict!r}, expected one of {', '.join(map(repr, VERDICTS))}.")
    numbers = []
    for column in ("score", "threshold"):
        try:
            numbers.append(float(row[column] or "nan"))
        except ValueError:
            text = f"{start}: {column}={row[column]!r} is no number. Numbers need a decimal point."
            raise ValueError(text) from None
    if not row["path"]:
        raise ValueError(f"{start} has no path.")
    return [unescape_name(row["path"]), verdict, *numbers, review, row.get("note") or "", row.get("time") or ""]
