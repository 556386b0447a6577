"""What the commands share: how words become values, and errors that the user can mend."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

from skpatchcore._utils.files import require_writable_folder


class CommandError(Exception):
    """Something the user can mend: shown as one line."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults, where they tell anything."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" and "(default: False)" tell nobody anything
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that takes options by their full names only: an abbreviation may mean another option one day."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})


def require_folder(text: str) -> Path:
    """Return the folder for a command's files; raise a CommandError if they can't be written: before the work."""
    try:
        require_writable_folder(Path(text))
    except OSError as error:
        raise CommandError(f"can't write into the folder {text!r}: {error.strerror}.") from error
    return Path(text)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add ``--debug``."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def require_matplotlib() -> None:
    """Raise a CommandError where reports can't be drawn: before the work, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError('reports need matplotlib: pip install "skpatchcore[plot]"')


def size(text: str) -> int | tuple[int, int] | None:
    """Return a side, height and width, or None for what is as it comes."""
    if text in ("own", "none"):
        return None
    sides = [int(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise ValueError
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def contamination(text: str) -> float | str:
    """Return a share, or ``"auto"``."""
    return text if text == "auto" else float(text)


def calibration(text: str) -> float | int | str | None:
    """Return what the detectors' parameter takes."""
    if text in ("none", "leave-one-out"):
        return None if text == "none" else text
    return float(text) if "." in text else int(text)


def weights(text: str) -> str | None:
    """Return the extractor's parameter. Paths become absolute, because the model may be used from another folder."""
    if text == "none":
        return None
    return os.path.abspath(text) if text.endswith((".pth", ".pt", ".safetensors")) else text
