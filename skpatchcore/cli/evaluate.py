"""``skpatchcore evaluate``: all categories of a data set, one table; figures, provenance and a report beside it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from skpatchcore.cli.options import CommandError, Formatter, add_debug, contamination, require_matplotlib, weights
from skpatchcore.datasets import load_categories

if TYPE_CHECKING:
    import pandas as pd

    from skpatchcore.evaluation.category import CategoryResult
    from skpatchcore.evaluation.storage import Results
    from skpatchcore.evaluation.studies import Run

# Columns of the table on the screen and on top of the report; the files have all.
_SHOWN = (
    "image_auroc", "image_ap", "image_f1_max", "misclassified", "pixel_auroc", "pixel_ap", "aupro", "aupimo",
    "good_flagged", "defects_found", "bank_rows", "fit_seconds", "test_seconds",
)  # fmt: skip


class _Done(NamedTuple):
    """A run, and what came of it, now or before."""

    run: Run
    result: CategoryResult
    settings: dict[str, Any]
    provenance: dict[str, Any]


def add_parser(commands: Any) -> None:
    """Add the command to argparse's."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a detector on a data set with known defects",
        description="Fit and test on every category of a data set in the layout of MVTec AD; write results.csv, "
        "results.json and report.html. What is there already, with the same settings, is not computed again.",
        formatter_class=Formatter,
    )
    parser.add_argument("root", metavar="ROOT", help="a folder of categories, or of one: train/good, test/..., ...")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for results")
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="some of them only")
    parser.add_argument(
        "--preset",
        choices=["paper-1", "paper-10", "paper-25", "offline"],
        default="offline",
        help="the paper's settings with 1, 10 or 25 %% of the patches; or a backbone that needs no download",
    )
    parser.add_argument("--method", choices=["patchcore", "spade", "padim"], default="patchcore", help="or a baseline")
    parser.add_argument(
        "--weights", type=weights, default="preset", help="others than the preset's: a path, or 'none' for random ones"
    )
    parser.add_argument("--ratio", type=float, help="another share of the patches kept")
    parser.add_argument(
        "--contamination", type=contamination, default="auto", help="accepted share of good images flagged, or 'auto'"
    )
    parser.add_argument(
        "--resolution",
        choices=["own", "seen"],
        help="compare pixels at the images' own sizes, or as the network sees them: the default of the paper's presets",
    )
    parser.add_argument("--shots", type=int, nargs="+", metavar="N", help="also with so few training images")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="draws of them")
    parser.add_argument(
        "--ablate",
        nargs="+",
        default=[],
        choices=["patch_size", "layers", "stride", "sampler"],
        help="also with other choices, one after the other",
    )
    parser.add_argument("--cache", metavar="DIR", help="keep the network's outputs: for --shots and --ablate")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--batch-size", type=int, default=4, help="images through the network at once")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same results")
    parser.add_argument("--overwrite", action="store_true", help="replace results of other settings")
    parser.add_argument("--quiet", action="store_true", help="no progress, no table")
    add_debug(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from skpatchcore.evaluation.category import check_before, table_of, with_mean
    from skpatchcore.evaluation.presets import default_resolution, make_detector
    from skpatchcore.evaluation.storage import Results, as_json
    from skpatchcore.evaluation.studies import ABLATIONS, ablation_runs, low_shot_runs, named_grid, plain_runs

    if min([options.repeats, *(options.shots or [1])]) < 1:
        raise CommandError("--shots and --repeats must be at least 1.")
    require_matplotlib()
    categories = load_categories(options.root, options.categories)
    resolution = options.resolution or default_resolution(options.preset)
    detector = make_detector(
        options.preset,
        options.method,
        ratio=options.ratio,
        device=options.device,
        contamination=options.contamination,
        random_state=options.seed,
        batch_size=options.batch_size,
        memory=options.cache,
        **({"weights": options.weights} if options.weights != "preset" else {}),
    )
    output = Path(options.output)
    results = Results(output / "runs", options.overwrite)
    begin = time.perf_counter()
    # What can't be done is found out before the work.
    check_before(detector, categories, resolution)
    planned: dict[str, list[Run]] = {}
    if options.shots:
        planned["low-shot"] = list(low_shot_runs(detector, categories, options.shots, options.repeats, options.seed))
    for name in options.ablate:
        planned[name] = list(ablation_runs(detector, categories, named_grid(name, detector)))
    done = _computed(list(plain_runs(detector, categories)), results, resolution, options, with_pictures=True)
    table = with_mean(table_of([one.result for one in done]))
    table.to_csv(output / "results.csv", index_label="category")
    studies = {name: _study(_computed(runs, results, resolution, options)) for name, runs in planned.items()}
    for name in ("low-shot", *ABLATIONS):  # tables of an earlier run would look like this one's
        (output / f"{name}.csv").unlink(missing_ok=True)
    for name, study in studies.items():
        study.to_csv(output / f"{name}.csv", index=False)
    content = {
        "runs": [
            {
                "category": one.run.category,
                "settings": one.settings,
                "provenance": one.provenance,
                "metrics": as_json(one.result.row),
            }
            for one in done
        ],
        "mean": as_json(table.iloc[-1].to_dict()),
        "studies": {name: as_json(study.to_dict("records")) for name, study in studies.items()},
    }
    (output / "results.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    _write_report(output / "report.html", options, done, table, studies, results)
    if not options.quiet:
        print(_as_text(table[[name for name in _SHOWN if name in table]]))
        for name, study in studies.items():
            print(f"\n{name}\n{_as_text(_means(name, study))}")
        print(f"\n{time.perf_counter() - begin:.0f} s: {output / 'report.html'}, results.csv, results.json")
    return 0


def _computed(
    runs: list[Run], results: Results, resolution: str, options: argparse.Namespace, with_pictures: bool = False
) -> list[_Done]:
    """Return each run with its result, settings and provenance, from the folder or computed now."""
    from skpatchcore._utils.progress import progress_bar
    from skpatchcore.evaluation.storage import provenance_of, settings_of
    from skpatchcore.evaluation.studies import run_quietly
    from skpatchcore.reports.evaluation import write_worst

    done = []
    with progress_bar(len(runs), "evaluating", "run", not options.quiet) as bar:
        for run in runs:
            settings = settings_of(run, resolution)
            stored = results.load(run, settings)
            if stored is None:
                results.forget(run)
                result, fitted = run_quietly(run, resolution)
                provenance = provenance_of(fitted)
                if with_pictures:
                    place = results.place_of(run)
                    place.mkdir(parents=True, exist_ok=True)
                    provenance["pictures"] = write_worst(result, fitted, run.dataset, place)
                results.keep(run, settings, result, provenance)
                stored = result, provenance
            done.append(_Done(run, stored[0], settings, stored[1]))
            bar.update(1)
    return done


def _common(names: set[str], made: list[dict[str, Any]]) -> dict[str, str]:
    """Return what all results were made with, or that they differ."""
    texts = {name: [_flat(provenance[name]) for provenance in made] for name in sorted(names)}
    texts["date"] = [f"{min(texts['date'])} to {max(texts['date'])}"]
    return {n: t[0] if len(set(t)) == 1 else "differ: see results.json" for n, t in texts.items()}


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _sides(size: Any, without: str) -> str:
    return without if size is None else "×".join(map(str, size)) if isinstance(size, list | tuple) else str(size)


def _study(done: Iterable[_Done]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([{"category": one.run.category, **one.run.settings, **one.result.row} for one in done])


def _means(name: str, study: pd.DataFrame) -> pd.DataFrame:
    """Return the means of a study's metrics for each setting."""
    by = "shots" if name == "low-shot" else study.columns[1]
    columns = ["image_auroc", "pixel_auroc", "aupro", "good_flagged", "defects_found", "fit_seconds", "test_seconds"]
    return study.groupby(by, sort=False)[columns].mean()


def _as_text(table: pd.DataFrame) -> str:
    from skpatchcore.reports.page import format_number

    return table.to_string(float_format=format_number, na_rep="-")


def _write_report(
    path: Path,
    options: argparse.Namespace,
    done: list[_Done],
    table: pd.DataFrame,
    studies: dict[str, pd.DataFrame],
    results: Results,
) -> None:
    from PIL import Image

    from skpatchcore.reports import page as report
    from skpatchcore.reports.evaluation import draw_ablation, draw_category, draw_low_shot

    provenance, settings = done[0].provenance, done[0].settings
    parameters = settings["parameters"]
    parts = [
        report.definitions(
            {
                "data": f"{Path(options.root).resolve().name}, {len(done)} categor{'y' if len(done) == 1 else 'ies'}",
                "method": f"{options.method}, preset {options.preset}",
                "backbone": provenance["backbone"],
                "weights": parameters["extractor__weights"] or "random",
                "weights' SHA-256": provenance["weights_digest"],
                "image size": _sides(parameters["extractor__image_size"], "own"),
                "crop": _sides(parameters["extractor__crop_size"], "none"),
                "contamination": parameters["contamination"],
                "calibration": parameters["calibration"],
                "pixels compared": "at the images' own sizes" if settings["resolution"] == "own" else "as seen",
                "seed": options.seed,
                **_common({"versions", "device", "date"}, [one.provenance for one in done]),
            }
        ),
        report.heading("All categories"),
        report.table(table[[name for name in _SHOWN if name in table]]),
        report.paragraph(
            "Shares from 0 to 1, bigger = better, but for good_flagged. misclassified, F1 at the threshold that suits "
            "the labels best; good_flagged and defects_found at the detector's own threshold, set from good images "
            "alone. The mean is the plain mean of the categories; misclassified is summed. Seconds are of when each "
            "was computed, without the network where its outputs came from a cache."
        ),
    ]
    for name, study in studies.items():
        draw = draw_low_shot(study) if name == "low-shot" else draw_ablation(study, study.columns[1])
        parts += [
            report.heading(name),
            report.drawing(draw, f"{name}: means{', one standard deviation over draws' * (name == 'low-shot')}"),
            report.table(_means(name, study)),
        ]
    for run, result, _, details in done:
        title = f"{run.category}: image AUROC {result.row['image_auroc']:.3f}"
        parts += [report.heading(run.category), report.drawing(draw_category(result), title)]
        for shown in details.get("pictures", []):
            with Image.open(results.place_of(run) / shown["file"]) as picture:
                parts.append(report.picture(picture, shown["caption"]))
    parts.append(
        report.paragraph(
            "Pictures: the image with the outline of its mask, and with its anomaly map; cyan encloses what is beyond "
            "the threshold. Good images that look worst, and defective ones that look best."
        )
    )
    report.write_page(path, f"skpatchcore evaluate: {Path(options.root).resolve().name}", parts)
