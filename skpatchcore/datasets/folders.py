"""Data sets of images on disk, in the layout of MVTec AD and in similar layouts.

:func:`load_image_folder` lists the images of one category (kind of product). :func:`load_categories` lists the images
of all categories of a data set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        Paths of the training images. All of them show good parts.
    test_paths : array of shape (n_test,), str
        Paths of the test images.
    test_labels : array of shape (n_test,), int
        +1 for good and -1 for defective images, as returned by `predict`.
    test_defects : array of shape (n_test,), str
        Kind of defect of each test image: the name of its folder, e.g. ``"scratch"``. ``"good"`` for good images.
    test_masks : array of shape (n_test,), str or None
        Path of the mask of each test image. A mask is an image that marks the defective pixels. None for good images,
        and for all images of a data set without masks.
    train_groups : array of shape (n_train,) or None
        Name or number of the part that each training image shows. Images with the same value show the same part. Pass
        this array as `groups` to ``fit``, e.g. of :class:`~skpatchcore.PatchCoreDetector`. None if the parts are
        unknown. :func:`~skpatchcore.load_image_folder` always sets None.
    split : dict or None
        How :func:`~skpatchcore.datasets.load_two_folders` divided the good images: its `test_size` and `random_state`.
        None if the data set is divided by its folders.
    """

    train_paths: np.ndarray
    test_paths: np.ndarray
    test_labels: np.ndarray
    test_defects: np.ndarray
    test_masks: np.ndarray
    train_groups: np.ndarray | None = None
    split: dict[str, Any] | None = None

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
    """List the paths of all images and masks of a data set in the folder layout of MVTec AD.

    The function only lists the files. The detector reads an image when it is fitted on the image or scores the image.

    Parameters
    ----------
    root : path
        Folder of the data set. See Notes for the expected layout.

    Returns
    -------
    ImageFolder
        Paths of the training images, and paths, labels, kinds of defects and paths of masks of the test images.

    Raises
    ------
    FileNotFoundError
        If the folder of training images or the folder of test images is missing, or if one of them contains no image.
        The error is also raised if the data set has masks, but a defective image has none. The error names the missing
        folder or file.
    ValueError
        If several masks match one image, if one mask matches several images, or if the masks of an image are several
        files in a folder, as in MVTec LOCO AD.

    Warns
    -----
    UserWarning
        If a mask matches no image.
    UserWarning
        If a folder of images also contains files with an ending that is not supported. These files are left out.
    UserWarning
        If images are directly in ``test`` and not in a subfolder. These images are left out, because only the name of
        a subfolder states whether an image is good.
    UserWarning
        In the other cases in which :func:`~skpatchcore.list_images` warns.

    Notes
    -----
    MVTec AD is a public data set with photographs of industrial products (Bergmann et al., CVPR 2019). The layout is:

    - ``train/good``: good images, for ``fit``.
    - ``test/good``: good images, for the test.
    - ``test/<defect>``: images with one kind of defect, e.g. ``test/scratch``. There can be several such folders.
    - ``ground_truth/<defect>`` (optional): masks, i.e. images that mark the defective pixels. The mask of
      ``test/scratch/01.png`` is ``ground_truth/scratch/01_mask.png`` or ``ground_truth/scratch/01.png``. If there is no
      folder ``ground_truth``, all masks are None. If there is such a folder, every defective image must have a mask.

    Images and masks can have any supported format, e.g. PNG, JPEG or TIFF. If an image is in a subfolder of
    ``test/<defect>``, its mask must be in the subfolder of the same name in ``ground_truth/<defect>``. Upper and lower
    case are not distinguished in the names of folders and files.

    These variants of other data sets are recognised:

    - BTAD and others: the folder ``good`` can have the name ``ok`` or ``normal``.
    - MVTec AD 2: the folder ``test`` can have the name ``test_public``. The folder ``ground_truth`` can be in this
      folder. The folder ``validation`` is ignored.
    - MVTec 3D-AD: the images can be in a subfolder ``rgb`` of ``train/good``, ``test/good`` and each ``test/<defect>``.
      The masks are then in the subfolder ``gt`` of each ``test/<defect>``.
    - VisA: the authors of VisA publish a script that arranges their data set in the layout of MVTec AD.
      :func:`~skpatchcore.datasets.fetch_visa` downloads and arranges the data set without this script.

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
    """List the paths of all images and masks of a data set with several categories (kinds of product).

    Parameters
    ----------
    root : path
        Folder with one subfolder per category, e.g., the 15 categories of MVTec AD. Each subfolder has the layout that
        :func:`~skpatchcore.load_image_folder` describes. If `root` itself has this layout, `root` is the only category.
    categories : sequence of str or None, default=None
        Names of the categories to list. None lists all categories in alphabetical order.

    Returns
    -------
    dict of str to ImageFolder
        Paths and labels of each category. The keys are the names of the subfolders.

    Raises
    ------
    FileNotFoundError
        If `root` does not exist, if `root` has no folder with one of the names in `categories`, or if a folder or mask
        of a category is missing. The error names the missing folder or file.
    ValueError
        In the cases in which :func:`~skpatchcore.load_image_folder` raises a ValueError.
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
            "layout of MVTec AD. For a folder of good images and a folder of defective images, use load_two_folders, "
            "or 'skpatchcore evaluate --good DIR --defective DIR'."
        )
    if unknown := [name for name in categories or () if name not in places]:
        raise FileNotFoundError(
            f"{os.fspath(root)!r} has no category {unknown[0]!r}. The categories are {', '.join(places)}."
        )
    return {name: load_image_folder(places[name]) for name in categories or places}


def _truth_of(layout: Layout, folder: Path) -> Path | None:
    """Return the folder of the masks for a folder of test images; None if there are no masks."""
    if layout.inner is not None:  # MVTec 3D-AD: the masks are in the folder 'gt' next to the images
        return folder / "gt" if (folder / "gt").is_dir() else None
    if layout.truth is None:
        return None
    same = [place for place in shown_folders(layout.truth) if place.name.lower() == folder.name.lower()]
    return same[0] if same else layout.truth / folder.name
