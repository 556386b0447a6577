"""write_capability_report: which sizes of defects a detector finds, as one page of sentences, charts and examples."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from skpatchcore._utils.version import __version__
from skpatchcore.display.capability import close_up
from skpatchcore.evaluation.capability_result import DetectionCapability, percent, pixels
from skpatchcore.reports.card_page import asset, filled, write_html
from skpatchcore.reports.charts import pod_chart
from skpatchcore.reports.page import Cell, definitions, details, escaped, paragraph, table

# Longest side of an example in pixels.
_EXAMPLE_SIDE = 320
_N_POINTS = 60
_MEANINGS = {
    "Probability of detection (POD)": "The fraction of defects of a size that the detector finds, i.e. whose image is "
    "flagged although the same image without the defect is not.",
    "a90": "The size at which the estimated probability of detection is 90 %.",
    "a90/95": "The size above which at least 90 % of the defects are found, with 95 % confidence. It is larger than "
    "a90 because the number of trials is limited.",
    "Band": "Confidence bounds of the curve. The true curve is above the lower edge with 95 % confidence at each size.",
    "Ticks": "One tick per defect: at the top if it was found, at the bottom if it was missed.",
    "Size": "The width of scratches. For all other kinds, the diameter of a circle with the same area.",
    "Contrast": "The strength of a drawn defect: 1 replaces the surface by the defect, and 0.3 changes each pixel by "
    "30 % of the difference between the surface and the defect.",
    "Not reached": "Fewer than 90 % are found at all tested sizes, or the bound lies above all tested sizes.",
}
_LIMITS = (
    "They show from which size, at a stated contrast, a defect of a simple shape changes the score enough. They are "
    "useful to compare detectors, cameras and image sizes, and to see which kinds are not found at any size.",
    "They do not show that real defects are found. Real defects have other shapes, edges, colours and positions, and "
    "some are fainter. A real scratch can be found later or earlier than a drawn one of the same width.",
    "They are drawn on photographs. The optics, the lighting and the shadows of a real defect are not simulated.",
    "The good images must be like those of production. New materials, lighting or cameras change the result.",
    "Measure real defects as soon as some are labelled, and compare both results.",
)


def write_capability_report(
    result: DetectionCapability,
    path: str | os.PathLike[str],
    *,
    real: DetectionCapability | None = None,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write which sizes of defects a detector finds as one self-contained page.

    Parameters
    ----------
    result : DetectionCapability
        Result of :func:`~skpatchcore.detection_capability`.
    path : path
        File of the page.
    real : DetectionCapability or None, default=None
        Result of :func:`~skpatchcore.capability_of_defects` for real defects, which the page shows beside.
    about : mapping of str to str or None, default=None
        Further names and values for the head of the page, e.g. the model's file.

    Returns
    -------
    Path
        File of the page.

    Raises
    ------
    OSError
        If the page cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    rate = percent(result.promised_rate)
    facts = {
        **(about or {}),
        "Good images": f"{result.n_good}, {result.n_flagged} of them flagged without a defect",
        "Defects": f"{len(result.trials)} drawn" + (f", {len(real.trials)} real" if real is not None else ""),
        "Made on": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    content = [] if real is None else [_findings(real, "Real defects")]
    content.append(_findings(result, "Synthetic defects"))
    content += _sections(result)
    content += [] if real is None else _sections(real)
    content.append(_limits(real is not None))
    content.append(
        f'<section class="part">{details("How these results were made", definitions(_settings(result)))}</section>'
    )
    page = filled(
        asset("plain.html"),
        {
            "title": "skpatchcore capability",
            "headline": escaped(f"Which defects are found, at a promised false-alarm rate of {rate}"),
            "facts": "".join(f"<div><dt>{escaped(n)}</dt><dd>{escaped(v)}</dd></div>" for n, v in facts.items()),
            "content": "\n".join(content),
            "style": asset("report.css") + asset("evaluation.css") + asset("capability.css"),
            "script": asset("evaluation.js"),
        },
    )
    write_html(target, page)
    return target


def _findings(result: DetectionCapability, title: str) -> str:
    """Return the sentences and the table of one result."""
    texts = [*result.sentences(), *([result.coverage()] if result.coverage() else [])]
    sentences = "".join(f"<li>{escaped(text)}</li>" for text in texts)
    rows = []
    for row in result.to_frame().to_dict("records"):
        rows.append([
            Cell(result.name_of(row["kind"], row["contrast"]), row["kind"]), str(row["size"]), _size(row["a90"], row),
            _size(row["a90_95"], row), f"{row['n_found']} of {row['n_trials']}", _pixels(row["smallest_found"]),
            _pixels(row["largest_missed"]),
        ])  # fmt: skip
    titles = ("Defects", "Size", "a90", "a90/95", "Found", "Smallest found", "Largest missed")
    return (
        f'<section class="part"><h2>{escaped(title)}</h2><ul class="findings">{sentences}</ul>'
        + (paragraph(result.false_alarms()) if result.n_good else "")
        + table(f"{title}: sizes in pixels", titles, rows)
        + details("What the numbers mean", definitions(_MEANINGS))
        + "</section>"
    )


def _size(value: float, row: Mapping[Any, Any]) -> Cell:
    if math.isnan(value):
        return Cell("below all tested", 0.0)
    return Cell("not reached", math.nan) if math.isinf(value) else Cell(pixels(value), float(value))


def _pixels(value: float) -> Cell:
    return Cell("none", math.nan) if math.isnan(value) else Cell(pixels(value), float(value))


def _sections(result: DetectionCapability) -> Iterator[str]:
    """Yield one section per curve: chart and examples."""
    for (kind, contrast), curve in result.curves.items():
        name = result.name_of(kind, contrast)
        low, high = float(curve.sizes.min()), float(curve.sizes.max())
        sizes = np.geomspace(low, max(high, 1.01 * low), _N_POINTS)
        chart = pod_chart(
            (sizes, *curve.at(sizes)),
            curve.sizes[curve.hits],
            curve.sizes[~curve.hits],
            {"a90": curve.a90, "a90/95": curve.a90_95},
            title=f"Probability of detection of {name}",
            x_title=f"{result.size_names[kind]} in pixels",
        )
        pictures = "".join(
            f'<figure><img alt="{escaped(f"{name}, {example.caption}")}" src="{_data_of(result, example.trial)}">'
            f"<figcaption>{escaped(example.caption.capitalize())}</figcaption></figure>"
            for example in result.examples(kind, contrast)
        )
        yield (
            f'<section class="part"><h2>{escaped(name.capitalize())}</h2><div class="kind">{chart}'
            f'<div class="pictures">{pictures}</div></div></section>'
        )


def _data_of(result: DetectionCapability, trial: int) -> str:
    """Return the close-up of a trial as the address of an embedded picture."""
    picture = Image.fromarray(close_up(*result.draw(trial)))
    picture.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def _limits(has_real: bool) -> str:
    points = list(_LIMITS[: -1 if has_real else None])
    if has_real:
        points.append(
            "The curves of real defects count detection beyond the promised false-alarm rate. Somebody noticed "
            "the labelled defects, so the smallest defects may be missing."
        )
    items = "".join(f"<li>{html.escape(text)}</li>" for text in points)
    return (
        '<section class="part"><h2>What synthetic defects can and cannot say</h2>'
        f'<ul class="limits">{items}</ul></section>'
    )


def _settings(result: DetectionCapability) -> dict[str, Any]:
    return {
        "Threshold": f"anomaly score {-result.offset:.4g}",
        "Promised false-alarm rate": percent(result.promised_rate),
        "Good images flagged without a defect": "left out of the trials, so that false alarms are not counted as hits",
        "Model of the curve": "logistic in log(size), penalised likelihood (Firth), profile-likelihood bounds",
        "Trials on the same image": "the bounds are widened if they are similar",
        "Standards": "MIL-HDBK-1823A (2009), ASTM E2862",
        "Made by": f"skpatchcore {__version__}",
    }
