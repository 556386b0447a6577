"""summary_of: what a model file contains, as sections of names and values; text_of: the sections as text."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore._utils.bytes import format_bytes
from skpatchcore._utils.names import shown_name, shown_text
from skpatchcore.features._families import default_layers
from skpatchcore.reports.groups import promise_of, settings_of
from skpatchcore.reports.pipelines import detector_of

# Number of folders and of files that the text names.
_N_NAMED = 3
# Number of digits of a digest in the text.
_N_DIGITS = 12
_WIDTH = 14


def summary_of(model: Any, manifest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a person would ask of a model, in plain types that JSON can hold.

    Parameters
    ----------
    model : detector or Pipeline
        A fitted model.
    manifest : mapping or None, default=None
        Result of :func:`~skpatchcore.deployment.files.manifest_of_file`, if the model comes from a file.

    Returns
    -------
    dict
        Sections by name. ``"products"`` is a list with the sections of each product, if there are several products.
        The section ``"updates"`` is the log: a list with one dict for the fit and for each later change.
    """
    detector = detector_of(model)
    found: dict[str, Any] = {"model": _kind_of(model, detector)}
    if manifest is not None:
        found["model"]["written with"] = dict(manifest["versions"])
        if manifest["bank"] is not None:
            found["model"]["memory bank stored as"] = manifest["bank"]["stored as"] or manifest["bank"]["dtype"]
    if hasattr(detector, "for_product"):
        found["products"] = [
            {"product": str(name), **_sections_of(detector.for_product(name))} for name in detector.products_
        ]
        return found
    return {**found, **_sections_of(detector)}


def _kind_of(model: Any, detector: Any) -> dict[str, Any]:
    kind = type(detector).__name__
    if model is not detector:
        kind = f"Pipeline that ends in a {kind}"
    return {"kind": kind, "settings": " ".join(repr(detector).split())}


def _sections_of(detector: Any) -> dict[str, Any]:
    return {
        "network": _network_of(detector),
        "inspected": str(getattr(detector, "inspection_", None) or "unknown"),
        "memory bank": _bank_of(detector),
        "training images": _images_of(detector),
        "thresholds": {
            "image": _number(detector.offset_),
            "pixel": _number(detector.pixel_offset_),
            "smallest region": _number(getattr(detector, "min_area_", math.nan)),
            "promised rate": _number(getattr(detector, "promised_rate_", math.nan)),
            "promise": promise_of(detector),
        },
        "calibration": {
            "scores": int(np.count_nonzero(~np.isnan(detector.calibration_scores_))),
            "how": getattr(detector, "calibration_plan_", "unknown"),
        },
        "updates": list(getattr(detector, "updates_", [])),
    }


def _network_of(detector: Any) -> dict[str, Any]:
    members = getattr(detector, "estimators_", None) or [detector]
    extractor = getattr(members[0], "extractor_", None)
    if extractor is None:
        return {"name": "none: precomputed patch features"}
    names = ("layers", "image_size", "crop_size", "patch_size", "stride", "n_channels", "channel_order", "value_range")
    found: dict[str, Any] = {"name": settings_of(members[0]).get("backbone", type(extractor).__name__)}
    found.update({name: _plain(getattr(extractor, name)) for name in names if hasattr(extractor, name)})
    if found.get("layers", ()) is None and isinstance(extractor.backbone, str):
        found["layers"] = list(default_layers(extractor.backbone))
    if hasattr(extractor, "weights"):
        found["weights"] = _plain(extractor.weights)
    if hasattr(extractor, "weights_digest_"):
        found["weights digest"] = extractor.weights_digest_
    return found


def _bank_of(detector: Any) -> dict[str, Any] | None:
    bank = getattr(detector, "memory_bank_", None)
    if bank is None:
        return None
    sampler = getattr(detector, "sampler_", None)
    return {
        "rows": len(bank),
        "columns": bank.shape[1],
        "bytes": int(bank.nbytes),
        "sampler": type(sampler).__name__,
        "ratio": _plain(getattr(sampler, "ratio", None)),
        "covering radius": _covering_radius_of(sampler),
        "index": type(getattr(detector, "index_", None)).__name__,
    }


def _covering_radius_of(sampler: Any) -> float | None:
    """Return the covering radius of the selected rows; None if it is unknown."""
    # After forget, the last distance can differ from the covering radius.
    radius = getattr(sampler, "covering_radius_", None)
    distances = getattr(sampler, "selection_distances_", None)
    if radius is None and distances is not None and len(distances):
        radius = distances[-1]
    return None if radius is None else _number(radius)


def _images_of(detector: Any) -> dict[str, Any]:
    paths = getattr(detector, "training_paths_", None)
    embeddings = getattr(detector, "embeddings_", None)
    numbers = getattr(detector, "training_image_indices_", None)
    known = numbers if numbers is not None else embeddings
    if paths is not None and numbers is not None:
        paths = [paths[i] for i in np.asarray(numbers).tolist()]
    return {
        "number": None if known is None else len(known),
        "paths": None if paths is None else [path for path in paths if path is not None],
    }


