"""The command line: ``skpatchcore fit``, ``predict`` and ``demo``."""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import skpatchcore
from skpatchcore.datasets import list_images, load_image_folder

if TYPE_CHECKING:
    from skpatchcore.detector import PatchCoreDetector

_CHUNK = 16  # images whose maps are held at once


class _CommandError(Exception):
    """Something the user can mend: shown as one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str or None, default=None
        The words after the command; None takes those of the process.

    Returns
    -------
    int
        0 if all went well, 1 after an error, 130 after Ctrl-C. Wrong usage exits with 2, as argparse does.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("skpatchcore: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        known = isinstance(error, OSError | ValueError | _CommandError | skpatchcore.WeightsError)
        print(f"skpatchcore: {text if known else f'{type(error).__name__}: {text}'}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skpatchcore", description="Find defects in images after seeing images of good parts only (PatchCore)."
    )
    parser.add_argument("--version", action="version", version=f"skpatchcore {skpatchcore.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="learn from a folder of good images", formatter_class=_Formatter)
    fit.add_argument("directory", metavar="DIR", help="images of good parts, or a data set with train/good in it")
    fit.add_argument("-o", "--output", metavar="FILE", required=True, help="where the model goes, such as model.joblib")
    fit.add_argument("--backbone", default="wide_resnet50_2", help="efficientnet_lite0/1/2 need no download")
    fit.add_argument(
        "--weights", default="DEFAULT", help="a torchvision weights name, a path, or 'none' for random ones"
    )
    fit.add_argument(
        "--image-size", type=_size, default=256, metavar="SIZE", help="shorter side, HEIGHTxWIDTH, or 'own'"
    )
    fit.add_argument("--crop-size", type=_size, default=224, metavar="SIZE", help="side, HEIGHTxWIDTH, or 'none'")
    fit.add_argument("--patch-size", type=int, default=3, help="odd side of the neighbourhood")
    fit.add_argument("--ratio", type=float, default=0.1, help="share of the patches kept in the memory bank")
    fit.add_argument("--n-neighbors", type=int, default=9, help="b of Eq. 7; 1 turns it off")
    fit.add_argument("--index", choices=["exact", "pynndescent"], default="exact", help="search in the memory bank")
    fit.add_argument(
        "--contamination", type=_contamination, default="auto", help="accepted share of good images flagged, or 'auto'"
    )
    fit.add_argument(
        "--calibration",
        type=_calibration,
        default="leave-one-out",
        help="good images the threshold is taken from: leave-one-out, a share held out such as 0.2, a number of folds, "
        "or none",
    )
    fit.add_argument("--device", default="auto", help="auto, cpu or cuda")
    fit.add_argument("--batch-size", type=int, default=4, help="images through the network at once")
    fit.add_argument("--seed", type=int, default=0, help="same seed, same model")
    fit.add_argument("--quiet", action="store_true", help="no progress bars")
    _add_debug(fit)
    fit.set_defaults(run=_fit)

    predict = commands.add_parser("predict", help="judge images by a fitted model", formatter_class=_Formatter)
    predict.add_argument(
        "model", metavar="MODEL", help="what 'fit' wrote. It is a pickle: open only files that you trust"
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    predict.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="folder for scores.csv and a heat map of each image"
    )
    predict.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    _add_debug(predict)
    predict.set_defaults(run=_predict)

    demo = commands.add_parser("demo", help="show what it does, without data or download", formatter_class=_Formatter)
    demo.add_argument("-o", "--output", metavar="OUT", default="skpatchcore-demo", help="folder for heat maps")
    demo.add_argument("--backbone", default="efficientnet_lite2", help="any that 'fit' takes")
    demo.add_argument("--seed", type=int, default=0, help="of defects and detector")
    _add_debug(demo)
    demo.set_defaults(run=_demo)
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" and "(default: False)" tell nobody anything
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _size(text: str) -> int | tuple[int, int] | None:
    if text in ("own", "none"):
        return None
    sides = [int(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise ValueError
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


_size.__name__ = "size"  # argparse names the function in its message


def _contamination(text: str) -> float | str:
    return text if text == "auto" else float(text)


_contamination.__name__ = "contamination"


def _calibration(text: str) -> float | int | str | None:
    if text in ("none", "leave-one-out"):
        return None if text == "none" else text
    return float(text) if "." in text else int(text)


_calibration.__name__ = "calibration"


def _weights(text: str) -> str | None:
    """Return the extractor's parameter; a path as an absolute one, for the model is used from anywhere."""
    if text == "none":
        return None
    return os.path.abspath(text) if text.endswith((".pth", ".pt", ".safetensors")) else text


def _fit(options: argparse.Namespace) -> int:
    from skpatchcore import ExactIndex, GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor

    directory, output = Path(options.directory), Path(options.output)
    if output.is_dir() or not output.parent.is_dir():  # found out before the work, not after it
        raise _CommandError(f"can't write {str(output)!r}: it is a directory, or its folder does not exist.")
    has_layout = (directory / "train" / "good").is_dir()
    paths = list(load_image_folder(directory).train_paths) if has_layout else list_images(directory)
    detector = PatchCoreDetector(
        TorchFeatureExtractor(
            options.backbone,
            weights=_weights(options.weights),
            patch_size=options.patch_size,
            image_size=options.image_size,
            crop_size=options.crop_size,
            batch_size=options.batch_size,
            device=options.device,
        ),
        sampler=GreedyCoresetSampler(options.ratio, device=options.device),
        index=ExactIndex(device=options.device) if options.index == "exact" else options.index,
        n_neighbors=options.n_neighbors,
        contamination=options.contamination,
        calibration=options.calibration,
        random_state=options.seed,
        verbose=0 if options.quiet else 1,
    )
    begin = time.perf_counter()
    detector.fit(paths)
    _save(detector, output)
    if not options.quiet:
        print(
            f"{len(paths)} images, {len(detector.memory_bank_)} rows in the memory bank, "
            f"threshold {detector.offset_:.4g}, {time.perf_counter() - begin:.1f} s: {output}"
        )
    return 0


