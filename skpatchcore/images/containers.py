"""`as_image_sequence`: convert a collection of images of any supported type to a sequence of single images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from skpatchcore._utils.loaded import is_column, is_table, is_tensor
from skpatchcore._utils.missing import is_missing
from skpatchcore.images.reading import from_tensor, is_channels_first

if TYPE_CHECKING:
    import torch


def item_of(images: Any, index: Any) -> Any:
    """Return one image, or a slice, of a collection, which may be a table or a column of pandas."""
    return (images.iloc if is_table(images) or is_column(images) else images)[index]


def items_between(images: Any, start: int, stop: int) -> Any:
    """Return the images from `start` to `stop - 1` of a collection, in a collection of the same type."""
    return item_of(images, slice(start, stop))


def n_images_of(X: Any) -> int:
    """Return the number of images in `X`."""
    return X.shape[0] if hasattr(X, "shape") and X.shape else len(X)


class ImagesWithRegions(Sequence[Any]):
    """Sequence of images with a region of interest for each image.

    Parameters
    ----------
    images : sequence of images or array
        The images, or their patch features.
    regions : sequence
        One region per image, in any form that :func:`~skpatchcore.images.roi.as_region` reads. None means the whole
        image.
    """

    def __init__(self, images: Any, regions: Sequence[Any]):
        self.images, self.regions = images, regions

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ImagesWithRegions(item_of(self.images, index), self.regions[index])
        return item_of(self.images, index)

    def taken(self, indices: Any) -> ImagesWithRegions:
        """Return the images at `indices`, without reading them."""
        from skpatchcore._utils.sklearn import safe_indexing

        indices = np.arange(len(self))[np.asarray(indices)]
        return ImagesWithRegions(safe_indexing(self.images, indices), [self.regions[i] for i in indices])

    def with_images(self, images: Any) -> ImagesWithRegions:
        """Return other forms of the same images, with the same regions."""
        return ImagesWithRegions(images, self.regions)


def with_regions(X: Any, roi: Any) -> Any:
    """Return `X` with one region per image; `X` itself if `roi` is None.

    Raises
    ------
    ValueError
        If `X` and `roi` differ in length, or if one of them has no length.
    """
    if roi is None:
        return X
    X = listed(X)
    regions = _column_of(roi)
    if not hasattr(regions, "__len__") or isinstance(regions, str) or not hasattr(X, "__len__"):
        raise ValueError("roi: pass a list with one region per image, and the images as a list too.")
    n_images = n_images_of(X)
    if len(regions) != n_images:
        raise ValueError(
            f"roi has {len(regions)} regions for {n_images} images: pass one region per image. For one region "
            "for all images, use the parameter roi of the detector."
        )
    return ImagesWithRegions(X, [None if is_missing(region) else region for region in regions])


class DatasetImages(Sequence[Any]):
    """Sequence of the images of a map-style dataset, such as a torch dataset, without the targets.

    Each image is read when it is accessed.

    Parameters
    ----------
    dataset : object
        Dataset with ``__len__`` and ``__getitem__``. Each item is an image, or a tuple with the image as first element.
    indices : sequence of int or None, default=None
        Indices of the items to use. None means all items.
    """

    def __init__(self, dataset: Any, indices: Sequence[int] | None = None):
        self.dataset = dataset
        self.indices = range(len(dataset)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return DatasetImages(self.dataset, self.indices[index])
        item = self.dataset[int(self.indices[index])]
        return item[0] if isinstance(item, tuple | list) else item

    def taken(self, indices: Any) -> DatasetImages:
        """Return the sequence of the images at `indices`, without reading them."""
        return DatasetImages(self.dataset, [self.indices[int(i)] for i in indices])

    @property
    def classes(self) -> list[str]:
        """Names of the classes of these images, as in torchvision's ImageFolder; empty if the classes are unknown."""
        dataset, indices = self.dataset, list(self.indices)
        while hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # e.g. torch.utils.data.Subset
            indices = [dataset.indices[i] for i in indices]
            dataset = dataset.dataset
        names, targets = getattr(dataset, "classes", None), getattr(dataset, "targets", None)
        if targets is None:
            return [str(name) for name in names or ()]
        present = sorted({int(targets[i]) for i in indices})
        return [str(names[i] if names else i) for i in present]

    def has_targets(self) -> bool:
        """Return whether the items hold targets of unknown meaning in addition to the images."""
        return len(self) > 0 and isinstance(self.dataset[int(self.indices[0])], tuple | list) and not self.classes


