"""``skpatchcore evaluate``: test a detector on images with known defects, and write tables and a report."""

from __future__ import annotations

import argparse
import os
import textwrap
import time
from pathlib import Path
from typing import Any

from skpatchcore._utils.names import shown_name
from skpatchcore.cli.advice import in_options
from skpatchcore.cli.options import (
    CommandError,
    Formatter,
    add_debug,
    contamination,
    fraction_or_count,
    refuse_exported,
    require_folder,
    weights,
)

_TEST_SIZE = 0.2
# Values of --method. The methods `_OF_PIXELS` are trained on pixels, and do not use the network of the preset.
_OF_PIXELS = ["autoencoder", "gan"]
_METHODS = ["patchcore", "spade", "padim", "mahalanobis", "dn2", *_OF_PIXELS]


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="test a detector on images with known defects",
        usage="%(prog)s ROOT -o OUT [options]\n"
        "       %(prog)s --good DIR --defective DIR [--masks DIR] -o OUT [options]",
        description="Fit a detector on good images, and test it on other good images and on defective images. ROOT is "
        "a data set in the layout of MVTec AD. For two plain folders, use --good and --defective instead. Writes "
        "results.csv, intervals.csv, results.json, images.csv and report.html. Results that OUT already contains are "
        "not computed again.",
        formatter_class=Formatter,
    )
    parser.add_argument(
        "root",
        metavar="ROOT",
        nargs="?",
        help="folder of one category (train/good, test/good, test/DEFECT, ground_truth/DEFECT), or of several",
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the results")
    _add_two_folders(parser.add_argument_group("two plain folders instead of ROOT"))
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="evaluate only these categories of ROOT")
    parser.add_argument(
        "--preset",
        choices=["default", "offline", "paper-1", "paper-10", "paper-25", "paper-video"],
        default="default",
        help="'default' is the detector that 'skpatchcore fit' fits without options; 'offline' stretches images to "
        "224 x 224; the others are the settings of the paper with 1, 10 or 25 %% of the patches, or for frames of "
        "videos",
    )
    parser.add_argument("--method", choices=_METHODS, default="patchcore", help="PatchCore or a baseline")
    parser.add_argument(
        "--weights",
        type=weights,
        default="preset",
        help="weights of the network: those of the preset, a path, or 'none' for random weights",
    )
    parser.add_argument(
        "--ratio",
        type=float,
        help="fraction of the patches in the memory bank of PatchCore, instead of the fraction of the preset",
    )
    parser.add_argument(
        "--contamination",
        type=contamination,
        default="auto",
        help="accepted false-positive rate: the fraction of new good images that may be flagged as anomalous, such as "
        "0.05; 'auto' accepts 1 %%, or more if there are fewer than 99 calibration images",
    )
    parser.add_argument(
        "--resolution",
        choices=["own", "seen"],
        help="pixel metrics at the original size of each image ('own'), or at the size and in the crop of the "
        "network's input ('seen'). The default is 'seen' for the presets of the paper, and 'own' for the other presets",
    )
    parser.add_argument(
        "--shots", type=int, nargs="+", metavar="N", help="also evaluate with only N training images, for each N"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="draws of the training images per N")
    parser.add_argument(
        "--ablate",
        nargs="+",
        default=[],
        choices=["patch_size", "layers", "stride", "sampler"],
        help="also evaluate with other values of these parameters",
    )
    parser.add_argument(
        "--cache", metavar="DIR", help="folder for the outputs of the network, which --shots and --ablate reuse"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--batch-size", type=int, default=4, help="images per network pass")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the random draws (default: 0). The same images, options and seed give the same results on one "
        "machine",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="if OUT contains results that were computed with other settings, compute these results again and replace "
        "them. Without --overwrite, such results are an error",
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress and no results")
    add_debug(parser)
    parser.set_defaults(run=_evaluate, fail=parser.error)


def _add_two_folders(group: Any) -> None:
    group.add_argument(
        "--good", metavar="DIR", help="folder of good images: some are used for the fit, the others for the test"
    )
    group.add_argument(
        "--defective", metavar="DIR", help="folder of defective images; each folder in it is one kind of defect"
    )
    group.add_argument(
        "--masks", metavar="DIR", help="folder of masks: DIR/dent/7_mask.png or DIR/dent/7.png for dent/7.jpg"
    )
    group.add_argument(
        "--test-size",
        type=fraction_or_count,
        help="good images that are used for the test, not for the fit: a fraction such as 0.25, or a number of images "
        f"such as 30 (default: {_TEST_SIZE}). The images are drawn at random. If several photographs show the same "
        "part, photographs of this part can be in the fit and in the test, and the results are then too good. In this "
        "case, make a folder in the layout of MVTec AD in which train and test contain different parts, and give this "
        "folder as ROOT instead of --good and --defective",
    )


def _evaluate(options: argparse.Namespace) -> int:
    from skpatchcore.evaluation.presets import default_resolution, make_detector
    from skpatchcore.evaluation.runs import run_evaluation
    from skpatchcore.reports.evaluation import write_evaluation_report, write_worst

    _check_usage(options)
    for folder in filter(None, (options.root, options.good, options.defective)):
        refuse_exported(folder, "not a folder of images. 'evaluate' fits a detector itself, and takes no model file.")
    if min([options.repeats, *(options.shots or [1])]) < 1:
        raise CommandError("--shots and --repeats must be at least 1.")
    require_folder(options.output)
    begin = time.perf_counter()
    name, categories = _data_of(options)
    evaluation = run_evaluation(
        make_detector(
            options.preset,
            options.method,
            ratio=options.ratio,
            device=options.device,
            contamination=options.contamination,
            random_state=options.seed,
            **_extractor_of(options),
        ),
        categories,
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
        _print_results(evaluation)
    try:
        report = write_evaluation_report(evaluation, name, method=f"{options.method}, preset {options.preset}")
    except Exception as error:
        if options.debug:
            raise
        raise CommandError(
            f"the report could not be written: {error}. results.csv and results.json in {options.output!r} are "
            "complete."
        ) from error
    if not options.quiet:
        print(
            f"\n{time.perf_counter() - begin:.0f} s. Wrote results.csv, intervals.csv, results.json and images.csv. "
            "Open the report:"
        )
        print(shown_name(str(report)))
    return 0


def _check_usage(options: argparse.Namespace) -> None:
    """Exit with a usage error unless either ROOT or both folders are given."""
    folders = {"--good": options.good, "--defective": options.defective}
    given = [name for name, value in folders.items() if value is not None]
    if options.root is not None and given:
        options.fail(f"ROOT and {' and '.join(given)} cannot be combined: give ROOT, or --good and --defective.")
    if options.root is None and not given:
        options.fail("there are no images: give ROOT, or --good and --defective.")
    if len(given) == 1:
        options.fail(f"{given[0]} needs {'--defective' if given == ['--good'] else '--good'}.")
    if given and options.categories:
        options.fail("--categories needs ROOT: two folders are one category.")
    for name, value in (("--masks", options.masks), ("--test-size", options.test_size)):
        if value is not None and not given:
            options.fail(f"{name} needs --good and --defective.")


def _extractor_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of the extractor."""
    if "sampler" in options.ablate and options.method != "patchcore":
        raise CommandError(f"--ablate sampler: the method {options.method} has no memory bank. Leave it out.")
    if options.method in _OF_PIXELS:
        given = {"--weights": options.weights != "preset", "--cache": options.cache is not None}
        given |= {f"--ablate {name}": True for name in options.ablate}
        for option, is_given in given.items():
            if is_given:
                raise CommandError(f"{option}: the method {options.method} uses no pretrained network. Leave it out.")
        return {"batch_size": options.batch_size}
    given = {"weights": options.weights} if options.weights != "preset" else {}
    return {"batch_size": options.batch_size, "memory": options.cache, **given}


def _data_of(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the name of the data set, and its categories."""
    from skpatchcore.datasets import load_categories, load_two_folders

    output = Path(options.output).resolve()
    images = {name: value for name in ("root", "good", "defective", "masks") if (value := getattr(options, name))}
    for name, folder in images.items():
        place = Path(folder).resolve()
        inside = place in (output, *output.parents) if name != "root" else place == output
        if inside:  # pictures in it would be images of the next run
            raise CommandError(
                f"the output folder {options.output!r} lies in the folder of images {folder!r}. Choose another one."
            )
    if options.root is not None:
        return Path(options.root).resolve().name, load_categories(options.root, options.categories)
    test_size = _TEST_SIZE if options.test_size is None else options.test_size
    data = load_two_folders(
        options.good, options.defective, masks=options.masks, test_size=test_size, random_state=options.seed
    )
    good, defective = Path(options.good).resolve(), Path(options.defective).resolve()
    shared = Path(os.path.commonpath([good, defective]))
    name = (shared if shared == good.parent else good).name or "images"
    return name, {name: data}


def _print_results(evaluation: Any) -> None:
    """Print the images, the results in sentences, and the tables."""
    from skpatchcore.evaluation.promises import describe_rates
    from skpatchcore.evaluation.runs import means_of
    from skpatchcore.evaluation.summary import advice, describe_images, describe_result
    from skpatchcore.reports.evaluation import SHOWN
    from skpatchcore.reports.page import format_number

    for one in evaluation.runs:
        name = shown_name(one.run.category)
        row = one.result.row
        text = advice(row["image_auroc"], row["defects_found"], row["good_flagged"])
        print(f"{name}: {describe_result(one.result)}.")
        for line in (describe_rates(row), describe_images(one.run.dataset), in_options(text, "evaluate")):
            if line:
                print(textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="  ", break_long_words=False))
    print("AUROC is 1 if every defective image has a worse score than every good image, and 0.5 by chance.\n")
    tables = {"": evaluation.table[[column for column in SHOWN if column in evaluation.table]]}
    tables |= {name: means_of(name, study) for name, study in evaluation.studies.items()}
    for title, table in tables.items():
        table = table.rename(index=lambda name: shown_name(name) if isinstance(name, str) else name)
        table = table.T if not title and len(table) == 1 else table  # one category fits into 80 columns
        text = table.to_string(float_format=format_number, na_rep="-")
        print(f"\n{title}\n{text}" if title else text)
