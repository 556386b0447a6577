"""A hot folder: judges image files as they arrive, exactly once, and writes a table."""

from skpatchcore.watching.journal import JournalError
from skpatchcore.watching.settings import WatchSettings
from skpatchcore.watching.watch import check_folders, watch_folder

__all__ = ["JournalError", "WatchSettings", "check_folders", "watch_folder"]
