"""``skpatchcore predict``: score images with a model file, and write a table and a heat map of each image."""

from __future__ import annotations

import argparse
import gc
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import skpatchcore
from skpatchcore._utils.allocator import keep_freed_memory
from skpatchcore._utils.bytes import parse_bytes
from skpatchcore._utils.names import shown_name
from skpatchcore._utils.warning import warn_user
from skpatchcore.cli.advice import in_options
from skpatchcore.cli.dependencies import describe_missing
from skpatchcore.cli.options import (
    CommandError,
    Formatter,
    add_debug,
    is_exported_file,
    refuse_exported,
    require_folder,
)
from skpatchcore.datasets import list_test_images
from skpatchcore.deployment.runtimes import RUNTIMES

# Exit code of --fail-on-anomalies. The codes 1 and 2 are failures.
ANOMALIES_FOUND = 3


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    predict = commands.add_parser(
        "predict",
        help="score images with a fitted model",
        description="Score images with a fitted model. Writes a table scores.csv (bigger score = more normal) and a "
        "heat map of each image to the folder OUT.",
        formatter_class=Formatter,
    )
    predict.add_argument(
        "model",
        metavar="MODEL",
        help="model file of 'fit', or file of 'export'. A .joblib file is a pickle, which may run code: use only files "
        "that you trust",
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of images")
    predict.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="folder for scores.csv and a heat map of each image"
    )
    predict.add_argument("--report", action="store_true", help="also write report.html to look through the images")
    predict.add_argument(
        "--embed",
        metavar="SIZE",
        default="10MB",
        help="with --report: largest size of report.html with all pictures inside. If report.html would be larger, the "
        "pictures are files in the folder report_files, which must stay beside report.html",
    )
    predict.add_argument(
        "--fail-on-anomalies",
        action="store_true",
        help=f"exit with {ANOMALIES_FOUND} if an image is anomalous and there is no error. An error, such as an image "
        "that could not be scored, always exits with 1, even if other images are anomalous",
    )
    predict.add_argument(
        "--product",
        metavar="NAME",
        help="product of all images, for a model of 'fit --products'. Without this option, each image's product is "
        "recognised",
    )
    predict.add_argument(
        "--trust",
        action="append",
        default=None,
        metavar="NAME",
        help="a type or function of yours that MODEL may contain, such as factory.networks.small_net; can be repeated",
    )
    predict.add_argument(
        "--runtime",
        choices=RUNTIMES,
        help="library that runs a file of 'export' (default: onnxruntime)",
    )
    predict.add_argument("--threads", type=int, metavar="N", help="threads of the runtime, for a file of 'export'")
    predict.add_argument("--quiet", action="store_true", help="print no progress and no summary; warnings are printed")
    add_debug(predict)
    predict.set_defaults(run=_predict)


def load_detector(path: str, trusted: Sequence[str] = ()) -> Any:
    """Return the fitted detector of a model file, or a pipeline whose last step is a detector."""
    refuse_exported(path, "which only 'predict' and 'verify' can use. Pass the .skops file of 'fit'.")
    import joblib
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import check_is_fitted

    from skpatchcore.detectors import ImageDetector
    from skpatchcore.reports.pipelines import detector_of

    if not Path(path).is_file():
        raise CommandError(f"there is no model file {path!r}.")
    try:
        is_pickle = path.endswith(".joblib") and not zipfile.is_zipfile(path)  # save accepts any name
        model = joblib.load(path) if is_pickle else skpatchcore.load(path, trusted=trusted)
    except skpatchcore.ModelFileError:
        raise
    except Exception as error:  # unpickling unknown or damaged bytes can raise any exception
        if describe_missing(error) is not None:
            raise
        raise CommandError(f"{path!r} cannot be read as a model file: {error}") from error
    detector = detector_of(model)
    if not isinstance(detector, ImageDetector):
        kind = f"a Pipeline that ends in a {type(detector).__name__}" if isinstance(model, Pipeline) else None
        raise CommandError(f"{path!r} contains no detector of this package, but {kind or f'a {type(model).__name__}'}.")
    check_is_fitted(detector, "offset_")
    for part in (detector, *getattr(detector, "estimators_", ())):
        params = part.get_params(deep=False)
        if isinstance(params.get("extractor"), str) and (model is detector or len(model) == 1):
            raise CommandError(f"{path!r} contains a detector of precomputed patch features, which cannot read images.")
        if "verbose" in params:  # one progress bar is shown for all images
            part.set_params(verbose=0)
    return model


