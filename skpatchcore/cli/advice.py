"""in_options: messages of the library with options of the command line instead of parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Option of each parameter.
_OPTIONS = {
    "backbone": "--backbone",
    "weights": "--weights",
    "image_size": "--image-size",
    "crop_size": "--crop-size",
    "roi": "--roi",
    "max_memory": "--max-memory",
    "value_range": "--value-range",
    "patch_size": "--patch-size",
    "ratio": "--ratio",
    "n_neighbors": "--n-neighbors",
    "image_score": "--image-score",
    "augment": "--augment",
    "suspect_share": "--suspect-share",
    "index": "--index",
    "contamination": "--contamination",
    "pixel_contamination": "--pixel-contamination",
    "calibration": "--calibration",
    "device": "--device",
    "batch_size": "--batch-size",
    "random_state": "--seed",
    "shots": "--shots",
    "n_repeats": "--repeats",
    "resolution": "--resolution",
    "preset": "--preset",
    "test_size": "--test-size",
    "method": "--method",
    "memory": "--cache",
    "kinds": "--kinds",
    "contrasts": "--contrasts",
    "n_trials": "--trials",
    "precision": "--precision",
    "map_size": "--map-size",
    "input_dtype": "--input-dtype",
    "max_flipped": "--max-flipped",
    "good_images": "--good",
    "runtime": "--runtime",
    "n_threads": "--threads",
    "growth": "--growth",
    "settle": "--settle",
    "patience": "--patience",
    "done_marker": "--done-marker",
    "maps": "--maps",
    "batch": "--batch",
    "poll": "--poll",
    "rescan": "--rescan",
    "exec": "--exec",
    "exec_timeout": "--exec-timeout",
    "queue": "--queue",
    "webhook_all": "--webhook-all",
}
_OF_FIT = (
    "backbone", "weights", "image_size", "crop_size", "roi", "max_memory", "value_range", "patch_size", "ratio",
    "n_neighbors", "image_score", "augment", "suspect_share", "index", "contamination", "pixel_contamination",
    "calibration", "device", "batch_size", "random_state",
)  # fmt: skip
_OF_EVALUATE = (
    "weights", "ratio", "contamination", "device", "batch_size", "random_state", "shots", "n_repeats", "resolution",
    "preset", "method", "memory", "test_size",
)  # fmt: skip
_OF_RUNTIME = ("runtime", "n_threads")
_OF_WATCH = (
    "settle", "patience", "done_marker", "maps", "batch", "poll", "rescan", "exec", "exec_timeout", "queue",
    "webhook_all",
)  # fmt: skip
# The parameters of a model cannot be changed by `predict` and `watch`, only by another `fit`.
_OF_COMMAND = {
    "fit": _OF_FIT,
    "predict": _OF_FIT,
    "watch": _OF_FIT,
    "evaluate": _OF_EVALUATE,
    "demo": ("backbone", "device", "random_state"),
    "export": ("precision", "image_size", "map_size", "input_dtype", "max_flipped", "good_images"),
    "verify": _OF_RUNTIME,
    "show": (),
    "review": (),
    "update": ("contamination", "growth"),
    "capability": ("contamination", "kinds", "contrasts", "n_trials", "random_state"),
}
_WITHOUT_VALUE = {"image_size": "own"}
# Advice without names of parameters.
_PHRASES = (
    (re.compile(r"read it with joblib\.load\b"), "give it a name that ends in .joblib"),
    (re.compile(r"; skpatchcore\.list_images\(directory\) lists (its images|the images of a directory)"), ""),
    (re.compile(r"\b(Convert the image), such as with \.astype\(np\.uint8\) if white is 255, or set"), r"\1, or set"),
    (re.compile(r"\bvalue_range of the extractor"), "value_range"),
    (re.compile(r"\bsuch as \((\d+), (\d+)\)"), r"such as \1 \2"),
    (re.compile(r"\bchannel_order and value_range"), "value_range"),
    (re.compile(r", or overwrite it\b"), ", or pass --overwrite"),
    (re.compile(r"\bLoad it with load_image_folder\b"), "Give it as ROOT, without --good and --defective"),
    (re.compile(r"\bmax_memory=([\d.]+ \w+) is too small"), r"\1 of memory are too little"),
    (re.compile(r"\bmax_pixels=(\d+)"), r"the limit of \1 pixels"),
    (re.compile(r", or use PatchCoreDetector\b"), ", or use PatchCore"),
    (re.compile(r" Call 'fit' with appropriate arguments before using this estimator\."), ""),
)
_TRUSTED = re.compile(r"(?:pass )?trusted=\[([^\]]*)\]")
_VALUE = r"(\([^()]*\)|\[[^\[\]]*\]|'[^']*'|\"[^\"]*\"|[^\s,;:()]*[^\s,;:.()])"


def in_options(message: str, command: str) -> str:
    """Return a message of the library with options instead of parameters.

    Parameters
    ----------
    message : str
        Text that may contain parameters, such as ``calibration=None``.
    command : str
        The command that raised the error or the warning, such as ``"fit"``.

    Returns
    -------
    str
        Text with options, such as ``--calibration none``. Parameters without an option are unchanged.
    """
    text = _TRUSTED.sub(lambda match: "pass " + " ".join(f"--trust {name}" for name in _names(match[1])), message)
    for pattern, replacement in _PHRASES:
        text = pattern.sub(replacement, text)
    if command in ("predict", "watch"):
        text = _with_options(text, _OF_RUNTIME)
    if command == "watch":
        text = _with_options(text, _OF_WATCH)
    before = text
    text = _with_options(text, _OF_COMMAND[command])
    if "ratio" in _OF_COMMAND[command]:
        text = re.sub(r"\b(larger|smaller|PatchCore,) ratio\b", r"\1 --ratio", text)
    if command in ("predict", "watch") and text != before:
        text = f"{text.removesuffix('.')} (these are options of 'skpatchcore fit')."
    return text


def _with_options(text: str, names: Sequence[str]) -> str:
    """Return a text with the options of some parameters instead of the parameters."""
    for name in names:
        option = _OPTIONS[name]
        text = re.sub(rf"\bThe '{name}' parameter of \w+ must", f"{option} must", text)
        text = re.sub(
            rf"(?<![\w/\\.'\"-]){name}={_VALUE}",
            lambda match, name=name, option=option: f"{option} {_value(name, match[1])}",  # type: ignore[misc]
            text,
        )
        if "_" in name:
            text = re.sub(rf"(?<![\w/\\.'\"-]){name}(?![\w/\\=:])", option, text)
    return text


def _names(text: str) -> list[str]:
    return [name.strip().strip("'\"") for name in text.split(",") if name.strip()]


def _value(name: str, text: str) -> str:
    """Return a value as a user types it after an option."""
    if text == "None":
        return _WITHOUT_VALUE.get(name, "none")
    if text[0] in "([":
        return ("x" if text[0] == "(" else " ").join(_names(text[1:-1]))
    return text.strip("'\"")
