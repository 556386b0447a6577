"""Patch features of any extractor as one stream of grids: batch by batch where the extractor can, else in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from skpatchcore._grids import PatchGrids
from skpatchcore._progress import iterate_as_stage, stage
from skpatchcore.features.images import View, as_image_sequence, image_size


def n_images_of(X: Any) -> int:
    """Return how many images `X` holds."""
    return X.shape[0] if hasattr(X, "shape") and X.shape else len(X)


def are_grids(X: Any) -> bool:
    """Return whether `X` has the form of grids of patch features: a 4-D array, or a list of 3-D ones."""
    if isinstance(X, np.ndarray):
        return X.ndim == 4
    return isinstance(X, list | tuple) and len(X) > 0 and all(isinstance(x, np.ndarray) and x.ndim == 3 for x in X)


def iter_grids(extractor: Any, X: Any) -> Iterator[tuple[PatchGrids, list[View | None]]]:
    """Yield patch features in order, with what the network saw of each image.

    Parameters
    ----------
    extractor : transformer or None
        One with ``iter_transform`` gives batches; any other its ``transform`` in one piece. None: `X` holds the
        features.
    X : images or patch features
        What the extractor takes.

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
        If the features have a wrong shape or are not finite.
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
        yield grids, _whole_images(X, len(grids))


def _whole_images(X: Any, n_images: int) -> list[View | None]:
    try:
        sizes = [image_size(image, i) for i, image in enumerate(as_image_sequence(X))]
    except ValueError:  # not images: features of something else
        return [None] * n_images
    return [View(size, (0.0, 0.0, float(size[0]), float(size[1])), size) for size in sizes]
