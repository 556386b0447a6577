"""``skpatchcore demo``: what it does, without data or download."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from skpatchcore.cli.options import Formatter, add_debug


def add_parser(commands: Any) -> None:
    """Add the command to argparse's."""
    demo = commands.add_parser("demo", help="show what it does, without data or download", formatter_class=Formatter)
    demo.add_argument("-o", "--output", metavar="OUT", default="skpatchcore-demo", help="folder for heat maps")
    demo.add_argument("--backbone", default="efficientnet_lite2", help="any that 'fit' takes")
    demo.add_argument("--seed", type=int, default=0, help="of defects and detector")
    demo.add_argument("--quiet", action="store_true", help="pictures only, no table")
    add_debug(demo)
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from skpatchcore.cli.demo import run_demo

    tell = (lambda text: None) if options.quiet else print
    run_demo(Path(options.output), options.backbone, options.seed, tell)
    return 0
