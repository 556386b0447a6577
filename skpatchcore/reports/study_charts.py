"""low_shot_charts and ablation_charts: the charts of the studies of an evaluation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from skpatchcore.reports.charts import Line, line_chart, value_chart

_STUDY_METRICS = {"image_auroc": "Image AUROC", "pixel_auroc": "Pixel AUROC", "aupro": "AUPRO"}


def low_shot_charts(study: pd.DataFrame) -> list[str]:
    """Return charts of metrics over the number of training images: one line per category, and their mean.

    Parameters
    ----------
    study : DataFrame
        Table of :func:`~skpatchcore.evaluation.low_shot_curve`.

    Returns
    -------
    list of str
        One SVG figure per metric. The mean is drawn where all categories have as many images.
    """
    charts = []
    ticks = sorted({int(n) for n in study["shots"]})
    for metric, title in _metrics_of(study).items():
        lines = []
        for category, rows in study.groupby("category", sort=False):
            draws = rows.groupby("shots")[metric]
            mean = draws.mean()
            lines.append(
                Line(
                    mean.index.to_numpy(float),
                    mean.to_numpy(),
                    str(category),
                    draws.std().fillna(0).to_numpy(),
                    has_dots=True,
                )
            )
        if len(lines) > 1:
            means = study.groupby(["shots", "category"])[metric].mean().unstack("category").dropna().mean(axis=1)
            lines.append(Line(means.index.to_numpy(float), means.to_numpy(), "mean", is_main=True, has_dots=True))
        low = float(np.nanmin([np.nanmin(line.y) for line in lines if np.isfinite(line.y).any()]))
        charts.append(
            line_chart(
                lines,
                title=title,
                x_title="training images",
                y_title=title,
                x_range=(ticks[0], ticks[-1]) if len(ticks) > 1 else (ticks[0], ticks[0] + 1),
                y_range=(math.floor(10 * low) / 10, 1),
                x_ticks=ticks,
                is_log=True,
            )
        )
    return charts


def ablation_charts(study: pd.DataFrame, parameter: str) -> list[str]:
    """Return charts of metrics per value of a parameter, as means over the categories.

    Parameters
    ----------
    study : DataFrame
        Table of :func:`~skpatchcore.evaluation.ablation`.
    parameter : str
        Column of the values.

    Returns
    -------
    list of str
        One SVG figure per metric.
    """
    means = study.groupby(parameter, sort=False)[list(_STUDY_METRICS)].mean()
    return [
        value_chart({str(value): float(mean) for value, mean in means[metric].items()}, title=title)
        for metric, title in _metrics_of(study).items()
    ]


def _metrics_of(study: pd.DataFrame) -> dict[str, str]:
    return {name: title for name, title in _STUDY_METRICS.items() if study[name].notna().any()}
