"""Patch features of any extractor as one stream of grids, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from skpatchcore._utils.progress import iterate_as_stage, progress_bar, stage
from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore.images.reading import ImageError, as_image_sequence, image_size
from skpatchcore.images.views import View
from skpatchcore.patches.patches import _N_IMAGES, PatchGrids

_N_PATCHES = 16384


def n_images_of(X: Any) -> int:
    """Return how many images `X` holds."""
    return X.shape[0] if hasattr(X, "shape") and X.shape else len(X)


def as_grids(X: Any) -> np.ndarray | list[np.ndarray] | None:
    """Return grids of patch features as a 4-D array or a list of 3-D ones, None if `X` has not that form.

    Parameters
    ----------
    X : array, tensor, list or pandas Series
        Of 4 dimensions, or of items of 3.
    """
    if isinstance(X, pd.Series) or (isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1):
        X = list(X)
    if isinstance(X, list | tuple):
        is_list_of_grids = len(X) > 0 and all(getattr(x, "ndim", 0) == 3 for x in X)
        return [np.asarray(x) for x in X] if is_list_of_grids else None
    return np.asarray(X) if getattr(X, "ndim", 0) == 4 else None


def images_at_once(extractor: Any, X: Any) -> int:
    """Return how many images make a batch; of precomputed grids, about as many patches as a network's batches have."""
    if extractor is not None:
        return getattr(extractor, "batch_size", _N_IMAGES)
    n_patches = math.prod(X.shape[1:-1]) if hasattr(X, "shape") else int(np.prod(X[0].shape[:2]))
    return max(1, _N_PATCHES // max(n_patches, 1))


class PatchStream:
    """Patch features of images, batch after batch, as often as they are asked for.

    Parameters
    ----------
    extractor : transformer or None
        One with ``iter_transform`` gives its own batches; the ``transform`` of any other is called on a few images at a
        time. None: `X` holds the features.
    X : images or patch features
        What the extractor takes.
    numbers : array of int or None, default=None
        What the images are called in errors; None counts from 0.
    with_views : bool, default=True
        False spares an extractor that tells nothing of what it sees the look at the images' sizes.
    description : str, default="extracting features"
        What a progress bar says.
    verbose : int, default=0
        1 shows one.
    """

    def __init__(
        self,
        extractor: Any,
        X: Any,
        numbers: np.ndarray | None = None,
        *,
        with_views: bool = True,
        description: str = "extracting features",
        verbose: int = 0,
    ):
        self.extractor, self.X, self.verbose = extractor, X, verbose
        self.numbers = np.arange(n_images_of(X)) if numbers is None else numbers
        self.with_views, self.description = with_views, description

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[PatchGrids, list[View | None]]]:
        """Yield the grids of the next images, and what the network saw of each.

        A view is None where nothing is known of an image. An extractor that tells nothing is taken to see the whole
        image.

        Raises
        ------
        ImageError
            If an image can't be read.
        ValueError
            If the features have a wrong shape, are not finite, are not one grid for each image, or differ in their
            channels.
        """
        n_channels, done = None, 0
        with progress_bar(len(self), self.description, "image", self.verbose) as bar, self._numbered():
            for grids, views in self._batches():
                n_channels = n_channels or grids.rows.shape[1]
                if grids.rows.shape[1] != n_channels:
                    raise ValueError(
                        f"patch features of image {self.numbers[done]} have {grids.rows.shape[1]} channels, those "
                        f"before {n_channels}."
                    )
                yield grids, views
                done += len(grids)
                bar.update(len(grids))

    def subset(self, images: np.ndarray) -> PatchStream:
        """Return the stream of some of the images."""
        return PatchStream(
            self.extractor,
            safe_indexing(self.X, images),
            self.numbers[images],
            with_views=self.with_views,
            description=self.description,
            verbose=self.verbose,
        )

    def between(self, start: int, stop: int) -> PatchStream:
        """Return the stream of the images from `start` up to `stop`, without a progress bar."""
        X = safe_indexing(self.X, slice(start, stop))
        return PatchStream(self.extractor, X, self.numbers[start:stop], with_views=self.with_views)

    def holds_features(self) -> bool:
        """Return whether the features are in memory anyway, as one array."""
        return self.extractor is None and isinstance(self.X, np.ndarray) and self.X.dtype in (np.float32, np.float64)

    def expected_patches(self, first: PatchGrids) -> int:
        """Return about how many patches all images have, if `first` are those of the first ones.

        Exact where all images give grids of one size. Where the network sees images as large as they are, their areas
        tell, from the files' headers, with a little to spare.
        """
        n_first = len(first.rows) / len(first)
        if self.extractor is None and isinstance(self.X, list):
            return sum(int(np.prod(grid.shape[:2])) for grid in self.X)
        with self._numbered():
            sizes = self.extractor.input_sizes(self.X) if hasattr(self.extractor, "input_sizes") else None
        if sizes is None or (sizes == sizes[0]).all():
            return round(n_first * len(self))
        areas = np.prod(sizes, axis=1)
        return math.ceil(float(1.05 * len(first.rows) / areas[: len(first)].sum() * areas.sum()))

    @contextmanager
    def _numbered(self) -> Iterator[None]:
        """Call images in errors, which count those of this stream, by their numbers."""
        try:
            yield
        except ImageError as error:
            raise ImageError(error.message, int(self.numbers[error.index]), error.path) from error

    def _batches(self) -> Iterator[tuple[PatchGrids, list[View | None]]]:
        if hasattr(self.extractor, "iter_transform"):
            done = 0
            for features, seen in iterate_as_stage("network", self.extractor.iter_transform(self.X)):
                yield PatchGrids.from_features(features, self.numbers[done : done + len(seen)]), list(seen)
                done += len(seen)
            return
        n_at_once = images_at_once(self.extractor, self.X)
        for start in range(0, len(self), n_at_once):
            X = safe_indexing(self.X, slice(start, start + n_at_once))
            if self.extractor is None:
                grids = PatchGrids.from_features(X, self.numbers[start : start + n_at_once])
            else:
                with stage("network"):
                    features = self.extractor.transform(X)
                    if n_images_of(features) != n_images_of(X):
                        raise ValueError(
                            f"the extractor gives features of {n_images_of(features)} images for {n_images_of(X)}: its "
                            "transform must return (n_images, grid_height, grid_width, n_channels) or a list with one "
                            "grid for each image."
                        )
                    grids = PatchGrids.from_features(features, self.numbers[start : start + n_at_once])
            known = self.with_views and self.extractor is not None
            yield grids, _whole_images(X, start) if known else [None] * len(grids)


def _whole_images(X: Any, first_image: int) -> list[View | None]:
    try:
        sizes = [image_size(image, first_image + i) for i, image in enumerate(as_image_sequence(X))]
    except ValueError:  # not images: features of something else
        return [None] * n_images_of(X)
    return [View(size, (0.0, 0.0, float(size[0]), float(size[1])), size) for size in sizes]
