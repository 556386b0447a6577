"""write_card_page: cards as one HTML page, with the pictures inside or in a folder beside the page."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np

from skpatchcore._utils.bytes import parse_bytes
from skpatchcore._utils.files import written_whole
from skpatchcore._utils.names import escape_name, shown_name
from skpatchcore._utils.version import __version__
from skpatchcore.display.overlay import HEAT_RANGE, heat_colors
from skpatchcore.reports.cards import VERDICTS, Card, CardGroup, headline, relative_score, worst_first
from skpatchcore.reports.pictures import remove_pictures
from skpatchcore.reports.predictions import TABLE, common_start, place_of

_MIME = {"jpg": "image/jpeg", "png": "image/png"}
_SIGN = "Anomaly score: higher = more anomalous."
_TABLE_SIGN = " The file scores.csv has the same numbers with the opposite sign, as scikit-learn's score_samples."


@dataclass(frozen=True)
class Frame:
    """HTML around the cards of a page, e.g. of the report of an evaluation. Its parts are not escaped.

    Attributes
    ----------
    headline : str
        Plain text of the first line of the page. It is escaped.
    before, after : str
        HTML between the head of the page and the cards, and below the cards.
    style, script : str
        Further style and script.
    order : str
        Plain text for the order of the cards as given. If it is empty, cards are sorted by score.
    """

    headline: str
    before: str = ""
    after: str = ""
    style: str = ""
    script: str = ""
    order: str = ""


def write_card_page(
    cards: Sequence[Card],
    path: str | os.PathLike[str],
    *,
    title: str,
    about: Mapping[str, str] | None = None,
    inspected: str = "",
    noun: str = "part",
    embed: int | str | None = "10MB",
    frame: Frame | None = None,
    review: bool = False,
) -> Path:
    """Write cards as one HTML page; cards of several detectors may be mixed.

    Parameters
    ----------
    cards : sequence of Card
        The cards, e.g. of :func:`make_cards`. Their pictures are in the folder of the page.
    path : path
        File of the page.
    title : str
        Title of the browser's tab.
    about : mapping of str to str or None, default=None
        Further names and values for the head of the page, e.g. the model's file.
    inspected : str, default=""
        Sentence about the part of the images that is not inspected. Names in it are escaped already, as in the result
        of ``describe_inspection`` in `skpatchcore.reports.inspection`.
    noun : str, default="part"
        Word for one image, in the singular.
    embed : int, str or None, default="10MB"
        Largest size of a page with all pictures inside, in bytes or as a text such as ``"25MB"``. A smaller page is one
        self-contained file, and the pictures in ``report_files`` are removed. If the page would be larger, all pictures
        stay in ``report_files``. None never embeds pictures.
    frame : Frame or None, default=None
        Further parts of the page.
    review : bool, default=False
        Whether a person can mark each part as a defect, as fine or as unsure. The page keeps the answers in the browser
        and saves them as a file for :func:`read_labels`.

    Returns
    -------
    Path
        File of the page.

    Raises
    ------
    ValueError
        If `embed` is not an amount of memory.
    OSError
        If the page cannot be written. An earlier page and its pictures stay in that case.
    """
    limit = 0 if embed is None else parse_bytes(embed)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    is_ordered = frame is not None and bool(frame.order)
    ordered = list(cards) if is_ordered else sorted(cards, key=worst_first)
    used = [file for card in ordered for file in _pictures_of(card)]
    text = _page(ordered, target.parent, title, dict(about or {}), inspected, noun, {}, frame, review)
    is_embedded = False
    if _size_inside(target.parent, used) + len(text) <= limit:
        inside = {file: _data_of(target.parent / file) for file in used}
        text = _page(ordered, target.parent, title, dict(about or {}), inspected, noun, inside, frame, review)
        is_embedded = True
    write_html(target, text)
    remove_pictures(target.parent, keep=() if is_embedded else used)
    return target


def write_html(path: Path, text: str) -> None:
    """Write a page in one step: an earlier page is replaced only after the new one is complete."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return a template in which each ``{{name}}`` is replaced by its value; values are not searched again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def asset(name: str) -> str:
    """Return a file of the package's folder of page parts."""
    return files("skpatchcore.reports").joinpath("assets", name).read_text(encoding="utf-8")


