"""run_evaluation: evaluate all categories, store the results in a folder, and resume an interrupted evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from skpatchcore._utils.files import written_whole
from skpatchcore._utils.missing import is_missing
from skpatchcore._utils.names import escape_name, shown_name
from skpatchcore._utils.progress import Progress, follow_progress, progress_bar
from skpatchcore.datasets import ImageFolder
from skpatchcore.evaluation.category import CategoryResult, as_categories, check_before, table_of, with_mean
from skpatchcore.evaluation.intervals import metric_intervals
from skpatchcore.evaluation.storage import Results, as_json, provenance_of, settings_of
from skpatchcore.evaluation.studies import (
    ABLATIONS,
    Run,
    ablation_runs,
    low_shot_runs,
    named_grid,
    plain_runs,
    run_quietly,
)

# Description of the work of the detectors after the fit.
_SCORING = "scoring"
# ``draw(result, fitted, dataset, folder)`` writes pictures of a category, and returns their descriptions.
Draw = Callable[[CategoryResult, Any, Any, Path], list[dict[str, Any]]]


class FinishedRun(NamedTuple):
    """One run of an evaluation and its result, either newly computed or read from the results folder.

    Attributes
    ----------
    run : Run
        Category, detector and data set.
    result : CategoryResult
        Metrics, scores and thresholds of the run.
    settings : dict
        Values that decide whether a stored result can be used again: the parameters of the detector, digests of the
        weights, of the images and of functions, the resolution, and the versions of skpatchcore, torch and torchvision.
    provenance : dict
        Record of how the result was computed, which is not compared: the backbone and the digest of its weights, the
        versions of all packages, the machine and the date. If the good images were divided at random, the division is
        included. ``"pictures"`` is the list that `draw` of :func:`run_evaluation` returned.
    """

    run: Run
    result: CategoryResult
    settings: dict[str, Any]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Results of :func:`run_evaluation`.

    Attributes
    ----------
    folder : Path
        Folder of the results.
    runs : list of FinishedRun
        One per category.
    table : DataFrame
        Table of :func:`~skpatchcore.evaluate`, with a last row ``"mean"`` if there are several categories.
    studies : dict of str to DataFrame
        One table per study, as returned by :func:`~skpatchcore.evaluation.low_shot_curve` and
        :func:`~skpatchcore.evaluation.ablation`.
    intervals : DataFrame
        95 % intervals of the metrics of each category, as returned by
        :func:`~skpatchcore.evaluation.metric_intervals`.
    """

    folder: Path
    runs: list[FinishedRun]
    table: pd.DataFrame
    studies: dict[str, pd.DataFrame]
    intervals: pd.DataFrame


def run_evaluation(
    detector: Any,
    dataset: Any,
    folder: Any,
    *,
    resolution: str = "own",
    shots: Sequence[int] = (),
    n_repeats: int = 3,
    ablations: Sequence[str] = (),
    random_state: int = 0,
    overwrite: bool = False,
    draw: Draw | None = None,
    verbose: int = 0,
) -> Evaluation:
    """Evaluate a detector and store each result. A second call computes only the missing results.

    A stored result is used if its settings are equal and if the content of all images, masks, labels, groups, weights
    and functions is unchanged. If the content has changed, the result is computed again, with a warning.

    The tables contain the categories and studies of this call. Tables of earlier calls in the folder are replaced, but
    all stored results are kept.

    Parameters
    ----------
    detector : estimator
        As for :func:`~skpatchcore.evaluate`.
    dataset : path, ImageFolder, TextureTask or dict of str to one of these
        As for :func:`~skpatchcore.evaluate`.
    folder : path
        Folder for ``results.csv``, ``intervals.csv``, ``results.json``, one table per study, and the folder ``runs``.
        ``intervals.csv`` has the 95 % intervals of the metrics. For images on disk,
        ``images.csv`` lists which images were used for the fit and for the test, with the scores of the test images.
    resolution : {"own", "seen"}, default="own"
        As for :func:`~skpatchcore.evaluate`.
    shots : sequence of int, default=()
        Numbers of training images for a low-shot study.
    n_repeats : int, default=3
        Number of draws per number of training images.
    ablations : sequence of str, default=()
        Names of studies for :func:`~skpatchcore.evaluation.named_grid`.
    random_state : int, default=0
        Seed of the draws.
    overwrite : bool, default=False
        Whether stored results with other settings are replaced. If False, such a result raises an error, because a
        table must not mix settings.
    draw : callable or None, default=None
        ``draw(result, fitted, dataset, folder)`` writes pictures of a category, and returns a list of dicts that is
        stored as ``provenance["pictures"]``. :func:`skpatchcore.reports.write_worst` is such a function. It is not
        called for results that are read from the folder.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    Evaluation
        Table, studies and runs.

    Raises
    ------
    ValueError
        If a result was stored with other settings and `overwrite` is False. If the data or the parameters are not
        valid, which is checked before the fit.
    ImageError, WeightsError, FileNotFoundError
        As raised by :func:`~skpatchcore.evaluate`.

    Warns
    -----
    UserWarning
        If the content of the data, of the network or of a function has changed since a result was stored.

    See Also
    --------
    skpatchcore.reports.write_evaluation_report : Writes the results as a page.

    Examples
    --------
    >>> import tempfile
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.datasets import make_textures
    >>> from skpatchcore.evaluation import run_evaluation
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = run_evaluation(detector, make_textures("brick", n_views=2), folder)
    ...     again = run_evaluation(detector, make_textures("brick", n_views=2), folder)  # reads the stored result
    >>> again.table.equals(first.table)
    True
    """
    if n_repeats < 1:
        raise ValueError(f"n_repeats={n_repeats}: expected at least 1.")
    categories, folder = as_categories(dataset), Path(folder)
    results, known = Results(folder / "runs", overwrite), dict[str, str]()
    check_before(detector, categories, resolution)
    planned: dict[str, list[Run]] = {}
    if len(shots):
        planned["low-shot"] = list(low_shot_runs(detector, categories, shots, n_repeats, random_state))
    for name in ablations:
        planned[name] = list(ablation_runs(detector, categories, named_grid(name, detector)))
    runs = _finished(list(plain_runs(detector, categories)), results, resolution, verbose, known, draw)
    table = with_mean(table_of([one.result for one in runs]))
    table.to_csv(folder / "results.csv", index_label="category")  # written before the studies, which may take long
    studies = {name: _study(_finished(some, results, resolution, verbose, known)) for name, some in planned.items()}
    intervals = metric_intervals([one.result for one in runs])
    evaluation = Evaluation(folder, runs, table, studies, intervals)
    _write(evaluation)
    return evaluation