def _predict(options: argparse.Namespace) -> int:
    with imports_kept(options.is_program):
        from skpatchcore._utils.progress import progress_bar
        from skpatchcore.reports import Prediction, write_predictions
        from skpatchcore.reports.inspection import describe_inspection

        detector, is_onnx = _loaded(options)
    paths, folder = images_of(options.images, Path(options.output)), require_folder(options.output)
    with progress_bar(len(paths), "predicting", "image", not options.quiet) as bar, _embeddings(is_onnx) as log:

        def show(prediction: Prediction) -> None:
            if prediction.problem:
                text = f"{prediction.path}: {in_options(prediction.problem, 'predict')}"
                bar.write(f"skpatchcore: {shown_name(text)}")
            bar.update(1)

        given = {} if options.product is None else {"products": options.product}
        predictions = write_predictions(detector, paths, folder, on_prediction=show, layers=options.report, **given)
    drift = None if is_onnx else _describe_drift(detector, predictions, log)
    problem = _write_report(options, detector, predictions, folder, drift) if options.report else None
    scored = [prediction for prediction in predictions if prediction.is_scored]
    n_flagged = sum(prediction.label == -1 for prediction in scored)
    if not options.quiet:
        where = f"{folder / 'scores.csv'}{' and report.html' if options.report and problem is None else ''}"
        print(f"{_count(len(scored), 'image')} scored, {n_flagged} of them anomalous: {shown_name(where)}")
        if hasattr(detector, "products_"):
            print(_counted_products(scored))
    if uninspected := describe_inspection({p.path: p.inspected for p in scored}):
        if not options.quiet:
            print(uninspected)
        elif not options.report:
            warn_user(uninspected)
    if drift is not None:
        if not options.quiet:
            print(drift)
        elif not options.report:
            warn_user(drift)
    problems = []
    if n_failures := len(paths) - len(scored):
        problems.append(
            f"{n_failures} of {_count(len(paths), 'image')} could not be scored. scores.csv contains the reasons, with "
            "score nan and label -1."
        )
    if n_missing := sum(prediction.picture is None and bool(prediction.problem) for prediction in scored):
        problems.append(
            f"{_count(n_missing, 'heat map')} could not be written. scores.csv contains the reasons, and all scores."
        )
    if problem is not None:
        problems.append(f"the report could not be written: {problem}. scores.csv is complete.")
    if problems:
        raise CommandError(" ".join(problems))
    return ANOMALIES_FOUND if options.fail_on_anomalies and n_flagged else 0


@contextmanager
def imports_kept(is_program: bool) -> Iterator[None]:
    """Keep all objects of the block, and freed memory, until the end of a process that runs only this program.

    The imported libraries have about a million objects. The garbage collector would visit them several times, during
    the imports and at the exit, which takes about a quarter of a run with one image.
    """
    if not is_program:
        yield
        return
    keep_freed_memory()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _loaded(options: argparse.Namespace) -> tuple[Any, bool]:
    """Return the detector of the model file, and whether it is an exported file, after a check of the options."""
    from skpatchcore.reports.pipelines import as_image_detector

    try:
        parse_bytes(options.embed)
    except ValueError as error:
        raise CommandError(f"--embed: {error}") from None
    is_onnx = is_exported_file(options.model)
    if is_onnx and options.report:
        raise CommandError(
            "--report: the page shows the nearest good patches, which an ONNX file does not contain. Use the model "
            "file of 'fit', or leave out --report."
        )
    if is_onnx:
        detector = load_onnx(options)
    else:
        refuse_runtime(options)
        detector = as_image_detector(load_detector(options.model, options.trust or ()))
    if options.fail_on_anomalies and math.isnan(detector.offset_):
        raise CommandError(f"--fail-on-anomalies: the model {options.model!r} has no threshold.")
    check_product(options, detector)
    return detector, is_onnx


