"""list_images: the image files below a folder, and what else is there."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from skpatchcore._utils.warning import warn_user
from skpatchcore.images.formats import SUFFIXES, has_image_suffix

# Folders of masks, in lower case, by the names that data sets give them.
MASK_FOLDERS = frozenset(
    {"ground_truth", "groundtruth", "ground-truth", "gt", "mask", "masks", "mask_images", "label", "labels"}
    | {"annotation", "annotations"}
)
_MASK_ENDINGS = ("_mask", "_gt", "_label", "_seg")
# Files of operating systems, in lower case. Hidden files begin with a dot.
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
_N_KINDS_SHOWN = 5


def list_images(
    directory: str | os.PathLike[str], *, exclude: str | os.PathLike[str] | None = None, warn_of_masks: bool = True
) -> list[str]:
    """Return the paths of all images below a directory, sorted.

    Parameters
    ----------
    directory : path
        Where to look. Folders below it are searched too, also those behind links, each once. Hidden files and folders,
        whose names begin with a dot, are left out.
    exclude : path or None, default=None
        A folder that is not searched, such as that of results.
    warn_of_masks : bool, default=True
        If False, masks are listed without a warning.

    Returns
    -------
    list of str
        Paths, with the directory in front. Links to files that do not exist are listed, if they have the ending of an
        image: reading them fails, so they are not mistaken for normal images.

    Raises
    ------
    NotADirectoryError
        If there is no such directory.
    FileNotFoundError
        If it holds no image.
    OSError
        If a folder can't be read.

    Warns
    -----
    UserWarning
        If files were left out, because they do not have the ending of an image; the warning counts them. If there are
        masks of defects among the images.

    Examples
    --------
    >>> from skpatchcore import list_images
    >>> list_images("no/such/place")
    Traceback (most recent call last):
    NotADirectoryError: there is no directory 'no/such/place'.
    """
    top = Path(directory)
    if not top.is_dir():
        raise NotADirectoryError(f"there is no directory {os.fspath(directory)!r}.")
    paths: list[str] = []
    left_out: list[str] = []
    for path in _files_below(str(top), exclude):
        (paths if has_image_suffix(path) else left_out).append(path)
    if not paths:
        counted = f" {_counted(left_out)}" if left_out else ""
        raise FileNotFoundError(f"{os.fspath(directory)!r} holds no image ({', '.join(sorted(SUFFIXES))}).{counted}")
    if left_out:
        warn_user(f"{os.fspath(directory)!r}: {_counted(left_out)}")
    if warn_of_masks and (masks := masks_among(paths, top)):
        warn_user(
            f"{os.fspath(directory)!r}: {len(masks)} of {len(paths)} images look like masks of defects, such as "
            f"{masks[0]!r}. Name the folder of images instead."
        )
    return sorted(paths)


def masks_among(paths: Sequence[str], top: Path) -> list[str]:
    """Return the files that are masks by their names.

    A mask is in a folder of masks, has the name of an image and ``_mask``, or is beside a photograph of the same name.

    Parameters
    ----------
    paths : sequence of str
        Files below `top`.
    top : path
        Its own name does not count.
    """
    names = {os.path.splitext(os.path.basename(path))[0].casefold() for path in paths}
    n_named = sum(name.endswith(_MASK_ENDINGS) for name in names)
    photographs = {os.path.splitext(path)[0] for path in paths if path.lower().endswith((".jpg", ".jpeg"))}

    def is_mask(path: str) -> bool:
        if {part.lower() for part in Path(path).relative_to(top).parent.parts} & MASK_FOLDERS:
            return True
        start, ending = os.path.splitext(path)
        if start in photographs and ending.lower() in (".png", ".bmp"):  # as in MTD
            return True
        name = os.path.basename(start).casefold()
        if name.endswith(_MASK_ENDINGS) and 2 * n_named > len(names):  # a folder of masks without their images
            return True
        return any(name.endswith(end) and name.removesuffix(end) in names for end in _MASK_ENDINGS)

    return sorted(path for path in paths if is_mask(path))


def folders_below(top: str | os.PathLike[str], exclude: str | os.PathLike[str] | None = None) -> Iterator[str]:
    """Yield a folder and those below it, also behind links, each once; hidden ones are left out.

    Raises
    ------
    OSError
        If a folder can't be read.
    """
    waiting, seen = [os.fspath(top)], set() if exclude is None else {os.path.realpath(exclude)}
    while waiting:  # each folder of the file system is visited once
        links = []
        for start in waiting:
            for folder, names, _ in os.walk(start, onerror=_raise):
                place = os.path.realpath(folder)
                if place in seen:
                    names.clear()
                    continue
                seen.add(place)
                names[:] = sorted(name for name in names if not name.startswith("."))
                links += [path for name in names if os.path.islink(path := os.path.join(folder, name))]
                yield folder
        waiting = links  # after all folders that are reached without links


def _files_below(top: str, exclude: str | os.PathLike[str] | None) -> Iterator[str]:
    for folder in folders_below(top, exclude):
        results = _results_in(folder)
        if results:
            warn_user(f"{folder!r} holds results of skpatchcore predict: its {len(results)} heat maps are left out.")
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in results:
                    continue
                is_file = not entry.is_dir() or (entry.is_symlink() and not os.path.exists(entry.path))
                if is_file and not entry.name.startswith(".") and entry.name.lower() not in _SYSTEM_FILES:
                    yield entry.path


def _results_in(folder: str) -> set[str]:
    """Return the names of the heat maps that a table of predictions in a folder lists; none without such a table."""
    try:
        with open(os.path.join(folder, "scores.csv"), newline="", encoding="utf-8", errors="replace") as file:
            table = csv.DictReader(file)
            if not {"path", "score", "decision", "label", "map"} <= set(table.fieldnames or ()):
                return set()
            return {row["map"] for row in table if row["map"]}
    except (OSError, csv.Error):
        return set()


def _counted(paths: list[str]) -> str:
    kinds = Counter(os.path.splitext(path)[1].lower() or "without ending" for path in paths)
    shown = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(_N_KINDS_SHOWN))
    more = ", ..." if len(kinds) > _N_KINDS_SHOWN else ""
    return f"{len(paths)} files do not have the ending of an image and were left out ({shown}{more})."


def _raise(error: OSError) -> None:
    raise error