def _save(detector: PatchCoreDetector, output: Path) -> None:
    """Write the model beside its place and move it there: a failure leaves what was there before."""
    import joblib

    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        joblib.dump(detector, partial)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def _load(path: str) -> PatchCoreDetector:
    import joblib

    from skpatchcore import PatchCoreDetector

    if not Path(path).is_file():
        raise _CommandError(f"there is no model file {path!r}.")
    try:
        detector = joblib.load(path)
    except Exception as error:  # unpickling foreign or damaged bytes raises anything
        raise _CommandError(f"{path!r} can't be read as a model: {error}") from error
    if not isinstance(detector, PatchCoreDetector) or not hasattr(detector, "memory_bank_"):
        raise _CommandError(f"{path!r} holds no fitted PatchCoreDetector, but a {type(detector).__name__}.")
    return detector


def _predict(options: argparse.Namespace) -> int:
    from skpatchcore._progress import progress_bar

    detector = _load(options.model).set_params(verbose=0)
    paths = [path for given in options.images for path in (list_images(given) if Path(given).is_dir() else [given])]
    folder = Path(options.output)
    own = folder.resolve()  # pictures of an earlier run, in a folder below the images, are not images to judge
    paths = [path for path in dict.fromkeys(paths) if own not in Path(path).resolve().parents]
    if not paths:
        raise _CommandError(f"all images lie in the output folder {str(folder)!r}: choose another one.")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _picture_names(paths)
    failures, n_flagged = [], 0
    # Lines go out as images are judged: an interruption loses none of them.
    with (
        (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file,
        progress_bar(len(paths), "judging", "image", not options.quiet) as bar,
    ):
        table = csv.writer(file)
        table.writerow(["path", "score", "decision", "label", "p_value"])
        for path, result in _judge(detector, paths):
            if isinstance(result, skpatchcore.ImageError):
                failures.append(result)
                table.writerow([path, "nan", "nan", -1, "nan"])  # unreadable is never normal
                bar.write(f"skpatchcore: {path}: {result.message}", file=sys.stderr)
            else:
                score, anomaly_map = result
                decision = score - detector.offset_
                label: Any = "" if math.isnan(decision) else -1 if decision < 0 else 1
                n_flagged += label == -1
                p_value: Any = "" if label == "" else repr(_p_value(detector, score))
                table.writerow([path, repr(float(score)), repr(float(decision)), label, p_value])
                _write_overlay(folder / pictures[path], path, anomaly_map, detector.pixel_offset_)
            file.flush()
            bar.update(1)
    if not options.quiet:
        n_judged = len(paths) - len(failures)
        print(f"{n_judged} images judged, {n_flagged} of them anomalous: {folder / 'scores.csv'}")
    if failures:
        raise _CommandError(
            f"{len(failures)} of {len(paths)} images could not be judged; they are in scores.csv with score "
            "nan and label -1."
        )
    return 0


def _p_value(detector: PatchCoreDetector, score: float) -> float:
    return float(skpatchcore.conformal_p_values(detector.calibration_scores_, [score])[0])


def _judge(detector: PatchCoreDetector, paths: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield each path with its score and map, or with the error where the image can't be used."""
    for i in range(0, len(paths), _CHUNK):
        chunk = paths[i : i + _CHUNK]
        failures: dict[str, skpatchcore.ImageError] = {}
        scores: Any = []
        maps: Any = []
        while True:
            usable = [path for path in chunk if path not in failures]
            try:
                if usable:
                    scores, maps = detector.score_and_segment(usable)
                break
            except skpatchcore.ImageError as error:
                failures[usable[error.index]] = error
        results = {path: (scores[n], maps[n]) for n, path in enumerate(usable)}
        for path in chunk:
            yield path, failures.get(path) or results[path]


def _picture_names(paths: list[str]) -> dict[str, str]:
    """Return a file name for each path: its stem, with the folders before it where several have the same."""
    places = {path: Path(path).resolve().with_suffix("") for path in paths}
    n_same = Counter(place.name for place in places.values())
    root = os.path.commonpath([place.parent for place in places.values()])
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path, place in places.items():
        base = place.name if n_same[place.name] == 1 else "_".join(place.relative_to(root).parts)
        name = next(n for i in count() if (n := base if i == 0 else f"{base}-{i + 1}") not in taken)
        taken.add(name)
        names[path] = f"{name}.png"
    return names


def _write_overlay(target: Path, path: str, anomaly_map: Any, threshold: float) -> None:
    from PIL import Image

    from skpatchcore.display import overlay_anomaly_map
    from skpatchcore.features.images import load_image

    if math.isnan(threshold):  # no calibration: the map's own range is all there is
        threshold = float(anomaly_map.max()) / 2
    Image.fromarray(overlay_anomaly_map(load_image(path, 0), anomaly_map, threshold)).save(target)


def _demo(options: argparse.Namespace) -> int:
    from skpatchcore.demo import run_demo

    run_demo(Path(options.output), options.backbone, options.seed)
    return 0
