"""PatchStream: the patches of any extractor, batch by batch, as often as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from skpatchcore._utils.progress import iterate_as_phase, phase, progress_bar
from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import image_size
from skpatchcore.images.views import View
from skpatchcore.patches.patches import N_IMAGES, Patches
from skpatchcore.protocols import Extractor, batch_size_of, input_sizes_of, reports_views

# Raises an error where patches can't be used; is given the images' numbers too.
Check = Callable[[Patches, np.ndarray], None]
# Patches in a batch of precomputed grids: about as many as a network's batches have.
_N_PATCHES = 16384


def n_images_of(X: Any) -> int:
    """Return how many images `X` holds."""
    return X.shape[0] if hasattr(X, "shape") and X.shape else len(X)


def as_grids(X: Any) -> np.ndarray | list[np.ndarray] | None:
    """Return grids of patch features as a 4-D array or a list of 3-D ones; None if `X` has another form.

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


class PatchStream:
    """Patches of images, extracted batch after batch in each pass over the stream.

    Parameters
    ----------
    extractor : Extractor or None
        Its own batches are used if it reports views; otherwise `transform` is called on a few images at a time. None:
        `X` holds the features.
    X : images or patch features
        Input of the extractor.
    numbers : array of int or None, default=None
        Numbers of the images in error messages; None counts from 0.
    with_views : bool, default=True
        If False, image sizes are not read for extractors that do not report views.
    check : callable or None, default=None
        ``check(patches, numbers)`` raises an error where a batch can't be used.
    description : str, default="extracting features"
        Title of the progress bar.
    verbose : int, default=0
        1 shows the progress bar.
    """

    def __init__(
        self,
        extractor: Extractor | None,
        X: Any,
        numbers: np.ndarray | None = None,
        *,
        with_views: bool = True,
        check: Check | None = None,
        description: str = "extracting features",
        verbose: int = 0,
    ):
        self.extractor, self.X, self.verbose = extractor, X, verbose
        self.numbers = np.arange(n_images_of(X)) if numbers is None else numbers
        self.with_views, self.check, self.description = with_views, check, description
        # Features to learn from have a largest absolute value; new ones are scored whatever they are.
        self.limit: float | None = None
        self._begun: Iterator[Patches] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Patches]:
        """Yield the patches of the next images.

        Raises
        ------
        ImageError
            If an image can't be read.
        ValueError
            If the features have a wrong shape, are not finite, are not one grid per image, or differ in their channels.
        """
        begun, self._begun = self._begun, None
        return self._batches() if begun is None else begun

    def peek(self) -> Patches:
        """Return the first batch. The next pass over the stream continues from there: nothing is extracted twice."""
        batches = iter(self)
        first = next(batches)
        self._begun = _resumed([first], batches)
        return first

    def subset(self, images: np.ndarray) -> PatchStream:
        """Return the stream of some of the images."""
        some = PatchStream(
            self.extractor,
            safe_indexing(self.X, images),
            self.numbers[images],
            with_views=self.with_views,
            check=self.check,
            description=self.description,
            verbose=self.verbose,
        )
        some.limit = self.limit
        return some

    def between(self, start: int, stop: int) -> PatchStream:
        """Return the stream of the images from `start` up to `stop`, without a progress bar."""
        X = safe_indexing(self.X, slice(start, stop))
        some = PatchStream(self.extractor, X, self.numbers[start:stop], with_views=self.with_views, check=self.check)
        some.limit = self.limit
        return some

    def batch_size(self) -> int:
        """Return how many images a batch has."""
        if self.extractor is not None:
            return batch_size_of(self.extractor, N_IMAGES)
        n_patches = math.prod(self.X.shape[1:-1]) if hasattr(self.X, "shape") else int(np.prod(self.X[0].shape[:2]))
        return max(1, _N_PATCHES // max(n_patches, 1))

    def is_in_memory(self) -> bool:
        """Return whether the features are precomputed, as one array that is used without a copy."""
        return self.extractor is None and isinstance(self.X, np.ndarray) and self.X.dtype in (np.float32, np.float64)

    def held(self, n_patches: int) -> Patches:
        """Return all patches in memory; `n_patches` are expected."""
        if not self.is_in_memory():
            return Patches.gather(self, n_patches)
        self._begun = None
        patches = Patches.from_features(self.X, numbers=self.numbers, limit=self.limit)
        if self.check is not None:
            self.check(patches, self.numbers)
        return patches

    def expected_patches(self, first: Patches) -> int:
        """Return about how many patches all images have, given those of the first images.

        Exact if all images give grids of one size. If the network sees images at their own sizes, the number follows
        from their areas, which are read from the files' headers, plus 5 %.
        """
        n_first = len(first.rows) / len(first)
        if self.extractor is None and isinstance(self.X, list):
            return sum(int(np.prod(grid.shape[:2])) for grid in self.X)
        with self._numbered():
            sizes = input_sizes_of(self.extractor, self.X)
        if sizes is None or (sizes == sizes[0]).all():
            return round(n_first * len(self))
        areas = np.prod(sizes, axis=1)
        return math.ceil(float(1.05 * len(first.rows) / areas[: len(first)].sum() * areas.sum()))

    @contextmanager
    def _numbered(self) -> Iterator[None]:
        """Replace the index of an image in this stream, in errors, by the image's number."""
        try:
            yield
        except ImageError as error:
            raise ImageError(error.message, int(self.numbers[error.index]), error.path) from error

    def _batches(self) -> Iterator[Patches]:
        n_channels, done = None, 0
        with progress_bar(len(self), self.description, "image", self.verbose) as bar, self._numbered():
            for patches in self._extracted():
                n_channels = n_channels or patches.rows.shape[1]
                if patches.rows.shape[1] != n_channels:
                    raise ValueError(
                        f"patch features of image {self.numbers[done]} have {patches.rows.shape[1]} channels, those "
                        f"before {n_channels}."
                    )
                if self.check is not None:
                    self.check(patches, self.numbers[done : done + len(patches)])
                yield patches
                done += len(patches)
                bar.update(len(patches))

    def _extracted(self) -> Iterator[Patches]:
        extractor = self.extractor
        if reports_views(extractor):
            done = 0
            for features, views in iterate_as_phase("network", extractor.iter_transform(self.X)):
                numbers = self.numbers[done : done + len(views)]
                yield Patches.from_features(features, list(views), numbers, self.limit)
                done += len(views)
            return
        n_at_once = self.batch_size()
        for start in range(0, len(self), n_at_once):
            X, numbers = safe_indexing(self.X, slice(start, start + n_at_once)), self.numbers[start : start + n_at_once]
            if extractor is None:
                yield Patches.from_features(X, numbers=numbers, limit=self.limit)
                continue
            with phase("network"):
                features = extractor.transform(X)
                if n_images_of(features) != n_images_of(X):
                    raise ValueError(
                        f"the extractor gives features of {n_images_of(features)} images for {n_images_of(X)}: its "
                        "transform must return (n_images, grid_height, grid_width, n_channels) or a list with one "
                        "grid for each image."
                    )
                whole = _whole_images(X, start) if self.with_views else None
                patches = Patches.from_features(features, whole, numbers, self.limit)
            yield patches


PatchSource = Patches | PatchStream


def _resumed(first: list[Patches], batches: Iterator[Patches]) -> Iterator[Patches]:
    """Yield the first batch, which is not held after that, and the others."""
    yield first.pop()
    yield from batches


def _whole_images(X: Any, first_image: int) -> list[View | None]:
    """Return a view of the whole of each image; None where `X` holds something other than images."""
    try:
        sizes = [image_size(image, first_image + i) for i, image in enumerate(as_image_sequence(X))]
    except ValueError:
        return [None] * n_images_of(X)
    return [View(size, (0.0, 0.0, float(size[0]), float(size[1])), size) for size in sizes]