def _count(n: int, noun: str) -> str:
    """Return a number with its noun, such as "1 image" and "2 images"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _counted_products(scored: Sequence[Any]) -> str:
    """Return the number of images and of anomalous images of each product."""
    parts = []
    for product in sorted({p.product for p in scored}, key=lambda name: (name is None, name)):
        some = [p for p in scored if p.product == product]
        name = "none of the products" if product is None else shown_name(product)
        parts.append(f"{name}: {len(some)} ({sum(p.label == -1 for p in some)} anomalous)")
    return "Products: " + "; ".join(parts) + "."


def refuse_runtime(options: argparse.Namespace) -> None:
    """Raise a CommandError if there is an option for exported files, because the model is none."""
    for name, value in (("--runtime", options.runtime), ("--threads", options.threads)):
        if value is not None:
            raise CommandError(
                f"{name}: only a file of 'export' is run by a runtime, and {options.model!r} is none. Leave out {name}."
            )


def check_product(options: argparse.Namespace, detector: Any) -> None:
    """Raise a CommandError if the given product is not one of the model."""
    if options.product is None:
        return
    from skpatchcore.reports.pipelines import detector_of

    known = getattr(detector_of(detector), "products_", None)
    if known is None:
        raise CommandError(f"--product: the model {options.model!r} has no products.")
    if options.product not in known:
        names = ", ".join(shown_name(name) for name in known)
        raise CommandError(f"--product {options.product!r}: the model knows {names}.")


def load_onnx(options: argparse.Namespace) -> Any:
    """Return the detector of an exported ONNX file."""
    from skpatchcore.deployment import OnnxDetector

    try:
        return OnnxDetector(options.model, runtime=options.runtime or "onnxruntime", n_threads=options.threads)
    except ImportError as error:
        raise CommandError(str(error)) from error


def _embeddings(is_onnx: bool) -> AbstractContextManager[Any]:
    """Return a context manager that records embeddings, which drift is recognised by; ONNX files have none."""
    if is_onnx:
        return nullcontext()
    from skpatchcore.patches.embedding import recorded_embeddings

    return recorded_embeddings()


def _describe_drift(detector: Any, predictions: Sequence[Any], log: Any) -> str | None:
    from skpatchcore.reports.drift import describe_drift

    return describe_drift(detector, [prediction.score for prediction in predictions], log)


def _write_report(
    options: argparse.Namespace, detector: Any, predictions: Any, folder: Path, drift: str | None
) -> str | None:
    """Write the report. Return the reason if it could not be written, because the scores are complete then."""
    from skpatchcore._utils.progress import progress_bar
    from skpatchcore.reports import write_prediction_report

    try:
        with ExitStack() as stack:
            bars: list[Any] = []  # the bar, once the number of images is known

            def show(n_done: int, n_images: int) -> None:
                if not bars:
                    bar = progress_bar(n_images, "searching the nearest good patches", "image", not options.quiet)
                    bars.append(stack.enter_context(bar))
                bars[0].update(n_done - bars[0].n)

            write_prediction_report(
                predictions,
                detector,
                folder,
                model=options.model,
                drift=drift or "",
                embed=options.embed,
                on_explained=show,
            )
    except Exception as error:
        if options.debug:
            raise
        return " ".join(str(error).split()) or type(error).__name__
    return None


def images_of(given: list[str], output: Path) -> list[str]:
    """Return the given files and the images in the given folders, each path once, without those in `output`."""
    if any(output.resolve() in (place := Path(name).resolve(), *place.parents) for name in given):
        raise CommandError(f"the images lie in the output folder {str(output)!r}. Choose another one.")
    # the output folder may lie below the images: its heat maps of an earlier run are not scored
    return images_in(given, exclude=output)


def images_in(given: list[str], exclude: Path | None = None) -> list[str]:
    """Return the given files and the images in the given folders, each path once."""
    missing = [name for name in given if not os.path.lexists(name)]
    if missing:  # a mistyped name must not be flagged as a defective part
        raise CommandError(f"there is no file or folder {', '.join(map(repr, missing))}.")
    paths = [
        path for name in given for path in (list_test_images(name, exclude=exclude) if Path(name).is_dir() else [name])
    ]
    return list(dict.fromkeys(paths))
