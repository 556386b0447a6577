"""The third stage of an exported graph: from patch features to scores and decisions (Equations 6 and 7)."""

from __future__ import annotations

import numpy as np

from skpatchcore.deployment._graph import Graph, Value

# Number of candidates per patch of the search by matrix products, which round. Their distances are computed again.
_N_CANDIDATES = 4
# Maximum number of products between patches of one image and rows of the bank that are in memory at once.
_N_PRODUCTS = 1 << 23
# Number of patches of an image that is assumed if the size of the network's input depends on the image.
_N_PATCHES = 1024
# Scores that differ by less than this fraction of the largest calibration score count as equal.
_TIE = 1e-6


def bank_scores(features: Value, bank: np.ndarray, others: np.ndarray, n_patches: int | None) -> tuple[Value, Value]:
    """Score images by their distance from a memory bank.

    Parameters
    ----------
    features : Value of shape (n_images, n_patches, n_channels)
        Patch features that are inspected.
    bank : array of shape (n_bank, n_channels), float32
        The memory bank.
    others : array of shape (n_bank, b - 1), int64
        For each row of the bank, its nearest other rows. No columns turn the re-weighting of Equation 7 off.
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
    distances, nearest = _nearest(queries, rows, len(bank), n_patches or _N_PATCHES)
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


def _nearest(queries: Value, rows: Value, n_rows: int, n_patches: int) -> tuple[Value, Value]:
    """Return the distance and the index of the nearest row of each query.

    The nearest row has the largest ``query @ row - |row|² / 2``. This value is rounded: near 0, a distance is as small
    as its error. Therefore, the distances to the best candidates are computed from differences.
    """
    graph = queries.graph
    half = _lengths(rows)
    half = half * half * np.float32(-0.5)
    n_at_once = max(_N_CANDIDATES, min(n_rows, _N_PRODUCTS // n_patches))
    values, indices = [], []
    for start in range(0, n_rows, n_at_once):
        stop = min(start + n_at_once, n_rows)
        is_all = stop - start == n_rows
        part, own = (rows, half) if is_all else (rows.between(start, stop, 0), half.between(start, stop, 0))
        products = graph.op("Gemm", queries, part, own, transB=1)
        best = graph.ops("TopK", products, np.array([min(_N_CANDIDATES, stop - start)]), n_outputs=2, axis=1)
        values.append(best[0])
        indices.append(best[1] if start == 0 else best[1] + np.array([start]))
    candidates = indices[0]
    if len(values) > 1:
        n_kept = np.array([min(_N_CANDIDATES, n_rows)])
        _, places = graph.ops("TopK", graph.concat(values, 1), n_kept, n_outputs=2, axis=1)
        candidates = graph.op("GatherElements", graph.concat(indices, 1), places, axis=1)
    exact = _lengths(graph.op("Gather", rows, candidates, axis=0) - queries.unsqueeze(1))
    best_place = graph.op("ArgMin", exact, axis=1, keepdims=1)
    found = (graph.op("GatherElements", some, best_place, axis=1).squeeze(1) for some in (exact, candidates))
    distances, nearest = found
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


def nan_unless(graph: Graph, condition: Value) -> Value:
    """Return 0 where a condition holds, otherwise NaN, which makes a score NaN and a label -1."""
    return graph.op("Where", condition, np.float32(0), np.float32(np.nan))


def nan_if_not_finite(features: Value) -> Value:
    """Return 0 for each image with finite features, otherwise NaN. The result has the shape (n_images,)."""
    return (features * np.float32(0)).sum(1, 2, 3)


def decisions(scores: Value, calibration_scores: np.ndarray, offset: float) -> dict[str, Value]:
    """Return the outputs score, decision, label and p_value of anomaly scores, with scikit-learn's signs.

    Parameters
    ----------
    scores : Value of shape (n_images,)
        Anomaly scores, bigger = more anomalous.
    calibration_scores : array of shape (n_calibration,)
        Scores of good images, bigger = more normal.
    offset : float
        Threshold of the scores, bigger = more normal.
    """
    graph = scores.graph
    score = -scores
    decision = score - np.float32(offset)
    known = calibration_scores[~np.isnan(calibration_scores)].astype(np.float32)
    # The score of a calibration image counts as equal, although it is rounded. NaN compares False: its p-value is the
    # smallest.
    equal = np.float32(_TIE * np.abs(known).max(initial=0))
    count = score.unsqueeze(1) >= (known - equal)[None]
    p_value = (count.cast("float32").sum(1) + np.float32(1)) / np.float32(len(known) + 1)
    label = graph.op("Where", decision >= np.float32(0), np.int64(1), np.int64(-1))
    return {"score": score, "decision": decision, "label": label, "p_value": p_value}
