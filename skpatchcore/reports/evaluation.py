"""The report of an evaluation: tables, curves, score histograms, the worst mistakes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from skpatchcore._utils.names import shown_name
from skpatchcore._utils.warning import warn_user
from skpatchcore.datasets import read_mask
from skpatchcore.display import ScoreHistogramDisplay, outline_mask, overlay_anomaly_map
from skpatchcore.evaluation.category import CategoryResult
from skpatchcore.evaluation.runs import Evaluation, means_of
from skpatchcore.evaluation.storage import Results
from skpatchcore.images.reading import load_image
from skpatchcore.protocols import pixel_format_of
from skpatchcore.reports import page
from skpatchcore.reports.page import side_by_side

# Of Okabe and Ito's palette, which the colour-blind tell apart.
_BLUE, _GREY = "#0072B2", "#777777"
_LINES = (_BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00")
# Columns of the table on the screen and on top of the report; the files have all.
SHOWN = (
    "image_auroc", "image_ap", "image_f1_max", "misclassified", "pixel_auroc", "pixel_ap", "aupro", "aupimo",
    "good_flagged", "defects_found", "bank_rows", "fit_seconds", "test_seconds",
)  # fmt: skip


def write_worst(result: CategoryResult, fitted: Any, dataset: Any, folder: Path, n: int = 3) -> list[dict[str, Any]]:
    """Write pictures of the good images that look worst and of the defective ones that look best.

    Parameters
    ----------
    result : CategoryResult
        Whose scores tell which they are.
    fitted : estimator
        Draws their maps.
    dataset : ImageFolder or TextureTask
        Where the images are.
    folder : path
        Where the pictures go.
    n : int, default=3
        Of each kind.

    Returns
    -------
    list of dict
        ``file``, ``kind``, ``caption`` of each.

    Warns
    -----
    UserWarning
        If a picture can't be drawn or written: it is left out.
    """
    order = result.scores.argsort(kind="stable")
    good = [i for i in order if result.labels[i] == 1][:n]
    missed = [i for i in order[::-1] if result.labels[i] == -1][:n]
    found = []
    for kind, images in (("false positive", good), ("miss", missed)):
        for rank, i in enumerate(images, start=1):
            # where nothing is wrong, it is the nearest thing to a mistake
            decided = not math.isnan(result.offset)
            is_wrong = decided and (result.scores[i] < result.offset) == (result.labels[i] == 1)
            file = f"{kind.replace(' ', '-')}-{rank}.png"
            try:
                image = load_image(dataset.test_images[i], int(i), pixel_format=pixel_format_of(fitted))
                anomaly_map = np.asarray(fitted.segment(dataset.test_images[i : i + 1])[0])
                mask = read_mask(dataset.test_masks[i], anomaly_map.shape)
                _pair(image, anomaly_map, mask, result.pixel_offset).save(folder / file)
            except (OSError, ValueError) as error:  # the metrics are there, and other pictures may be
                warn_user(f"category {shown_name(result.category)!r}: no picture of test image {i}: {error}")
                continue
            where = "" if math.isnan(result.offset) else f", threshold {result.offset:.4g}"
            name = "/".join(Path(str(result.paths[i])).parts[-2:])
            text = f"{kind if is_wrong else f'nearest to a {kind}'}: {name}, score {result.scores[i]:.4g}{where}"
            found.append({"file": file, "kind": kind, "caption": text})
    return found


def _pair(image: np.ndarray, anomaly_map: np.ndarray, mask: np.ndarray, threshold: float) -> Image.Image:
    """Return the image, with the outline of its mask, beside its overlay."""
    if math.isnan(threshold):
        threshold = float(anomaly_map.max()) / 2
    return side_by_side([outline_mask(image, mask), overlay_anomaly_map(image, anomaly_map, threshold)])


def draw_category(result: CategoryResult) -> Any:
    """Return a figure of a category: ROC curve of images, overlap of regions, histogram of scores."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.1), layout="constrained")
    images, regions, scores = figure.subplots(1, 3)
    images.plot(*result.roc, color=_BLUE)
    images.set(
        title=f"Images: AUROC {result.row['image_auroc']:.3f}", xlabel="false-positive rate", ylabel="defects found",
        xlim=(0, 1), ylim=(0, 1.02),
    )  # fmt: skip
    if result.pro.size:
        regions.plot(*result.pro, color=_BLUE)
        regions.set_title(f"Regions: AUPRO {result.row['aupro']:.3f}")
    else:
        regions.set_title("Regions: no masks")
    regions.set(xlabel="false-positive rate of pixels", ylabel="overlap", xlim=(0, 0.3), ylim=(0, 1.02))
    ScoreHistogramDisplay(result.scores, result.labels, offset=result.offset).plot(ax=scores)
    return figure


