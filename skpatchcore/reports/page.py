"""Tables and texts of a report as HTML. All texts are escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from skpatchcore._utils.names import shown_name


@dataclass(frozen=True)
class Cell:
    """Cell of a table.

    Attributes
    ----------
    text : str
        Text of the cell.
    value : str or float
        Value by which rows are sorted; NaN sorts last.
    link : str
        Address on the page, e.g. ``"#category-1"``; empty for no link.
    """

    text: str
    value: str | float
    link: str = ""


def escaped(value: Any) -> str:
    """Return a text for HTML, on one line; see :func:`~skpatchcore._utils.names.shown_name`."""
    return html.escape(shown_name(str(value)))


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escaped(text)}</p>"


def definitions(values: Mapping[str, Any]) -> str:
    """Return names and values as a list."""
    items = (f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in values.items())
    return f"<dl>{''.join(items)}</dl>"


def details(summary: str, content: str, is_open: bool = False) -> str:
    """Return HTML that is folded behind a summary."""
    return f"<details{' open' if is_open else ''}><summary>{escaped(summary)}</summary>{content}</details>"


def table(caption: str, titles: Sequence[str], rows: Sequence[Sequence[Any]], last: Sequence[Any] | None = None) -> str:
    """Return a table with columns that sort by a click on their titles.

    Parameters
    ----------
    caption : str
        Caption, also for screen readers.
    titles : sequence of str
        Titles of the columns.
    rows : sequence of sequences of Cell, str, number or None
        The rows. The first cell is the title of its row. None and NaN are empty cells.
    last : sequence or None, default=None
        Row that stays at the end, e.g. of means.
    """
    head = "".join(
        f'<th scope="col"{"" if i == 0 else " class=number"}><button type="button">{escaped(title)}</button></th>'
        for i, title in enumerate(titles)
    )
    body = "\n".join(_row(row) for row in rows)
    foot = "" if last is None else f"<tfoot>{_row(last)}</tfoot>"
    # the caption stands outside the part that scrolls sideways
    return (
        f'<p class="caption" aria-hidden="true">{escaped(caption)}</p><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escaped(caption)}"><table class="sortable"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody>{foot}</table></div>"
    )


def frame_table(caption: str, frame: pd.DataFrame) -> str:
    """Return a table of a DataFrame. Its index is the first column, and a row ``"mean"`` stays at the end.

    Parameters
    ----------
    caption : str
        Caption of the table.
    frame : DataFrame
        The table. Columns of texts are shown as texts.
    """
    titles = [str(title) for title in (frame.index.name or "", *frame.columns)]
    rows = [
        [str(name) if isinstance(name, str) else name, *values]
        for name, values in zip(frame.index, frame.to_numpy(dtype=object), strict=True)
    ]
    has_mean = bool(rows) and frame.index[-1] == "mean"
    return table(caption, titles, rows[:-1] if has_mean else rows, rows[-1] if has_mean else None)


def _row(cells: Sequence[Any]) -> str:
    first, *others = (cell if isinstance(cell, Cell) else _cell_of(cell) for cell in cells)
    return (
        f"<tr>{_cell(first, 'th', ' scope=row')}{''.join(_cell(cell, 'td', ' class=number') for cell in others)}</tr>"
    )


def _cell(cell: Cell, tag: str, attributes: str) -> str:
    value = "" if isinstance(cell.value, float) and math.isnan(cell.value) else escaped(cell.value)
    text = escaped(cell.text)
    if cell.link:
        text = f'<a href="{escaped(cell.link)}">{text}</a>'
    return f'<{tag}{attributes} data-value="{value}">{text}</{tag}>'


def _cell_of(value: Any) -> Cell:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell("", math.nan)
    if isinstance(value, str):
        return Cell(value, value)
    return Cell(format_number(value), value)


def format_number(value: float) -> str:
    """Return a number for a table: integers as they are, fractions with three digits, others with four figures."""
    if float(value).is_integer() and (isinstance(value, int | np.integer) or abs(value) > 1):
        return f"{int(value):,}"
    if abs(value) <= 1:
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"
