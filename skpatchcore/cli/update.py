"""``skpatchcore update``: add good images to a model file, remove images from it, and answer wrong decisions."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore._utils.names import shown_name
from skpatchcore._utils.warning import warn_user
from skpatchcore.cli.fit import require_output, save_model
from skpatchcore.cli.options import CommandError, Formatter, add_debug
from skpatchcore.cli.predict import images_in, load_detector
from skpatchcore.cli.reviewed import learnt_paths, reviewed_images
from skpatchcore.datasets import list_training_images

# Largest false-positive rate to which --move-threshold sets the threshold.
_MOST = 0.5


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    update = commands.add_parser(
        "update",
        help="add good images to a model, remove images from it, and correct wrong decisions",
        description="Change a model file without a new fit. The file is replaced only after the new file has been "
        "verified, and stays unchanged if the command fails or is interrupted. The model keeps a log of all changes, "
        "which 'show' prints. Images are processed in the order --forget, IMAGE, --good, --bad.",
        formatter_class=Formatter,
    )
    update.add_argument(
        "model",
        metavar="MODEL",
        help="model file of 'fit'. A .joblib file is a pickle, which may run code: use only files that you trust",
    )
    update.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="new good images, or folders of them: a random sample of the production. They are learnt, and they "
        "calibrate the thresholds. Images that are already training images of the model are skipped",
    )
    update.add_argument(
        "--good",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="good images that were flagged (false alarms). They are learnt, but their own scores do not calibrate the "
        "thresholds, because they are not a random sample of good images. The thresholds only follow the larger memory "
        "bank",
    )
    update.add_argument(
        "--bad",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="defective images. The command prints which of them the model misses. They are never learnt",
    )
    update.add_argument(
        "--review",
        nargs="+",
        default=[],
        metavar="LABELS",
        help="answers that a page of 'predict --report' or 'watch --report' has saved (review.csv or review.json). "
        "Parts that a person called fine and that the model flags are used as with --good, defects as with --bad. The "
        "other parts are ignored",
    )
    update.add_argument(
        "--move-threshold",
        action="store_true",
        help="if a --bad image or a defect of --review is missed: set the thresholds of images and pixels to the "
        "smallest false-positive rate with which all of them are flagged, and print this rate. A rate above 50 %% is "
        "refused. If none is missed, the thresholds stay",
    )
    update.add_argument(
        "--forget",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="training images to remove, by the paths from which they were learnt: the model keeps no patch of them. "
        "The files need not exist any more",
    )
    update.add_argument(
        "--growth",
        choices=["radius", "ratio"],
        help="when the selection of new patches ends: when they are covered as well as the patches of the fit "
        "(radius), or when the memory bank contains the fraction of all patches that was set for the fit (ratio). The "
        "model keeps this choice for later updates (default: the choice of the model)",
    )
    update.add_argument(
        "--product",
        metavar="NAME",
        help="product of all images, for a model of 'fit --products'. A new name adds a product",
    )
    update.add_argument("-o", "--output", metavar="FILE", help="write another file, and leave MODEL unchanged")
    update.add_argument(
        "--trust",
        action="append",
        default=None,
        metavar="NAME",
        help="a type or function of yours that MODEL may contain; can be repeated",
    )
    update.add_argument("--quiet", action="store_true", help="print no summary; warnings are printed")
    add_debug(update)
    update.set_defaults(run=_update)


def _update(options: argparse.Namespace) -> int:
    output = Path(options.output or options.model)
    require_output(output)
    if not (options.images or options.good or options.bad or options.forget or options.review):
        raise CommandError("nothing to do: pass IMAGE, --good, --bad, --review or --forget.")
    if options.move_threshold and not (options.bad or options.review):
        raise CommandError("--move-threshold needs --bad: the images that must be flagged.")
    model = load_detector(options.model, options.trust or ())
    detector = _updatable(model, options)
    images, good = (_good_images(given) for given in (options.images, options.good))
    bad = images_in(options.bad)
    lines: list[str] = []
    if options.review:
        reviewed = reviewed_images(options.review, detector, options.product)
        good, bad = _each_once([*good, *reviewed.good]), _each_once([*bad, *reviewed.bad])
        lines += reviewed.lines
        if options.move_threshold and not bad:
            raise CommandError("--move-threshold: --review has no defect that can be read, and there is no --bad.")
        _require_product(detector, options, good)
    _refuse_both(bad, [*images, *good])
    _refuse_learnt(detector, bad)
    if not (images or good or bad or options.forget):
        if not options.quiet:
            print("\n".join([*lines, f"Nothing to change: {shown_name(str(output))} was not written."]))
        return 0
    before = dict(_thresholds_of(detector))
    if options.forget:
        n_before = _n_images_of(detector)
        detector.forget([os.path.abspath(path) for path in options.forget])
        lines.append(f"{_count(n_before - _n_images_of(detector))} removed.")
    if images:
        lines.append(_learn(detector, images, options, calibrate=True))
    if good:
        lines.append(_learn_false_alarms(detector, good, options))
    if bad:
        lines += _answer_misses(detector, bad, options)
    _save(model, output, options.model)
    if not options.quiet:
        lines += [_change_of(name, before.get(name), new) for name, new in _thresholds_of(detector)]
        print("\n".join(line for line in lines if line))
        print(f"written: {shown_name(str(output))}")
    return 0


def _updatable(model: Any, options: argparse.Namespace) -> Any:
    """Return the detector of a model. Raise a CommandError if it cannot be updated, or the product does not fit."""
    if hasattr(model, "steps"):
        raise CommandError(
            f"{options.model!r} contains a pipeline, and only a detector can be updated. Fit the pipeline again."
        )
    if not hasattr(model, "partial_fit"):
        raise CommandError(f"a {type(model).__name__} cannot be updated: fit it again on all images.")
    has_products = hasattr(model, "for_product")
    if options.product is not None and not has_products:
        raise CommandError(f"--product: the model {options.model!r} has no products.")
    _require_product(model, options, [*options.images, *options.good])
    if options.growth is not None:
        model.set_params(**{"estimator__growth" if has_products else "growth": options.growth})
        for member in getattr(model, "estimators_", ()):
            member.set_params(growth=options.growth)
    return model


def _require_product(detector: Any, options: argparse.Namespace, good: Sequence[str]) -> None:
    """Raise a CommandError if images are to be learnt and their product is not given."""
    if hasattr(detector, "for_product") and options.product is None and good:
        raise CommandError("--product is missing: state which product the new images show.")


def _each_once(paths: Sequence[str]) -> list[str]:
    """Return paths without those of the same file as an earlier one."""
    return list({os.path.abspath(path): path for path in reversed(paths)}.values())[::-1]


def _good_images(given: Sequence[str]) -> list[str]:
    """Return the given files and the training images in the given folders, by the rules of `fit`, each path once."""
    missing = [name for name in given if not os.path.lexists(name)]
    if missing:
        raise CommandError(f"there is no file or folder {', '.join(map(repr, missing))}.")
    paths = [path for name in given for path in (list_training_images(name) if Path(name).is_dir() else [name])]
    return list(dict.fromkeys(paths))


def _refuse_learnt(detector: Any, bad: Sequence[str]) -> None:
    """Raise a CommandError if a defective image is a training image."""
    learnt = learnt_paths(detector)
    if both := [path for path in bad if os.path.abspath(path) in learnt]:
        raise CommandError(f"--bad {both[0]!r} is a training image of the model: remove it with --forget first.")


def _refuse_both(bad: Sequence[str], good: Sequence[str]) -> None:
    """Raise a CommandError if an image is given as good and as defective."""
    known = {os.path.abspath(path) for path in good}
    if both := [path for path in bad if os.path.abspath(path) in known]:
        raise CommandError(f"{both[0]!r} is given as good and as defective (--bad): pass it once.")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    return {} if options.product is None else {"products": options.product}


def _learn(detector: Any, paths: Sequence[str], options: argparse.Namespace, calibrate: bool) -> str:
    """Add good images, and return a line about them."""
    n_before, known = _n_images_of(detector), list(getattr(detector, "products_", ()))
    if not calibrate and options.product is not None and options.product not in known:
        raise CommandError(f"--good: {options.product!r} is a new product. Add its first images without --good.")
    detector.partial_fit(paths, calibrate=calibrate, **_given(options))
    n_new = _n_images_of(detector) - n_before
    is_new = options.product is not None and options.product not in known
    line = f"New product {options.product!r}. " if is_new else ""
    left_out = f" {len(paths) - n_new} known already." if n_new < len(paths) else ""
    return f"{line}{_count(n_new)} added.{left_out}"


def _learn_false_alarms(detector: Any, paths: Sequence[str], options: argparse.Namespace) -> str:
    """Add good images that were flagged, and return a line about the labels before and after."""
    n_before = int(np.count_nonzero(detector.predict(paths, **_given(options)) == -1))
    added = _learn(detector, paths, options, calibrate=False)
    n_after = int(np.count_nonzero(detector.predict(paths, **_given(options)) == -1))
    return f"--good: {added} {n_before} of {len(paths)} were flagged before, {n_after} are flagged now."


def _answer_misses(detector: Any, paths: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Report which defective images are missed, and move the threshold if asked for."""
    from skpatchcore.calibration.conformal import conformal_p_values

    lines = []
    for product, target, some in _by_product(detector, paths, options.product):
        name = "" if product is None else f"{shown_name(product)}: "
        scores = target.score_samples(some)
        p_values = conformal_p_values(target.calibration_scores_, scores)
        missed = [path for path, score in zip(some, scores, strict=True) if score >= target.offset_]
        lines.append(f"{name}--bad: {len(missed)} of {len(some)} defective images are missed.")
        rates = dict(zip(some, p_values.tolist(), strict=True))
        lines += [
            f"  missed: {shown_name(path)} (as anomalous as the worst {100 * rates[path]:.3g} % of good images)"
            for path in sorted(missed, key=rates.__getitem__)
        ]
        note = f"{len(missed)} of {len(some)} defective images missed"
        rate = float(p_values.max())
        if not missed:
            if options.move_threshold:
                lines.append(f"{name}All of them are flagged with the present threshold, which --move-threshold keeps.")
        elif rate > _MOST:
            worst = some[int(p_values.argmax())]
            text = (
                f"{100 * rate:.3g} % of good images have at least the anomaly score of {worst!r}: no useful threshold "
                "flags all of them."
            )
            if options.move_threshold:
                print("\n".join(lines))
                raise CommandError(f"--move-threshold: {text} Nothing was written.")
            lines.append(f"{name}{text}")
        elif not options.move_threshold:
            lines.append(
                f"{name}A threshold that flags all of them also flags up to {100 * rate:.3g} % of good images. "
                "--move-threshold sets it."
            )
        else:
            old = target.promised_rate_
            _recalibrate(detector, product, rate)
            note += f"; threshold moved, false-positive rate {old:.3g} → {rate:.3g}"
            lines.append(
                f"{name}All {len(some)} defective images are flagged now. The expected fraction of good images that "
                f"are flagged is at most {100 * rate:.3g} % (before: {100 * old:.3g} %)."
            )
        _log_feedback(detector, product, some, note)
    return lines


