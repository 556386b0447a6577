"""Images on disk, in the layout of MVTec AD and those like it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from skpatchcore._utils.warning import warn_user
from skpatchcore.datasets.layouts import GOOD_FOLDERS, Layout, find_layout, has_train, shown_folders
from skpatchcore.datasets.listing import list_images
from skpatchcore.datasets.masks import match_masks


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
        labels = np.concatenate([np.ones(n_train, np.int64), self.test_labels])
        columns = {
            "path": [*self.train_paths, *self.test_paths],
            "split": ["train"] * n_train + ["test"] * n_test,
            "label": labels,
            "defect": ["good"] * n_train + list(self.test_defects),
            "mask": [None] * n_train + list(self.test_masks),
        }
        # As objects: pandas' texts can't hold file names that are not UTF-8, and would turn None into NaN.
        return pd.DataFrame({n: labels if n == "label" else pd.Series(c, dtype=object) for n, c in columns.items()})


def load_image_folder(root: str | os.PathLike[str]) -> ImageFolder:
    """Find the images of a data set in the layout of MVTec AD; reads none of them.

    Parameters
    ----------
    root : path
        A folder with ``train/good``, ``test/good``, ``test/<defect>`` and, if there are masks,
        ``ground_truth/<defect>/<stem>_mask.png`` (or ``<stem>.png``; other image formats too). Folders below
        ``<defect>`` are the same in both. Names are compared without regard to case. Good images may be in ``ok``
        (BTAD) or ``normal``; ``test_public`` may replace ``test``, with ``ground_truth`` in it (MVTec AD 2, whose
        ``validation`` is ignored); images may be in ``rgb`` and masks in ``gt`` within these (MVTec 3D-AD).

    Returns
    -------
    ImageFolder
        Paths, labels, kinds of defects and masks.

    Raises
    ------
    FileNotFoundError
        If a part of the layout is missing, or the mask of a defective image; the error names it.
    ValueError
        If several masks fit an image, or one mask fits several images.

    Warns
    -----
    UserWarning
        If masks belong to no image, or files do not have the ending of an image.

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
    FileNotFoundError: ... has no folder 'train': expected the layout of MVTec AD.
    """
    layout = find_layout(root)
    paths: list[str] = []
    defects: list[str] = []
    masks: list[str | None] = []
    for name, folder in layout.kinds().items():
        is_good = name.lower() in GOOD_FOLDERS
        images = list_images(folder / layout.inner if layout.inner else folder)
        paths += images
        defects += ["good" if is_good else name] * len(images)
        truth = _truth_of(layout, folder)
        if is_good or truth is None:
            masks += [None] * len(images)
        else:
            masks += match_masks(images, folder / (layout.inner or ""), truth)
    if loose := layout.loose_images():
        warn_user(
            f"{len(loose)} images lie directly in {str(layout.test)!r}, such as {loose[0]!r}: no folder says whether "
            "they are good, and they are left out."
        )
    if not paths:
        raise FileNotFoundError(f"{str(layout.test)!r} has no folders of images.")
    kinds = np.array(defects, object)
    return ImageFolder(
        np.array(list_images(layout.train), object),
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
    if has_train(top):
        places = {top.resolve().name: top}
    else:
        places = {path.name: path for path in shown_folders(top) if has_train(path)}
    if not places:
        raise FileNotFoundError(
            f"{os.fspath(root)!r} has no folder 'train', and no folders that have one: expected the layout of MVTec AD."
        )
    if unknown := [name for name in categories or () if name not in places]:
        raise FileNotFoundError(f"{os.fspath(root)!r} has no category {unknown[0]!r}: there are {', '.join(places)}.")
    return {name: load_image_folder(places[name]) for name in categories or places}


def _truth_of(layout: Layout, folder: Path) -> Path | None:
    """Return the folder of masks for a folder of test images; None if the data set has no masks."""
    if layout.inner is not None:  # MVTec 3D-AD has masks beside the images
        return folder / "gt" if (folder / "gt").is_dir() else None
    if layout.truth is None:
        return None
    same = [place for place in shown_folders(layout.truth) if place.name.lower() == folder.name.lower()]
    return same[0] if same else layout.truth / folder.name
