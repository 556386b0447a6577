"""run: parse the arguments, run the command, and print its errors and warnings as single lines."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import skpatchcore
from skpatchcore._utils.loaded import is_instance_of
from skpatchcore._utils.names import shown_text
from skpatchcore._utils.progress import write_line
from skpatchcore.cli import capability, demo, evaluate, export, fit, predict, review, show, update, verify, watch
from skpatchcore.cli.advice import in_options
from skpatchcore.cli.dependencies import describe_missing
from skpatchcore.cli.options import CommandError, Parser


def run(arguments: Sequence[str] | None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str or None
        As for :func:`~skpatchcore.cli.main.main`.

    Returns
    -------
    int
        The exit code.
    """
    options = _parser().parse_args(arguments)
    options.is_program = arguments is None  # otherwise called by other code, in a process that is not ours
    with warnings.catch_warnings():
        warnings.showwarning = _OnceEach(options.command).show
        try:
            status: int = options.run(options)
            return status
        except KeyboardInterrupt:
            raise
        except Exception as error:
            if options.debug:
                raise
            print(f"skpatchcore: {_text_of(error, options.command)}", file=sys.stderr)
            return 1


class _OnceEach:
    """Printer of warnings: single lines on standard error, each text once."""

    def __init__(self, command: str):
        self._command = command
        self._seen: set[str] = set()

    def show(self, message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        """Print a warning. The arguments are those of ``warnings.showwarning``."""
        text = shown_text(in_options(" ".join(str(message).split()), self._command))
        if text not in self._seen:
            self._seen.add(text)
            write_line(f"skpatchcore: warning: {text}", sys.stderr)


def _text_of(error: Exception, command: str) -> str:
    if (missing := describe_missing(error)) is not None:
        return missing
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        text = f"{error.strerror}: {str(error.filename)!r}"
    # WeightsError is not imported, because its module imports torch
    is_of_weights = is_instance_of(error, "skpatchcore.features._weights", "WeightsError")
    known = is_of_weights or isinstance(error, OSError | ValueError | CommandError)
    return shown_text(in_options(text if known else f"{type(error).__name__}: {text}", command))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="skpatchcore",
        description="Find defects in images with PatchCore, which is fitted on images of good parts only.",
    )
    parser.add_argument("--version", action="version", version=f"skpatchcore {skpatchcore.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command", parser_class=Parser)
    for command in (fit, predict, watch, review, update, show, export, verify, evaluate, capability, demo):
        command.add_parser(commands)
    return parser
