"""Images on disk, in the layout of MVTec AD and those like it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}


def list_images(directory: str | os.PathLike[str]) -> list[str]:
    """Return the paths of all images below a directory, sorted.

    Parameters
    ----------
    directory : path
        Where to look; folders below it are searched too, hidden ones left out.

    Returns
    -------
    list of str
        Paths, with the directory in front.

    Raises
    ------
    NotADirectoryError
        If there is no such directory.
    FileNotFoundError
        If it holds no image.

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
    paths = sorted(
        str(path)
        for path in top.rglob("*")
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(top).parts)
    )
    if not paths:
        raise FileNotFoundError(f"{os.fspath(directory)!r} holds no image ({', '.join(sorted(_SUFFIXES))}).")
    return paths


@dataclass(frozen=True)
class ImageFolder:
    """A data set of images on disk: good ones to learn from, and others to judge.

    Attributes
    ----------
    train_paths : array of str
        Images of good parts to learn from.
    test_paths : array of str
        Images to judge.
    test_labels : array of int
        +1 good, -1 defective, as `predict` has it.
    test_defects : array of str
        Kind of defect, ``"good"`` for none.
    test_masks : array of (str or None)
        Path of the mask of defective pixels; None for good images and where there are no masks.
    train_groups : array of shape (n_train,) or None
        Which part each training image shows, where several show the same; a folder does not tell. For
        `PatchCoreDetector.fit`.
    """

    train_paths: np.ndarray
    test_paths: np.ndarray
    test_labels: np.ndarray
    test_defects: np.ndarray
    test_masks: np.ndarray
    train_groups: np.ndarray | None = None

    @property
    def train_images(self) -> np.ndarray:
        """What a detector learns from: `train_paths`."""
        return self.train_paths

    @property
    def test_images(self) -> np.ndarray:
        """What it judges: `test_paths`."""
        return self.test_paths

    def to_frame(self) -> pd.DataFrame:
        """Return one row an image.

        Returns
        -------
        DataFrame
            Columns ``path``, ``split`` (``"train"`` or ``"test"``), ``label`` (+1 or -1), ``defect`` and ``mask``.
        """
        n_train, n_test = len(self.train_paths), len(self.test_paths)
        return pd.DataFrame(
            {
                "path": np.concatenate([self.train_paths, self.test_paths]),
                "split": ["train"] * n_train + ["test"] * n_test,
                "label": np.concatenate([np.ones(n_train, int), self.test_labels]),
                "defect": np.concatenate([np.full(n_train, "good", object), self.test_defects]),
                "mask": np.concatenate([np.full(n_train, None, object), self.test_masks]),
            }
        )


# What data sets call the folders: MVTec AD, its second edition, BTAD.
_GOOD = ("good", "ok")
_TEST = ("test", "test_public")


def load_image_folder(root: str | os.PathLike[str]) -> ImageFolder:
    """Find the images of a data set in the layout of MVTec AD; reads none of them.

    Parameters
    ----------
    root : path
        A folder with ``train/good``, ``test/good``, ``test/<defect>`` and, where there are masks,
        ``ground_truth/<defect>/<stem>_mask.png`` (or ``<stem>.png``; other image formats too). Good images may be in
        ``ok`` (BTAD); ``test_public`` may stand for ``test``, with ``ground_truth`` in it (MVTec AD 2, whose
        ``validation`` is left alone).

    Returns
    -------
    ImageFolder
        Paths, labels, kinds of defects and masks.

    Raises
    ------
    FileNotFoundError
        If a part of the layout is missing; the error names it.

    Notes
    -----
    The layout is that of Bergmann et al., "MVTec AD", CVPR 2019, which other data sets follow; VisA does after the
    split that its authors' script makes.

    Examples
    --------
    >>> import tempfile
    >>> from skpatchcore import load_image_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_image_folder(folder)
    Traceback (most recent call last):
    FileNotFoundError: ...train' has no folder 'good': expected the layout of MVTec AD.
    """
    top = Path(root)
    train, test = _find_folder(top / "train", _GOOD), _find_folder(top, _TEST)
    truth = next((folder for folder in (top / "ground_truth", test / "ground_truth") if folder.is_dir()), None)
    paths: list[str] = []
    defects: list[str] = []
    masks: list[str | None] = []
    for folder in sorted(path for path in _shown_folders(test) if path != truth):
        is_good = folder.name in _GOOD
        for path in list_images(folder):
            paths.append(path)
            defects.append("good" if is_good else folder.name)
            masks.append(None if is_good or truth is None else _find_mask(truth / folder.name, Path(path)))
    if not paths:
        raise FileNotFoundError(f"{os.fspath(test)!r} has no folders of images.")
    kinds = np.array(defects, object)
    return ImageFolder(
        np.array(list_images(train), object),
        np.array(paths, object),
        np.where(kinds == "good", 1, -1),
        kinds,
        np.array(masks, object),
    )


