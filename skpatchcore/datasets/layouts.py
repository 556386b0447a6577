"""Folder layouts of data sets, shared by the commands `fit`, `predict` and `evaluate`.

:func:`find_layout` recognises a data set. :func:`list_training_images` and :func:`list_test_images` list the images of
a data set or of a plain folder. They raise a :class:`LayoutError` if the folder contains images that
must not be listed, such as masks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from skpatchcore._utils.warning import warn_user
from skpatchcore.datasets.listing import MASK_FOLDERS, folders_below, list_images, masks_among
from skpatchcore.images.formats import has_image_suffix

# Folder names in lower case, as used by MVTec AD, MVTec AD 2, BTAD, VisA and similar data sets.
GOOD_FOLDERS = frozenset({"good", "ok", "normal", "nodefect_images"})
_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "test_public")
_OTHER_PARTS = frozenset({*_TEST_FOLDERS, "test_private", "test_private_mixed", "testing"})
_DEFECT_FOLDERS = frozenset(
    {"bad", "ko", "ng", "nok", "not_good", "defect", "defects", "defective", "anomaly", "anomalies", "anomalous"}
    | {"abnormal", "faulty", "reject", "rejects", "rejected", "defect_images"}
)
# A folder that the user passes is refused if it has one of these names. "masks" and "labels" are not refused, because
# they can also be the names of products.
_TRUTH_FOLDERS = frozenset({"ground_truth", "groundtruth", "ground-truth", "gt"})


class LayoutError(ValueError):
    """Raised if a folder contains images that must not be listed, such as masks or defective training images.

    :func:`~skpatchcore.datasets.list_training_images` raises this error if a folder does not contain only good images.
    :func:`~skpatchcore.datasets.list_test_images` raises this error if a folder contains masks or several data sets.
    The message states which images are in the folder, and which folder to pass instead.
    """


@dataclass(frozen=True)
class Layout:
    """Folders of the parts of a data set.

    Attributes
    ----------
    train : path
        Folder of the good training images.
    test : path
        Folder of the test images. It has one subfolder of good images, and one subfolder for each kind of defect.
    truth : path or None
        Folder of the masks, with one subfolder for each kind of defect. None if the data set has no folder of masks.
    inner : str or None
        Name of the subfolder that contains the images in each folder of images, e.g. ``rgb`` in MVTec 3D-AD, which also
        has point clouds. None if the images are directly in the folders.
    """

    train: Path
    test: Path
    truth: Path | None
    inner: str | None = None

    def kinds(self) -> dict[str, Path]:
        """Return the folder of each kind of test images; the keys are the names of the folders, in sorted order."""
        return {folder.name: folder for folder in shown_folders(self.test) if folder.name.lower() not in MASK_FOLDERS}

    def loose_images(self) -> list[str]:
        """Return the images that are directly in the folder of test images and therefore have no label."""
        return sorted(str(path) for path in self.test.iterdir() if path.is_file() and has_image_suffix(path))


def find_layout(root: str | os.PathLike[str]) -> Layout:
    """Return the layout of a data set with one category.

    Parameters
    ----------
    root : path
        Folder with ``train/good`` and ``test``. Upper and lower case are not distinguished. Folder names of other data
        sets are recognised too, e.g., ``ok`` and ``normal`` for ``good``, or ``test_public`` for ``test``.

    Returns
    -------
    Layout
        Folders of the data set.

    Raises
    ------
    FileNotFoundError
        If the folder ``train``, ``train/good`` or ``test`` is missing. The error names the missing folder.
    """
    top = Path(root)
    train = _child(_child(top, _TRAIN_FOLDERS), tuple(sorted(GOOD_FOLDERS)))
    test = _child(top, _TEST_FOLDERS)
    truths = [folder for place in (top, test) for folder in shown_folders(place) if folder.name.lower() in MASK_FOLDERS]
    inner = "rgb" if (train / "rgb").is_dir() else None
    return Layout(train / inner if inner else train, test, truths[0] if truths else None, inner)


def has_layout(root: str | os.PathLike[str]) -> bool:
    """Return True if :func:`find_layout` finds a data set in a folder."""
    try:
        find_layout(root)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def has_train(root: Path) -> bool:
    """Return True if a folder has a subfolder of training images, e.g., ``train``."""
    return any(folder.name.lower() in _TRAIN_FOLDERS for folder in shown_folders(root))


def list_training_images(directory: str | os.PathLike[str]) -> list[str]:
    """Return the paths of the training images of a data set, or of all images in a folder of good images.

    A directory is a data set if it contains ``train/good`` and ``test``, or the folders of a variant that
    :func:`~skpatchcore.load_image_folder` recognises. Then the images in ``train/good`` are listed. Any other directory
    is a folder of good images. Then all images in the directory and in its subfolders are listed.

    Parameters
    ----------
    directory : path
        Folder of a data set, or folder of good images.

    Returns
    -------
    list of str
        Paths, sorted.

    Raises
    ------
    LayoutError
        If the directory is not a data set, and seems to contain images that are not good. This is the case if one of
        its subfolders has a name such as ``test``, ``ground_truth`` or ``defect``, if there are images outside of a
        subfolder ``good``, if files have names of masks (see :func:`~skpatchcore.list_images`), or if several
        subfolders are data sets. The error states which folder to pass instead.
    NotADirectoryError
        If the directory does not exist.
    FileNotFoundError
        If the directory contains no image.
    """
    top = Path(directory)
    if has_layout(top):
        return list_images(find_layout(top).train)
    _refuse_categories(top)
    _refuse_mask_folder(top)
    good: Path | None = None
    for name in folders_below(top) if top.is_dir() else ():
        folder = Path(name)
        names = {child.name.lower(): child for child in shown_folders(folder)}
        others = [n for n in names if n in MASK_FOLDERS or n in _OTHER_PARTS or n in _DEFECT_FOLDERS]
        good = next((names[n] for n in sorted(names) if n in GOOD_FOLDERS), good)
        beside = [child for n, child in names.items() if n not in GOOD_FOLDERS and _holds_images(child)]
        has_images = bool(beside) or any(path.is_file() and has_image_suffix(path) for path in folder.iterdir())
        if others:
            instead = good or next((names[n] for n in _TRAIN_FOLDERS if n in names), None)
            raise LayoutError(
                f"{str(folder)!r} holds {', '.join(repr(names[n].name) for n in sorted(others))}, which are not images "
                f"of good parts. Pass the folder of good images{f', such as {str(instead)!r}' if instead else ''}."
            )
        if set(names) & GOOD_FOLDERS and has_images:
            raise LayoutError(
                f"{str(folder)!r} holds images outside of {good.name!r}, which may not be good. Pass "  # type: ignore[union-attr]
                f"{str(good)!r} instead."
            )
    paths = list_images(top, warn_of_masks=False)
    if masks := masks_among(paths, top):
        raise LayoutError(
            f"{os.fspath(directory)!r} holds masks of defects, such as {masks[0]!r}. Pass a folder that holds good "
            "images only."
        )
    return paths


def list_test_images(directory: str | os.PathLike[str], *, exclude: str | os.PathLike[str] | None = None) -> list[str]:
    """Return the paths of the test images of a data set, or of all images in a folder.

    A directory is a data set if it contains ``train/good`` and ``test``, or the folders of a variant that
    :func:`~skpatchcore.load_image_folder` recognises. Then only the images in ``test`` are listed, without masks. From
    any other directory, all images in the directory and in its subfolders are listed.

    Parameters
    ----------
    directory : path
        Folder of a data set, or folder of images.
    exclude : path or None, default=None
        Folder that is not searched, e.g., the folder of results. None searches all folders.

    Returns
    -------
    list of str
        Paths, sorted.

    Raises
    ------
    LayoutError
        If the directory is not a data set, and contains masks or is itself a folder of masks, e.g. ``ground_truth``.
        Masks are recognised by their names, see :func:`~skpatchcore.list_images`. The error is also raised if
        subfolders of the directory are data sets. The error states which folder to pass instead.
    NotADirectoryError
        If the directory does not exist.
    FileNotFoundError
        If the directory contains no image.

    Warns
    -----
    UserWarning
        If the directory is a data set. The warning states that only the test images are listed, and their number.
    """
    top = Path(directory)
    if has_layout(top):
        layout = find_layout(top)
        folders = [folder / layout.inner if layout.inner else folder for folder in layout.kinds().values()]
        own = None if exclude is None else Path(exclude).resolve()
        folders = [folder for folder in folders if own not in (place := folder.resolve(), *place.parents)]
        paths = layout.loose_images() + [path for folder in folders for path in list_images(folder, exclude=exclude)]
        warn_user(f"{str(top)!r} is a data set: only the {len(paths)} images in {str(layout.test)!r} are listed.")
        return sorted(paths)
    _refuse_categories(top)
    _refuse_mask_folder(top)
    paths = list_images(top, exclude=exclude, warn_of_masks=False)
    if masks := masks_among(paths, top):
        raise LayoutError(
            f"{os.fspath(directory)!r} holds masks of defects, such as {masks[0]!r}. Pass a folder that holds images "
            "only, without masks."
        )
    return paths


def shown_folders(parent: Path) -> list[Path]:
    """Return the subfolders that are not hidden, sorted; an empty list if `parent` is not a folder."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    """Return True if a folder or one of its subfolders contains a file with the file ending of an image format."""
    return any(has_image_suffix(name) for place in folders_below(folder) for name in os.listdir(place))


def _child(parent: Path, names: tuple[str, ...]) -> Path:
    """Return the first subfolder with one of the names, in lower case; raise FileNotFoundError if there is none."""
    found = {folder.name.lower(): folder for folder in shown_folders(parent)}
    for name in names:
        if name in found:
            return found[name]
    expected = "good" if "good" in names else names[0]
    raise FileNotFoundError(f"{str(parent)!r} has no folder {expected!r}: expected the layout of MVTec AD.")


def _refuse_categories(top: Path) -> None:
    """Raise a LayoutError if the subfolders of a folder are data sets."""
    categories = [folder.name for folder in shown_folders(top) if has_layout(folder)]
    if categories:
        shown = ", ".join(categories[:5]) + (", ..." if len(categories) > 5 else "")
        raise LayoutError(
            f"{str(top)!r} holds {len(categories)} data sets ({shown}). Pass the folder of one data set, such as "
            f"{str(top / categories[0])!r}."
        )


def _refuse_mask_folder(top: Path) -> None:
    """Raise a LayoutError if a folder or its parent has the name of a folder of masks."""
    place = top.resolve()
    if {folder.lower() for folder in (place.name, place.parent.name)} & _TRUTH_FOLDERS:
        raise LayoutError(f"{str(top)!r} has the name of a folder of masks. Pass the folder of images instead.")
