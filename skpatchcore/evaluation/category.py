"""evaluate and evaluate_category: metrics of a detector on one category or on several, and the time per phase."""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import joblib
import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt, map_coordinates
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from skpatchcore._utils.names import escape_name
from skpatchcore._utils.progress import progress_bar, record_seconds
from skpatchcore.datasets import load_categories, load_image_folder
from skpatchcore.evaluation._clones import unfitted
from skpatchcore.evaluation.pixel_results import N_POINTS, pixel_results
from skpatchcore.evaluation.promises import decisions_at_rates
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.images.views import placed
from skpatchcore.maps import filled_with_nearest
from skpatchcore.metrics import f1_max_score
from skpatchcore.metrics.counts import PixelCounts
from skpatchcore.protocols import resizing_of

_DECISIONS = ("good_flagged", "defects_found")


@dataclass
class CategoryResult:
    """Result of a detector on one category.

    Attributes
    ----------
    category : str
        Name of the category.
    row : dict
        One row of the table that :func:`~skpatchcore.evaluate` returns.
    scores : array of shape (n_test,)
        Image scores as returned by `score_samples`, bigger = more normal.
    labels, defects, paths : arrays of shape (n_test,)
        +1 or -1, the kind of defect, and the file or number of each test image.
    offset, pixel_offset : float
        Image threshold and pixel threshold of the detector.
    calibration_scores : array of shape (n_calibration,)
        Calibration scores, bigger = more normal.
    roc, pro : arrays of shape (2, n_points)
        Points of curves for plots: the false-positive rate and the recall of images in `roc`, the false-positive rate
        of pixels and the overlap of regions in `pro`. `pro` is empty without masks.
    aupimo : array of shape (n_test,)
        AUPIMO of each test image, bigger = better: the fraction of the image's defective pixels with map
        values of at least a threshold, averaged over thresholds that nearly no pixel of good images reaches. The
        thresholds are those of :func:`~skpatchcore.metrics.aupimo_scores`. `pixel_offset` is not used. NaN for good
        images and for defective images without a mask. The array is empty if there are no masks.
    pixel_counts : PixelCounts or None
        Numbers of pixels of each test image above fixed thresholds, from which a comparison of detectors computes
        intervals. An image that is not in the pixel metrics has only zeros. None without masks, and for a stored result
        of an older version.
    """

    category: str
    row: dict[str, Any]
    scores: np.ndarray
    labels: np.ndarray
    defects: np.ndarray
    paths: np.ndarray
    offset: float
    pixel_offset: float
    calibration_scores: np.ndarray
    roc: np.ndarray
    pro: np.ndarray = field(default_factory=lambda: np.zeros((2, 0)))
    aupimo: np.ndarray = field(default_factory=lambda: np.zeros(0))
    pixel_counts: PixelCounts | None = None


