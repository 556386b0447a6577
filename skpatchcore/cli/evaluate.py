"""``skpatchcore evaluate``: all categories of a data set in one table, with provenance and a report beside it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from skpatchcore._utils.names import shown_name
from skpatchcore.cli.options import (
    CommandError,
    Formatter,
    add_debug,
    contamination,
    require_folder,
    require_matplotlib,
    weights,
)


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
    from skpatchcore.datasets import load_categories
    from skpatchcore.evaluation.presets import default_resolution, make_detector
    from skpatchcore.evaluation.runs import means_of, run_evaluation
    from skpatchcore.reports.evaluation import SHOWN, write_evaluation_report, write_worst
    from skpatchcore.reports.page import format_number

    if min([options.repeats, *(options.shots or [1])]) < 1:
        raise CommandError("--shots and --repeats must be at least 1.")
    require_matplotlib()
    require_folder(options.output)
    begin = time.perf_counter()
    evaluation = run_evaluation(
        make_detector(
            options.preset,
            options.method,
            ratio=options.ratio,
            device=options.device,
            contamination=options.contamination,
            random_state=options.seed,
            batch_size=options.batch_size,
            memory=options.cache,
            **({"weights": options.weights} if options.weights != "preset" else {}),
        ),
        load_categories(options.root, options.categories),
        options.output,
        resolution=options.resolution or default_resolution(options.preset),
        shots=options.shots or (),
        n_repeats=options.repeats,
        ablations=options.ablate,
        random_state=options.seed,
        overwrite=options.overwrite,
        draw=write_worst,
        verbose=0 if options.quiet else 1,
    )
    if not options.quiet:
        shown = {"": evaluation.table[[column for column in SHOWN if column in evaluation.table]]}
        shown |= {name: means_of(name, study) for name, study in evaluation.studies.items()}
        for title, table in shown.items():
            table = table.rename(index=lambda name: shown_name(name) if isinstance(name, str) else name)
            text = table.to_string(float_format=format_number, na_rep="-")
            print(f"\n{title}\n{text}" if title else text)
    name = Path(options.root).resolve().name
    try:
        report = write_evaluation_report(evaluation, name, method=f"{options.method}, preset {options.preset}")
    except Exception as error:
        if options.debug:
            raise
        raise CommandError(
            f"results.csv and results.json in {options.output!r} are complete, but the report could not be written: "
            f"{error}"
        ) from error
    if not options.quiet:
        print(f"\n{time.perf_counter() - begin:.0f} s: {shown_name(str(report))}, results.csv, results.json")
    return 0
