"""From patch features and their nearest neighbours to scores and maps (Eq. 6-7): functions of arrays.

Everything here is **bigger = more anomalous**; the detector turns the sign of image scores around for scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from inspect import signature
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import softmax

from skpatchcore._utils.progress import stage
from skpatchcore.images.views import View
from skpatchcore.patches.patches import PatchGrids, boxes_in_images


def score_grids(
    index: Any,
    bank: np.ndarray,
    grids: PatchGrids,
    n_neighbors: int,
    exclude: np.ndarray | None = None,
    with_patch_scores: bool = True,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Score images by comparing their patches with the memory bank (Eq. 6-7); bigger = more anomalous.

    Parameters
    ----------
    index : estimator with `kneighbors`
        Fitted on `bank`.
    bank : array of shape (n_bank, n_channels)
        The memory bank.
    grids : PatchGrids
        The images' patch features.
    n_neighbors : int
        *b* of Eq. 7; no more than the bank has is used.
    exclude : array of int or None, default=None
        Rows of the bank that don't count.
    with_patch_scores : bool, default=True
        False leaves them out, which spares an index that can look for the farthest patches alone (``farthest``) most
        of the search. The image scores are the same.

    Returns
    -------
    scores : array of shape (n_images,), float64
        One an image.
    patch_scores : list of arrays of shape (grid_height, grid_width), float64
        Distance of each patch from the bank row nearest to it.

    Raises
    ------
    ValueError
        If images and bank differ in their channels.
    """
    if grids.rows.shape[1] != bank.shape[1]:
        raise ValueError(
            f"patch features have {grids.rows.shape[1]} channels, but the memory bank has {bank.shape[1]}."
        )
    patch_scores = []
    # The test patch farthest from the bank, of each image: m^test,* of Eq. 6, and m*.
    if not with_patch_scores and hasattr(index, "farthest"):
        tops, scores, nearest = index.farthest(grids.rows, grids.starts, exclude=exclude)
    else:
        distances, all_nearest = (found[:, 0] for found in kneighbors_without(index, grids.rows, 1, exclude))
        distances = distances.astype(np.float64)
        tops = np.array([start + distances[start:stop].argmax() for start, stop in pairwise(grids.starts)])
        scores, nearest = distances[tops], all_nearest[tops]
        if with_patch_scores:
            parts = np.split(distances, grids.starts[1:-1])
            patch_scores = [part.reshape(size) for part, size in zip(parts, grids.sizes, strict=True)]
    b = min(n_neighbors, len(bank) - (0 if exclude is None else len(exclude)))
    if b > 1:
        _, neighborhoods = kneighbors_without(index, bank[nearest], b, exclude)
        for i, (top, neighborhood) in enumerate(zip(tops, neighborhoods, strict=True)):
            # m* belongs to its own neighbourhood, even where duplicates of it or an approximate search hide it.
            others = neighborhood[neighborhood != nearest[i]][: b - 1]
            difference = bank[others].astype(np.float64) - grids.rows[top]
            to_others = np.sqrt(np.einsum("ij,ij->i", difference, difference))
            scores[i] = reweighted_score(np.concatenate([[scores[i]], to_others]), scores[i])
    return scores, patch_scores


def kneighbors_without(
    index: Any, X: np.ndarray, n_neighbors: int, exclude: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Search an index as if some of its rows were not there.

    Parameters
    ----------
    index : estimator with `kneighbors`
        A fitted index. One whose `kneighbors` has an argument ``exclude`` is asked directly; of another, as many more
        neighbours are asked for as there are rows to leave out.
    X : array of shape (n_queries, n_features)
        The rows whose neighbours are sought.
    n_neighbors : int
        How many; at most the number of rows left.
    exclude : array of int or None
        Rows of the bank that don't count.

    Returns
    -------
    distances, indices : arrays of shape (n_queries, n_neighbors)
        Ascending by distance.
    """
    found: tuple[np.ndarray, np.ndarray]
    if exclude is None or not len(exclude):
        found = index.kneighbors(X, n_neighbors=n_neighbors, return_distance=True)
        return found
    if "exclude" in signature(index.kneighbors).parameters:
        found = index.kneighbors(X, n_neighbors=n_neighbors, return_distance=True, exclude=exclude)
        return found
    distances, indices = index.kneighbors(X, n_neighbors=n_neighbors + len(exclude), return_distance=True)
    # At most len(exclude) of a row's neighbours are taken out: sort the rest to the front, in their order.
    order = np.isin(indices, exclude).argsort(axis=1, kind="stable")[:, :n_neighbors]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)


def reweighted_score(distances: np.ndarray, score: float) -> float:
    """Weigh the largest patch score by how typical its nearest nominal patch is (Eq. 7); bigger = more anomalous.

    Parameters
    ----------
    distances : array of shape (b,)
        Distances of the image's most anomalous patch from the bank row nearest to it, m*, first, and from the other
        rows of m*'s own neighbourhood of b rows.
    score : float
        Distance of that patch from m* (Eq. 6).

    Returns
    -------
    float
        ``(1 - softmax(distances)[0]) * score``; `score` itself where b is 1, for which Eq. 7 would give 0, and where it
        is infinite.

    References
    ----------
    Roth et al., CVPR 2022, Eq. 7. With exact search m* is the nearest of them all, so the weight lies in [1 - 1/b, 1).
    """
    if len(distances) == 1 or math.isinf(score):
        return float(score)
    return float((1.0 - softmax(np.asarray(distances, np.float64))[0]) * score)


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