def evaluate(
    detector: Any, dataset: Any, *, resolution: str = "own", client: Any = None, verbose: int = 0
) -> pd.DataFrame:
    """Fit a detector on the training images of each category, and return a table of metrics on its test images.

    Parameters
    ----------
    detector : estimator
        A :class:`~skpatchcore.PatchCoreDetector`, an ensemble, or another detector of this package. A clone of the
        detector is fitted for each category. The detector itself does not change. A
        :class:`~skpatchcore.dask.DaskPatchCoreDetector` uses its own client if `client` is None.
    dataset : path, ImageFolder, TextureTask, VideoTask or dict of str to one of these
        A folder of one or several categories in the layout of MVTec AD; or the result of
        :func:`~skpatchcore.datasets.load_categories`, :func:`~skpatchcore.datasets.load_two_folders`,
        :func:`~skpatchcore.datasets.make_textures` or :func:`~skpatchcore.datasets.load_video_task`.
    resolution : {"own", "seen"}, default="own"
        Resolution of the pixel metrics. ``"own"``: the original size of each image. ``"seen"``: the size
        and the crop of the network's input, as in the paper (224 × 224).
    client : distributed.Client or None, default=None
        Client of a Dask cluster. The workers read the images, compute the fit and score the test images. The fit of a
        PatchCoreDetector is distributed to all workers; any other detector is fitted on one worker. The masks are read
        and the metrics are computed in this process. Under the conditions of :doc:`/user_guide/dask`, only the
        times and ``bytes`` differ from the table without a client, ``bytes`` by about 100. None uses no cluster.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    DataFrame
        One row per category, indexed by its name. Metrics are in [0, 1], and higher is better unless stated otherwise.

        - ``found_at_01``, ``found_at_05``, ``found_at_10``: fractions of the defective images that are found with a
          threshold that promises a false-positive rate of 1, 5 and 10 %. The threshold is set from good images only.
          ``flagged_at_01``, ``flagged_at_05``, ``flagged_at_10`` (lower is better): fractions of the good test images
          that are flagged with the same thresholds. NaN if there are too few calibration images to promise the rate.
        - ``image_auroc``, ``image_ap``, ``image_f1_max``: metrics of the image scores, over all thresholds.
          ``misclassified``: number of misclassified images at the threshold with the highest F1 score, as counted in
          the paper. The labels of the test images set this threshold.
        - ``pixel_auroc``, ``pixel_ap``, ``pixel_f1_max``, ``aupro`` (up to a false-positive rate of 0.3), ``aupro_05``
          (up to 0.05, as in MVTec AD 2), ``aupimo`` (mean over the defective images): metrics of the anomaly maps. NaN
          without masks. They describe inspected pixels only.
        - ``good_flagged`` (lower is better) and ``defects_found``: fractions of good and of defective images that the
          detector flags at its own threshold. ``promised_rate``: the false-positive rate that this threshold promises.
          NaN without calibration.
        - ``n_train``, ``n_good``, ``n_defective``: numbers of images. ``n_masks``: number of defective images in the
          pixel metrics, which have an inspected defective pixel. ``inspected``: fraction of the pixels of the test
          images that is inspected (not NaN in the maps). ``n_uninspected_defects``: number of images whose
          defective pixels are all not inspected. ``bank_rows``: rows of the memory bank. ``bytes``: size of the pickled
          detector.
        - ``fit_seconds`` and ``test_seconds``: times in seconds. Further columns contain the time of each phase, e.g.
          ``fit_network``. With a client, ``fit_cluster`` and ``test_cluster`` are the times in which this process waits
          for the workers.

    Raises
    ------
    ValueError
        If a category has no good or no defective test images, if a mask and its image differ in size, or if the
        detector does not support `resolution`.
    TypeError
        If `dataset` has another type.
    ImageError, WeightsError, FileNotFoundError
        As raised by `fit` and by :func:`~skpatchcore.datasets.load_categories`.

    Notes
    -----
    Defective images with an empty mask or without a mask are included in image metrics and excluded from pixel metrics.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor, evaluate
    >>> from skpatchcore.datasets import make_textures
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0)
    >>> table = evaluate(detector, {"brick": make_textures("brick", n_views=2)})
    >>> table.loc["brick", ["n_train", "n_good", "n_defective"]].astype(int).tolist()
    [24, 16, 32]
    """
    categories = as_categories(dataset)
    check_before(detector, categories, resolution)
    results = []
    with progress_bar(len(categories), "evaluating", "category", verbose) as bar:
        for name, data in categories.items():
            results.append(evaluate_category(detector, name, data, resolution, client=client)[0])
            bar.update(1)
    return table_of(results)


def table_of(results: Any) -> pd.DataFrame:
    """Return the table of :func:`~skpatchcore.evaluate` for :class:`CategoryResult` objects."""
    rows = [{"category": escape_name(result.category), **result.row} for result in results]
    return pd.DataFrame(rows).set_index("category")