def as_json(value: Any) -> str:
    """Return a value as JSON that can stand in a script element: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _text(value: Any) -> str:
    """Return a text for HTML, on one line."""
    return html.escape(shown_name(str(value)))


def _page(
    cards: list[Card],
    folder: Path,
    title: str,
    about: dict[str, str],
    inspected: str,
    noun: str,
    inside: Mapping[str, str],
    frame: Frame | None,
    review: bool,
) -> str:
    frame = frame or Frame(headline(cards, noun))
    groups = list({id(card.group): card.group for card in cards}.values())
    names, root = _short_names([card.path for card in cards])
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    facts = [*about.items(), ("Inspected", _inspected(cards)), ("Made on", made)]
    sign = _SIGN + (_TABLE_SIGN if (folder / TABLE).is_file() and not frame.order else "")
    more = [("Images in", root), ("Made by", f"skpatchcore {__version__}")]
    data = {
        "noun": noun,
        "order": frame.order,
        "verdicts": {verdict: text for verdict, text in VERDICTS.items() if any(c.verdict == verdict for c in cards)},
        "groups": [_group_data(group) for group in groups],
        "cards": [
            _card_data(card, name, groups.index(card.group), folder, inside)
            for card, name in zip(cards, names, strict=True)
        ],
    }
    return filled(
        asset("report.html"),
        {
            "title": _text(title),
            "headline": _text(frame.headline),
            "before": frame.before,
            "after": frame.after,
            "facts": _definitions(facts),
            "promises": "".join(f"<p>{_text(text)}</p>" for text in _promises(groups))
            + (f"<p>{html.escape(inspected)}</p>" if inspected else ""),
            "settings": "".join(_settings(group, len(groups) > 1) for group in groups)
            + f"<dl>{_definitions(more)}</dl><p>{_text(sign)}</p>",
            "legend": _legend(cards),
            "scale": _scale(cards),
            "rows": "\n".join(_rows(cards, names)),
            "style": asset("report.css") + (asset("review.css") if review else "") + frame.style,
            "data": as_json(data),
            "script": (asset("review.js") if review else "") + asset("report.js") + frame.script,
        },
    )


def _promises(groups: list[CardGroup]) -> Iterator[str]:
    """Yield the promise of each group. Groups with the same promise share one text."""
    for promise in dict.fromkeys(group.promise for group in groups if group.promise):
        names = ", ".join(group.name for group in groups if group.promise == promise and group.name)
        yield f"{names}: {promise}" if len(groups) > 1 and names else promise


def _definitions(facts: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts if value)


def _settings(group: CardGroup, is_named: bool) -> str:
    facts = {
        **group.settings,
        "image threshold": _number(group.threshold),
        "pixel threshold": _number(group.pixel_threshold),
    }
    head = f"<h3>{_text(group.name)}</h3>" if is_named else ""
    return f"{head}<dl>{_definitions([(name.capitalize(), value) for name, value in facts.items()])}</dl>"


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.4g}"


def _inspected(cards: list[Card]) -> str:
    """Return how much of the images is inspected, also if it is the whole of each image."""
    shares = [card.layers.inspected.share for card in cards if card.layers.size is not None]
    if not shares:
        return ""
    if min(shares) == 1:
        return "the whole of each image"
    return f"at least {math.floor(1000 * min(shares)) / 10:g} % of the pixels of each image"


def _scale(cards: list[Card]) -> str:
    """Return the colours of the anomaly maps and their values, for the legend and for the viewer."""
    colors = heat_colors(np.array([0, 0.35, 0.7, 1]))
    stops = ",".join("#" + bytes(np.uint8(255 * color)).hex() for color in colors)
    low, high = HEAT_RANGE
    if cards and all(math.isnan(card.group.pixel_threshold) for card in cards):  # colours run over each map's own range
        values = f"{50 * low:g} % to {50 * high:g} % of the largest value of the map"
    else:
        values = f"{low:g} to {high:g} times the pixel threshold"
    return (
        f'<span class="swatch heat" style="background:linear-gradient(90deg,{stops})"></span>'
        f"<span>anomaly map: {values}</span>"
    )


def _legend(cards: list[Card]) -> str:
    """Return the list of the marks in the pictures. Marks that no picture has are left out."""
    marks = [
        (any(card.layers.outline for card in cards), "line", "line around the pixels above the pixel threshold"),
        (any(card.layers.unseen for card in cards), "stripes", "not inspected: dark, or striped in an opened image"),
        (any(card.layers.truth for card in cards), "known", "known defect, in an opened image"),
        (any(card.layers.regions for card in cards), "box", "box around a region, in an opened image"),
    ]
    items = [
        f'<li class="of-{kind}"><span class="swatch {kind}"></span>{text}</li>'
        for exists, kind, text in marks
        if exists
    ]
    if any(card.layers.heat for card in cards):
        items.append(f'<li class="of-heat">{_scale(cards)}</li>')
    return "".join(items)


def _rows(cards: list[Card], names: list[str]) -> Iterator[str]:
    """Yield the rows of the plain table, which is shown where scripts do not run."""
    for card, name in zip(cards, names, strict=True):
        cells = (name, VERDICTS[card.verdict], _number(card.score), card.rarity, card.extent, card.problem)
        yield f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"


def _group_data(group: CardGroup) -> dict[str, Any]:
    return {
        "name": shown_name(group.name),
        **_threshold_data(group.threshold),
        "good": [round(float(score), 6) for score in group.calibration_scores],
    }


def _threshold_data(threshold: float) -> dict[str, Any]:
    return {"threshold": _finite(threshold), "offset": _in_table(threshold)}


def _card_data(card: Card, name: str, group: int, folder: Path, inside: Mapping[str, str]) -> dict[str, Any]:
    """Return a card for the page's script. Empty values are left out."""
    layers, nearest = card.layers, card.nearest
    directory, _, short = name.rpartition("/")

    def source(file: str | None) -> str | None:
        return None if file is None else inside.get(file, file)

    values: dict[str, Any] = {
        "name": shown_name(short),
        "folder": shown_name(directory),
        "path": shown_name(card.path),
        "file": escape_name(card.path) if escape_name(card.path) != shown_name(card.path) else None,
        "exact": _in_table(card.score),
        "judged": None if card.own_threshold is None else _threshold_data(card.own_threshold),
        "link": _link(card.path, folder) if card.is_file else None,
        "verdict": card.verdict,
        "score": _finite(card.score),
        "relative": _finite(relative_score(card)),
        "group": group,
        "asBad": card.n_as_bad,
        "rarity": card.rarity,
        "decision": card.decision,
        "disagrees": card.disagrees,
        "extent": card.extent,
        "largest": layers.largest,
        "regions": [[r.top, r.left, r.bottom, r.right, r.area] for r in layers.regions],
        "n": layers.n_regions,
        "size": layers.size,
        "thumb": source(layers.thumb),
        "image": source(layers.image),
        "map": source(layers.heat),
        "outline": source(layers.outline),
        "truth": source(layers.truth),
        "unseen": source(layers.unseen),
        "inspected": None if layers.inspected.share == 1 else round(layers.inspected.share, 4),
        "problem": shown_name(card.problem),
        "note": shown_name(card.note),
    }
    if nearest is not None:
        values["nearest"] = {
            "name": shown_name(nearest.name),
            "short": shown_name("/".join(Path(nearest.name).parts[-2:])),
            "patch": source(nearest.patch),
            "nominal": source(nearest.nominal),
            "problem": shown_name(nearest.problem),
        }
    return {key: value for key, value in values.items() if value not in (None, "", []) and value is not False}


