"""Data sets of images on disk, in the layout of MVTec AD and in similar layouts.

:func:`load_image_folder` lists the images of one category. :func:`load_categories` lists the images of all categories.
"""

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
    """Data set of images on disk: good training images, and labelled test images.

    Attributes
    ----------
    train_paths : array of shape (n_train,), str
        Paths of the training images, which show good parts.
    test_paths : array of shape (n_test,), str
        Paths of the test images.
    test_labels : array of shape (n_test,), int
        +1 for good and -1 for defective images, as returned by `predict`.
    test_defects : array of shape (n_test,), str
        Kind of defect of each test image; ``"good"`` for good images.
    test_masks : array of shape (n_test,), str or None
        Path of the mask of defective pixels of each test image. None for good images, and if there are no masks.
    train_groups : array of shape (n_train,) or None
        Part that each training image shows, if several images show the same part; pass it as `groups` to
        `PatchCoreDetector.fit`. None if the parts are unknown. :func:`~skpatchcore.load_image_folder` always sets None.
    """

    train_paths: np.ndarray
    test_paths: np.ndarray
    test_labels: np.ndarray
    test_defects: np.ndarray
    test_masks: np.ndarray
    train_groups: np.ndarray | None = None

    @property
    def train_images(self) -> np.ndarray:
        """Training images for `fit`: the array `train_paths`."""
        return self.train_paths

    @property
    def test_images(self) -> np.ndarray:
        """Test images for `predict`: the array `test_paths`."""
        return self.test_paths

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per image.

        Returns
        -------
        DataFrame
            Columns ``path``, ``split`` (``"train"`` or ``"test"``), ``label`` (+1 good, -1 defective), ``defect`` and
            ``mask``.
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
        # Object dtype: pandas' string dtype cannot hold file names that are not UTF-8, and converts None to NaN.
        return pd.DataFrame({n: labels if n == "label" else pd.Series(c, dtype=object) for n, c in columns.items()})


def load_image_folder(root: str | os.PathLike[str]) -> ImageFolder:
    """List the images of a data set in the layout of MVTec AD, without reading them.

    Parameters
    ----------
    root : path
        Folder of the data set. See Notes for the expected layout.

    Returns
    -------
    ImageFolder
        Paths, labels, kinds of defects and masks.

    Raises
    ------
    FileNotFoundError
        If a part of the layout or the mask of a defective image is missing. The error names the missing part.
    ValueError
        If several masks match one image, or if one mask matches several images.

    Warns
    -----
    UserWarning
        If masks belong to no image, if files do not have the ending of an image, or if images are not in a folder of a
        kind of defect.

    Notes
    -----
    The layout is that of Bergmann et al., "MVTec AD", CVPR 2019. The folder holds ``train/good``, ``test/good`` and
    ``test/<defect>``. If there are masks, the mask of an image is ``ground_truth/<defect>/<stem>_mask.png`` or
    ``ground_truth/<defect>/<stem>.png``. Other image formats are supported too. Folders below ``<defect>`` must be the
    same for images and masks. Names are compared case-insensitively. Variants of other data sets are recognised:

    - BTAD and others: good images may be in ``ok`` or ``normal`` instead of ``good``.
    - MVTec AD 2: ``test_public`` may replace ``test``, and may contain ``ground_truth``. ``validation`` is ignored.
    - MVTec 3D-AD: each of these folders may hold its images in ``rgb`` and its masks in ``gt``.
    - VisA: the data set has this layout after its authors' script has split it.

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
            f"{len(loose)} images are directly in {str(layout.test)!r}, such as {loose[0]!r}. They are left out, "
            "because only images in subfolders have labels. Move them to a subfolder such as 'good'."
        )
    if not paths:
        raise FileNotFoundError(
            f"{str(layout.test)!r} has no folders of images: expected 'good' and one folder for each kind of defect."
        )
    kinds = np.array(defects, object)
    return ImageFolder(
        np.array(list_images(layout.train), object),
        np.array(paths, object),
        np.where(kinds == "good", 1, -1),
        kinds,
        np.array(masks, object),
    )


def load_categories(root: str | os.PathLike[str], categories: Sequence[str] | None = None) -> dict[str, ImageFolder]:
    """List the images of all categories of a data set, without reading them.

    Parameters
    ----------
    root : path
        Folder with one subfolder for each category, e.g., the 15 categories of MVTec AD. Each subfolder has the layout
        that :func:`~skpatchcore.load_image_folder` expects. A folder that itself has this layout is one category.
    categories : sequence of str or None, default=None
        Names of the categories to list. None lists all categories in alphabetical order.

    Returns
    -------
    dict of str to ImageFolder
        Data set of each category; the keys are the names of the folders.

    Raises
    ------
    FileNotFoundError
        If the directory or a category does not exist, or if the layout of a category is incomplete. The error names the
        missing part.
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
            f"{os.fspath(root)!r} has no folder 'train', and none of its folders has a folder 'train': expected the "
            "layout of MVTec AD."
        )
    if unknown := [name for name in categories or () if name not in places]:
        raise FileNotFoundError(
            f"{os.fspath(root)!r} has no category {unknown[0]!r}. The categories are {', '.join(places)}."
        )
    return {name: load_image_folder(places[name]) for name in categories or places}


def _truth_of(layout: Layout, folder: Path) -> Path | None:
    """Return the folder of masks for a folder of test images; None if the data set has no masks."""
    if layout.inner is not None:  # MVTec 3D-AD: the masks are in the folder 'gt' next to the images
        return folder / "gt" if (folder / "gt").is_dir() else None
    if layout.truth is None:
        return None
    same = [place for place in shown_folders(layout.truth) if place.name.lower() == folder.name.lower()]
    return same[0] if same else layout.truth / folder.name
