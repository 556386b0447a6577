"""`as_parts`: convert a collection of parts, each a list of aligned images, to a sequence of parts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from skpatchcore._utils.loaded import is_column, is_table, is_tensor
from skpatchcore.images.containers import listed
from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import image_size, path_of


class Parts(Sequence[Any]):
    """Sequence of parts. Each part is a list of images that show the same part, one per light.

    Parameters
    ----------
    parts : list, or array of shape (n_parts, n_lights, height, width, n_channels)
        The parts. The items of a list are checked when they are used.
    """

    def __init__(self, parts: Sequence[Any] | np.ndarray):
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Any:
        return Parts(self.parts[index]) if isinstance(index, slice) else self.parts[index]

    def taken(self, indices: Any) -> Parts:
        """Return the parts at `indices`."""
        if isinstance(self.parts, np.ndarray):
            return Parts(self.parts[indices])
        return Parts([self.parts[int(i)] for i in indices])

    def images_of(self, index: int) -> list[Any]:
        """Return the images of the part at `index`, one per light.

        Raises
        ------
        ImageError
            If the part is not a list of images.
        """
        part = self.parts[index]
        if isinstance(part, np.ndarray) and (part.ndim == 4 or (part.ndim == 1 and part.dtype.kind in "OUT")):
            return list(part)
        if is_tensor(part) and part.ndim == 4:
            return list(part)
        if not isinstance(part, list | tuple) and not is_column(part):
            shape = f" of shape {tuple(part.shape)}" if hasattr(part, "shape") else ""
            raise ImageError(
                f"the part is of type {type(part).__name__}{shape}, expected a list of images, one per light.",
                index,
                path_of(part),
            )
        return list(part)

    def light(self, light: int) -> Any:
        """Return the images of one light: an array, or a list with one image per part."""
        if isinstance(self.parts, np.ndarray):
            return self.parts[:, light]
        return [self.images_of(index)[light] for index in range(len(self))]

    def check_numbers(self, n_lights: int, expected_by: str) -> None:
        """Raise an ImageError for the first part that does not have `n_lights` images.

        Parameters
        ----------
        n_lights : int
            Expected number of images per part.
        expected_by : str
            Where the expected number comes from, for the message.
        """
        for index in range(len(self)):
            n_images = len(self.images_of(index))
            if n_images != n_lights:
                raise ImageError(
                    f"the part has {n_images} images, expected {n_lights} as {expected_by}: one image per light, in "
                    "the same order for all parts.",
                    index,
                )

    def check_aligned(self, index: int) -> None:
        """Raise an ImageError if the images of one part differ in height or width.

        Images whose size cannot be read are skipped. They cause an error when they are read completely.
        """
        first: tuple[int, tuple[int, int]] | None = None
        for light, image in enumerate(self.images_of(index)):
            try:
                size = image_size(image, index)
            except ImageError:
                continue
            if first is None:
                first = light, size
            elif size != first[1]:
                raise ImageError(
                    f"light {light} of the part has {size[0]}×{size[1]} pixels, and light {first[0]} has "
                    f"{first[1][0]}×{first[1][1]}: the images of a part must be aligned, pixel by pixel.",
                    index,
                    path_of(image),
                )


def as_parts(X: Any) -> Parts:
    """Return `X` as a sequence of parts, without reading the images.

    Parameters
    ----------
    X : collection of parts, or array of shape (n_parts, n_lights, height, width, n_channels)
        In a list, each item is a list of images: paths, arrays, tensors or PIL images, one per light. A table or a 2-D
        array of paths has one row per part and one column per light. A tensor may have the shape (n_parts, n_lights,
        n_channels, height, width).

    Returns
    -------
    Parts

    Raises
    ------
    ValueError
        If `X` is empty or has another form.
    """
    if isinstance(X, Parts):
        return X
    X = listed(X)
    if is_table(X):
        X = X.to_numpy(dtype=object).tolist()
    elif is_column(X) or (isinstance(X, np.ndarray) and X.ndim in (1, 2) and X.dtype.kind in "OUT"):
        X = X.tolist()
    elif is_tensor(X) and X.ndim == 5:
        X = [list(part) for part in X]
    if isinstance(X, np.ndarray) or is_tensor(X):
        if X.ndim != 5:
            raise ValueError(
                f"X is an array of shape {tuple(X.shape)}: expected (n_parts, n_lights, height, width, n_channels). If "
                "the lights are the channels of the images, use X.transpose(0, 3, 1, 2)[..., None]."
            )
    elif not isinstance(X, Sequence) or isinstance(X, str | bytes | os.PathLike | Image.Image):
        raise ValueError(
            f"X is of type {type(X).__name__}: expected a list of parts, each a list of images with one image per "
            "light, or a 5-D array."
        )
    if len(X) == 0:
        raise ValueError("X holds no parts: pass at least one part.")
    return Parts(X)
