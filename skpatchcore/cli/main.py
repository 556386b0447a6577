"""The command line: ``skpatchcore fit``, ``predict``, ``evaluate`` and ``demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import skpatchcore
from skpatchcore.cli import demo, evaluate, fit, predict
from skpatchcore.cli.options import CommandError


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
        status: int = options.run(options)
        return status
    except KeyboardInterrupt:
        print("skpatchcore: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        known = isinstance(error, OSError | ValueError | CommandError | skpatchcore.WeightsError)
        print(f"skpatchcore: {text if known else f'{type(error).__name__}: {text}'}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skpatchcore", description="Find defects in images after seeing images of good parts only (PatchCore)."
    )
    parser.add_argument("--version", action="version", version=f"skpatchcore {skpatchcore.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (fit, predict, evaluate, demo):
        command.add_parser(commands)
    return parser
