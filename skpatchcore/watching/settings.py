"""WatchSettings: the options of a watched folder, checked before the work."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from skpatchcore.images.formats import has_image_suffix

MAPS = ("all", "anomalous", "none")


@dataclass(frozen=True)
class WatchSettings:
    """Options of :func:`~skpatchcore.watching.watch_folder`.

    Attributes
    ----------
    settle : float, default=1.0
        Seconds without a change of size and time, after which a file is complete. 0 is for programs that write a file
        under another name and rename it.
    patience : float, default=10.0
        Seconds without a change, after which a file that could not be read is tried again. If this fails, the file is
        flagged: score NaN, label -1.
    done_marker : str, default=""
        Ending of done-markers, e.g. ``".done"``. A file is then complete if its marker exists.
    move : str or None, default=None
        Folder into which judged files are moved, in subfolders by verdict. None leaves the files.
    maps : {"all", "anomalous", "none"}, default="anomalous"
        Parts that get a heat map.
    batch : int, default=16
        Maximum number of files that go through the network at once. The detector's batch size is a limit, too.
    poll : float or None, default=None
        Seconds between two searches of the folder. None uses events of the file system, if the package watchfiles is
        installed.
    rescan : float, default=60.0
        Seconds between two searches in addition to events.
    fsync : bool, default=False
        Whether each result is on the disk before the next one is written.
    report : bool, default=False
        Whether the page ``report.html`` is kept current.
    product : str or None, default=None
        Product of all images, for a :class:`~skpatchcore.MultiProductDetector`. None recognises the products.
    webhook : str or None, default=None
        URL to which the results of anomalous and unreadable parts are posted.
    webhook_all : bool, default=False
        Whether the results of all parts are posted.
    exec : str or None, default=None
        Program that is run for each anomalous or unreadable part, split into words as in a shell.
    exec_timeout : float, default=60.0
        Seconds after which the program is killed.
    queue : int, default=10_000
        Maximum number of results that wait for the webhook, and for the program. The oldest ones are dropped.
    once : bool, default=False
        Whether the function returns after all files are judged.
    command : sequence of str
        Words of `exec`. Set from it.

    Raises
    ------
    ValueError
        If an option has an unsuitable value.

    Examples
    --------
    >>> from skpatchcore.watching import WatchSettings
    >>> WatchSettings(settle=0, exec="/opt/cell/lamp --red").command
    ('/opt/cell/lamp', '--red')
    """

    settle: float = 1.0
    patience: float = 10.0
    done_marker: str = ""
    move: str | None = None
    maps: str = "anomalous"
    batch: int = 16
    poll: float | None = None
    rescan: float = 60.0
    fsync: bool = False
    report: bool = False
    product: str | None = None
    webhook: str | None = None
    webhook_all: bool = False
    exec: str | None = None
    exec_timeout: float = 60.0
    queue: int = 10_000
    once: bool = False
    command: Sequence[str] = field(init=False, default=())

    def __post_init__(self) -> None:
        for name in ("settle", "patience"):
            _check_seconds(name, getattr(self, name), 0.0)
        for name in ("rescan", "exec_timeout", *(["poll"] if self.poll is not None else [])):
            _check_seconds(name, getattr(self, name), 0.01)
        for name in ("batch", "queue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1.")
        if self.maps not in MAPS:
            raise ValueError(f"maps={self.maps!r}: expected one of {', '.join(MAPS)}.")
        marker = self.done_marker
        if marker and (os.path.basename(marker) != marker or has_image_suffix(f"x{marker}")):
            raise ValueError(f"done_marker={marker!r}: expected an ending that no image has, e.g. '.done'.")
        if self.webhook is not None:
            _check_url(self.webhook)
        if self.webhook_all and self.webhook is None:
            raise ValueError("webhook_all=True: there is no webhook.")
        if self.exec is not None:
            object.__setattr__(self, "command", _split(self.exec))


def _check_seconds(name: str, value: float, least: float) -> None:
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{name}={value}: expected a number of seconds, at least {least:g}.")


def _check_url(url: str) -> None:
    """Raise a ValueError if a URL cannot be used. The message does not contain the URL, which may hold a password."""
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_usable = is_usable and parts.port != 0 and not any(c.isspace() or ord(c) < 32 for c in url)
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ValueError("the webhook must be a URL that starts with http:// or https:// and names a host.")


def _split(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise ValueError(f"exec={command!r} cannot be split into words: {error}.") from error
    if not words:
        raise ValueError("exec is empty: expected a program.")
    return words
