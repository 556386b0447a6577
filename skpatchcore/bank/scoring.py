"""Patches and their nearest neighbours to image and patch scores (Eq. 6-7). Bigger = more anomalous."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from scipy.special import softmax

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import phase
from skpatchcore.bank.answers import farthest_of, kneighbors_without, measured, neighbors_of
from skpatchcore.index.exact import ExactIndex
from skpatchcore.patches.model import check_channels
from skpatchcore.patches.patches import Patches
from skpatchcore.protocols import Index

__all__ = ["kneighbors_without", "nearest_patches", "reweighted_score", "score_patches"]


@default_modes()
def score_patches(
    index: Index,
    bank: np.ndarray,
    patches: Patches,
    n_neighbors: int,
    exclude: np.ndarray | None = None,
    with_patch_scores: bool = True,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Score images by comparing their patches with the memory bank (Eq. 6-7); bigger = more anomalous.

    Parameters
    ----------
    index : Index
        Fitted on `bank`.
    bank : array of shape (n_bank, n_channels)
        The memory bank.
    patches : Patches
        Of the images.
    n_neighbors : int
        *b* of Eq. 7; no more than the bank has is used.
    exclude : array of int or None, default=None
        Rows of the bank that are ignored.
    with_patch_scores : bool, default=True
        If False, no patch scores are returned. :class:`~skpatchcore.ExactIndex` is then much faster. The image scores
        are the same.

    Returns
    -------
    scores : array of shape (n_images,), float64
        One an image.
    patch_scores : list of arrays of shape (grid_height, grid_width), float64
        Distance of each patch from the bank row nearest to it.

    Raises
    ------
    ValueError
        If images and bank differ in their channels, or the index returns something other than rows of the bank.
    """
    check_channels(patches, bank.shape[1], of="the memory bank has")
    patch_scores: list[np.ndarray] = []
    # The test patch farthest from the bank, of each image: m^test,* of Eq. 6, and m*.
    if not with_patch_scores and isinstance(index, ExactIndex):
        tops, scores, nearest = farthest_of(index, bank, patches.rows, patches.starts, exclude)
    else:
        distances, all_nearest = (found[:, 0] for found in neighbors_of(index, bank, patches.rows, 1, exclude))
        distances = distances.astype(np.float64)
        tops = np.array([start + distances[start:stop].argmax() for start, stop in pairwise(patches.starts)])
        scores, nearest = distances[tops], all_nearest[tops]
        if with_patch_scores:
            patch_scores = patches.as_grids(distances)
    b = min(n_neighbors, len(bank) - (0 if exclude is None else len(exclude)))
    if b > 1:
        _, neighborhoods = neighbors_of(index, bank, bank[nearest], b, exclude)
        for i, (top, neighborhood) in enumerate(zip(tops, neighborhoods, strict=True)):
            # m* belongs to its own neighbourhood, even where duplicates of it or an approximate search hide it.
            others = neighborhood[neighborhood != nearest[i]][: b - 1]
            to_others = measured(patches.rows[top : top + 1], bank, others[None])[0]
            scores[i] = reweighted_score(np.concatenate([[scores[i]], to_others]), scores[i])
    return scores, patch_scores


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
    An approximate search may miss the nearest row. The weight is not less than 1 - 1/b then either: otherwise a patch
    would look more normal because a row was missed.
    """
    if len(distances) == 1 or math.isinf(score):
        return float(score)
    weight = 1.0 - softmax(np.asarray(distances, np.float64))[0]
    return float(max(weight, 1.0 - 1.0 / len(distances)) * score)


def nearest_patches(
    batches: Iterable[Patches], index: Index, n_patches: int, bank: np.ndarray
) -> dict[str, np.ndarray]:
    """Find each image's most anomalous patches, and the row of the bank nearest to each.

    Parameters
    ----------
    batches : iterable of Patches
        Of the images.
    index : Index
        Fitted on the memory bank.
    n_patches : int
        How many of each image; all if it has fewer.
    bank : array of shape (n_bank, n_channels)
        The memory bank.

    Returns
    -------
    dict of arrays, one entry per patch
        ``image``; ``rank`` from 0, the farthest; ``box`` in the image's own pixels, of shape (n, 4): top, left, height,
        width; ``distance``; ``nearest``, the row of the bank.
    """
    parts = []
    first = 0
    for patches in batches:
        with phase("search"):
            distances, nearest = (found[:, 0] for found in neighbors_of(index, bank, patches.rows, 1))
        farthest = [
            start + (-distances[start:stop]).argsort(kind="stable")[:n_patches]
            for start, stop in pairwise(patches.starts)
        ]
        rows = np.concatenate(farthest)
        parts.append(
            {
                "image": first + patches.image_of(rows),
                "rank": np.concatenate([np.arange(len(some)) for some in farthest]),
                "box": patches.boxes_of(rows),
                "distance": distances[rows].astype(np.float64),
                "nearest": np.asarray(nearest[rows], np.int64),
            }
        )
        first += len(patches)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
