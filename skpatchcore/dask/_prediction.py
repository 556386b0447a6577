"""Lazy scores, labels, p-values, maps and masks: Dask computes them partition by partition with any fitted detector.

Each function has the name of a method of the detectors. A partition is scored by one task, which calls the method of
the detector on the images of the partition. Therefore the values are those of the local method.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import dask.bag as db
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from skpatchcore.calibration.conformal import adjusted_p_values, check_adjust
from skpatchcore.dask._partitions import OfImages, Partitions
from skpatchcore.detectors._results import check_on_error
from skpatchcore.images.containers import n_images_of

# Default for the maximum number of images per task, if the images are a list.
CHUNK = 32


def score_samples(
    detector: Any, X: Any, *, on_error: str = "raise", roi: Any = None, chunk: int = CHUNK, client: Any = None
) -> da.Array:
    """Return image scores of shape (n_images,), **bigger = more normal**, as a lazy dask array.

    Parameters
    ----------
    detector : fitted detector
        Any detector of the package that is not distributed. Its method of the same name is called on the workers.
    X : sequence of images, dask Bag, or dask Array of shape (n_images, height, width, n_channels)
        The images. The workers read paths. A Bag or an Array keeps its partitions. With precomputed patch features, `X`
        contains the features instead of images.
    on_error : {"raise", "flag"}, default="raise"
        As for the method of the detector. With ``"flag"``, the client issues one ImageWarning per partition with images
        that cannot be scored. The indices in the warning are those in `X`.
    roi : sequence, dask Bag or None, default=None
        Region of interest of each image. If `X` is a Bag, `roi` is a Bag with the same partitions.
    chunk : int, default=32
        Maximum number of images per partition, if `X` is a sequence. A multiple of the extractor's batch size is used.
    client : distributed.Client or None, default=None
        None means the current client. Without a client, Dask's local scheduler computes the result.

    Returns
    -------
    dask Array of shape (n_images,), float64
        Nothing is read before ``compute()``. The sizes of the chunks are NaN if the number of images in the partitions
        is unknown, as for a Bag.

    Raises
    ------
    TypeError, ValueError
        If `X` or `roi` has another type, if their lengths differ, or if `on_error` has an invalid value. Other errors
        of the method are raised by ``compute()``. The index in an ImageError is the index in `X`.

    Notes
    -----
    If there is a client, the detector is sent to the scheduler at once, and each worker receives it once per
    computation. The result can only be computed with this client. Without a client, the detector is a part of the
    lazy result.
    """
    function = _method("score_samples", np.asarray, on_error=on_error)
    return _array(Partitions(detector, X, roi, chunk, client), "skpatchcore-score", function, np.float64)


def decision_function(
    detector: Any, X: Any, *, on_error: str = "raise", roi: Any = None, chunk: int = CHUNK, client: Any = None
) -> da.Array:
    """Return scores relative to the threshold, negative = anomalous, as a lazy array. See :func:`score_samples`."""
    function = _method("decision_function", np.asarray, on_error=on_error)
    return _array(Partitions(detector, X, roi, chunk, client), "skpatchcore-decide", function, np.float64)


def predict(
    detector: Any, X: Any, *, on_error: str = "raise", roi: Any = None, chunk: int = CHUNK, client: Any = None
) -> da.Array:
    """Return +1 for normal and -1 for anomalous images as a lazy dask array of int64. See :func:`score_samples`."""
    function = _method("predict", np.asarray, on_error=on_error)
    return _array(Partitions(detector, X, roi, chunk, client), "skpatchcore-predict", function, np.int64)


def p_values(
    detector: Any, X: Any, *, adjust: str | None = None, roi: Any = None, chunk: int = CHUNK, client: Any = None
) -> da.Array:
    """Return conformal p-values, **small = anomalous**, as a lazy dask array. See :func:`score_samples`.

    `adjust` refers to all images of `X`. The adjusted p-values are one chunk.
    """
    check_adjust(adjust)
    source = Partitions(detector, X, roi, chunk, client)
    values = _array(source, "skpatchcore-p-values", _method("p_values", np.asarray), np.float64)
    if adjust is None:
        return values
    name = f"skpatchcore-adjust-{tokenize(values, adjust)}"
    layer = {(name, 0): (_adjusted, adjust, values.__dask_keys__())}
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[values])
    return da.Array(graph, name, chunks=((sum(source.lengths),),), dtype=np.float64)


def segment(detector: Any, X: Any, *, roi: Any = None, chunk: int = CHUNK, client: Any = None) -> db.Bag:
    """Return anomaly maps, **bigger = more anomalous**, as a lazy Bag of arrays of shape (height, width), float32.

    Each map has its image's own size. See :func:`score_samples` for the parameters. ``compute()`` of a Bag without a
    client starts processes, and each of them receives the detector with every task: use ``scheduler="threads"``.
    """
    function = _method("segment", list)
    return map_images(function, detector, X, name="skpatchcore-segment", roi=roi, chunk=chunk, client=client)


def predict_mask(
    detector: Any,
    X: Any,
    *,
    pixel_contamination: float | None = None,
    min_area: int | str = 1,
    roi: Any = None,
    chunk: int = CHUNK,
    client: Any = None,
) -> db.Bag:
    """Return masks of the anomalous pixels, True = anomalous, as a lazy Bag of arrays of shape (height, width).

    See :func:`segment`. `pixel_contamination` and `min_area` are those of the method of the detector.
    """
    # an OnnxDetector has no pixel_contamination
    own: dict[str, Any] = {} if pixel_contamination is None else {"pixel_contamination": pixel_contamination}
    function = _method("predict_mask", list, min_area=min_area, **own)
    return map_images(function, detector, X, name="skpatchcore-mask", roi=roi, chunk=chunk, client=client)


def score_and_segment(
    detector: Any, X: Any, *, on_error: str = "raise", roi: Any = None, chunk: int = CHUNK, client: Any = None
) -> db.Bag:
    """Return a lazy Bag with one pair (score, map) per image, from one run of the network.

    The scores are those of :func:`score_samples`, and the maps are those of :func:`segment`. The map is None for an
    image that cannot be scored, with ``on_error="flag"``.
    """
    function = _method("score_and_segment", _paired, ((), ()), on_error)
    return map_images(function, detector, X, name="skpatchcore-segment", roi=roi, chunk=chunk, client=client)


def map_images(
    function: OfImages,
    detector: Any,
    X: Any,
    *,
    name: str,
    roi: Any = None,
    chunk: int = CHUNK,
    client: Any = None,
) -> db.Bag:
    """Return a lazy Bag of the items that a function returns for the images of each partition.

    Parameters
    ----------
    function : callable
        ``function(detector, images, regions)`` returns a list. It runs on the workers. `images` can be empty. `regions`
        is None, or has one region per image.
    detector, X, roi, chunk, client
        As for :func:`score_samples`.
    name : str
        Name of the tasks in Dask's dashboard.

    Returns
    -------
    dask Bag
        The items of all partitions.
    """
    source = Partitions(detector, X, roi, chunk, client)
    return db.Bag(*source.mapped(function, name), len(source.lengths))


def _array(source: Partitions, name: str, function: OfImages, dtype: type) -> da.Array:
    return da.Array(*source.mapped(function, name), chunks=(source.lengths,), dtype=dtype)


def _method(
    method: str, as_type: Callable[[Any], Any], empty: Any = (), on_error: str = "raise", **options: Any
) -> OfImages:
    """Return a function that calls a method of the detector, and that converts the result.

    An empty partition, e.g. after a filter of a Bag, has the result `empty`.
    """
    check_on_error(on_error)
    if on_error != "raise":
        options["on_error"] = on_error
    return partial(_call, method=method, as_type=as_type, empty=empty, options=options)


# The following functions run on the workers.


def _adjusted(adjust: str, parts: list[np.ndarray]) -> np.ndarray:
    return adjusted_p_values(np.concatenate(parts), adjust)


def _call(
    detector: Any,
    images: Any,
    regions: Any,
    *,
    method: str,
    as_type: Callable[[Any], Any],
    empty: Any,
    options: dict[str, Any],
) -> Any:
    if not n_images_of(images):
        return as_type(empty)
    roi = {} if regions is None else {"roi": regions}
    return as_type(getattr(detector, method)(images, **roi, **options))


def _paired(scores_and_maps: tuple[Any, Any]) -> list[tuple[float, Any]]:
    return list(zip(*scores_and_maps, strict=True))
