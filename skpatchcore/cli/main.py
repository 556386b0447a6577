"""main: the program ``skpatchcore`` with its commands, such as ``fit`` and ``predict``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from skpatchcore._utils.console import tolerant_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str or None, default=None
        Arguments of the program. If None, the arguments of the process are used.

    Returns
    -------
    int
        0 after success, 1 after an error, 3 if ``predict --fail-on-anomalies`` found anomalous images, and 130 after
        Ctrl-C. Wrong usage exits with 2.
    """
    with tolerant_output():
        try:
            # modules that take long to import are imported here, where Ctrl-C is handled
            from skpatchcore.cli.commands import run

            return run(arguments)
        except KeyboardInterrupt:
            print("skpatchcore: interrupted", file=sys.stderr)
            return 130
