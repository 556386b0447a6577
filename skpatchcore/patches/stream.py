"""PatchStream: yields the patches of any extractor batch by batch, in as many passes as needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from skpatchcore._utils.allocator import FreedMemory
from skpatchcore._utils.digests import with_digests
from skpatchcore._utils.progress import iterate_as_phase, phase, progress_bar
from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore.images.appearance import Appearance
from skpatchcore.images.containers import ImagesWithRegions, as_image_sequence, n_images_of
from skpatchcore.images.errors import ImageError
from skpatchcore.images.inside import InsideImages, PixelMask, RegionMasks
from skpatchcore.images.reading import image_size, load_image, path_of
from skpatchcore.images.roi import Region, as_region
from skpatchcore.images.turned import TurnedImages, original_of, turn_of
from skpatchcore.images.views import View
from skpatchcore.patches.cells import CountedCells
from skpatchcore.patches.patches import N_IMAGES, Patches
from skpatchcore.patches.transform import RowTransform
from skpatchcore.protocols import (
    Extractor,
    batch_size_of,
    input_sizes_of,
    max_pixels_of,
    pixel_format_of,
    pixel_format_or_none,
    reports_views,
    tile_shape_of,
)

# Function of patches and the numbers of their images that raises an error if the patches cannot be used.
Check = Callable[[Patches, np.ndarray], None]
# Number of patches per batch of precomputed grids: about as many as in a batch of a network.
_N_PATCHES = 16384
# Without a view, a grid counts as an image with this number of pixels along each side of a cell.
N_CELL = 8


def as_grids(X: Any) -> np.ndarray | list[np.ndarray] | None:
    """Return grids of patch features as a 4-D array or a list of 3-D arrays; None if `X` has another form.

    Parameters
    ----------
    X : array, tensor, list or pandas Series
        A 4-D array or tensor, or a collection of 3-D arrays or tensors.

    Returns
    -------
    array of shape (n_images, grid_height, grid_width, n_channels), list or None
        List items are arrays of shape (grid_height, grid_width, n_channels).
    """
    if isinstance(X, pd.Series) or (isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1):
        X = list(X)
    if isinstance(X, list | tuple):
        is_list_of_grids = len(X) > 0 and all(getattr(x, "ndim", 0) == 3 for x in X)
        return [np.asarray(x) for x in X] if is_list_of_grids else None
    return np.asarray(X) if getattr(X, "ndim", 0) == 4 else None


class PatchStream:
    """Stream of the patches of images: each pass over the stream extracts the patches again, batch by batch.

    Parameters
    ----------
    extractor : Extractor or None
        Extractor of the patch features. If it reports views, its own batches are used; otherwise, `transform` is called
        on a few images at a time. None means that `X` holds patch features.
    X : images or patch features
        Input of the extractor, or patch features if `extractor` is None.
    numbers : array of int or None, default=None
        Numbers of the images in error messages. None counts the images from 0.
    with_views : bool, default=True
        If False, image sizes are not read for extractors that do not report views.
    check : callable or None, default=None
        ``check(patches, numbers)`` raises an error if a batch cannot be used.
    description : str, default="extracting features"
        Title of the progress bar.
    verbose : int, default=0
        If 1, a progress bar is shown.
    region : Region or None, default=None
        Region of interest of all images. The stream yields only the patches in the region. If `X` has a region for each
        image (:func:`~skpatchcore.images.containers.with_regions`), a patch must lie in both.
    transform : RowTransform or None, default=None
        Step that each batch passes after `check`. None yields the rows as they are extracted.
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
        region: Region | None = None,
        transform: RowTransform | None = None,
    ):
        self.extractor, self.X, self.verbose = extractor, X, verbose
        self.region, self.transform = region, transform
        self._masks, self._counted = RegionMasks(region), CountedCells()
        self.numbers = np.arange(n_images_of(X)) if numbers is None else numbers
        self.with_views, self.check, self.description = with_views, check, description
        # Largest absolute value of a feature. A fit sets this limit for training images. Without it, every finite
        # feature is accepted.
        self.limit: float | None = None
        # Cells of each image's grid whose patches are yielded, as for `Patches.limited_to`; None for all.
        self.cells: Sequence[np.ndarray | None] | None = None
        self._begun: Iterator[Patches] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def has_region(self) -> bool:
        """Return whether there is a region of interest."""
        return self.region is not None or self.has_own_regions()

    def has_own_regions(self) -> bool:
        """Return whether each image has a region of its own."""
        return isinstance(self.X, ImagesWithRegions)

    def __iter__(self) -> Iterator[Patches]:
        """Yield the patches of the next images.

        Raises
        ------
        ImageError
            If an image cannot be read.
        ValueError
            If features have a wrong shape, are not finite or exceed the limit, if their number is not one grid per
            image, or if the number of channels differs between images.
        """
        begun, self._begun = self._begun, None
        return self._batches() if begun is None else begun

    def peek(self) -> Patches:
        """Return the first batch.

        The next pass over the stream yields this batch again, without extracting it twice, and then the other batches.
        """
        batches = iter(self)
        first = next(batches)
        self._begun = _resumed([first], batches)
        return first

    def subset(self, images: np.ndarray) -> PatchStream:
        """Return a stream of the images with the given indices."""
        some = self._like(safe_indexing(self.X, images), self.numbers[images])
        some.cells = None if self.cells is None else [self.cells[i] for i in images]
        return some

    def between(self, start: int, stop: int) -> PatchStream:
        """Return a stream of the images from `start` to `stop` - 1, without a progress bar."""
        some = self._like(safe_indexing(self.X, slice(start, stop)), self.numbers[start:stop])
        some.cells = None if self.cells is None else self.cells[start:stop]
        some.verbose = 0
        return some

    def transformed(self, transform: RowTransform) -> PatchStream:
        """Return a stream of the same images whose rows are transformed. `check` still gets the rows as extracted."""
        some = self._like(self.X, self.numbers)
        some.cells, some.transform = self.cells, transform
        return some

    def limited_to(self, cells: Sequence[np.ndarray | None]) -> PatchStream:
        """Return a stream of only the patches in some cells of each image, as for :meth:`Patches.limited_to`.

        `check` still gets all patches.
        """
        some = self._like(self.X, self.numbers)
        some.cells = cells
        return some

    def _like(self, X: Any, numbers: np.ndarray) -> PatchStream:
        """Return a stream of other images with the same settings."""
        some = PatchStream(
            self.extractor,
            X,
            numbers,
            with_views=self.with_views,
            check=self.check,
            description=self.description,
            verbose=self.verbose,
            region=self.region,
            transform=self.transform,
        )
        some.limit = self.limit
        return some

    def batch_size(self) -> int:
        """Return the maximum number of images per batch."""
        if self.extractor is not None:
            return batch_size_of(self.extractor, N_IMAGES)
        X = self._images()
        n_patches = math.prod(X.shape[1:-1]) if hasattr(X, "shape") else int(np.prod(X[0].shape[:2]))
        return max(1, _N_PATCHES // max(n_patches, 1))

    def tile_shape(self, first: Patches) -> tuple[int, int] | None:
        """Return the size of the tiles into which the extractor cuts an image like the first; None if it is not cut."""
        view = first.views[0]
        return None if self.extractor is None or view is None else tile_shape_of(self.extractor, view.input_size)

    def is_in_memory(self) -> bool:
        """Return whether the features are one precomputed float array, which is used without a copy."""
        is_array = isinstance(self.X, np.ndarray) and self.X.dtype in (np.float32, np.float64)
        is_whole = self.region is None and self.transform is None and self.cells is None
        return self.extractor is None and is_array and is_whole

    def held(self, n_patches: int) -> Patches:
        """Return the patches of all images in memory.

        Parameters
        ----------
        n_patches : int
            Expected number of patches, as for :meth:`Patches.gather`.
        """
        if not self.is_in_memory():
            return Patches.gather(self, n_patches)
        self._begun = None
        patches = Patches.from_features(self.X, numbers=self.numbers, limit=self.limit)
        if self.check is not None:
            self.check(patches, self.numbers)
        return patches

    def expected_patches(self, first: Patches, in_region: bool = True) -> int:
        """Estimate the number of patches of all images from the patches of the first images.

        If `in_region` is False, patches outside the region of interest count too. If images have regions of their own,
        they always count, because the regions may differ: the result is then an upper bound.

        The number is exact if the features are precomputed or all grids have the same size. Otherwise, the number of
        patches is assumed to be proportional to the area of the network's input, and 5 % is added. The areas are read
        from the headers of the files.
        """
        counts_all = self.has_own_regions() or not in_region
        n_rows = int(first.sizes.prod(axis=1).sum()) if counts_all else first.n_rows
        X = self._images()
        if self.extractor is None and isinstance(X, list) and (counts_all or not self.has_region()):
            return sum(int(np.prod(grid.shape[:2])) for grid in X)
        with self._numbered():
            if isinstance(X, TurnedImages):  # the sizes of the originals are read from the headers of the files
                sizes = X.sizes_from(input_sizes_of(self.extractor, X.images))
            else:
                sizes = input_sizes_of(self.extractor, X)
        return extrapolated_count(n_rows, len(first), len(self), sizes)

    @contextmanager
    def _numbered(self) -> Iterator[None]:
        """In an ImageError, replace the index of the image in this stream by the number of the image."""
        try:
            yield
        except ImageError as error:
            images, path = self._images(), error.path
            if path is None and isinstance(images, list | tuple) and 0 <= error.index < len(images):
                path = path_of(images[error.index])
            raise ImageError(error.message, int(self.numbers[error.index]), path) from error

    def _batches(self) -> Iterator[Patches]:
        """Yield checked batches, with a progress bar."""
        n_channels, done, freed = None, 0, FreedMemory()
        with progress_bar(len(self), self.description, "image", self.verbose) as bar, self._numbered():
            for patches in self._extracted():
                n_channels = n_channels or patches.n_channels
                if patches.n_channels != n_channels:
                    raise ValueError(
                        f"patch features of image {self.numbers[done]} have {patches.n_channels} channels, expected "
                        f"{n_channels} as in the images before."
                    )
                numbers = self.numbers[done : done + len(patches)]
                if self.check is not None:
                    self.check(patches, numbers)
                if self.cells is not None:
                    patches = patches.limited_to(self.cells[done : done + len(patches)])
                yield patches if self.transform is None else self.transform.of(patches, numbers, self.limit)
                done += len(patches)
                bar.update(len(patches))
                del patches
                freed.after_batch()

    def _extracted(self) -> Iterator[Patches]:
        """Yield the batches of the extractor, or of the precomputed features."""
        extractor, images = self.extractor, self._images()
        if reports_views(extractor):
            done = 0
            pixel_format = pixel_format_or_none(extractor)
            if self.has_region() and pixel_format is not None:
                images = InsideImages(images, self._masks, self._regions(), pixel_format, max_pixels_of(extractor))
            for features, given in iterate_as_phase("network", with_digests(extractor.iter_transform)(images)):
                views = self._turned(given, done)
                numbers = self.numbers[done : done + len(views)]
                seen = images.seen if isinstance(images, InsideImages) else {}
                yield self._counted_of(Patches.from_features(features, views, numbers, self.limit), done, seen)
                done += len(views)
            if done != len(self):
                raise ValueError(f"the extractor returned features of {done} images for {len(self)} images.")
            return
        n_at_once = self.batch_size()
        for start in range(0, len(self), n_at_once):
            X, numbers = safe_indexing(images, slice(start, start + n_at_once)), self.numbers[start : start + n_at_once]
            if extractor is None:
                yield self._counted_of(Patches.from_features(X, numbers=numbers, limit=self.limit), start)
                continue
            with phase("network"):
                features = extractor.transform(X)
                if n_images_of(features) != n_images_of(X):
                    raise ValueError(
                        f"the extractor returned features of {n_images_of(features)} images for {n_images_of(X)} "
                        "images. Its transform must return an array of shape (n_images, grid_height, grid_width, "
                        "n_channels) or a list with one grid per image."
                    )
                whole = _whole_images(X, start) if self.with_views or self.has_region() else None
                patches = Patches.from_features(features, whole, numbers, self.limit)
            yield self._counted_of(patches, start)

    def _images(self) -> Any:
        """Return the images, or the patch features, without their regions."""
        return self.X.images if isinstance(self.X, ImagesWithRegions) else self.X

    def _turned(self, views: Sequence[View], start: int) -> list[View]:
        """Return the views of images with their turns; `start` is the index of the first image in this stream."""
        turns = (turn_of(self._images(), start + i) for i in range(len(views)))
        return [view if turn is None else replace(view, turn=turn) for view, turn in zip(views, turns, strict=True)]

    def _regions(self) -> Sequence[Any]:
        """Return the region of each image; None for the whole image."""
        return self.X.regions if isinstance(self.X, ImagesWithRegions) else [None] * len(self)

    def _counted_of(
        self, patches: Patches, start: int, seen: dict[int, tuple[PixelMask | None, Appearance]] | None = None
    ) -> Patches:
        """Return the patches in the region of interest.

        Parameters
        ----------
        patches : Patches
            All patches of some images.
        start : int
            Index of the first image in this stream.
        seen : dict of int to (PixelMask or None, Appearance) or None, default=None
            Known masks and appearances of images by their indices; those of the images are removed. Other masks are
            computed.
        """
        if not self.has_region():
            return patches
        cells, masks, views = [], [], []
        for i, (size, view) in enumerate(zip(patches.sizes, patches.views, strict=True), start):
            if seen and i in seen:
                mask, appearance = seen.pop(i)
                view = None if view is None else replace(view, appearance=appearance)
            else:
                mask = self._mask_of(i, size, view)
            cells.append(self._cells_of(mask, i, size, view))
            masks.append(None if view is None else mask)
            views.append(view)
        return patches.within(cells, masks, views)

    def _mask_of(self, index: int, size: np.ndarray, view: View | None) -> PixelMask | None:
        """Return the inspected pixels of an image, or of a picture of its grid if the image's size is unknown."""
        roi = self.X.regions[index] if isinstance(self.X, ImagesWithRegions) else None

        def load() -> np.ndarray:
            if self.extractor is None:
                raise ValueError("roi is a function of an image, but there are only patch features: pass a mask.")
            image = original_of(self._images(), index)
            return load_image(image, index, pixel_format=pixel_format_of(self.extractor))

        if view is not None:
            turn = view.turn
            mask = self._masks.of(turn.size_of(view.image_size) if turn else view.image_size, roi, load, index, None)
            return None if mask is None else mask.turned(turn)
        for region in (self.region, roi):
            if region is not None and any(not relative for relative in as_region(region).in_shares):
                raise ImageError(
                    "roi is given in pixels, but the size of the image is unknown. Use fractions like 0.1.", index
                )
        return self._masks.of((int(size[0]) * N_CELL, int(size[1]) * N_CELL), roi, load, index, None)

    def _cells_of(self, mask: PixelMask | None, index: int, size: np.ndarray, view: View | None) -> np.ndarray | None:
        """Return the inspected cells of an image's grid; None for all. Raise an ImageError if there are none."""
        if mask is None:
            return None
        box = (0.0, 0.0, float(mask.shape[0]), float(mask.shape[1])) if view is None else view.box
        cells = self._counted.of(mask, box, (int(size[0]), int(size[1])))
        if not len(cells):
            raise ImageError(
                "no patch of this image lies at least half inside the region of interest. Check roi, or use a larger "
                "image_size for a region that is narrower than a patch.",
                index,
            )
        return None if len(cells) == size.prod() else cells


PatchSource = Patches | PatchStream


def extrapolated_count(n_counted: int, n_first: int, n_images: int, sizes: np.ndarray | None) -> int:
    """Estimate the number of patches of all images from the number of patches of the first images.

    Parameters
    ----------
    n_counted : int
        Number of patches of the first images.
    n_first, n_images : int
        Number of the first images, and of all images.
    sizes : array of shape (n_images, 2) or None
        Size of the network's input for each image; None if all are equal or unknown. If sizes differ, the number of
        patches is assumed to be proportional to the area, and 5 % is added.
    """
    if sizes is None or (sizes == sizes[0]).all():
        return round(n_counted / n_first * n_images)
    areas = np.prod(sizes, axis=1)
    return math.ceil(float(1.05 * n_counted / areas[:n_first].sum() * areas.sum()))


def _resumed(first: list[Patches], batches: Iterator[Patches]) -> Iterator[Patches]:
    """Yield the first batch, then the other batches. The first batch is removed from its list to free its memory."""
    yield first.pop()
    yield from batches


def _whole_images(X: Any, first_image: int) -> list[View | None]:
    """Return one view per image that covers the whole image; a list of None if `X` does not hold readable images."""
    try:
        sizes = [image_size(image, first_image + i) for i, image in enumerate(as_image_sequence(X))]
    except ValueError:
        return [None] * n_images_of(X)
    return [View(size, (0.0, 0.0, float(size[0]), float(size[1])), size) for size in sizes]