def means_of(name: str, study: pd.DataFrame) -> pd.DataFrame:
    """Return the means of the metrics of a study per setting.

    Parameters
    ----------
    name : str
        Name of the study, such as ``"low-shot"``.
    study : DataFrame
        Table of the study.

    Returns
    -------
    DataFrame
        One row per setting, with metrics of :func:`~skpatchcore.evaluate`.
    """
    by = "shots" if name == "low-shot" else study.columns[1]
    columns = ["found_at_01", "found_at_05", "found_at_10", "image_auroc", "pixel_auroc", "aupro", "good_flagged",
               "defects_found", "fit_seconds", "test_seconds"]  # fmt: skip
    # Results of older versions lack the recall at promised rates.
    return study.groupby(by, sort=False)[[name for name in columns if name in study]].mean()


def _finished(
    runs: list[Run],
    results: Results,
    resolution: str,
    verbose: int,
    known: dict[str, str],
    draw: Draw | None = None,
) -> list[FinishedRun]:
    """Return each run with its result. Results that are not in the folder are computed."""
    done = []
    with progress_bar(len(runs), "evaluating", "run", verbose) as bar:
        for run in runs:
            settings = settings_of(run, resolution, known)
            stored = results.load(run, settings)
            if stored is None:
                results.forget(run)
                with follow_progress(_describer(bar, run)):
                    result, fitted = run_quietly(run, resolution)
                provenance = provenance_of(fitted, run.dataset)
                if draw is not None:
                    place = results.place_of(run)
                    place.mkdir(parents=True, exist_ok=True)
                    provenance["pictures"] = draw(result, fitted, run.dataset, place)
                results.keep(run, settings, result, provenance)
                stored = result, provenance
            done.append(FinishedRun(run, stored[0], settings, stored[1]))
            bar.update(1)
    return done


def _describer(bar: Progress, run: Run) -> Callable[[str, int], None]:
    """Return a function that shows on a bar which work of a run is being done."""
    name = shown_name(run.category) if run.name == "all" else f"{shown_name(run.category)}, {shown_name(run.name)}"
    shown = [""]

    def describe(description: str, n: int) -> None:
        # test images are scored one after the other, with several descriptions per image
        if description != shown[0] and shown[0] != _SCORING:
            shown[0] = description
            bar.describe(f"{name}: {'scoring test images' if description == _SCORING else description}")

    return describe


def _study(runs: list[FinishedRun]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"category": escape_name(one.run.category), **one.run.settings, **one.result.row} for one in runs]
    )


def _write(evaluation: Evaluation) -> None:
    """Write the tables. Tables of studies of an earlier call are removed, because they belong to other results."""
    folder = evaluation.folder
    for name in ("low-shot", *ABLATIONS):
        (folder / f"{name}.csv").unlink(missing_ok=True)
    evaluation.intervals.to_csv(folder / "intervals.csv", index=False)
    for name, study in evaluation.studies.items():
        study.to_csv(folder / f"{name}.csv", index=False)
    content: Mapping[str, Any] = {
        "runs": [
            {
                "category": one.run.category,
                "settings": one.settings,
                "provenance": one.provenance,
                "metrics": as_json(one.result.row),
            }
            for one in evaluation.runs
        ],
        "mean": as_json(evaluation.table.iloc[-1].to_dict()),
        "studies": {name: as_json(study.to_dict("records")) for name, study in evaluation.studies.items()},
    }
    with written_whole(folder / "results.json") as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _write_images(evaluation)


def _write_images(evaluation: Evaluation) -> None:
    """Write the table of the images and of the scores of the test images, or remove the table of an earlier call."""
    tables = []
    for one in evaluation.runs:
        if isinstance(one.run.dataset, ImageFolder):
            table = one.run.dataset.to_frame()
            table.insert(0, "category", escape_name(one.run.category))
            table["score"] = [np.nan] * len(one.run.dataset.train_paths) + list(one.result.scores)
            tables.append(table)
    file = evaluation.folder / "images.csv"
    if not tables:
        file.unlink(missing_ok=True)
        return
    table = pd.concat(tables)
    for name in ("path", "defect", "mask"):
        table[name] = [None if is_missing(text) else escape_name(text) for text in table[name]]
    table.to_csv(file, index=False)
