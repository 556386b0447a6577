"""write_evaluation_report: the results of an evaluation as one page of tables, charts and the worst mistakes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore._utils.names import escape_name, shown_name
from skpatchcore.evaluation.category import CategoryResult
from skpatchcore.evaluation.promises import RATES, describe_rates
from skpatchcore.evaluation.runs import Evaluation, FinishedRun, means_of
from skpatchcore.evaluation.storage import Results
from skpatchcore.evaluation.summary import advice, counted, describe_images, describe_result
from skpatchcore.reports.card_page import Frame, asset, write_card_page
from skpatchcore.reports.charts import Line, line_chart, score_chart
from skpatchcore.reports.page import Cell, definitions, details, escaped, frame_table, paragraph, table
from skpatchcore.reports.pictures import PictureFolder
from skpatchcore.reports.study_charts import ablation_charts, low_shot_charts
from skpatchcore.reports.worst import FALSE_ALARM, MISSED, worst_cards, write_worst

__all__ = ["SHOWN", "write_evaluation_report", "write_worst"]

# Columns of the table of the command line and of the table of all metrics. The files contain all columns.
SHOWN = (
    "found_at_01", "flagged_at_01", "found_at_05", "flagged_at_05", "found_at_10", "flagged_at_10", "image_auroc",
    "image_ap", "image_f1_max", "misclassified", "pixel_auroc", "pixel_ap", "aupro", "aupimo", "good_flagged",
    "defects_found", "bank_rows", "fit_seconds", "test_seconds",
)  # fmt: skip
# Metrics on which the advice depends.
_ADVISED = ("image_auroc", "defects_found", "good_flagged")
# Up to this number of categories, all sections are unfolded.
_N_UNFOLDED = 3
# The AUPRO ends at this false-positive rate of pixels.
_LAST_FPR = 0.3
_MEANINGS = {
    "Found at 1 %, 5 %, 10 %": "The fraction of defective images that are found if the threshold promises to flag at "
    "most this fraction of good images. The threshold is set from good images of the fit only. In brackets: the "
    "fraction of good test images that the same threshold flags. It should be about the promised fraction.",
    "Defects found, good flagged": "Defective and good images that the detector flags at its own image threshold, "
    "which is set from good images only. The more test images, the more exact these fractions are.",
    "Image AUROC": "How well the image scores separate defective from good images, whatever the threshold: 1 if every "
    "defective image has a higher anomaly score than every good image, 0.5 by chance.",
    "Pixel AUROC": "The same for pixels. Nearly all pixels are good, so a value near 1 is easily reached.",
    "AUPRO": "How much of a defective region is marked, on average, while at most 30 % of the good pixels are marked "
    "too. Each region has the same weight, whatever its size.",
    "AUPIMO": "How much of a defect is marked while nearly no pixel of good images is marked, at most 1 in 10,000.",
    "Score relative to the threshold": "The anomaly score divided by the image threshold. Above 1, the image is "
    "flagged.",
    "Anomaly score": "Higher = more anomalous. The column score of images.csv has the same numbers with the opposite "
    "sign, as scikit-learn's score_samples.",
    "Misclassified, F1": "Wrong images, and the F1 score, at the threshold that suits the labels of the test images "
    "best. The paper counts in this way, but an inspection line does not know the labels.",
    "Mean": "The plain mean over the categories. Numbers of images are summed.",
    "Seconds": "The time of the fit and of the test when a result was computed.",
}


def write_evaluation_report(
    evaluation: Evaluation, name: str, *, method: str | None = None, path: str | os.PathLike[str] | None = None
) -> Path:
    """Write the results of an evaluation as one page: tables, charts, and the worst mistakes.

    Parameters
    ----------
    evaluation : Evaluation
        Result of :func:`~skpatchcore.evaluation.run_evaluation`. The page shows the worst mistakes if their pictures
        were written by ``run_evaluation(..., draw=write_worst)``.
    name : str
        Name of the data set.
    method : str or None, default=None
        Description of the detector. If None, the name of its class.
    path : path or None, default=None
        File of the page. If None, ``report.html`` in the folder of the evaluation. If the page would
        be larger than 10 MB, its pictures stay in the folder ``report_files`` beside it.

    Returns
    -------
    Path
        File of the page.

    Raises
    ------
    OSError
        If the page cannot be written.
    """
    target = Path(path or evaluation.folder / "report.html")
    pictures, stored = PictureFolder(target.parent), Results(evaluation.folder / "runs")
    cards = [
        card
        for one in evaluation.runs
        for card in worst_cards(one.result, one.provenance.get("pictures", []), stored.place_of(one.run), pictures)
    ]
    frame = Frame(
        headline=_headline(evaluation.runs),
        before="".join(_before(evaluation, has_cards=bool(cards))),
        after="".join(_after(evaluation)),
        style=asset("evaluation.css"),
        script=asset("evaluation.js"),
        order="mistakes first",
    )
    return write_card_page(
        sorted(cards, key=lambda card: (not card.note.startswith(MISSED), not card.note.startswith(FALSE_ALARM))),
        target,
        title=f"skpatchcore evaluate: {name}",
        about=_facts(evaluation, name, method),
        inspected=_uninspected(evaluation.runs),
        noun="image",
        frame=frame,
    )


def _headline(runs: Sequence[FinishedRun]) -> str:
    """Return the result of all categories in one sentence."""
    results = [one.result for one in runs]
    if any(math.isnan(result.offset) for result in results):
        mean = np.mean([result.row["image_auroc"] for result in results])
        return f"Image AUROC {mean:.3f}; no threshold, because there was no calibration"
    flagged = [result.scores < result.offset for result in results]
    counts = [
        (int((f & (r.labels == label)).sum()), int((r.labels == label).sum()))
        for label in (-1, 1)
        for f, r in zip(flagged, results, strict=True)
    ]
    bad, good = counts[: len(runs)], counts[len(runs) :]
    where = f" in {len(runs)} categories" if len(runs) > 1 else ""
    rates = {f"{100 * result.row.get('promised_rate', math.nan):.2g}" for result in results}  # absent in older results
    promised = (
        f", at a promised false-positive rate of {rate} %" if (rate := rates.pop()) != "nan" and not rates else ""
    )
    return (
        f"Finds {sum(n for n, _ in bad):,} of {sum(n for _, n in bad):,} defective images and flags "
        f"{sum(n for n, _ in good):,} of {sum(n for _, n in good):,} good images{where}{promised}"
    )


def _facts(evaluation: Evaluation, name: str, method: str | None) -> dict[str, str]:
    settings = evaluation.runs[0].settings
    return {
        "Data": f"{name}, {len(evaluation.runs)} categor{'y' if len(evaluation.runs) == 1 else 'ies'}",
        "Method": str(settings["detector"] if method is None else method),
    }


def _uninspected(runs: Iterable[FinishedRun]) -> str:
    """Return a sentence about pixels that are not inspected, for the category with the smallest inspected fraction."""
    rows = [(share, one.result) for one in runs if not math.isnan(share := one.result.row.get("inspected", 1.0))]
    if not rows:  # without anomaly maps, nothing is known about pixels
        return ""
    share, result = min(rows, key=lambda pair: pair[0])
    if share == 1:
        return ""
    n_missed = result.row["n_uninspected_defects"]
    return (
        f"{100 * (1 - share):.1f} % of the pixels of the test images of {shown_name(result.category)} are not "
        "inspected, the largest fraction of all categories. Defects there are not found. In "
        f"{n_missed} of {result.row['n_defective']} defective images, all defective pixels lie there. Pixel metrics "
        "leave these pixels out."
    )


def _before(evaluation: Evaluation, has_cards: bool) -> Iterable[str]:
    runs = evaluation.runs
    yield '<div class="part" id="results"><h2>Results</h2>'
    yield _category_table(evaluation)
    yield details("What the numbers mean", definitions(_MEANINGS))
    shown = evaluation.table[[column for column in SHOWN if column in evaluation.table]]
    yield details("All metrics, with the names of results.csv", frame_table("All metrics per category", shown))
    yield details("How certain the metrics are: 95 % intervals", _interval_table(evaluation))
    yield "</div>"
    for number, one in enumerate(runs):
        yield _category_section(one, number, len(runs) <= _N_UNFOLDED)
    if has_cards:
        yield '<div class="part" id="mistakes"><h2>The worst images</h2>'
        yield paragraph(
            "The defective images with the lowest anomaly scores, and the good images with the highest, per category. "
            "Choose an image to see it with the known defect and, as far as the method has them, its anomaly map and "
            "the nearest good patch."
        )
        yield "</div>"


def _category_table(evaluation: Evaluation) -> str:
    at_rates = [f"Found at {100 * rate:g} % (good flagged)" for rate in RATES.values()]
    titles = ("Category", *at_rates, "Defects found", "Good flagged", "Image AUROC", "Pixel AUROC", "AUPRO", "AUPIMO",
              "Images of the fit", "Seconds: fit", "Seconds: test")  # fmt: skip
    rows = []
    for number, one in enumerate(evaluation.runs):
        row = one.result.row
        rows.append([
            Cell(one.run.category, one.run.category, f"#category-{number}"),
            *_at_rates(row),
            _share(row["defects_found"], row["n_defective"]),
            _share(row["good_flagged"], row["n_good"]),
            *_measures(row),
        ])  # fmt: skip
    last = None
    if len(rows) > 1:
        mean = evaluation.table.loc["mean"].to_dict()
        shares = [float(mean[key]) for key in ("defects_found", "good_flagged")]
        flags = [Cell("" if math.isnan(share) else f"{share:.1%}", share) for share in shares]
        last = ["mean", *_at_rates(mean), *flags, *_measures(mean)]
    caption = "Results per category. Defects found and good flagged: at the threshold of the detector"
    return table(caption, titles, rows, last)


def _interval_table(evaluation: Evaluation) -> str:
    """Return a table of metrics and their intervals: one row per metric, one column per category."""
    known = evaluation.intervals.set_index(["metric", "category"])
    categories = [one.run.category for one in evaluation.runs]
    rows: list[list[Any]] = []
    for metric in dict.fromkeys(evaluation.intervals["metric"]):
        cells = [Cell("", math.nan)] * len(categories)
        for i, category in enumerate(map(escape_name, categories)):
            if (metric, category) in known.index:
                value, low, high = (float(known.loc[(metric, category), end]) for end in ("value", "low", "high"))
                cells[i] = Cell(f"{value:.3f} ({low:.3f} to {high:.3f})", value)
        rows.append([metric, *cells])
    return table("Metrics with their 95 % intervals", ("Metric", *categories), rows) + paragraph(
        "With other test images of the same kind, a metric would differ by chance. The intervals hold for the same "
        "detector, i.e. for the same training images. They are too narrow if several test images show one part. An "
        "interval from 1 to 1 means that there are too few images to state how far below 1 the metric may be."
    )


def _at_rates(row: Any) -> list[Cell]:
    """Return the recall at each promised rate, with the measured rate in brackets."""
    cells = []
    for ending in RATES:
        # Results of older versions lack these columns.
        found, flagged = (float(row.get(f"{name}_at_{ending}", math.nan)) for name in ("found", "flagged"))
        too_few = f"needs {round(1 / RATES[ending]) - 1} calibration images"
        cells.append(Cell(too_few if math.isnan(found) else f"{100 * found:.0f} % ({100 * flagged:.1f} %)", found))
    return cells


def _measures(row: Any) -> list[Any]:
    names = ("image_auroc", "pixel_auroc", "aupro", "aupimo", "n_train", "fit_seconds", "test_seconds")
    cells: list[Any] = [row[name] for name in names]
    return [*cells[:-2], *(Cell(f"{seconds:,.1f}", float(seconds)) for seconds in cells[-2:])]


def _share(share: float, n: int) -> Cell:
    return Cell("", math.nan) if math.isnan(share) else Cell(f"{round(share * n):,} of {n:,}", float(share))


def _category_section(one: FinishedRun, number: int, is_open: bool) -> str:
    result = one.result
    sentence = describe_result(result)
    calibration = result.calibration_scores[np.isfinite(result.calibration_scores)]
    n_flagged = int((calibration < result.offset).sum())
    threshold = (
        ""
        if math.isnan(result.offset)
        else f" The threshold was set from {counted(len(calibration), 'calibration image')}. "
        f"{f'It flags {n_flagged} of them' if n_flagged else 'It is the score of the most anomalous one'}."
    )
    is_random = getattr(one.run.dataset, "split", None) is not None
    drawn = " If several photographs show the same part, this random division makes the results too good." * is_random
    content = (
        (paragraph(text) if (text := describe_rates(result.row)) else "")
        + paragraph(f"{describe_images(one.run.dataset)}{threshold}{drawn}")
        + (paragraph(text) if (text := advice(*(result.row[name] for name in _ADVISED))) else "")
        + f'<div class="charts">{"".join(category_charts(result))}</div>'
        + _defect_table(result)
    )
    head = f"{shown_name(one.run.category)}: {sentence}"
    folded = details(head, content, is_open).replace("<details", '<details class="headed"', 1)
    return f'<section class="part" id="category-{number}" aria-label="{escaped(one.run.category)}">{folded}</section>'


def _defect_table(result: CategoryResult) -> str:
    """Return a table with one row per kind of defect, and a first row of good images."""
    has_threshold, scale = not math.isnan(result.offset), -result.offset
    is_relative = has_threshold and scale > 0
    name = "score relative to the threshold" if is_relative else "anomaly score"
    titles = ["Kind", "Images", "Flagged", f"Median {name}", "Lowest", "Highest", "Defect marked (AUPIMO)"]
    scores = -result.scores / (scale if is_relative else 1)
    rows = []
    kinds = sorted(set(result.defects[result.labels == -1].tolist()), key=str)
    for kind, chosen in [
        ("good", result.labels == 1),
        *((kind, (result.defects == kind) & (result.labels == -1)) for kind in kinds),
    ]:
        own, n = scores[chosen], int(chosen.sum())
        flagged = float((result.scores[chosen] < result.offset).mean()) if has_threshold else math.nan
        overlap = result.aupimo[chosen] if len(result.aupimo) else np.zeros(0)
        overlap = overlap[np.isfinite(overlap)]
        rows.append([
            str(kind), n, _share(flagged, n), float(np.median(own)), float(own.min()), float(own.max()),
            float(overlap.mean()) if len(overlap) else math.nan,
        ])  # fmt: skip
    return table(f"Test images of {result.category} by kind of defect", titles, rows)


def category_charts(result: CategoryResult) -> list[str]:
    """Return the charts of a category: histogram of scores, ROC curve of images, overlap of regions.

    Parameters
    ----------
    result : CategoryResult
        The result of the category.

    Returns
    -------
    list of str
        SVG figures. Without masks, there is no overlap of regions.
    """
    good = result.labels == 1
    charts = [
        score_chart(
            -result.scores[good],
            -result.scores[~good],
            -result.calibration_scores,
            -result.offset,
            title="Anomaly scores of the test images",
        ),
        line_chart(
            [Line(*result.roc)],
            title=f"Images: AUROC {result.row['image_auroc']:.3f}",
            x_title="fraction of good images flagged",
            y_title="fraction of defects found",
        ),
    ]
    if result.pro.size:
        regions = line_chart(
            [Line(*result.pro[:, result.pro[0] <= _LAST_FPR])],
            title=f"Regions: AUPRO {result.row['aupro']:.3f}",
            x_title="fraction of good pixels marked",
            y_title="fraction of a defect marked",
            x_range=(0, _LAST_FPR),
        )
        charts.append(regions)
    return charts


def _after(evaluation: Evaluation) -> Iterable[str]:
    for study_name, study in evaluation.studies.items():
        is_low_shot = study_name == "low-shot"
        title = "Fewer training images" if is_low_shot else f"Other values: {study_name}"
        charts = low_shot_charts(study) if is_low_shot else ablation_charts(study, study.columns[1])
        note = (
            "Means over the draws of the training images. Bands are one standard deviation over the draws."
            if is_low_shot
            else "Means over the categories. The labels of the test images were used, as in the paper."
        )
        yield f'<section class="part"><h2>{escaped(title)}</h2>{paragraph(note)}<div class="charts">{"".join(charts)}'
        yield f"</div>{frame_table(f'Means of the study {study_name}', means_of(study_name, study))}</section>"
    yield f'<section class="part">{details("How these results were made", definitions(_provenance(evaluation)))}'
    yield "</section>"


def _provenance(evaluation: Evaluation) -> dict[str, Any]:
    """Return the settings of all results."""
    runs = evaluation.runs
    provenance, settings = runs[0].provenance, runs[0].settings
    parameters = settings["parameters"]
    split = provenance.get("split")
    return {
        "Backbone": provenance["backbone"],
        "Weights": parameters.get("extractor__weights", "default") or "random",
        "SHA-256 of the weights": provenance["weights_digest"],
        "Image size": _sides(parameters.get("extractor__image_size", "default"), "own size of each image"),
        "Crop": _sides(parameters.get("extractor__crop_size", "default"), "none: the whole image is inspected"),
        "Contamination": parameters["contamination"],
        "Calibration": parameters.get("calibration"),
        "Pixels compared": {"own": "at the original size of each image", "seen": "at the size of the network's input"}[
            settings["resolution"]
        ],
        "Seed": parameters.get("random_state"),
        **({} if split is None else {
            "Division of the good images": f"at random, test size {split['test_size']}, seed {split['random_state']}, "
            f"{split['n_good']} images; images.csv lists them",
        }),
        **_common({"versions", "device", "date"}, [one.provenance for one in runs]),
    }  # fmt: skip


def _common(names: set[str], made: list[dict[str, Any]]) -> dict[str, str]:
    """Return values that all results have in common, or a note that they differ."""
    texts = {name: [_flat(provenance[name]) for provenance in made] for name in sorted(names)}
    dates = texts["date"]
    texts["date"] = [min(dates) if min(dates) == max(dates) else f"{min(dates)} to {max(dates)}"]
    return {n.capitalize(): t[0] if len(set(t)) == 1 else "different: see results.json" for n, t in texts.items()}


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _sides(size: Any, without: str) -> str:
    return without if size is None else "×".join(map(str, size)) if isinstance(size, list | tuple) else str(size)
