"""PictureFolder: the picture files of a report page, in a folder beside the page."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from skpatchcore._utils.files import written_whole

PICTURES = "report_files"
_LIST = "files.txt"
_FIRST_LINE = "Pictures of a report of skpatchcore. The next report removes the files in this list."
_OWN_NAME = re.compile(r"[0-9]{5,12}\.(thumb|image|map|outline|truth|unseen|patch|nominal)\.(jpg|png)")
_FORMATS = {
    "jpg": {"format": "JPEG", "quality": 82, "optimize": True},
    # Level 6 of 9: "optimize" uses level 9, which takes five times as long for pictures that are about 20 % smaller.
    "png": {"format": "PNG", "compress_level": 6},
}


class PictureFolder:
    """The folder ``report_files`` beside a report page.

    Every file is entered in a list before it is written. A later report therefore removes exactly these files, even if
    the run was interrupted. Files of the user in the folder are neither replaced nor removed.

    Parameters
    ----------
    folder : path
        Folder of the page. ``report_files`` is created in it with the first picture.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.page_folder = Path(folder)
        self._last = -1
        self._taken: set[str] | None = None
        self._lock = threading.Lock()  # several threads write pictures

    def new_stem(self) -> str:
        """Return the start of the file names of one image, e.g. ``"00012"``; no file in the folder starts with it."""
        if self._taken is None:
            self._taken = {name.split(".")[0] for name in _names_in(self.page_folder / PICTURES)}
        self._last += 1
        while f"{self._last:05d}" in self._taken:  # ends: the folder holds a finite number of files
            self._last += 1
        return f"{self._last:05d}"

    def write(self, name: str, picture: Image.Image, **options: Any) -> str:
        """Write a picture in one step.

        Parameters
        ----------
        name : str
            A stem from :meth:`new_stem`, the kind of the picture and the ending, e.g. ``"00012.thumb.jpg"``.
        picture : PIL Image
            The picture.
        **options : dict
            Options of Pillow for this format.

        Returns
        -------
        str
            Path of the file relative to the page, with ``/``.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        settings = {**_FORMATS[name.rsplit(".")[-1]], **options}
        return self._place(name, lambda partial: picture.save(partial, **settings))

    def copy(self, source: str | os.PathLike[str], name: str) -> str:
        """Copy a picture file into the folder in one step.

        Parameters
        ----------
        source : path
            The picture file.
        name : str
            As for :meth:`write`.

        Returns
        -------
        str
            Path of the copy relative to the page, with ``/``.

        Raises
        ------
        OSError
            If the file cannot be read or written.
        """
        return self._place(name, lambda partial: shutil.copyfile(source, partial))

    def _place(self, name: str, fill: Callable[[Path], Any]) -> str:
        """Let a function write a file, and give the file its name. Return its path relative to the page."""
        assert _OWN_NAME.fullmatch(name), name
        folder = self.page_folder / PICTURES
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            _enter(folder / _LIST, name)
        partial = folder / _partial(name)
        try:
            fill(partial)
            os.replace(partial, folder / name)  # a link at this place is replaced, not followed
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        return f"{PICTURES}/{name}"


def remove_pictures(folder: str | os.PathLike[str], keep: Iterable[str] = ()) -> None:
    """Remove the pictures that :class:`PictureFolder` wrote, and the folder ``report_files`` if it is empty then.

    Parameters
    ----------
    folder : path
        Folder of the page.
    keep : iterable of str
        Pictures that stay, as :meth:`PictureFolder.write` returned them.
    """
    pictures, kept = Path(folder) / PICTURES, set(keep)
    listed = list(_listed(pictures / _LIST))
    remaining = []
    for name in listed:
        if f"{PICTURES}/{name}" in kept:
            remaining.append(name)
            continue
        for file in (pictures / name, pictures / _partial(name)):
            with suppress(OSError):
                file.unlink(missing_ok=True)
    if listed and not remaining:
        with suppress(OSError):
            (pictures / _LIST).unlink()
    elif len(remaining) < len(listed):  # a page that is written for months has a short list
        with suppress(OSError), written_whole(pictures / _LIST) as partial:
            partial.write_text("\n".join([_FIRST_LINE, *remaining, ""]), encoding="utf-8")
    with suppress(OSError):  # a folder with other files stays
        if pictures.is_dir() and not pictures.is_symlink():
            pictures.rmdir()


def _partial(name: str) -> str:
    return f".{name}.partial"


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _enter(file: Path, name: str) -> None:
    """Add a name to the list of pictures."""
    is_new = not file.exists()
    with file.open("a", encoding="utf-8") as content:
        content.write(f"{_FIRST_LINE}\n{name}\n" if is_new else f"{name}\n")


def _listed(file: Path) -> Iterator[str]:
    """Yield the names in a list of pictures; nothing if the file is not such a list."""
    with suppress(OSError), file.open(encoding="utf-8", errors="replace") as content:
        if content.readline().rstrip("\n") == _FIRST_LINE:
            for line in content:
                if _OWN_NAME.fullmatch(name := line.rstrip("\n")):
                    yield name
