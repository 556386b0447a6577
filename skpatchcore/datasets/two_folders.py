"""load_two_folders: a data set from a folder of good images and a folder of defective images."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

from skpatchcore._utils.warning import warn_user
from skpatchcore.datasets.folders import ImageFolder
from skpatchcore.datasets.layouts import (
    GOOD_FOLDERS,
    LayoutError,
    has_layout,
    list_test_images,
    list_training_images,
    shown_folders,
)
from skpatchcore.datasets.masks import match_masks

# Kind of the defective images that lie directly in the folder.
_KIND = "defective"
# Calibration scores an image by a model without it, so it needs two images.
_FEWEST_TRAINING_IMAGES = 2
_N_SHOWN = 3
# Files of equal size are compared by their starts first: most photographs differ there.
_START = 65536


def load_two_folders(
    good: str | os.PathLike[str],
    defective: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    test_size: float | int = 0.2,
    random_state: int = 0,
) -> ImageFolder:
    """Make a data set of a folder of good images and a folder of defective images.

    The good images are divided at random: most of them are training images, and the others are test images. All
    defective images are test images.

    Parameters
    ----------
    good : path
        Folder of the good images. Folders below it are searched too.
    defective : path
        Folder of the defective images. A folder in it is a kind of defect, and its name is the name of the kind.
        Images that lie directly in it have the kind ``"defective"``.
    masks : path or None, default=None
        Folder of the masks of the defective images, with the same folders as `defective`. The mask of
        ``defective/scratch/7.jpg`` is ``masks/scratch/7_mask.png`` or ``masks/scratch/7.png``. If None, there are no
        masks, and pixel metrics are NaN.
    test_size : float or int, default=0.2
        Test images among the good images: a fraction in (0, 1), which is rounded up to whole images, or a number of
        images.
    random_state : int, default=0
        Seed of the division. The same images with the same seed are always divided in the same way.

    Returns
    -------
    ImageFolder
        Paths, labels, kinds of defects and masks. Its attribute `split` holds `test_size` and `random_state`.

    Raises
    ------
    NotADirectoryError
        If a folder does not exist.
    FileNotFoundError
        If a folder contains no image, or an image has no mask.
    LayoutError
        If a folder contains images of another kind: masks, a folder ``good`` among the defective images, or a
        complete data set. The error says what to do instead.
    ValueError
        If two of the folders are the same or one is within the other, if a good and a defective image are the same
        file or have the same content, if `test_size` is not valid, or if there are too few good images.

    Warns
    -----
    UserWarning
        If some good images have the same content, because they may be in both parts.

    See Also
    --------
    skpatchcore.load_image_folder : Finds a data set that is already divided, in the layout of MVTec AD.

    Notes
    -----
    The result of an evaluation is too good if several photographs show the same part, because photographs of the part
    are then in both parts of the division. Use a data set that is divided by part in this case.

    Only files of equal size are read, to find copies.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from PIL import Image
    >>> from skpatchcore.datasets import load_two_folders
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     top, rng = pathlib.Path(folder), np.random.default_rng(0)
    ...     for name in ["good/0", "good/1", "good/2", "good/3", "good/4", "defective/scratch/0"]:
    ...         (top / name).parent.mkdir(parents=True, exist_ok=True)
    ...         Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(top / f"{name}.png")
    ...     data = load_two_folders(top / "good", top / "defective")
    >>> len(data.train_paths), data.test_defects.tolist()
    (4, ['good', 'scratch'])
    """
    folders = {"good": Path(good), "defective": Path(defective)}
    if masks is not None:
        folders["masks"] = Path(masks)
    _check_folders(folders)
    good_paths, defective_paths = list_training_images(good), list_test_images(defective)
    _check_copies(good_paths, defective_paths)
    n_test = _number_of_test_images(good_paths, os.fspath(good), test_size)
    is_test = np.zeros(len(good_paths), bool)
    is_test[np.random.default_rng(random_state).permutation(len(good_paths))[:n_test]] = True
    paths = np.array(good_paths, object)
    kinds = [(*Path(path).relative_to(defective).parts[:-1], _KIND)[0] for path in defective_paths]
    truths = [None] * len(kinds) if masks is None else match_masks(defective_paths, Path(defective), Path(masks))
    return ImageFolder(
        paths[~is_test],
        np.array([*paths[is_test], *defective_paths], object),
        np.array([1] * n_test + [-1] * len(kinds)),
        np.array(["good"] * n_test + kinds, object),
        np.array([None] * n_test + truths, object),
        split={"test_size": test_size, "random_state": int(random_state)},
    )


def _check_folders(folders: dict[str, Path]) -> None:
    """Raise an error if a folder does not exist, contains another one, or is a complete data set."""
    for folder in folders.values():
        if not folder.is_dir():
            raise NotADirectoryError(f"there is no directory {str(folder)!r}.")
    places = {name: folder.resolve() for name, folder in folders.items()}
    names = list(folders)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            pair = f"the folders of {_of(name)} {str(folders[name])!r} and of {_of(other)} {str(folders[other])!r}"
            if places[name] == places[other]:
                raise ValueError(f"{pair} are the same folder. Put them into two folders.")
            if places[name] in places[other].parents or places[other] in places[name].parents:
                raise ValueError(f"{pair} lie within one another. Put them into folders side by side.")
    for name in ("good", "defective"):
        if has_layout(folders[name]):
            raise LayoutError(
                f"{str(folders[name])!r} is a complete data set with a training part. Load it with load_image_folder."
            )
    among = [folder for folder in shown_folders(folders["defective"]) if folder.name.lower() in GOOD_FOLDERS]
    if among:
        raise LayoutError(
            f"{str(among[0])!r} is a folder of good images among the defective images. Move it out of "
            f"{str(folders['defective'])!r}."
        )


def _of(name: str) -> str:
    return name if name == "masks" else f"{name} images"


def _number_of_test_images(good: list[str], folder: str, test_size: float | int) -> int:
    is_count = isinstance(test_size, int | np.integer) and not isinstance(test_size, bool)
    if not (test_size >= 1 if is_count else isinstance(test_size, float) and 0 < test_size < 1):
        raise ValueError(
            f"test_size={test_size!r} is not valid. Pass a fraction between 0 and 1, or a number of images."
        )
    n_test = int(test_size) if is_count else math.ceil(test_size * len(good))
    n_train = len(good) - n_test
    if n_train < _FEWEST_TRAINING_IMAGES:
        raise ValueError(
            f"{folder!r} contains {len(good)} good images, and test_size={test_size!r} leaves {max(n_train, 0)} of "
            f"them for the fit. At least {_FEWEST_TRAINING_IMAGES} are needed: add good images, or reduce test_size."
        )
    return n_test


def _check_copies(good: list[str], defective: list[str]) -> None:
    """Raise an error if an image is good and defective; warn if good images are copies of one another."""
    is_good = dict.fromkeys(good, True) | dict.fromkeys(defective, False)
    copies = []
    for same in _same_content([*good, *defective]):
        first = next((path for path in same if is_good[path]), None)
        other = next((path for path in same if not is_good[path]), None)
        if first is not None and other is not None:
            raise ValueError(f"{first!r} and {other!r} are the same image, but one is good and the other is defective.")
        if first is not None:
            copies.append(same)
    if copies:
        shown = ", ".join(map(repr, copies[0][:_N_SHOWN]))
        warn_user(
            f"{sum(map(len, copies))} good images have the same content as another good image, such as {shown}. Copies "
            "may be in the training part and in the test part, and results are then too good."
        )


def _same_content(paths: list[str]) -> list[list[str]]:
    """Return the groups of files that have the same content. Files that cannot be read are in no group."""
    groups = [paths]
    for key in (_size, _digest_of_start, _digest):
        groups = [same for group in groups for same in _grouped(group, key)]
    return groups


def _grouped(paths: list[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Return the groups of at least two files with the same key."""
    groups: dict[Hashable, list[str]] = {}
    for path in paths:
        try:
            groups.setdefault(key(path), []).append(path)
        except OSError:  # reading the image raises an error that names it
            continue
    return [same for same in groups.values() if len(same) > 1]


def _size(path: str) -> int:
    return os.stat(path).st_size


def _digest_of_start(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(_START)).digest()


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