def draw_low_shot(table: pd.DataFrame) -> Any:
    """Return a figure of metrics over the number of training images, one line a category, and their mean.

    The mean is drawn where all categories have as many images. Bands are one standard deviation over draws.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    metrics = [name for name in ("image_auroc", "pixel_auroc", "aupro") if table[name].notna().any()]
    names = list(table["category"].unique())
    for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics, strict=True):
        for name, color in zip(names, _LINES if len(names) <= len(_LINES) else [_GREY] * len(names), strict=False):
            draws = table[table["category"] == name].groupby("shots")[metric]
            mean, spread = draws.mean(), draws.std().fillna(0)
            axes.plot(mean, marker="o", color=color, linewidth=1.5, label=_label(name) if color != _GREY else None)
            axes.fill_between(mean.index, mean - spread, mean + spread, alpha=0.15, color=color, linewidth=0)
        if len(names) > 1:
            means = table.groupby(["shots", "category"])[metric].mean().unstack("category").dropna().mean(axis=1)
            axes.plot(means, marker="o", color="black", linewidth=2, label="mean")
        ticks = sorted(table["shots"].unique())
        axes.set(xscale="log", title=metric.replace("_", " "), xlabel="training images")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    legend = figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    for text in legend.get_texts():
        text.set(parse_math=False, usetex=False)
    return figure


def _label(name: str) -> str:
    """Return the entry of a legend; matplotlib leaves out those that start with an underscore."""
    return f" {shown_name(name)}" if name.startswith("_") else shown_name(name)


def draw_ablation(table: pd.DataFrame, parameter: str) -> Any:
    """Return a figure of metrics for each value that a parameter was given, mean over the categories."""
    from matplotlib.figure import Figure

    metrics = [name for name in ("image_auroc", "pixel_auroc", "aupro") if table[name].notna().any()]
    means = table.groupby(parameter, sort=False)[metrics].mean()
    figure = Figure(figsize=(11, 1.2 + 0.32 * len(means)), layout="constrained")
    for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics), sharey=True)), metrics, strict=True):
        places = np.arange(len(means))[::-1]
        axes.plot(means[metric], places, "o", color=_BLUE)
        axes.hlines(places, means[metric].min(), means[metric], color=_GREY, linewidth=1)
        axes.set_yticks(places, [shown_name(str(value)) for value in means.index], parse_math=False, usetex=False)
        axes.set(title=metric.replace("_", " "))
        axes.margins(x=0.08)
    return figure


def write_evaluation_report(
    evaluation: Evaluation, name: str, *, method: str | None = None, path: str | os.PathLike[str] | None = None
) -> Path:
    """Write the results of an evaluation as one HTML page: tables, curves, and the worst mistakes.

    The worst mistakes are shown if they were drawn: ``run_evaluation(..., draw=write_worst)``.

    Parameters
    ----------
    evaluation : Evaluation
        As :func:`~skpatchcore.evaluation.run_evaluation` returns it.
    name : str
        Name of the data set.
    method : str or None, default=None
        Description of the detector; None is its class.
    path : path or None, default=None
        The file; None is ``report.html`` in the evaluation's folder.

    Returns
    -------
    Path
        Of the page.
    """
    runs, table, stored = evaluation.runs, evaluation.table, Results(evaluation.folder / "runs")
    provenance, settings = runs[0].provenance, runs[0].settings
    parameters = settings["parameters"]
    parts = [
        page.definitions(
            {
                "data": f"{name}, {len(runs)} categor{'y' if len(runs) == 1 else 'ies'}",
                "method": settings["detector"] if method is None else method,
                "backbone": provenance["backbone"],
                "weights": parameters.get("extractor__weights", "default") or "random",
                "weights' SHA-256": provenance["weights_digest"],
                "image size": _sides(parameters.get("extractor__image_size", "default"), "own"),
                "crop": _sides(parameters.get("extractor__crop_size", "default"), "none"),
                "contamination": parameters["contamination"],
                "calibration": parameters.get("calibration"),
                "pixels compared": "at the images' own sizes" if settings["resolution"] == "own" else "as seen",
                "seed": parameters.get("random_state"),
                **_common({"versions", "device", "date"}, [one.provenance for one in runs]),
            }
        ),
        page.heading("All categories"),
        page.table(table[[name for name in SHOWN if name in table]]),
        page.paragraph(
            "Shares from 0 to 1, bigger = better, but for good_flagged. misclassified, F1 at the threshold that suits "
            "the labels best; good_flagged and defects_found at the detector's own threshold, set from good images "
            "alone. The mean is the plain mean of the categories; misclassified is summed. Seconds are of when each "
            "was computed, without the network where its outputs came from a cache."
        ),
    ]
    for study_name, study in evaluation.studies.items():
        draw = draw_low_shot(study) if study_name == "low-shot" else draw_ablation(study, study.columns[1])
        parts += [
            page.heading(study_name),
            page.drawing(
                draw, f"{study_name}: means{', one standard deviation over draws' * (study_name == 'low-shot')}"
            ),
            page.table(means_of(study_name, study)),
        ]
    for run, result, _, details in runs:
        title = f"{run.category}: image AUROC {result.row['image_auroc']:.3f}"
        parts += [page.heading(run.category), page.drawing(draw_category(result), title)]
        for shown in details.get("pictures", []):
            try:
                with Image.open(stored.place_of(run) / shown["file"]) as picture:
                    parts.append(page.picture(picture, shown["caption"]))
            except OSError as error:
                parts.append(page.paragraph(f"{shown['caption']}; it can't be shown: {error}"))
    parts.append(
        page.paragraph(
            "Pictures: the image with the outline of its mask, and with its anomaly map; cyan encloses what is beyond "
            "the threshold. Good images that look worst, and defective ones that look best."
        )
    )
    target = Path(path or evaluation.folder / "report.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    page.write_page(target, f"skpatchcore evaluate: {name}", parts)
    return target


def _common(names: set[str], made: list[dict[str, Any]]) -> dict[str, str]:
    """Return what all results were made with, or that they differ."""
    texts = {name: [_flat(provenance[name]) for provenance in made] for name in sorted(names)}
    texts["date"] = [f"{min(texts['date'])} to {max(texts['date'])}"]
    return {n: t[0] if len(set(t)) == 1 else "differ: see results.json" for n, t in texts.items()}


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _sides(size: Any, without: str) -> str:
    return without if size is None else "×".join(map(str, size)) if isinstance(size, list | tuple) else str(size)