def _finite(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _in_table(value: float) -> str | None:
    """Return an anomaly score or a threshold with all digits and the sign of the table: bigger = more normal."""
    return repr(-float(value)) if math.isfinite(value) else None


def _short_names(paths: list[str]) -> tuple[list[str], str]:
    """Return the names of images below the folder that they all share, and that folder."""
    folders = [place_of(path)[:-1] for path in paths]
    n_shared = len(common_start(folders))
    names = ["/".join([*place[n_shared:], os.path.basename(path)]) for place, path in zip(folders, paths, strict=True)]
    root = os.path.dirname(os.path.abspath(paths[0])) if paths else ""
    for _ in folders[0][n_shared:] if paths else []:
        root = os.path.dirname(root)
    return names, root


def _link(path: str, folder: Path) -> str | None:
    """Return the address of an image relative to the page; absolute if they are on different drives."""
    try:
        relative = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
        return quote_from_bytes(os.fsencode(relative.replace(os.sep, "/")), safe="/")
    except ValueError:
        pass
    try:
        return Path(path).absolute().as_uri()
    except ValueError:  # e.g. a zero byte in the path
        return None


def _pictures_of(card: Card) -> list[str]:
    """Return the picture files of a card."""
    crops = () if card.nearest is None else (card.nearest.patch, card.nearest.nominal)
    return [*card.layers.files(), *(file for file in crops if file is not None)]


def _size_inside(folder: Path, used: Sequence[str]) -> int:
    """Return the number of bytes that pictures take inside a page; files that cannot be read take none."""
    total = 0
    for file in used:
        try:
            total += 4 * (os.path.getsize(folder / file) + 2) // 3 + 30
        except OSError:
            continue
    return total


def _data_of(file: Path) -> str:
    """Return a picture as an address that holds its content; the address of nothing if it cannot be read."""
    try:
        content = base64.b64encode(file.read_bytes()).decode()
    except OSError:
        return "data:,"
    return f"data:{_MIME[file.suffix[1:]]};base64,{content}"