def listed(X: Any) -> Any:
    """Return an iterator as a list, because its items are used several times. Return other objects unchanged."""
    return list(X) if isinstance(X, Iterator) else X


def as_image_sequence(X: Any) -> Sequence[Any]:
    """Return `X` as a sequence of single images, without reading the images.

    Parameters
    ----------
    X : collection of images, or array of shape (n_images, height, width, n_channels)
        The images: paths, arrays, tensors, PIL images, bytes or open files. The collection is a list, a tuple, an
        array, a Series or column of pandas, polars or Arrow, a table with one column, a generator, or a map-style
        dataset such as a torch dataset. A tensor of all images may have the shape (n_images, n_channels, height,
        width).

    Returns
    -------
    sequence
        Each item is a valid argument of :func:`load_image`.

    Raises
    ------
    ValueError
        If `X` is empty, is a single image or a single path, is a table with several columns, is an array of numbers
        that is not 4-D, or is not a collection of images.
    """
    if isinstance(X, ImagesWithRegions):
        return X.with_images(as_image_sequence(X.images))
    X = _column_of(X)
    if isinstance(X, str | os.PathLike):
        raise ValueError(
            f"X is the single path {os.fspath(X)!r}: pass a list of paths; "
            "skpatchcore.list_images(directory) lists the images of a directory."
        )
    if isinstance(X, Image.Image | bytes | bytearray) or callable(getattr(X, "read", None)):
        raise ValueError("X is a single image: pass a list of images.")
    if hasattr(X, "train_images") and hasattr(X, "test_images"):
        raise ValueError(f"X is a {type(X).__name__}: pass its train_images to fit, and its test_images to predict.")
    X = listed(X)
    if is_tensor(X):
        X = _batch_of_tensors(X)
    elif hasattr(X, "__array__") and not isinstance(X, np.ndarray):
        X = np.asarray(X)
    if isinstance(X, np.ndarray):
        if X.ndim == 2 and X.shape[1] == 1 and X.dtype.kind in "OUT":
            X = X[:, 0]  # a 2-D array with one column, as ColumnTransformer passes it
        if X.ndim == 1 and X.dtype.kind in "OUT":
            X = X.tolist()
        elif X.ndim != 4:
            raise ValueError(
                f"X is an array of shape {X.shape}: expected (n_images, height, width, n_channels). "
                "For grey images, add the channel axis with X[..., None]. Wrap a single image in a list."
            )
    elif not isinstance(X, Sequence):
        if isinstance(X, Mapping) or not (hasattr(X, "__len__") and hasattr(X, "__getitem__")):
            raise ValueError(
                f"X is of type {type(X).__name__}: expected a list of paths, arrays or PIL images, a dataset with "
                "__len__ and __getitem__, or a 4-D array."
            )
        X = DatasetImages(X)
    if len(X) == 0:
        raise ValueError("X holds no images: pass at least one image.")
    images: Sequence[Any] = X
    return images


def _column_of(X: Any) -> Any:
    """Return a column, or the only column of a table, of pandas, polars or Arrow as a list; other objects unchanged."""
    names = getattr(X, "column_names", getattr(X, "columns", None))  # Arrow, otherwise pandas and polars
    if names is not None and not callable(names):
        names = list(names)
        if len(names) != 1:
            raise ValueError(
                f"X is a {type(X).__name__} with {len(names)} columns: pass the column that holds the images, such as "
                f"X[{names[0] if names else ''!r}]."
            )
        X = X.iloc[:, 0] if is_table(X) else X[names[0]]
    if isinstance(X, np.ndarray) or is_tensor(X):
        return X
    for method in ("to_pylist", "to_list"):  # Arrow, otherwise pandas and polars
        if callable(convert := getattr(X, method, None)):
            return convert()
    return X


def _batch_of_tensors(X: torch.Tensor) -> np.ndarray:
    """Return a tensor of images as an array of shape (n_images, height, width, n_channels)."""
    if X.ndim == 4:
        first = is_channels_first(tuple(X.shape))
        if first is None:
            raise ValueError(
                f"the tensor X of shape {tuple(X.shape)} is ambiguous: the channels may be the second or the last "
                "axis. Convert X to an array of shape (n_images, height, width, n_channels)."
            )
        if first:
            X = X.movedim(1, -1)
    return from_tensor(X)
