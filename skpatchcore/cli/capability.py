"""``skpatchcore capability``: which sizes of defects a model finds, with tables and a report."""

from __future__ import annotations

import argparse
import os
import textwrap
from pathlib import Path
from typing import Any

import skpatchcore
from skpatchcore._utils.files import written_whole
from skpatchcore._utils.names import shown_name
from skpatchcore.cli.options import CommandError, Formatter, add_debug, require_folder
from skpatchcore.cli.predict import images_of, load_detector
from skpatchcore.datasets import DEFECT_KINDS, SURFACE_KINDS


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "capability",
        help="measure which sizes of defects a fitted model finds",
        description="Draw synthetic defects of graded sizes on good images, score the images with a fitted model, and "
        "state from which size 90 % of the defects are found. Writes trials.csv, capability.csv and report.html.",
        formatter_class=Formatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model file of 'fit'. A .joblib file is a pickle, which may run code: use only files that you trust",
    )
    parser.add_argument(
        "images", nargs="+", metavar="GOOD_IMAGES", help="good images that were not used for the fit: files or folders"
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the tables and the report")
    parser.add_argument(
        "--contamination",
        type=float,
        help="accepted false-alarm rate, such as 0.01: the threshold is computed from the calibration scores of the "
        "model. Without this option, the threshold of the model is used",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=(*DEFECT_KINDS, *SURFACE_KINDS),
        help=f"kinds of synthetic defects (default: {', '.join(DEFECT_KINDS)})",
    )
    parser.add_argument(
        "--contrasts",
        nargs="+",
        type=float,
        default=[0.6],
        metavar="C",
        help="contrasts of the defects: 1 replaces the surface by the defect, 0.3 changes it by 30 %% of the "
        "difference between the two; one curve per kind and contrast",
    )
    parser.add_argument("--trials", type=int, default=60, metavar="N", help="defects per kind and contrast")
    parser.add_argument(
        "--defective", metavar="DIR", help="folder of images with real defects; each folder in it is one kind of defect"
    )
    parser.add_argument(
        "--masks", metavar="DIR", help="masks of the real defects: DIR/dent/7_mask.png or DIR/dent/7.png for dent/7.jpg"
    )
    parser.add_argument(
        "--size",
        choices=["diameter", "width"],
        default="diameter",
        help="size of real defects that is computed from the masks",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sizes, positions and shapes (default: 0)")
    parser.add_argument(
        "--trust",
        action="append",
        default=None,
        metavar="NAME",
        help="a type or function of yours that MODEL may contain, such as factory.networks.small_net; can be repeated",
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress and no results; warnings are printed")
    add_debug(parser)
    parser.set_defaults(run=_capability, fail=parser.error)


def _capability(options: argparse.Namespace) -> int:
    from skpatchcore.reports.capability import write_capability_report

    if (options.defective is None) != (options.masks is None):
        options.fail("--defective and --masks must be given together.")
    detector = _detector_of(load_detector(options.model, options.trust or ()), options.model)
    paths = images_of(options.images, Path(options.output))
    folder = require_folder(options.output)
    real_images = None if options.defective is None else _real_images(options)
    result = skpatchcore.detection_capability(
        detector,
        paths,
        kinds=options.kinds or list(DEFECT_KINDS),
        contrasts=options.contrasts,
        n_trials=options.trials,
        contamination=options.contamination,
        random_state=options.seed,
        verbose=0 if options.quiet else 1,
    )
    results = {"synthetic": result}
    if real_images is not None:
        images, masks, kinds = real_images
        results["real"] = skpatchcore.capability_of_defects(
            detector, images, masks, kinds=kinds, size=options.size, contamination=options.contamination
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in results.items():
        prefix = "" if name == "synthetic" else f"{name}_"
        files = images if name == "real" else paths
        trials = one.trials.assign(image=[files[i] for i in one.trials["image"]])
        for stem, table in (("trials", trials), ("capability", one.to_frame())):
            with written_whole(folder / f"{prefix}{stem}.csv") as partial:
                table.to_csv(partial, index=False)
    report = write_capability_report(
        result,
        folder / "report.html",
        real=results.get("real"),
        about={"Model": options.model, "Seed": str(options.seed)},
    )
    if not options.quiet:
        for one in results.values():
            for line in one.summary().splitlines():
                print(textwrap.fill(line, 100, subsequent_indent="  ", break_long_words=False))
        print(f"\nWrote trials.csv and capability.csv. Open the report:\n{shown_name(str(report))}")
    return 0


def _detector_of(model: Any, path: str) -> Any:
    """Return the detector of a model that reads images itself."""
    from skpatchcore.reports.pipelines import image_detector_of

    detector = image_detector_of(model)
    if detector is None:
        raise CommandError(
            f"{path!r} contains a Pipeline with steps before the detector. Use skpatchcore.detection_capability in "
            "Python with the detector, and with images that are the output of these steps."
        )
    return detector


def _real_images(options: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """Return the paths of the images with real defects, of their masks, and the kinds of their defects."""
    from skpatchcore.datasets import list_images
    from skpatchcore.datasets.masks import match_masks

    folder = Path(options.defective)
    if not folder.is_dir():
        raise CommandError(f"there is no folder {options.defective!r}.")
    # In a data set in the layout of MVTec AD, the folder of test images contains a folder of good images.
    images = [path for path in list_images(folder) if Path(os.path.relpath(path, folder)).parts[0] != "good"]
    if not images:
        raise CommandError(f"the folder {options.defective!r} contains no images.")
    masks = match_masks(images, folder, Path(options.masks))
    parts = [Path(os.path.relpath(image, folder)).parts for image in images]
    return list(images), masks, [part[0] if len(part) > 1 else "defective" for part in parts]
