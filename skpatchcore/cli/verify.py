"""``skpatchcore verify``: compare an exported file with the results of the model, stage by stage."""

from __future__ import annotations

import argparse
from typing import Any

import skpatchcore
from skpatchcore._utils.names import shown_text
from skpatchcore.cli.options import CommandError, Formatter, add_debug


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "verify",
        help="check that an exported ONNX file gives the results of the model on this machine",
        description="Run an exported file in ONNX Runtime, and in OpenVINO if it is installed. Compare the results of "
        "every stage with the golden results in the file. With --images and --model, also compare the file with the "
        "model. A decision flips "
        "if the file gives another label than expected. The exit code is 1 if a stage differs by more than its "
        "tolerance, if more decisions flip than accepted, or if an image cannot be read.",
        formatter_class=Formatter,
    )
    parser.add_argument("file", metavar="FILE", help="file of 'export'")
    parser.add_argument(
        "--images", nargs="+", metavar="IMAGE", help="images or folders on which the file is compared with --model"
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="the model file that was exported. A .joblib file is a pickle, which may run code: use only files that "
        "you trust",
    )
    parser.add_argument(
        "--runtime",
        action="append",
        default=None,
        choices=("onnxruntime", "openvino"),
        help="the runtime; can be repeated. Without this option, all installed runtimes are used",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="number of threads of the runtime")
    parser.add_argument(
        "--trust",
        action="append",
        default=None,
        metavar="NAME",
        help="a type or function of yours that MODEL may contain; can be repeated",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing if the check is passed")
    add_debug(parser)
    parser.set_defaults(run=_verify)


def _verify(given: argparse.Namespace) -> int:
    from skpatchcore.cli.predict import images_in, load_detector

    if (given.images is None) != (given.model is None):
        raise CommandError("--images and --model belong together: pass both, or none of them.")
    result = skpatchcore.verify(
        given.file,
        runtimes=given.runtime,
        detector=None if given.model is None else load_detector(given.model, given.trust or ()),
        images=None if given.images is None else images_in(given.images),
        n_threads=given.threads,
        verbose=0 if given.quiet else 1,
    )
    if not given.quiet or not result.is_passed:
        print(shown_text(str(result)))
    return 0 if result.is_passed else 1
