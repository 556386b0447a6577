"""``skpatchcore show``: print what a model file contains."""

from __future__ import annotations

import argparse
import json
import math
import os
from typing import Any

from skpatchcore._utils.bytes import format_bytes
from skpatchcore._utils.names import shown_name, shown_text
from skpatchcore.cli.options import CommandError, Formatter, add_debug, is_exported_file


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "show",
        help="print what a model file contains",
        description="Print the network, the memory bank, the training images, the thresholds with their promises, "
        "and all changes of a model file since its fit.",
        formatter_class=Formatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model file of 'fit', or file of 'export'. A .joblib file is a pickle, which may run code: use only files "
        "that you trust",
    )
    parser.add_argument(
        "--training",
        type=int,
        metavar="N",
        help="also print the N most suspicious training images. The images are read again from the paths that they "
        "had when they were learnt",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all paths and digests")
    parser.add_argument(
        "--trust",
        action="append",
        default=None,
        metavar="NAME",
        help="a type or function of yours that MODEL may contain; can be repeated",
    )
    add_debug(parser)
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    from skpatchcore.cli.predict import load_detector
    from skpatchcore.reports.model_summary import summary_of, text_of
    from skpatchcore.reports.pipelines import detector_of

    if options.training is not None and options.training < 1:
        raise CommandError(f"--training {options.training}: pass the number of images to print, at least 1.")
    if is_exported_file(options.model):
        if options.training is not None:
            raise CommandError("--training: an exported file contains no training images. Pass the file of 'fit'.")
        return _show_exported(options)
    model = load_detector(options.model, options.trust or ())
    summary = summary_of(model, manifest_or_none(options.model))
    tables = {} if options.training is None else _reports_of(detector_of(model), options.training)
    if options.json:
        for name, table in tables.items():
            rows = json.loads(table.to_json(orient="records"))
            summary.setdefault("training report", {})[name or "model"] = rows
        print(json.dumps(summary, indent=1, ensure_ascii=False))
        return 0
    print(text_of(summary, options.model))
    for name, table in tables.items():
        of_product = f" of product {shown_name(name)}" if name else ""
        print(f"\nMost suspicious training images{of_product}:")
        print(shown_text(_as_text(table)))
    return 0


def manifest_or_none(path: str) -> dict[str, Any] | None:
    """Return the manifest of a model file; None for a pickle."""
    from skpatchcore.deployment.errors import ModelFileError
    from skpatchcore.deployment.files import manifest_of_file

    try:
        return manifest_of_file(path)
    except ModelFileError:  # the detector was read from it, so it is a pickle
        return None


def _reports_of(detector: Any, n_images: int) -> dict[str, Any]:
    """Return the training report of each product, or of the detector itself under the name ''."""
    members = {"": detector}
    if hasattr(detector, "for_product"):
        members = {str(name): detector.for_product(name) for name in detector.products_}
    found = {}
    for name, member in members.items():
        if not hasattr(member, "training_report"):
            raise CommandError(f"--training: a {type(member).__name__} has no report of its training images.")
        found[name] = member.training_report(n_images=n_images)
    return found


def _as_text(table: Any) -> str:
    """Return a training report as lines: image, score, p-value, region, and the nearest other image."""
    lines = []
    for row in table.itertuples(index=False):
        name = f"image {row.image}" if row.path is None else shown_name(row.path)
        score = "no score" if math.isnan(row.score) else f"score {row.score:.4g}, p-value {row.p_value:.3g}"
        lines.append(f"  {name}: {score}")
        if not math.isnan(row.top):
            size, place = f"{row.height:.0f} × {row.width:.0f}", f"row {row.top:.0f}, column {row.left:.0f}"
            lines.append(f"      region of {size} pixels, its top left corner is in {place}")
        if row.nominal_path is not None:
            lines.append(f"      most similar patch of another image: {shown_name(row.nominal_path)}")
    return "\n".join(lines)


def _show_exported(options: argparse.Namespace) -> int:
    from skpatchcore.deployment.container import read_container

    container = read_container(options.model)
    manifest = container.manifest
    if options.json:
        print(json.dumps(manifest, indent=1, ensure_ascii=False))
        return 0
    size, limits = format_bytes(os.path.getsize(options.model)), manifest["thresholds"]
    backbone = manifest["backbone"]
    image, pixel = (limits["offset"], limits["pixel_offset"])
    n_scores = sum(score is not None for score in manifest["calibration_scores"])
    lines = [
        f"{shown_name(options.model)}: exported {manifest['detector']}, {size}",
        f"Written with  skpatchcore {manifest['skpatchcore']}, precision {manifest['precision']}",
        f"SHA-256       {container.digest}",
        f"Network       {backbone['name']}, layers {', '.join(backbone['layers'])}, weights {backbone['weights']}",
        f"Weights       SHA-256 {backbone['digest']}. {backbone['license']}",
        f"Inspected     {manifest['inspected']}",
        f"Thresholds    images with a score below {_text(image)}, pixels of a map above {_text(pixel)}",
        f"Promise       false-positive rate {_text(limits['promised_rate'])}, contamination {limits['contamination']}",
        f"Calibration   {n_scores:,} scores of good images ({limits['calibration_plan']})",
    ]
    print(shown_text("\n".join(lines)))
    return 0


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