def load_categories(root: str | os.PathLike[str], categories: Sequence[str] | None = None) -> dict[str, ImageFolder]:
    """Find all categories of a data set, such as the fifteen of MVTec AD; reads no image.

    Parameters
    ----------
    root : path
        A folder of folders, each as for :func:`~skpatchcore.load_image_folder`; or one such folder, as one category.
    categories : sequence of str or None, default=None
        Which of them; None takes all, in the order of their names.

    Returns
    -------
    dict of str to ImageFolder
        By the names of the folders.

    Raises
    ------
    FileNotFoundError
        If there is no such directory or category, or a category's layout is incomplete; the error names it.
    """
    top = Path(root)
    if not top.is_dir():
        raise FileNotFoundError(f"there is no directory {os.fspath(root)!r}.")
    if (top / "train").is_dir():
        places = {top.resolve().name: top}
    else:
        places = {path.name: path for path in sorted(_shown_folders(top)) if (path / "train").is_dir()}
    if not places:
        raise FileNotFoundError(
            f"{os.fspath(root)!r} has no folder 'train', and no folders that have one: expected the layout of MVTec AD."
        )
    if unknown := [name for name in categories or () if name not in places]:
        raise FileNotFoundError(f"{os.fspath(root)!r} has no category {unknown[0]!r}: there are {', '.join(places)}.")
    return {name: load_image_folder(places[name]) for name in categories or places}


def read_mask(mask: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return which pixels of an image are defective.

    Parameters
    ----------
    mask : array of shape (height, width), path or None
        True (or non-zero) where a pixel is defective. A file's pixels are where they are brighter than half; in a file
        with a palette, or that has no such pixels (other than JPEG), where they are not black: these are numbers of
        kinds of defects. None: the image is good.
    size : (int, int) or None, default=None
        Height and width of the image; needed where there is no mask. None takes the mask's.

    Returns
    -------
    array of shape (height, width), bool
        True where a pixel is defective.

    Raises
    ------
    ValueError
        If the mask is not of that size, can't be read, or there is neither a mask nor a size.
    FileNotFoundError
        If there is no such file.
    """
    if mask is None:
        if size is None:
            raise ValueError("where there is no mask, size= must say how large the image is.")
        return np.zeros(size, bool)
    if isinstance(mask, str | os.PathLike):
        try:
            with Image.open(mask) as file:
                has_palette = file.mode == "P"
                pixels = np.asarray(file.convert("RGB")).max(axis=2) if has_palette else np.asarray(file.convert("L"))
        except FileNotFoundError:
            raise
        except (OSError, SyntaxError) as error:  # Pillow's, of damaged files
            raise ValueError(f"the mask {os.fspath(mask)!r} can't be read: {error}") from error
        # Some data sets write the numbers of kinds of defects, as dark greys or as colours of a palette. What is never
        # exactly black, as JPEG, holds no numbers.
        is_numbered = has_palette or (file.format != "JPEG" and pixels.max(initial=0) <= 127)
        pixels = pixels > (0 if is_numbered else 127)
    else:
        pixels = np.asarray(mask) != 0
    if size is not None and pixels.shape != tuple(size):
        name = f" {os.fspath(mask)!r}" if isinstance(mask, str | os.PathLike) else ""
        raise ValueError(f"the mask{name} has shape {pixels.shape}, the image {tuple(size)}.")
    return pixels


def _shown_folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _find_folder(parent: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (parent / name).is_dir():
            return parent / name
    raise FileNotFoundError(f"{str(parent)!r} has no folder {names[0]!r}: expected the layout of MVTec AD.")


def _find_mask(folder: Path, image: Path) -> str:
    for stem in (f"{image.stem}_mask", image.stem):
        for suffix in (".png", image.suffix, *sorted(_SUFFIXES)):
            if (path := folder / f"{stem}{suffix}").is_file():
                return str(path)
    raise FileNotFoundError(f"no mask for {str(image)!r}: {str(folder / image.stem)!r}_mask.png is missing.")
