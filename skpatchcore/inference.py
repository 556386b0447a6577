"""A stream of patch features against the memory bank: scores and maps, of new images and of those in the bank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from skpatchcore._grids import PatchGrids
from skpatchcore._progress import progress_bar, stage
from skpatchcore.bank import Bank
from skpatchcore.calibration import leave_group_out
from skpatchcore.features.images import View
from skpatchcore.scoring import anomaly_map, score_grids


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
    index: Any,
    bank: np.ndarray,
    n_neighbors: int,
    smoothing: float | None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Score images batch by batch.

    Parameters
    ----------
    stream : iterable of (PatchGrids, list of View)
        Their patch features.
    index : estimator with `kneighbors`
        Fitted on `bank`.
    bank : array of shape (n_bank, n_channels)
        The memory bank.
    n_neighbors : int
        *b* of Eq. 7.
    smoothing : float or None
        Of maps; None makes none.

    Returns
    -------
    scores : array of shape (n_images,), float64
        Bigger = more anomalous.
    maps : list of arrays of shape (height, width), float32
        Bigger = more anomalous; empty without `smoothing`.
    """
    scores, maps = [], []
    for grids, views in stream:
        with stage("search"):
            batch_scores, patch_scores = score_grids(
                index, bank, grids, n_neighbors, with_patch_scores=smoothing is not None
            )
        scores.append(batch_scores)
        if smoothing is not None:
            with stage("maps"):
                maps += [map_of(s, view, smoothing) for s, view in zip(patch_scores, views, strict=True)]
    return np.concatenate(scores), maps


def leave_one_out(
    bank: Bank, index: Any, groups: np.ndarray, n_neighbors: int, smoothing: float, verbose: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Score the images that the bank was selected from, each without the rows that came from its group.

    Parameters
    ----------
    bank : Bank
        The memory bank, and the patch features of the images.
    index : estimator with `kneighbors`
        Fitted on its rows.
    groups : array of shape (n_images,)
        Group of each image.
    n_neighbors, smoothing
        As for :func:`score_stream`.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    scores, peaks : arrays of shape (n_images,), float64
        Image scores and maxima of anomaly maps, bigger = more anomalous; NaN where the whole bank came from the group.
    """
    scores, peaks = np.full((2, len(groups)), np.nan)
    start, bank_groups = 0, groups[bank.images]
    with progress_bar(len(groups), "calibrating", "image", verbose) as bar:
        for grids, views in bank.patches:
            for images, rows in leave_group_out(groups[start : start + len(grids)], bank_groups):
                if len(rows) < len(bank.rows):
                    found, patch_scores = score_grids(index, bank.rows, grids.take(images), n_neighbors, rows)
                    scores[start + images] = found
                    peaks[start + images] = [
                        map_of(s, views[i], smoothing).max() for i, s in zip(images, patch_scores, strict=True)
                    ]
                bar.update(len(images))
            start += len(grids)
    return scores, peaks
