"""The one place that knows how data sets are laid out, for `fit`, `predict` and `evaluate` alike."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from skpatchcore._utils.warning import warn_user
from skpatchcore.datasets.listing import MASK_FOLDERS, folders_below, list_images, masks_among
from skpatchcore.images.formats import has_image_suffix

# What data sets call their folders, in lower case: MVTec AD, its second edition, BTAD, VisA and their like.
GOOD_FOLDERS = frozenset({"good", "ok", "normal", "nodefect_images"})
_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "test_public")
_OTHER_PARTS = frozenset({*_TEST_FOLDERS, "test_private", "test_private_mixed", "testing"})
_DEFECT_FOLDERS = frozenset(
    {"bad", "ko", "ng", "nok", "not_good", "defect", "defects", "defective", "anomaly", "anomalies", "anomalous"}
    | {"abnormal", "faulty", "reject", "rejects", "rejected", "defect_images"}
)
# A folder of this name that is named itself holds no images. "masks" and "labels" may also be products.
_TRUTH_FOLDERS = frozenset({"ground_truth", "groundtruth", "ground-truth", "gt"})


class LayoutError(ValueError):
    """A folder that holds something other than what was asked for; the message says what to name instead."""


@dataclass(frozen=True)
class Layout:
    """Where the parts of a data set are.

    Attributes
    ----------
    train : path
        Folder of good images to learn from.
    test : path
        Folder of folders: one of good images, one for each kind of defect.
    truth : path or None
        Folder of masks, with one folder for each kind of defect.
    inner : str or None
        Folder within each of these that holds the images; None if they are there directly. MVTec 3D-AD has ``rgb``
        beside point clouds.
    """

    train: Path
    test: Path
    truth: Path | None
    inner: str | None = None

    def kinds(self) -> dict[str, Path]:
        """Return the folders of test images by their names, sorted."""
        return {folder.name: folder for folder in shown_folders(self.test) if folder.name.lower() not in MASK_FOLDERS}

    def loose_images(self) -> list[str]:
        """Return the images that are directly in the folder of test images, which no folder labels."""
        return sorted(str(path) for path in self.test.iterdir() if path.is_file() and has_image_suffix(path))


def find_layout(root: str | os.PathLike[str]) -> Layout:
    """Return the layout of a data set with one category.

    Parameters
    ----------
    root : path
        A folder with ``train/good`` and ``test``; names in upper or lower case, and by the other names that data sets
        use: ``ok`` and ``normal`` for ``good``, ``test_public`` for ``test``.

    Raises
    ------
    FileNotFoundError
        If a part of the layout is missing; the error names it.
    """
    top = Path(root)
    train = _child(_child(top, _TRAIN_FOLDERS), tuple(sorted(GOOD_FOLDERS)))
    test = _child(top, _TEST_FOLDERS)
    truths = [folder for place in (top, test) for folder in shown_folders(place) if folder.name.lower() in MASK_FOLDERS]
    inner = "rgb" if (train / "rgb").is_dir() else None
    return Layout(train / inner if inner else train, test, truths[0] if truths else None, inner)


def has_layout(root: str | os.PathLike[str]) -> bool:
    """Return whether :func:`find_layout` finds a data set in a folder."""
    try:
        find_layout(root)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def has_train(root: Path) -> bool:
    """Return whether a folder has a training part, as data sets have."""
    return any(folder.name.lower() in _TRAIN_FOLDERS for folder in shown_folders(root))


def list_training_images(directory: str | os.PathLike[str]) -> list[str]:
    """Return the images of good parts in a folder, or in the training part of a data set.

    Parameters
    ----------
    directory : path
        A data set in a known layout, such as MVTec AD's, or a folder of good images.

    Returns
    -------
    list of str
        Paths, sorted.

    Raises
    ------
    LayoutError
        If the folder also holds other images: test images, masks, defects, several categories, or images beside a
        folder ``good``. The error says what to name instead.
    NotADirectoryError, FileNotFoundError
        If there is no such directory, or it holds no image.
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
                f"of good parts: name the folder of good images{f', such as {str(instead)!r}' if instead else ''}."
            )
        if set(names) & GOOD_FOLDERS and has_images:
            raise LayoutError(
                f"{str(folder)!r} holds images beside {good.name!r}, which would be learnt as good: name "  # type: ignore[union-attr]
                f"{str(good)!r}."
            )
    paths = list_images(top, warn_of_masks=False)
    if masks := masks_among(paths, top):
        raise LayoutError(
            f"{os.fspath(directory)!r} holds masks of defects, such as {masks[0]!r}: name a folder of good images only."
        )
    return paths


def list_test_images(directory: str | os.PathLike[str], *, exclude: str | os.PathLike[str] | None = None) -> list[str]:
    """Return the images to inspect in a folder, or in the test part of a data set.

    Parameters
    ----------
    directory : path
        A data set in a known layout, such as MVTec AD's, or a folder of images.
    exclude : path or None, default=None
        A folder that is not searched, such as that of results.

    Returns
    -------
    list of str
        Paths, sorted.

    Raises
    ------
    LayoutError
        If the folder holds masks or several categories. The error says what to name instead.
    NotADirectoryError, FileNotFoundError
        If there is no such directory, or it holds no image.

    Warns
    -----
    UserWarning
        If the folder is a data set: only its test images are listed.
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
            f"{os.fspath(directory)!r} holds masks of defects, such as {masks[0]!r}: name a folder of images only."
        )
    return paths


def shown_folders(parent: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, sorted; none if it is not a folder."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    return any(has_image_suffix(name) for place in folders_below(folder) for name in os.listdir(place))


def _child(parent: Path, names: tuple[str, ...]) -> Path:
    found = {folder.name.lower(): folder for folder in shown_folders(parent)}
    for name in names:
        if name in found:
            return found[name]
    expected = "good" if "good" in names else names[0]
    raise FileNotFoundError(f"{str(parent)!r} has no folder {expected!r}: expected the layout of MVTec AD.")


def _refuse_categories(top: Path) -> None:
    categories = [folder.name for folder in shown_folders(top) if has_layout(folder)]
    if categories:
        shown = ", ".join(categories[:5]) + (", ..." if len(categories) > 5 else "")
        raise LayoutError(
            f"{str(top)!r} holds {len(categories)} data sets ({shown}): name one of them, such as "
            f"{str(top / categories[0])!r}."
        )


def _refuse_mask_folder(top: Path) -> None:
    place = top.resolve()
    if {folder.lower() for folder in (place.name, place.parent.name)} & _TRUTH_FOLDERS:
        raise LayoutError(f"{str(top)!r} is a folder of masks by its name: name the folder of images.")
