""":func:`list_images`: list all image files in a folder and its subfolders."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from skpatchcore._utils.warning import warn_user
from skpatchcore.images.formats import SUFFIXES, has_image_suffix

# Names of folders of masks in public data sets, in lower case.
MASK_FOLDERS = frozenset(
    {"ground_truth", "groundtruth", "ground-truth", "gt", "mask", "masks", "mask_images", "label", "labels"}
    | {"annotation", "annotations"}
)
_MASK_ENDINGS = ("_mask", "_gt", "_label", "_seg")
# Names of files that operating systems create, in lower case. These files are ignored, like hidden files.
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
_N_KINDS_SHOWN = 5


def list_images(
    directory: str | os.PathLike[str], *, exclude: str | os.PathLike[str] | None = None, warn_of_masks: bool = True
) -> list[str]:
    """Return the sorted paths of all images in a directory and in its subfolders.

    A file is an image if its name ends in a supported file ending, e.g. ``.png``, ``.jpg`` or ``.tif``. The files are
    not read.

    Parameters
    ----------
    directory : path
        Directory to search. All subfolders are searched too. Symbolic links to folders are followed, but each folder is
        searched only once. Hidden files and folders (their names begin with a dot) are ignored.
    exclude : path or None, default=None
        Folder that is not searched, e.g., the folder of results. None searches all folders.
    warn_of_masks : bool, default=True
        If True, warn if the names of some images look like names of masks. A mask is an image that marks the defective
        pixels of another image. In both cases, these images are listed.

    Returns
    -------
    list of str
        Paths. Each path begins with `directory` as it was passed: a relative `directory` gives relative paths. The list
        also contains symbolic links to missing files, if the name of the link has a supported file ending. `fit` and
        `predict` raise an error when they read such a path. Therefore, a missing image is noticed.

    Raises
    ------
    NotADirectoryError
        If the directory does not exist.
    FileNotFoundError
        If the directory contains no image.
    OSError
        If a folder cannot be read.

    Warns
    -----
    UserWarning
        If files are left out because their file ending is not supported. The warning states the number of these files.
    UserWarning
        If `warn_of_masks` is True and the names of some images look like names of masks. This is the case in a folder
        with a name such as ``ground_truth`` or ``masks``, for a name such as ``01_mask.png``, and for a PNG or BMP
        file that has the same name as a JPEG file beside it.
    UserWarning
        If anomaly maps that ``skpatchcore predict`` has drawn are left out. These heat maps are recognised by the file
        ``scores.csv`` in their folder, which names them.

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
        raise FileNotFoundError(
            f"{os.fspath(directory)!r} holds no image with one of the endings {', '.join(sorted(SUFFIXES))}.{counted}"
        )
    if left_out:
        warn_user(f"{os.fspath(directory)!r}: {_counted(left_out)}")
    if warn_of_masks and (masks := masks_among(paths, top)):
        warn_user(
            f"{os.fspath(directory)!r}: {len(masks)} of {len(paths)} images look like masks of defects, such as "
            f"{masks[0]!r}. Pass a folder that holds images only."
        )
    return sorted(paths)


def masks_among(paths: Sequence[str], top: Path) -> list[str]:
    """Return the files that are masks of defects according to their names.

    A file is a mask if one of these conditions holds:

    - The file is in a folder with a name such as ``masks``.
    - The name of the file is the name of another image, followed by an ending such as ``_mask``.
    - The file is a PNG or BMP file next to a JPEG file of the same name.
    - The name of the file has an ending such as ``_mask``, and more than half of all names have such endings.

    Parameters
    ----------
    paths : sequence of str
        Paths of image files in `top` and its subfolders.
    top : path
        Folder of the files. The name of this folder is ignored.

    Returns
    -------
    list of str
        Paths of the masks, sorted.
    """
    names = {os.path.splitext(os.path.basename(path))[0].casefold() for path in paths}
    n_named = sum(name.endswith(_MASK_ENDINGS) for name in names)
    photographs = {os.path.splitext(path)[0] for path in paths if path.lower().endswith((".jpg", ".jpeg"))}

    def is_mask(path: str) -> bool:
        if {part.lower() for part in Path(path).relative_to(top).parent.parts} & MASK_FOLDERS:
            return True
        start, ending = os.path.splitext(path)
        if start in photographs and ending.lower() in (".png", ".bmp"):  # as in the data set MTD
            return True
        name = os.path.basename(start).casefold()
        if name.endswith(_MASK_ENDINGS) and 2 * n_named > len(names):  # the folder holds masks without their images
            return True
        return any(name.endswith(end) and name.removesuffix(end) in names for end in _MASK_ENDINGS)

    return sorted(path for path in paths if is_mask(path))


def folders_below(top: str | os.PathLike[str], exclude: str | os.PathLike[str] | None = None) -> Iterator[str]:
    """Yield a folder and all its subfolders, and the folders to which symbolic links point.

    Each folder is yielded once. Hidden folders and the folder `exclude` are skipped.

    Raises
    ------
    OSError
        If a folder cannot be read.
    """
    waiting, seen = [os.fspath(top)], set() if exclude is None else {os.path.realpath(exclude)}
    while waiting:  # ends, because each folder of the file system is visited once
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
        waiting = links  # links are followed after all folders that are reachable without them


def _files_below(top: str, exclude: str | os.PathLike[str] | None) -> Iterator[str]:
    """Yield the files in a folder and its subfolders, except hidden files, system files and heat maps of `predict`."""
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
    """Return the names of the heat maps in the folder's table of predictions; an empty set if there is no table."""
    try:
        with open(os.path.join(folder, "scores.csv"), newline="", encoding="utf-8", errors="replace") as file:
            table = csv.DictReader(file)
            if not {"path", "score", "decision", "label", "map"} <= set(table.fieldnames or ()):
                return set()
            return {row["map"] for row in table if row["map"]}
    except (OSError, csv.Error):
        return set()


def _counted(paths: list[str]) -> str:
    """Return a sentence with the number of files that were left out, in total and by ending."""
    kinds = Counter(os.path.splitext(path)[1].lower() or "without ending" for path in paths)
    shown = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(_N_KINDS_SHOWN))
    more = ", ..." if len(kinds) > _N_KINDS_SHOWN else ""
    return f"{len(paths)} files do not have the ending of an image and were left out ({shown}{more})."


def _raise(error: OSError) -> None:
    """Raise an error, as the `onerror` callback of ``os.walk``."""
    raise error
