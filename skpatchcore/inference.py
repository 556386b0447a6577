"""From a stream of patch features to scores, maps, and the nearest of the nominal patches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from skpatchcore._grids import PatchGrids
from skpatchcore._progress import stage
from skpatchcore.features.stream import boxes_in_images
from skpatchcore.features.views import View
from skpatchcore.scoring import anomaly_map


def map_of(patch_scores: np.ndarray, view: View | None, smoothing: float) -> np.ndarray:
    """Return the anomaly map of one image, at its own size; the patch scores themselves where nothing is known of it.

    Parameters
    ----------
    patch_scores : array of shape (grid_height, grid_width)
        One score a patch.
    view : View or None
        What the grid covers of the image.
    smoothing : float
        Standard deviation of the Gaussian, in pixels of the network's input.

    Returns
    -------
    array of shape (height, width), float32
    """
    if view is None:
        return patch_scores.astype(np.float32)
    down, across = view.scale
    return anomaly_map(patch_scores, view.image_size, view.box, (smoothing * down, smoothing * across))


def score_stream(
    stream: Iterable[tuple[PatchGrids, list[View | None]]],
    score: Callable[..., tuple[np.ndarray, list[np.ndarray]]],
    smoothing: float,
    of_map: Callable[[np.ndarray], Any] | None,
) -> tuple[np.ndarray, list[Any]]:
    """Score images batch by batch.

    Parameters
    ----------
    stream : iterable of (PatchGrids, list of View)
        Their patch features.
    score : callable
        ``score(grids, with_patch_scores=...)`` returns the images' scores and a list of their patches'; bigger = more
        anomalous.
    smoothing : float
        Of maps.
    of_map : callable or None
        What is to be kept of each image's map of shape (height, width), float32; None makes none.

    Returns
    -------
    scores : array of shape (n_images,), float64
        Bigger = more anomalous.
    kept : list
        What `of_map` returned, one an image; empty without it.
    """
    scores, kept = [], []
    for grids, views in stream:
        with stage("search"):
            batch_scores, patch_scores = score(grids, with_patch_scores=of_map is not None)
        scores.append(batch_scores)
        if of_map is not None:
            with stage("maps"):
                kept += [of_map(map_of(s, view, smoothing)) for s, view in zip(patch_scores, views, strict=True)]
    return np.concatenate(scores), kept


def nearest_of_stream(
    stream: Iterable[tuple[PatchGrids, list[View | None]]], index: Any, n_patches: int
) -> dict[str, np.ndarray]:
    """Find each image's most anomalous patches, and the row of the bank that each is nearest to.

    Parameters
    ----------
    stream : iterable of (PatchGrids, list of View)
        Patch features of the images.
    index : estimator with `kneighbors`
        Fitted on the memory bank.
    n_patches : int
        How many of each image; all if it has fewer.

    Returns
    -------
    dict of arrays, one entry a patch
        ``image``; ``rank`` from 0, the farthest; ``position`` in the grid, of shape (n, 2); ``box`` in the image's own
        pixels, of shape (n, 4): top, left, height, width; ``distance``; ``nearest``, the row of the bank.
    """
    parts = []
    first = 0
    for grids, views in stream:
        with stage("search"):
            distances, nearest = (found[:, 0] for found in index.kneighbors(grids.rows, 1))
        farthest = [
            start + (-distances[start:stop]).argsort(kind="stable")[:n_patches]
            for start, stop in pairwise(grids.starts)
        ]
        rows = np.concatenate(farthest)
        images, positions = grids.image_of(rows), grids.positions_of(rows)
        parts.append(
            {
                "image": first + images,
                "rank": np.concatenate([np.arange(len(some)) for some in farthest]),
                "position": positions,
                "box": boxes_in_images(grids, views, images, positions),
                "distance": distances[rows].astype(np.float64),
                "nearest": np.asarray(nearest[rows], np.int64),
            }
        )
        first += len(grids)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
