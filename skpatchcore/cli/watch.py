"""``skpatchcore watch``: judge the images of a folder as they arrive, exactly once, until the process is stopped."""

from __future__ import annotations

import argparse
import sqlite3
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from skpatchcore._utils.names import shown_name, shown_text
from skpatchcore.cli.advice import in_options
from skpatchcore.cli.dependencies import describe_missing
from skpatchcore.cli.options import CommandError, Formatter, add_debug, is_exported_file
from skpatchcore.cli.predict import check_product, imports_kept, load_detector, load_onnx, refuse_runtime
from skpatchcore.deployment.runtimes import RUNTIMES

# Exit code of an error for which a new start makes sense. The code 1 is an error that the user must correct.
UNEXPECTED = 4


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "watch",
        help="judge the images of a folder as they arrive",
        description="Judge the images of a folder and of its subfolders as they arrive, each exactly once, until "
        "SIGTERM or Ctrl-C. Appends each result to OUT/scores.csv (bigger score = more normal) and OUT/scores.jsonl, "
        "and writes heat maps of anomalous parts to OUT/maps. OUT/heartbeat.json states what the command does. A new "
        "start with the same OUT goes on where the last one ended.",
        formatter_class=Formatter,
    )
    parser.add_argument("folder", metavar="DIR", help="folder into which images are written")
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model file of 'fit', or file of 'export'. It is loaded again when it is replaced. A .joblib file is a "
        "pickle, which may run code: use only files that you trust",
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder of the results, on a local disk")
    _add_arrival(parser)
    _add_results(parser)
    _add_delivery(parser)
    parser.add_argument(
        "--product",
        metavar="NAME",
        help="product of all images, for a model of 'fit --products'. Without this option, each image's product is "
        "recognised",
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=None,
        metavar="NAME",
        help="a type or function of yours that MODEL may contain; can be repeated",
    )
    parser.add_argument(
        "--runtime", choices=RUNTIMES, help="library that runs a file of 'export' (default: onnxruntime)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the runtime, for a file of 'export'")
    parser.add_argument(
        "--once", action="store_true", help="judge the images that are there, wait for unfinished ones, and exit"
    )
    parser.add_argument("--quiet", action="store_true", help="print no line for each anomalous part")
    add_debug(parser)
    parser.set_defaults(run=_watch)


def _add_arrival(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("complete files")
    group.add_argument(
        "--settle",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="a file is complete if its size and time do not change for so long. 0 is for programs that write a file "
        "under another name, such as part.png.tmp, and rename it",
    )
    group.add_argument(
        "--done-marker",
        metavar="SUFFIX",
        help="a file NAME is complete if there is a file NAMESUFFIX, e.g. part.png.done with SUFFIX .done",
    )
    group.add_argument(
        "--patience",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="a file that cannot be read is tried again after it did not change for so long, and then flagged",
    )
    group.add_argument(
        "--poll",
        type=float,
        metavar="SECONDS",
        help="search the folder every so often, e.g. on a network drive, which reports no events. Without this option, "
        "events of the file system are used if the package watchfiles is installed",
    )
    group.add_argument(
        "--rescan", type=float, default=60.0, metavar="SECONDS", help="time between searches in addition to events"
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--maps", default="anomalous", choices=("all", "anomalous", "none"), help="heat maps to write")
    group.add_argument(
        "--move",
        metavar="FOLDER",
        help="move judged files to FOLDER/normal, FOLDER/anomalous and FOLDER/unreadable, or to FOLDER/undecided if "
        "the model has no threshold",
    )
    group.add_argument("--report", action="store_true", help="keep a page OUT/report.html of the last parts current")
    group.add_argument(
        "--fsync", action="store_true", help="wait until each result is on the disk, so that a power failure loses none"
    )
    group.add_argument("--batch", type=int, default=16, metavar="N", help="most images that are judged at once")


def _add_delivery(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("delivery")
    group.add_argument("--webhook", metavar="URL", help="post the result of each anomalous or unreadable part to URL")
    group.add_argument("--webhook-all", action="store_true", help="post the results of all parts")
    group.add_argument(
        "--exec",
        metavar="CMD",
        help="program that is run for each anomalous or unreadable part, without a shell. Its last argument is the "
        "path of the image, its input is the result as JSON",
    )
    group.add_argument(
        "--exec-timeout", type=float, default=60.0, metavar="SECONDS", help="the program is killed after so long"
    )
    group.add_argument(
        "--queue",
        type=int,
        default=10_000,
        metavar="N",
        help="most results that wait for delivery; the oldest are dropped",
    )


def _watch(options: argparse.Namespace) -> int:
    from skpatchcore.watching import WatchSettings, watch_folder
    from skpatchcore.watching.watch import check_folders

    given = {name: getattr(options, name) for name in WatchSettings.__dataclass_fields__ if name != "command"}
    settings = WatchSettings(**{**given, "done_marker": options.done_marker or ""})
    check_folders(options.folder, options.output, options.move)
    load = _Loader(options)
    try:
        watch_folder(
            options.folder,
            options.model,
            Path(options.output),
            settings,
            load=load,
            on_prediction=None if options.quiet else _show,
        )
    except Exception as error:
        is_of_user = load.n_loaded == 0 and not isinstance(error, sqlite3.Error)
        if options.debug or is_of_user or describe_missing(error) is not None:
            raise
        traceback.print_exc()
        text = in_options(" ".join(str(error).split()), "watch")
        print(f"skpatchcore: unexpected {type(error).__name__}: {shown_text(text)}", file=sys.stderr)
        return UNEXPECTED
    return 0


class _Loader:
    """Function that loads the model file of the options. `n_loaded` counts the calls without an error."""

    def __init__(self, options: argparse.Namespace):
        self._options, self.n_loaded = options, 0

    def __call__(self, path: str) -> Any:
        """Return the detector."""
        options = self._options
        is_first = self.n_loaded == 0 and options.is_program
        with imports_kept(True) if is_first else nullcontext():
            detector = self._load(path)
        self.n_loaded += 1
        return detector

    def _load(self, path: str) -> Any:
        from skpatchcore.reports.pipelines import as_image_detector

        options = self._options
        if is_exported_file(path):
            if options.report:
                raise CommandError(
                    "--report: the page shows the nearest good patches, which an ONNX file does not contain. Use the "
                    "model file of 'fit', or leave out --report."
                )
            detector = load_onnx(options)
        else:
            refuse_runtime(options)
            detector = as_image_detector(load_detector(path, options.trust or ()))
        check_product(options, detector)
        return detector


def _show(prediction: Any) -> None:
    """Print a line about an anomalous or unreadable part."""
    if prediction.label != -1:
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if prediction.is_scored:
        text = f"anomalous {prediction.path} score {prediction.score:.6g} p-value {prediction.p_value:.3g}"
    else:
        text = f"unreadable {prediction.path}: {in_options(prediction.problem, 'watch')}"
    print(f"{now} {shown_name(text)}", flush=True)
