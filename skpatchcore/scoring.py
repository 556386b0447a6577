"""From patch features and their nearest neighbours to scores and maps (Eq. 6-7): functions of arrays.

Everything here is **bigger = more anomalous**; the detector turns the sign of image scores around for scikit-learn.
"""

from __future__ import annotations

import math
from functools import lru_cache
from inspect import signature
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.special import softmax

from skpatchcore._grids import PatchGrids


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


def anomaly_map(
    patch_scores: np.ndarray,
    image_size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    smoothing: float | tuple[float, float] = 4.0,
) -> np.ndarray:
    """Lay patch scores over an image: bilinear upsampling, then Gaussian smoothing; bigger = more anomalous.

    Parameters
    ----------
    patch_scores : array of shape (grid_height, grid_width)
        One score a patch.
    image_size : (int, int)
        Height and width of the map in pixels.
    box : (float, float, float, float) or None, default=None
        Top, left, height and width in pixels of the part of the image that the grid covers; None for all of it.
        Pixels outside take the value of the nearest pixel inside.
    smoothing : float or (float, float), default=4.0
        Standard deviation of the Gaussian in pixels of the map, for both axes or for each; 0 leaves it out.

    Returns
    -------
    array of shape (height, width), float32

    Notes
    -----
    Both steps are linear and act on one axis at a time, so each axis has one small matrix that does both.
    """
    height, width = image_size
    top, left, box_height, box_width = box or (0.0, 0.0, float(height), float(width))
    sigma_y, sigma_x = smoothing if isinstance(smoothing, tuple) else (smoothing, smoothing)
    scores = np.array(patch_scores, np.float64)
    rows = _axis_matrix(height, scores.shape[0], top, box_height, float(sigma_y))
    columns = _axis_matrix(width, scores.shape[1], left, box_width, float(sigma_x))
    # In torch: numpy's own threads would spin on after the product, and slow the network down on the next image.
    return (rows @ torch.from_numpy(scores) @ columns.T).float().numpy()


@lru_cache(maxsize=64)
def _axis_matrix(n_pixels: int, n_patches: int, start: float, length: float, sigma: float) -> torch.Tensor:
    """Return the matrix of shape (n_pixels, n_patches) that upsamples and smooths along one axis."""
    # Centres of pixels in units of patches, counted from the first patch's centre.
    position = np.clip((np.arange(n_pixels) + 0.5 - start) / length * n_patches - 0.5, 0, n_patches - 1)
    lower = np.minimum(position.astype(int), max(n_patches - 2, 0))
    share = position - lower
    matrix = np.zeros((n_pixels, n_patches))
    pixels = np.arange(n_pixels)
    matrix[pixels, lower] = 1 - share
    matrix[pixels, np.minimum(lower + 1, n_patches - 1)] += share
    if sigma > 1e-3:  # a narrower Gaussian does nothing, and its weights divide by sigma squared
        matrix = gaussian_filter1d(matrix, sigma, axis=0)
    return torch.from_numpy(matrix)