def with_mean(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a last row of means over the categories. Counts are summed.

    Parameters
    ----------
    table : DataFrame
        Table of :func:`~skpatchcore.evaluate`.

    Returns
    -------
    DataFrame
        The table with a row ``"mean"``. A table of one row is returned unchanged.
    """
    if len(table) < 2:
        return table
    counts = [name for name in ("misclassified", "n_train", "n_good", "n_defective", "n_masks") if name in table]
    mean = table.mean(numeric_only=True)
    mean[counts] = table[counts].sum()
    return pd.concat([table, mean.to_frame("mean").T]).astype(dict.fromkeys(counts, int)).rename_axis("category")


def as_categories(dataset: Any) -> dict[str, Any]:
    """Return a dict of data sets by name for any `dataset` that :func:`~skpatchcore.evaluate` accepts."""
    if isinstance(dataset, str | os.PathLike):
        return dict(load_categories(dataset))
    given = dict(dataset) if isinstance(dataset, Mapping) else {"all": dataset}
    found = {n: load_image_folder(d) if isinstance(d, str | os.PathLike) else d for n, d in given.items()}
    for name, data in found.items():
        if not hasattr(data, "test_labels"):
            raise TypeError(
                f"data set {name!r} is a {type(data).__name__}: expected a path, an ImageFolder, a TextureTask or a "
                "dict of these."
            )
    return found


def check_before(detector: Any, categories: Mapping[str, Any], resolution: str) -> None:
    """Raise those errors of :func:`~skpatchcore.evaluate` that can be detected before the fit."""
    if resolution not in ("own", "seen"):
        raise ValueError(f"resolution={resolution!r}: expected 'own' or 'seen'.")
    if resolution == "seen":
        _sizes_seen(detector)
    for name, dataset in categories.items():
        for label, kind in ((1, "good (+1)"), (-1, "defective (-1)")):
            if label not in dataset.test_labels:
                raise ValueError(
                    f"category {name!r} has no {kind} test images: metrics need good and defective test images."
                )


def evaluate_category(
    detector: Any, name: str, dataset: Any, resolution: str = "own", with_bytes: bool = True, client: Any = None
) -> tuple[CategoryResult, Any]:
    """Fit a clone of the detector on one category, and compute metrics on its test images.

    Parameters
    ----------
    detector : estimator
        As for :func:`~skpatchcore.evaluate`.
    name : str
        Name of the category.
    dataset : ImageFolder, TextureTask or VideoTask
        Images of the category.
    resolution : {"own", "seen"}, default="own"
        As for :func:`~skpatchcore.evaluate`.
    with_bytes : bool, default=True
        Whether to measure the size of the fitted detector.
    client : distributed.Client or None, default=None
        As for :func:`~skpatchcore.evaluate`.

    Returns
    -------
    result : CategoryResult
        Metrics, scores and curves.
    fitted : estimator
        The fitted clone. With a cluster, it is an ordinary detector too, which does not use the cluster.

    Raises
    ------
    ValueError
        As raised by :func:`~skpatchcore.evaluate`.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.datasets import make_textures
    >>> from skpatchcore.evaluation import evaluate_category
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0)
    >>> result, fitted = evaluate_category(detector, "brick", make_textures("brick", n_views=2))
    >>> result.scores.shape == result.labels.shape
    True
    """
    check_before(detector, {name: dataset}, resolution)
    labels, predict = np.asarray(dataset.test_labels), partial(_predicted, resolution=resolution)
    if client is None and hasattr(detector, "to_local"):
        client = detector.client_
    with record_seconds() as fit_seconds:
        if client is None:
            fitted = unfitted(detector).fit(dataset.train_images, groups=dataset.train_groups)
        else:
            fitted = _on_cluster().fit_on_cluster(client, detector, dataset.train_images, dataset.train_groups)
    with record_seconds() as test_seconds:
        if client is None:
            results = predict(fitted, dataset.test_images)
        else:
            results = _on_cluster().map_on_cluster(client, predict, fitted, dataset.test_images)
    scores = np.array([result[0] for result in results])
    seen = partial(_as_seen, detector=fitted, resolution=resolution, order=0)
    maps, inspections = [result[1] for result in results], [result[2] for result in results]
    pixels = pixel_results(maps, inspections, dataset.test_masks, labels, seen)
    found = f1_max_score(labels, scores)
    fpr, recall, _ = roc_curve(labels == -1, -scores)
    row = {
        **decisions_at_rates(fitted.calibration_scores_, scores, labels),
        "image_auroc": float(roc_auc_score(labels == -1, -scores)),
        "image_ap": float(average_precision_score(labels == -1, -scores)),
        "image_f1_max": found.f1,
        "misclassified": found.n_misclassified,
        **pixels.metrics,
        **_decisions(fitted.offset_, scores, labels),
        "promised_rate": getattr(fitted, "promised_rate_", np.nan),
        "n_train": len(dataset.train_images),
        "n_good": int((labels == 1).sum()),
        "n_defective": int((labels == -1).sum()),
        "n_masks": pixels.n_masks,
        "inspected": pixels.inspected,
        "n_uninspected_defects": pixels.n_uninspected,
        "bank_rows": len(getattr(fitted, "memory_bank_", ())) or np.nan,
        "bytes": pickled_bytes(fitted) if with_bytes else np.nan,
        "fit_seconds": sum(fit_seconds.values()),
        "test_seconds": sum(test_seconds.values()),
        **{f"fit_{phase}": seconds for phase, seconds in fit_seconds.items()},
        **{f"test_{phase}": seconds for phase, seconds in test_seconds.items()},
    }
    are_paths = isinstance(dataset.test_images[0], str)
    names = np.array(list(dataset.test_images)) if are_paths else np.arange(len(labels))
    result = CategoryResult(
        name, row, scores, labels, np.asarray(dataset.test_defects), names, fitted.offset_, fitted.pixel_offset_,
        fitted.calibration_scores_, _thinned(fpr, recall), pixels.pro, pixels.aupimo, pixels.counts,
    )  # fmt: skip
    return result, fitted


def pickled_bytes(detector: Any) -> float:
    """Return the size of a fitted detector as a joblib file in bytes; NaN if it cannot be pickled."""

    class Counter(io.RawIOBase):
        n = 0

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            size = memoryview(data).nbytes
            self.n += size
            return size

    counter = Counter()
    try:
        joblib.dump(detector, counter)
    except (pickle.PicklingError, AttributeError, TypeError):  # e.g. a lambda as backbone
        return math.nan
    return counter.n


def _on_cluster() -> Any:
    """Import the functions for clusters when they are needed: Dask is an optional dependency."""
    from skpatchcore.evaluation import _cluster

    return _cluster


def _predicted(
    fitted: Any, images: Sequence[Any], regions: None = None, *, resolution: str
) -> list[tuple[float, Any, Any]]:
    """Return, for each image, its score, its anomaly map at the given resolution, and its inspected pixels.

    The map and the pixels are None if the detector has no maps.
    """
    return [
        (result.score, None, None)
        if result.anomaly_map is None
        else (result.score, _as_seen(result.anomaly_map, fitted, resolution, order=1), ~np.isnan(result.anomaly_map))
        for result in fitted.iter_results(images)
    ]


def extractors_of(detector: Any) -> list[Any]:
    """Return the extractors of a detector or of the members of an ensemble, the fitted ones if there are any.

    None becomes the default extractor. A fitted extractor can differ from it: it has the defaults of the version that
    fitted the detector.
    """
    pairs = getattr(detector, "estimators", [("", detector)])
    members = getattr(detector, "estimators_", None) or [member for _, member in pairs]
    return [
        getattr(member, "extractor_", None) or getattr(member, "extractor", "precomputed") or TorchFeatureExtractor()
        for member in members
    ]


def _sizes_seen(detector: Any) -> tuple[Any, Any]:
    """Return `image_size` and `crop_size` of a detector's extractors, which must be equal."""
    extractors = extractors_of(detector)
    sizes = [size for extractor in extractors if (size := resizing_of(extractor)) is not None]
    if len(sizes) < len(extractors):
        raise ValueError("resolution='seen' needs a detector with a TorchFeatureExtractor. Choose 'own'.")
    if any(size != sizes[0] for size in sizes):
        raise ValueError(
            "resolution='seen': the members of the ensemble see different parts of an image. Choose 'own'."
        )
    return sizes[0]


