"""Image scores and patch scores from a memory bank (Equations 6 and 7 of the PatchCore paper); bigger = more anomalous.

:func:`score_patches` scores images. :func:`nearest_patches` explains scores by the most anomalous patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import softmax

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import phase
from skpatchcore.bank.answers import kneighbors_without, measured, neighbors_of
from skpatchcore.bank.search import search_images
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
    memory: Any = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Score images by comparing their patches with the memory bank (Equations 6 and 7); bigger = more anomalous.

    Parameters
    ----------
    index : Index
        Fitted on `bank`.
    bank : array of shape (n_bank, n_channels)
        The memory bank.
    patches : Patches
        Patches of the images.
    n_neighbors : int
        *b* of Equation 7 of the PatchCore paper: number of neighbours in the re-weighting of image scores. If fewer
        than b rows remain after the exclusion, all remaining rows are used. 1 turns the re-weighting off.
    exclude : array of int or None, default=None
        Rows of the bank that are ignored. None ignores no row.
    with_patch_scores : bool, default=True
        If False, the list of patch scores is empty, and an :class:`~skpatchcore.ExactIndex` searches much faster. The
        image scores are the same.
    memory : str, joblib.Memory or None, default=None
        Location of a cache of the searches; see :mod:`skpatchcore.bank.search`. None uses no cache.

    Returns
    -------
    scores : array of shape (n_images,), float64
        Image scores.
    patch_scores : list of arrays of shape (grid_height, grid_width), float64
        Distance of each patch from the nearest row of the bank.

    Raises
    ------
    ValueError
        If the patches and the bank differ in their number of channels, or if the result of the index is not valid.
    """
    check_channels(patches, bank.shape[1], of="the memory bank has")
    b = min(n_neighbors, len(bank) - (0 if exclude is None else len(exclude)))
    # Eq. 6 is the distance of the patch that is farthest from the bank (m^test,*) from its nearest row (m*).
    found = search_images(index, bank, patches, b, exclude, with_patch_scores, memory)
    scores = found.distances.copy()
    for i in range(len(patches) if b > 1 else 0):  # Eq. 7
        # m* always counts as the first row of its own neighbourhood, even if the search returned only duplicates of m*
        # or missed m*.
        neighborhood = found.neighborhoods[i]
        others = neighborhood[neighborhood != found.nearest[i]][: b - 1]
        top = found.tops[i] - patches.starts[i]
        to_others = measured(patches.part(i)[top : top + 1], bank, others[None])[0]
        scores[i] = reweighted_score(np.concatenate([[scores[i]], to_others]), scores[i])
    return scores, patches.as_grids(np.concatenate(found.of_patches)) if with_patch_scores else []


def reweighted_score(distances: np.ndarray, score: float) -> float:
    """Return the re-weighted image score of Equation 7; bigger = more anomalous.

    The equations are those of the PatchCore paper. Let m* be the row of the bank that is nearest to the image's most
    anomalous patch. The weight is smaller if the rows in the neighbourhood of m* are about as close to this patch as m*
    itself. The weight is larger if these rows are farther away, because m* is then a rare nominal patch.

    Parameters
    ----------
    distances : array of shape (b,)
        Distances of the image's most anomalous patch from m* (first) and from the b - 1 rows that are nearest to m*.
    score : float
        Distance of the image's most anomalous patch from m* (Equation 6).

    Returns
    -------
    float
        ``(1 - softmax(distances)[0]) * score``. If b is 1 or `score` is infinite, `score` itself: for b = 1,
        Equation 7 would always return 0.

    Notes
    -----
    With exact search, m* is the nearest row, so the weight lies in [1 - 1/b, 1). An approximate search may miss the
    nearest row. The weight is therefore clipped to at least 1 - 1/b: otherwise a missed row could make a patch look
    more normal.

    References
    ----------
    Roth et al., CVPR 2022, Eq. 7.
    """
    if len(distances) == 1 or math.isinf(score):
        return float(score)
    weight = 1.0 - softmax(np.asarray(distances, np.float64))[0]
    return float(max(weight, 1.0 - 1.0 / len(distances)) * score)


def nearest_patches(
    batches: Iterable[Patches], index: Index, n_patches: int, bank: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the most anomalous patches of each image, with the nearest row of the bank for each patch.

    Parameters
    ----------
    batches : iterable of Patches
        Patches of the images.
    index : Index
        Fitted on the memory bank.
    n_patches : int
        Number of patches per image. An image with fewer patches contributes all of them.
    bank : array of shape (n_bank, n_channels)
        The memory bank.

    Returns
    -------
    dict of arrays with one entry per patch
        ``image`` (index of the image), ``rank`` (0 is the patch with the largest distance), ``box`` (top, left, height
        and width in pixels of the original image, shape (n, 4)), ``distance`` (from the nearest row), and ``nearest``
        (the nearest row of the bank).
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
