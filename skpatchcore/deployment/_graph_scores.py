"""The third stage of an exported graph: from patch features to scores and decisions (Equations 6 and 7)."""

from __future__ import annotations

from typing import Any

import numpy as np

from skpatchcore.deployment._graph import Value
from skpatchcore.deployment.outputs import with_ties
from skpatchcore.detectors._image_scores import ROUNDING_OF_SHARES

# Least and largest number of candidates per patch of the search by matrix products, which round. The distances to the
# candidates are computed again.
_N_CANDIDATES = (4, 32)
# Number of rows of the bank whose neighbours are counted to choose the number of candidates.
_N_COUNTED = 1024
# Maximum number of products between patches of one image and rows of the bank that are in memory at once.
_N_PRODUCTS = 1 << 23
# Number of patches of an image that is assumed if the size of the network's input depends on the image.
_N_PATCHES = 1024
# Largest absolute value that counts as finite.
_LARGEST = 3e38


def bank_scores(
    features: Value, bank: np.ndarray, others: np.ndarray, n_candidates: int | None, n_patches: int | None
) -> tuple[Value, Value]:
    """Score images by their distance from a memory bank.

    Parameters
    ----------
    features : Value of shape (n_images, n_patches, n_channels)
        Patch features that are inspected.
    bank : array of shape (n_bank, n_channels), float32
        The memory bank.
    others : array of shape (n_bank, b - 1), int64
        For each row of the bank, its nearest other rows. No columns turn the re-weighting of Equation 7 off.
    n_candidates : int or None
        Number of candidates per patch, from :func:`n_candidates_of`. None computes the products in float64.
    n_patches : int or None
        Number of patches of an image, if known.

    Returns
    -------
    scores : Value of shape (n_images,)
        Image scores, bigger = more anomalous.
    patch_scores : Value of shape (n_images, n_patches)
        Distance of each patch from the nearest row of the bank.
    """
    graph = features.graph
    n_channels = bank.shape[1]
    # Distances do not change if the mean is subtracted from both sides, and the products round less.
    mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows = graph.weights(bank - mean)
    queries = features.reshape(-1, n_channels) - mean
    distances, nearest = _nearest(queries, rows, len(bank), n_candidates, n_patches or _N_PATCHES)
    shape = graph.op("Shape", features, start=0, end=2)
    distances, nearest = (graph.op("Reshape", some, shape) for some in (distances, nearest))
    top = graph.op("ArgMax", distances, axis=1, keepdims=1)
    scores = graph.op("GatherElements", distances, top, axis=1)
    if others.shape[1]:
        row = graph.op("GatherElements", nearest, top, axis=1).squeeze(1)
        index = top.unsqueeze(2) + np.zeros((1, 1, n_channels), np.int64)
        patch = graph.op("GatherElements", queries.reshape(features.size(0), -1, n_channels), index, axis=1)
        own = graph.op("Gather", graph.constant(others.astype(np.int32)), row, axis=0)
        neighbours = graph.op("Gather", rows, own, axis=0)
        to_all = graph.concat([scores, _lengths(neighbours - patch)], 1)  # (n_images, b)
        share = graph.op("Softmax", to_all, axis=1).between(0, 1, 1)
        least = np.float32(1 - 1 / (others.shape[1] + 1))
        scores = graph.op("Max", np.float32(1) - share, least) * scores
    return scores.squeeze(1), distances


def _lengths(differences: Value) -> Value:
    """Return the Euclidean length of the last axis."""
    return differences.graph.op("Sqrt", (differences * differences).sum(-1))


