"""Patch features of any extractor as one stream of grids: batch by batch where the extractor can, else in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from skpatchcore._grids import PatchGrids
from skpatchcore._progress import iterate_as_stage, stage
from skpatchcore.features.images import View, as_image_sequence, image_size


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


def iter_grids(extractor: Any, X: Any, with_views: bool = True) -> Iterator[tuple[PatchGrids, list[View | None]]]:
    """Yield patch features in order, with what the network saw of each image.

    Parameters
    ----------
    extractor : transformer or None
        One with ``iter_transform`` gives batches; any other its ``transform`` in one piece. None: `X` holds the
        features.
    X : images or patch features
        What the extractor takes.
    with_views : bool, default=True
        False spares an extractor that gives none the look at the images' sizes.

    Yields
    ------
    grids : PatchGrids
        Of the next images.
    views : list of (View or None)
        Of each of them; None where nothing is known of an image. An extractor that tells nothing is taken to see the
        whole image.

    Raises
    ------
    ValueError
        If the features have a wrong shape, are not finite, or are not one grid for each image.
    """
    if extractor is None:
        grids = PatchGrids.from_features(X)
        yield grids, [None] * len(grids)
    elif hasattr(extractor, "iter_transform"):
        for features, views in iterate_as_stage("network", extractor.iter_transform(X)):
            yield PatchGrids.from_features(features), views
    else:
        with stage("network"):
            grids = PatchGrids.from_features(extractor.transform(X))
        if len(grids) != n_images_of(X):
            raise ValueError(
                f"the extractor gives features of {len(grids)} images for {n_images_of(X)}: its transform must return "
                "(n_images, grid_height, grid_width, n_channels) or a list with one grid for each image."
            )
        yield grids, _whole_images(X, len(grids)) if with_views else [None] * len(grids)


def _whole_images(X: Any, n_images: int) -> list[View | None]:
    try:
        sizes = [image_size(image, i) for i, image in enumerate(as_image_sequence(X))]
    except ValueError:  # not images: features of something else
        return [None] * n_images
    return [View(size, (0.0, 0.0, float(size[0]), float(size[1])), size) for size in sizes]