def _as_seen(pixels: np.ndarray, detector: Any, resolution: str, order: int) -> np.ndarray:
    """Return a map (order 1: bilinear) or a mask (order 0: nearest) at the size and in the crop of the network."""
    if resolution == "own":
        return pixels
    _, _, view = placed((pixels.shape[0], pixels.shape[1]), *_sizes_seen(detector), 0)
    corners, sides = np.array(view.box[:2]), np.array(view.box[2:])
    # centres of the network's input pixels in pixel coordinates of the image
    y, x = (
        corner + (np.arange(n) + 0.5) / n * side - 0.5
        for corner, side, n in zip(corners, sides, view.input_size, strict=True)
    )
    if order == 0:
        seen: np.ndarray = pixels[np.ix_(_nearest(y, pixels.shape[0]), _nearest(x, pixels.shape[1]))]
    else:
        # At the edge of the crop, the interpolation needs values just outside.
        places, is_missing = np.meshgrid(y, x, indexing="ij"), np.isnan(pixels)
        seen = map_coordinates(filled_with_nearest(pixels), places, order=order, mode="nearest")
        if is_missing.any():  # pixels that touch an inspected pixel count as inspected
            is_outside = distance_transform_edt(is_missing) > 1.5
            seen[is_outside[np.ix_(_nearest(y, pixels.shape[0]), _nearest(x, pixels.shape[1]))]] = np.nan
    return seen


def _nearest(positions: np.ndarray, n: int) -> np.ndarray:
    return np.floor(positions + 0.5).astype(int).clip(0, n - 1)


def _decisions(offset: float, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    if np.isnan(offset):
        return dict.fromkeys(_DECISIONS, np.nan)
    flagged = scores < offset
    return {"good_flagged": float(flagged[labels == 1].mean()), "defects_found": float(flagged[labels == -1].mean())}


def _thinned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return at most 500 points of an ascending curve, at even distances along the curve, including its ends."""
    if len(x) > N_POINTS:
        length = np.append(0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
        picked = np.unique(np.searchsorted(length, np.linspace(0, length[-1], N_POINTS)))
        x, y = x[picked], y[picked]
    return np.stack([x, y])
