"""The command line: one module for each command."""

from skpatchcore.cli.main import main

__all__ = ["main"]
