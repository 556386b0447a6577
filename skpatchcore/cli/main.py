"""The command line: ``skpatchcore fit``, ``predict``, ``evaluate`` and ``demo``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from skpatchcore._utils.console import tolerant_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str or None, default=None
        The words after the command; None takes those of the process.

    Returns
    -------
    int
        0 if all went well, 1 after an error, 3 if ``predict --fail-on-anomalies`` found anomalous images, 130 after
        Ctrl-C. Wrong usage exits with 2, as argparse does.
    """
    with tolerant_output():
        try:
            # what takes long to import is imported here, so that Ctrl-C ends it like the rest
            from skpatchcore.cli.commands import run

            return run(arguments)
        except KeyboardInterrupt:
            print("skpatchcore: interrupted", file=sys.stderr)
            return 130