def _by_product(detector: Any, paths: Sequence[str], given: str | None) -> list[tuple[str | None, Any, list[str]]]:
    """Return the defective images of each product, with the product's detector; one item if there are no products."""
    if not hasattr(detector, "for_product"):
        return [(None, detector, list(paths))]
    names = [given] * len(paths) if given is not None else detector.identify(paths).tolist()
    if None in names:
        warn_user(
            f"{names.count(None)} of {len(paths)} --bad images show none of the products: they are always flagged."
        )
    known = [name for name in dict.fromkeys(names) if name is not None]
    pairs = list(zip(paths, names, strict=True))
    return [(name, detector.for_product(name), [path for path, own in pairs if own == name]) for name in known]


def _recalibrate(detector: Any, product: str | None, rate: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the calibration scores can promise this rate
        detector.recalibrate(contamination=rate, **({} if product is None else {"products": product}))


def _log_feedback(detector: Any, product: str | None, paths: Sequence[str], note: str) -> None:
    """Append an entry about defective images to the log of the model."""
    from skpatchcore.detectors._updates import digests_of, log_update, values_of

    target = detector if product is None else detector.estimators_[detector.products_.tolist().index(product)]
    log_update(
        target, "feedback", values_of(target), n_images=len(paths), paths=list(paths), digests=digests_of(paths),
        note=note,
    )  # fmt: skip


def _thresholds_of(detector: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and the values of each product, or of the detector itself under the name ''."""
    from skpatchcore.detectors._updates import values_of

    if not hasattr(detector, "for_product"):
        return [("", {**values_of(detector), "n_images": _n_images_of(detector)})]
    return [
        (name, {**values_of(member), "n_images": _n_images_of(member)})
        for name, member in zip(detector.products_.tolist(), detector.estimators_, strict=True)
    ]


def _change_of(name: str, old: dict[str, Any] | None, new: dict[str, Any]) -> str:
    """Return a line about the values of a product before and after."""
    start = f"{shown_name(name)}: " if name else ""
    texts = []
    for key, label, form in (
        ("n_images", "training images", ",d"),
        ("n_bank", "bank rows", ",d"),
        ("offset", "image threshold", ".4g"),
        ("promised_rate", "promised false-positive rate", ".3g"),
    ):
        before, after = None if old is None else old[key], new[key]
        if after is not None:
            texts.append(f"{label} {'' if before in (None, after) else f'{before:{form}} → '}{after:{form}}")
    return start + ", ".join(texts)


def _n_images_of(detector: Any) -> int:
    """Return the number of images that a detector has learnt."""
    members = getattr(detector, "estimators_", None) or [detector]
    return sum(len(member.training_image_indices_) for member in members)


def _count(n: int) -> str:
    return f"{n} image{'' if n == 1 else 's'}"


def _save(model: Any, output: Path, source: str) -> None:
    """Write the model, with the data type of the memory bank of the file from which it was read."""
    from skpatchcore.cli.show import manifest_or_none

    manifest = manifest_or_none(source)
    bank = None if manifest is None else manifest["bank"]
    save_model(model, output, bank_dtype=None if bank is None else bank["stored as"])
