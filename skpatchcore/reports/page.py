"""Reports as one HTML file that needs nothing else: tables that sort, curves, pictures."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from skpatchcore._utils.files import written_whole
from skpatchcore._utils.names import shown_name

# Longer side in pixels of an image in a report.
_SIDE = 310

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c28; max-width: 1340px; margin: 2em auto; padding: 0 1em; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; padding-bottom: .2em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25em .7em; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4ea; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 12em; }
td:last-child { white-space: normal; }
tr.mean td { font-weight: 600; border-top: 2px solid #888; }
th { cursor: pointer; background: #f4f4f8; } th::after { content: " \\2195"; color: #999; }
th[aria-sort=ascending]::after { content: " \\2191"; } th[aria-sort=descending]::after { content: " \\2193"; }
figure { display: inline-block; margin: .6em 1em .6em 0; vertical-align: top; max-width: 100%; }
figcaption { font-size: 12.5px; color: #555; max-width: 620px; overflow-wrap: anywhere; }
figure svg, figure img { max-width: 100%; height: auto; } code, .mono { font: 12.5px ui-monospace, monospace; }
.note { color: #555; } dl { display: grid; grid-template-columns: max-content auto; gap: .1em 1em; font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
"""

# Rows follow a click on a column's title; empty cells come last, and after them the row of means.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable"))
  table.tHead.rows[0].childNodes.forEach((title, column) => title.addEventListener("click", () => {
    const down = title.getAttribute("aria-sort") !== "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    title.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0], value = row => row.cells[column].dataset.value;
    const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
    const last = row => row.classList.contains("mean") ? 2 : value(row) === "" ? 1 : 0;
    [...body.rows].sort((a, b) => last(a) - last(b) || (down ? -1 : 1) * compare(value(a), value(b)))
      .forEach(row => body.append(row));
  }));
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page, self-contained.

    Parameters
    ----------
    title : str
        Its title.
    parts : iterable of str
        HTML, as the other functions here return it.
    """
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{_text(title)}</h1>\n" + "\n".join(parts) + f"\n<script>{_SCRIPT}</script></body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """Return a heading."""
    return f"<h{level}>{_text(text)}</h{level}>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f'<p class="note">{_text(text)}</p>'


def definitions(values: dict[str, Any]) -> str:
    """Return names and values as a list."""
    items = (f"<dt>{_text(k)}</dt><dd><code>{_text(v)}</code></dd>" for k, v in values.items())
    return f"<dl>{''.join(items)}</dl>"


def table(frame: pd.DataFrame) -> str:
    """Return a table whose columns sort by a click; its index is the first column.

    Parameters
    ----------
    frame : DataFrame
        A row called ``"mean"`` stays last. Columns of texts are texts; NaN is an empty cell.
    """
    titles = [frame.index.name or "", *frame.columns]
    head = "".join(f"<th>{_text(str(title).replace('_', ' '))}</th>" for title in titles)
    rows = []
    for name, values in zip(frame.index, frame.to_numpy(dtype=object), strict=True):
        cells = "".join(_cell(value) for value in [name, *values])
        rows.append(f"<tr{' class=mean' if name == 'mean' else ''}>{cells}</tr>")
    body = "\n".join(rows)
    content = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="sortable">{content}</table></div>'


def picture(image: Image.Image, caption: str) -> str:
    """Return an image with its caption, inside the page."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    text = _text(caption)
    return f'<figure><img alt="{text}" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'


def drawing(figure: Any, caption: str) -> str:
    """Return a matplotlib figure as a drawing that stays sharp.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Any.
    caption : str
        What it shows.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = stream.getvalue()
    svg = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{_text(caption)}"', 1)
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page.

    Parameters
    ----------
    path : path
        Of the file.
    title, parts
        As for :func:`page`.
    """
    with written_whole(Path(path)) as partial:
        partial.write_text(page(title, parts), encoding="utf-8")


def _text(value: Any) -> str:
    """Return text as HTML has it, on one line; see :func:`~skpatchcore._utils.names.shown_name`."""
    return html.escape(shown_name(str(value)))


def side_by_side(images: Sequence[np.ndarray]) -> Image.Image:
    """Return images of one size beside each other, as large as a report shows them.

    Parameters
    ----------
    images : sequence of arrays of shape (height, width, 3), uint8
        At least one.
    """
    scale = min(1.0, _SIDE / max(images[0].shape[:2]))
    height, width = (max(1, round(scale * side)) for side in images[0].shape[:2])
    resized = [np.asarray(Image.fromarray(i).resize((width, height), Image.Resampling.LANCZOS)) for i in images]
    gap = np.full((height, 6, 3), 255, np.uint8)
    parts = [part for image in resized for part in (image, gap)][:-1]
    return Image.fromarray(np.concatenate(parts, axis=1))


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return '<td data-value=""></td>'
    if isinstance(value, str):
        return f'<td data-value="{_text(value)}">{_text(value)}</td>'
    return f'<td data-value="{value}">{format_number(value)}</td>'


def format_number(value: float) -> str:
    """Return a number as tables show it: whole ones as they are, shares with three digits, others with four figures."""
    if float(value).is_integer() and (isinstance(value, int | np.integer) or abs(value) > 1):
        return f"{int(value):,}"
    if abs(value) <= 1:
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"