def text_of(summary: Mapping[str, Any], path: str | os.PathLike[str]) -> str:
    """Return a summary as text for a terminal.

    Parameters
    ----------
    summary : mapping
        Result of :func:`summary_of`.
    path : path
        The model file, for the first line.
    """
    model = summary["model"]
    size = format_bytes(os.path.getsize(path))
    lines = [f"{shown_name(os.fspath(path))}: {model['kind']}, {size}"]
    if "written with" in model:
        lines.append(_line("Written with", ", ".join(f"{name} {v}" for name, v in model["written with"].items())))
    if "memory bank stored as" in model:
        lines.append(_line("Bank in file", model["memory bank stored as"]))
    lines.append(_line("Settings", model["settings"]))
    for part in summary.get("products", [summary]):
        if "product" in part:
            lines += ["", f"Product {shown_name(part['product'])}"]
        lines += _lines_of(part)
    return shown_text("\n".join(lines))


def _lines_of(part: Mapping[str, Any]) -> list[str]:
    network = dict(part["network"])
    name, digest = network.pop("name"), network.pop("weights digest", None)
    shown = ", ".join(f"{key} {_value_text(key, value)}" for key, value in network.items() if value is not None)
    lines = [_line("Network", f"{name}{f' ({shown})' if shown else ''}")]
    if digest is not None:
        lines.append(_line("Weights", f"SHA-256 {digest}"))
    lines.append(_line("Inspected", part["inspected"]))
    if (bank := part["memory bank"]) is not None:
        ratio = f", ratio {bank['ratio']}" if bank["ratio"] is not None else ""
        radius = f", covering radius {bank['covering radius']:.4g}" if bank["covering radius"] is not None else ""
        rows = f"{bank['rows']:,} rows of {bank['columns']} columns, {format_bytes(bank['bytes'])}"
        lines.append(_line("Memory bank", f"{rows}; {bank['sampler']}{ratio}{radius}; {bank['index']}"))
    lines.append(_line("Trained on", _images_text(part["training images"])))
    limits, calibration = part["thresholds"], part["calibration"]
    image, pixel = (("none" if limits[k] is None else f"{limits[k]:.6g}") for k in ("image", "pixel"))
    of_pixels = "no pixel threshold" if limits["pixel"] is None else f"pixels of a map above {pixel}"
    lines.append(_line("Thresholds", f"images with a score below {image}, {of_pixels}"))
    lines.append(_line("Promise", limits["promise"]))
    lines.append(_line("Calibration", f"{calibration['scores']:,} scores of good images ({calibration['how']})"))
    lines.append("Changes:" if part["updates"] else _line("Changes", "the file contains no log of changes"))
    lines += [_update_of(entry) for entry in part["updates"]]
    return lines


def _images_text(images: Mapping[str, Any]) -> str:
    number = "an unknown number of" if images["number"] is None else f"{images['number']:,}"
    if not images["paths"]:
        return f"{number} good images (their files are not known)"
    folders = Counter(str(Path(path).parent) for path in images["paths"])
    named = [f"{shown_name(folder)} ({n:,})" for folder, n in folders.most_common(_N_NAMED)]
    more = f" and {len(folders) - _N_NAMED} more folders" if len(folders) > _N_NAMED else ""
    return f"{number} good images: {', '.join(named)}{more}"


def _update_of(entry: Mapping[str, Any]) -> str:
    """Return an entry of the log as lines: time, kind, number of images, changed values, and names of the images."""
    changes = []
    for key, name in (("offset", "image threshold"), ("promised_rate", "promised rate"), ("n_bank", "bank rows")):
        before, after = entry[key]
        if after is not None and before != after:
            shown = f"{after:,}" if key == "n_bank" else f"{after:.4g}"
            old = "" if before is None else f"{before:,} → " if key == "n_bank" else f"{before:.4g} → "
            changes.append(f"{name} {old}{shown}")
    n = entry["n_images"]
    head = f"  {entry['time']}  {entry['kind']}" + (f", {n:,} image{'' if n == 1 else 's'}" if n else "")
    lines = [": ".join(text for text in (head, "; ".join(changes)) if text)]
    if entry["note"]:
        lines.append(f"      {entry['note']}")
    if entry["digests"] or entry["paths"]:
        names: Sequence[Any] = entry["paths"] or [None] * len(entry["digests"])
        digests: Sequence[Any] = entry["digests"] or [None] * len(names)
        for path, digest in list(zip(names, digests, strict=True))[:_N_NAMED]:
            shown = "" if digest is None else f" (SHA-256 {digest[:_N_DIGITS]}…)"
            lines.append(f"      {shown_name(path) if path else 'image'}{shown}")
        if n > _N_NAMED:
            lines.append(f"      and {n - _N_NAMED:,} more")
    return "\n".join(lines)


def _value_text(key: str, value: Any) -> str:
    """Return the value of a setting: "224×224" for sizes, and "stage3 + stage5" for other lists."""
    if not isinstance(value, list):
        return str(value)
    return ("×" if key.endswith("size") else " + ").join(map(str, value))


def _line(name: str, value: Any) -> str:
    return f"{name:<{_WIDTH}}{value}"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else repr(value)
