"""Parsers of option values, and checks that all commands make before the work."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from skpatchcore._utils.files import require_writable_folder
from skpatchcore.deployment.container import is_exported

# Number of bytes at the end of a file by which an exported file is recognised.
_N_LAST = 256


class CommandError(Exception):
    """An error that the user can correct. The command line prints it as one line."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Formatter of help texts that shows the default of an option, unless it is None or False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)", "(default: False)" and "(default: [])" contain no information
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Parser that accepts only full names of options: an abbreviation may become ambiguous in a later version."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})


def require_folder(text: str) -> Path:
    """Return the output folder of a command. Raise a CommandError before the work if it is not writable."""
    try:
        require_writable_folder(Path(text))
    except OSError as error:
        raise CommandError(f"cannot write into the folder {text!r}: {error.strerror}.") from error
    return Path(text)


def is_exported_file(path: str) -> bool:
    """Return whether a path is an exported file, by its name (.onnx) or by its content."""
    if not os.path.isfile(path):
        return False
    if path.lower().endswith(".onnx"):
        return True
    with open(path, "rb") as file:
        file.seek(-min(os.path.getsize(path), _N_LAST), os.SEEK_END)
        return is_exported(file.read())


def refuse_exported(path: str, advice: str) -> None:
    """Raise a CommandError if a path is an exported file. `advice` is the end of the sentence."""
    if is_exported_file(path):
        raise CommandError(f"{path!r} is an exported ONNX file, {advice}")


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add ``--debug``."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def size(text: str) -> int | tuple[int, int] | None:
    """Return a side, a pair of height and width, or None for ``own`` and ``none``."""
    if text in ("own", "none"):
        return None
    sides = [int(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise ValueError
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def contamination(text: str) -> float | str:
    """Return a fraction, or ``"auto"``."""
    return text if text == "auto" else float(text)


def image_score(text: str) -> float | str:
    """Return a value of the parameter `image_score` of the detectors: a name, or a fraction."""
    return text if text in ("reweighted", "max", "map-max") else float(text)


def fraction_or_count(text: str) -> float | int:
    """Return a fraction if the text contains a decimal point, otherwise a number of images."""
    return float(text) if "." in text else int(text)


def ratio(text: str) -> float | int:
    """Return a fraction up to 1, or a number of patches above 1."""
    number = float(text)
    return int(number) if number > 1 and number.is_integer() else number


def calibration(text: str) -> float | int | str | None:
    """Return a value of the parameter `calibration` of the detectors."""
    if text in ("none", "auto", "leave-one-out"):
        return None if text == "none" else text
    return fraction_or_count(text)


def weights(text: str) -> str | None:
    """Return a value of the parameter `weights` of the extractor.

    A path becomes absolute, because the model may be used from another folder.
    """
    if text == "none":
        return None
    return os.path.abspath(text) if text.endswith((".pth", ".pt", ".safetensors")) else text
