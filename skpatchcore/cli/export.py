"""``skpatchcore export``: write a fitted model to one ONNX file."""

from __future__ import annotations

import argparse
import os
from typing import Any

import skpatchcore
from skpatchcore._utils.names import shown_name
from skpatchcore.cli import options
from skpatchcore.cli.options import CommandError, Formatter, add_debug


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "export",
        help="write a fitted model to one ONNX file, which runs without this package",
        description="Write a fitted model to one ONNX file: resizing, network, memory bank, scores, decisions and "
        "maps. The file carries golden images with the results of the model. 'skpatchcore verify' uses these images "
        "to check the file on any machine. The file is verified in ONNX Runtime before it is written.",
        formatter_class=Formatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model file of 'fit'. A .joblib file is a pickle, which may run code: use only files that you trust",
    )
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write, such as parts.onnx")
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="float16 stores the weights in half the size; int8 quantises the network. Both change scores slightly",
    )
    parser.add_argument(
        "--image-size",
        type=options.size,
        metavar="HEIGHTxWIDTH",
        help="size of all images in pixels; the file then takes no other size. Required for a model with a region of "
        "interest",
    )
    parser.add_argument(
        "--map-size",
        choices=("input", "image"),
        default="input",
        help="size of the anomaly maps: of the network's input, or of the image, which takes longer",
    )
    parser.add_argument(
        "--input-dtype",
        choices=("uint8", "float32"),
        default="uint8",
        help="data type of the images: 8 bits per channel, or values from 0 to 1, e.g. for images with 16 bits",
    )
    parser.add_argument(
        "--golden",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="additional golden images: files or folders. The file will contain these images. It also contains "
        "golden images that are made from formulas, with and without this option",
    )
    parser.add_argument(
        "--good",
        nargs="+",
        metavar="IMAGE",
        help="good images: files or folders. With int8, they determine the ranges of the integers. The decisions "
        "of the file for these images are compared with those of the model. Without this option, int8 uses the "
        "training images, which must still be at their paths",
    )
    parser.add_argument(
        "--defective",
        nargs="+",
        metavar="IMAGE",
        help="defective images: files or folders. The decisions of the file for these images are compared with those "
        "of the model, too, and the change of the AUROC is printed",
    )
    parser.add_argument(
        "--max-flipped",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="accepted fraction of flipped decisions among the good and defective images with float16 and int8. If "
        "more decisions flip, no file is written",
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=None,
        metavar="NAME",
        help="a type or function of yours that MODEL may contain; can be repeated",
    )
    parser.add_argument("--quiet", action="store_true", help="print no summary; warnings are printed")
    add_debug(parser)
    parser.set_defaults(run=_export)


def _export(given: argparse.Namespace) -> int:
    from skpatchcore.cli.predict import images_in, load_detector

    if given.image_size is not None and not isinstance(given.image_size, tuple):
        raise CommandError(f"--image-size {given.image_size}: expected HEIGHTxWIDTH, such as 480x640.")
    if os.path.exists(given.output) and os.path.exists(given.model) and os.path.samefile(given.output, given.model):
        raise CommandError(
            f"--output {given.output} is the file of the model, which would be lost. Choose another name."
        )
    model = load_detector(given.model, given.trust or ())
    good, defective = (images_in(some or []) for some in (given.good, given.defective))
    test = [*good, *defective]
    report = skpatchcore.export(
        model,
        given.output,
        precision=given.precision,
        image_size=given.image_size,
        map_size=given.map_size,
        input_dtype=given.input_dtype,
        golden=images_in(given.golden),
        good_images=good or None,
        test_images=test or None,
        y_test=[1] * len(good) + [-1] * len(defective) if test else None,
        max_flipped=given.max_flipped,
    )
    if not given.quiet:
        print(shown_name(str(report)))
    return 0
