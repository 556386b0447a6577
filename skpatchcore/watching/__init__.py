"""A hot folder: judges image files as they arrive, exactly once, and writes a table."""

from skpatchcore.watching.journal import JournalError
from skpatchcore.watching.settings import WatchSettings
from skpatchcore.watching.watch import watch_folder

__all__ = ["JournalError", "WatchSettings", "watch_folder"]