def n_candidates_of(bank: np.ndarray, index: Any) -> int | None:
    """Return how many candidates a search by rounded products needs; None if it needs too many.

    Rows of the bank that are nearer to each other than the rounding can hide each other. Their number is counted.

    Parameters
    ----------
    bank : array of shape (n_bank, n_channels)
        The memory bank.
    index : ExactIndex
        Fitted on the bank.
    """
    centred = bank - bank.mean(axis=0, dtype=np.float64)
    largest = float((centred**2).sum(axis=1).max())
    # Half of a squared distance is the difference of two products. Each has about this error.
    error = np.finfo(np.float32).eps * (1 + np.sqrt(bank.shape[1]) / 4) * largest
    least, most = _N_CANDIDATES
    rows = bank[:: max(1, len(bank) // _N_COUNTED)]
    distances, _ = index.kneighbors(rows, min(most + 1, len(bank)))
    count = int((distances <= 4 * np.sqrt(error)).sum(axis=1).max())
    return None if count > most else max(least, count)


def _nearest(queries: Value, rows: Value, n_rows: int, n_candidates: int | None, n_patches: int) -> tuple[Value, Value]:
    """Return the distance and the index of the nearest row of each query.

    The nearest row has the largest ``query @ row - |row|² / 2``. This value is rounded: near 0, a distance is as small
    as its error. Therefore, the distances to the best candidates are computed from differences.
    """
    graph = queries.graph
    dtype = "float32" if n_candidates is not None else "float64"
    n_kept = _N_CANDIDATES[0] if n_candidates is None else n_candidates
    terms = rows.cast(dtype) if dtype == "float64" else rows
    half = (terms * terms).sum(-1) * graph.constant(np.array(-0.5, dtype))
    n_at_once = max(n_kept, min(n_rows, _N_PRODUCTS // n_patches))
    values, indices = [], []
    for start in range(0, n_rows, n_at_once):
        stop = min(start + n_at_once, n_rows)
        is_all = stop - start == n_rows
        part, own = (terms, half) if is_all else (terms.between(start, stop, 0), half.between(start, stop, 0))
        products = graph.op("Gemm", queries.cast(dtype) if dtype == "float64" else queries, part, own, transB=1)
        best = graph.ops("TopK", products, np.array([min(n_kept, stop - start)]), n_outputs=2, axis=1)
        values.append(best[0])
        indices.append(best[1] if start == 0 else best[1] + np.array([start]))
    candidates = indices[0]
    if len(values) > 1:
        _, places = graph.ops("TopK", graph.concat(values, 1), np.array([min(n_kept, n_rows)]), n_outputs=2, axis=1)
        candidates = graph.op("GatherElements", graph.concat(indices, 1), places, axis=1)
    exact = _lengths(graph.op("Gather", rows, candidates, axis=0) - queries.unsqueeze(1))
    place = graph.op("ArgMin", exact, axis=1, keepdims=1)
    distances, nearest = (graph.op("GatherElements", some, place, axis=1).squeeze(1) for some in (exact, candidates))
    return distances, nearest


def gaussian_scores(
    features: Value, means: np.ndarray, whitening: np.ndarray, channels: np.ndarray
) -> tuple[Value, Value]:
    """Score images by the Mahalanobis distances of their patches, as PaDiM does; bigger = more anomalous.

    Parameters
    ----------
    features : Value of shape (n_images, n_patches, n_channels)
        Patch features that are inspected.
    means, whitening, channels : arrays
        Arrays of :class:`~skpatchcore.detectors.padim.Gaussians`.

    Returns
    -------
    scores : Value of shape (n_images,)
        Largest patch score of each image.
    patch_scores : Value of shape (n_images, n_patches)
        Mahalanobis distances.
    """
    graph = features.graph
    kept = graph.op("Gather", features, channels, axis=2)
    centred = (kept - means.astype(np.float32)).transpose(1, 0, 2)  # (n_patches, n_images, n_kept)
    distances = _lengths(centred @ graph.weights(np.ascontiguousarray(whitening.transpose(0, 2, 1)))).transpose(1, 0)
    return distances.max(1), distances


def top_mean(patch_scores: Value, share: float) -> Value:
    """Return the mean of the largest patch scores of each image, as `skpatchcore.detectors._image_scores.top_mean`.

    Parameters
    ----------
    patch_scores : Value of shape (n_images, n_patches)
        Patch scores of the inspected patches.
    share : float in (0, 1]
        Fraction of the patches whose mean is returned.
    """
    graph = patch_scores.graph
    count = patch_scores.size(1).cast("float32") * np.float32(share) - np.float32(ROUNDING_OF_SHARES)
    n_kept = graph.op("Max", graph.op("Ceil", count).cast("int64"), np.array([1]))
    values, _ = graph.ops("TopK", patch_scores, n_kept, n_outputs=2, axis=1)
    return graph.op("ReduceMean", values, np.array([1]), keepdims=0)


def peak(maps: Value, seen: Value | None) -> Value:
    """Return the maximum of each anomaly map, of shape (n_images,).

    Parameters
    ----------
    maps : Value of shape (n_images, height, width)
        Anomaly maps.
    seen : Value of shape (height, width), bool, or None
        Pixels that count; None for all.
    """
    return (maps if seen is None else seen.where(maps, np.float32(-_LARGEST))).max(1, 2)


def is_finite(values: Value) -> Value:
    """Return whether all values of each image are finite; `values` has four axes."""
    return (values.graph.op("Abs", values) <= np.float32(_LARGEST)).all(1, 2, 3)


def decisions(scores: Value, is_valid: Value, calibration_scores: np.ndarray, offset: float) -> dict[str, Value]:
    """Return the outputs score, decision, label and p_value of anomaly scores, with scikit-learn's signs.

    Parameters
    ----------
    scores : Value of shape (n_images,)
        Anomaly scores, bigger = more anomalous.
    is_valid : Value of shape (n_images,), bool
        Whether an image can be scored. Otherwise, its score is NaN, its label -1, and its p-value the smallest.
    calibration_scores : array of shape (n_calibration,)
        Scores of good images, bigger = more normal.
    offset : float
        Threshold of the scores, bigger = more normal.
    """
    is_valid = is_valid & (scores.graph.op("Abs", scores) <= np.float32(_LARGEST))
    score = is_valid.where(-scores, np.float32(np.nan))
    decision = score - np.float32(offset)
    known = with_ties(calibration_scores[~np.isnan(calibration_scores)])
    count = score.unsqueeze(1) >= known[None]
    p_value = (count.cast("float32").sum(1) + np.float32(1)) / np.float32(len(known) + 1)
    return {
        "score": score,
        "decision": decision,
        "label": (is_valid & (decision >= np.float32(0))).where(np.int64(1), np.int64(-1)),
        "p_value": is_valid.where(p_value, np.float32(1 / (len(known) + 1))),
    }
