"""Protocols of the stages of a detector: `Extractor`, `Transformer`, `Sampler` and `Index`.

Any estimator with the members of one of these protocols can be used as a stage. This includes estimators of
scikit-learn and your own classes. Your classes need not inherit from a protocol, but must inherit from
``sklearn.base.BaseEstimator``, because detectors clone their stages. Each protocol defines the required members. The
docstring of the protocol lists the optional members. Only the functions in this module check whether a stage has an
optional member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from skpatchcore._utils.warning import warn_user
from skpatchcore.images.reading import DEFAULT_FORMAT, PixelFormat

if TYPE_CHECKING:
    from typing import TypeGuard

    from skpatchcore.images.views import View


class Extractor(Protocol):
    """Protocol of feature extractors: an extractor turns each image into a grid of patch features.

    A patch feature is a vector of numbers that describes a small area of the image, the patch. An extractor is an
    estimator with the methods `fit` and `transform`. The images that are passed to `fit` must not change the results of
    `transform`.

    Notes
    -----
    An extractor can have more members. All of them are optional:

    - ``iter_transform(X)``: generator that yields one pair ``(features, views)`` per batch of images. ``features`` is
      an array of shape (n_batch, grid_height, grid_width, n_channels), or a list with one array of shape (grid_height,
      grid_width, n_channels) per image. ``views`` is a list with one
      ``skpatchcore.images.View(image_size, box, input_size)`` per image. A view states which part of the original image
      the grid covers. Its ``box`` is the top, left, height and width of this part in pixels of the original image, i.e.
      before resizing and cropping. If an extractor has no ``iter_transform``, the detector calls `transform` with
      ``batch_size`` images at a time, and assumes that each grid covers the complete original image.
    - ``input_sizes(X)``: method that returns the height and width of the network's input for each image, as an array of
      shape (n_images, 2). The method returns None if the size is the same for all images. The detector uses these sizes
      to estimate how much RAM a fit on images of different sizes needs. If an extractor has no ``input_sizes``, the
      detector assumes that all grids are as large as those of the first batch.
    - ``batch_size``: number of images per batch. If an extractor has no ``batch_size``, the detector uses 16.
    - ``tile_shape(input_size)``: method that returns the height and width of the tiles into which the extractor cuts an
      image, from the height and width of the network's input; None if the image is not cut. The detector uses this size
      to estimate how much RAM a fit on large images needs. The extractor then returns one image per batch.
    - ``channel_order`` and ``value_range``: meaning of the stored values of images, as in
      :class:`~skpatchcore.TorchFeatureExtractor`. Figures and reports use these values to draw the images. If an
      extractor has both and ``iter_transform``, pixels outside the region of interest are replaced by one colour before
      the extractor reads an image. Such images are passed as arrays.
    - ``layer_channels()``: method that returns how many consecutive channels of a patch feature come from each layer,
      as a tuple of ints; None if a channel belongs to several layers. A transformer with the parameter
      ``layer_channels=None`` gets these numbers.
    - ``image_size`` and ``crop_size``: size to which images are resized and cropped, as in
      :class:`~skpatchcore.TorchFeatureExtractor`. :func:`~skpatchcore.evaluate` with ``resolution="seen"`` uses these
      sizes to resize and crop anomaly maps and masks in the same way. Reports use these sizes to state which part of an
      image is not inspected.
    - ``random_state`` and ``device``: parameters. If ``random_state`` is None and the ``random_state`` of the detector
      is not None, the detector draws a seed and sets it here. If ``device`` is ``"auto"``, the detector sets this
      parameter to its own ``device``.
    """

    def fit(self, X: Any, y: Any = None) -> Any:
        """Check the parameters, load the required files such as the weights of a network, and return the estimator."""

    def transform(self, X: Any) -> Any:
        """Return the patch features of images.

        Returns
        -------
        array of shape (n_images, grid_height, grid_width, n_channels), or list of arrays
            A list if the grids have different sizes. The list has one array of shape (grid_height, grid_width,
            n_channels) per image.
        """


class Transformer(Protocol):
    """Protocol of transformers: a transformer changes the patch features before the sampler and the index get them.

    A transformer is an estimator with the methods `fit` and `transform`, e.g. :class:`~skpatchcore.PatchWhitening` or
    ``sklearn.decomposition.PCA``. `X` is a matrix with one row per patch. The rows of the result are compared by their
    Euclidean distances.

    Notes
    -----
    A transformer can have more members. All of them are optional:

    - ``partial_fit(X)``: method that continues the fit with more rows. The detector then fits the transformer from
      parts of 4,096 to 8,191 rows. Only with this method can the detector fit on more patch features than fit into RAM.
    - ``n_components``: parameter with the number of columns of the result, to estimate memory. If it is not an int, the
      result is assumed to have as many columns as `X`.
    - ``layer_channels``: parameter. If it is None, the detector sets a clone's parameter to the number of channels of
      each layer of the extractor, if the extractor has ``layer_channels``.
    - ``drop_fit_state()``: method that frees the memory that only ``partial_fit`` needs. The detector calls it after
      the fit.
    - ``n_features_in_``: number of columns of `X` in the fit. With it, the error for patch features with another number
      of channels names both numbers.
    - ``random_state`` and ``device``: parameters, as for samplers.
    """

    def fit(self, X: Any, y: Any = None) -> Any:
        """Fit on the rows of `X`, of shape (n_rows, n_channels), and return the estimator."""

    def transform(self, X: Any) -> Any:
        """Return the transformed rows, of shape (n_rows, n_columns)."""


class Sampler(Protocol):
    """Protocol of samplers: a sampler selects the rows of the memory bank from all patch features.

    `X` is a matrix with one row per patch of all training images. The selected rows are called the coreset. The
    detector stores the coreset as its memory bank, and compares the patches of new images with the bank.

    Attributes
    ----------
    component_indices_ : array of shape (n_selected,)
        Indices of the selected rows of `X`, in order of selection. `fit` and ``fit_batches`` must set this attribute.
        The detector uses these indices to find the training image and the position of each row of the memory bank.

    Notes
    -----
    A sampler can have more members. All of them are optional:

    - ``components_``: array of shape (n_selected, n_features), set by `fit`. If `fit` sets this array, its rows become
      the memory bank. These rows need not be rows of `X`: they can be computed, such as cluster centres. Then
      ``component_indices_`` holds the index of a similar row of `X` for each of them. If `fit` does not set
      ``components_``, the rows ``X[component_indices_]`` become the memory bank.
    - ``fit_batches(batches, n_samples, max_memory)``: method that selects rows without holding all of them in memory.
      ``batches`` is an iterable of matrices. The method can iterate over it only once. ``n_samples`` is the expected
      total number of rows, and ``max_memory`` is the maximum number of bytes (None: no limit). The method sets
      ``component_indices_``, counted over all batches. The detector then sets ``components_`` to these rows.
    - ``estimate_memory(n_samples, n_features)``: method that returns the number of bytes that ``fit_batches`` needs.
      The detector can fit on more patch features than fit into RAM only if the sampler has both ``fit_batches`` and
      ``estimate_memory``.
    - ``fit_folds(batches, n_samples, folds)``: method that fits as ``fit_batches`` without a memory limit, and returns
      one array of row indices per item of ``folds``: the rows that the sampler would select if the rows of this item
      were missing. ``folds`` is an iterable of arrays of row indices, to be read after the last batch. With this
      method, ``calibration="auto"`` scores each training image against a bank that is selected without it. Without
      this method, the rows of the image are removed from the final bank, and no other rows replace them.
      :class:`~skpatchcore.GreedyCoresetSampler` also has a parameter ``images``, with which this is faster.
    - ``extend(batches, n_samples, growth, reserve)``: method of a fitted sampler that goes on selecting from new rows.
      ``growth`` is ``"radius"`` (until the new rows are as close to selected rows as the old ones) or ``"ratio"``
      (until the fraction of selected rows is that of `fit`); a ValueError states that a value is not possible. The
      method returns the row numbers of the newly selected rows, counted over the new rows, and appends to
      ``component_indices_``, counted on from the rows seen before. The detector appends the selected rows to
      ``components_``. With this method and ``n_samples_seen_``, the number of rows seen, a detector has `partial_fit`.
    - ``refill(reserve, needed)``: method of a fitted sampler that selects from the reserve after images were forgotten.
      ``fit_batches``, ``fit_folds`` and ``extend`` of such a sampler have a parameter ``reserve``: an
      object of the class ``skpatchcore.coreset.reserve.ReserveRequest``, or None.
    - ``computes_components``: True if ``components_`` are computed from all rows, e.g. cluster centres. The detector
      then refuses to forget images, because each row can depend on each image.
    - ``n_projections``: number of columns with which ``fit_folds`` computes. It is used to estimate the time.
    - ``ratio``: how many rows the sampler selects, to estimate the size of the memory bank before the fit. A float in
      (0, 1] is a fraction of the rows. An int is a number of rows. If a sampler has no ``ratio``, the estimate assumes
      that all rows are selected.
    - ``random_state``, ``device`` and ``verbose``: parameters. If ``random_state`` is None and the ``random_state`` of
      the detector is not None, the detector draws a seed and sets it here. If ``device`` is ``"auto"``, the detector
      sets this parameter to its own ``device``. If ``verbose`` is 0, the detector sets this parameter to its own
      ``verbose``.

    If the index stores the memory bank with another dtype, e.g. float16, the detector replaces ``components_`` by the
    rows that the index stores. Therefore, the bank is in memory only once.
    """

    component_indices_: Any

    def fit(self, X: Any, y: Any = None) -> Any:
        """Select rows of `X` and return the estimator."""


class Index(Protocol):
    """Protocol of indexes: an index finds the nearest rows of the memory bank for given patch features.

    An index is an estimator with the methods `fit` and `kneighbors`, e.g. ``sklearn.neighbors.NearestNeighbors``. The
    memory bank is the matrix that is passed to `fit`. A query is a patch feature for which `kneighbors` finds the
    nearest rows of this matrix.

    Notes
    -----
    The detector checks the results of an index. A row index outside the bank, a wrong shape or a wrong type raises a
    ValueError. A row index of -1 means that the index did not find a neighbour. If an index returns too few distinct
    rows for a query, the detector searches the nearest rows of this query exactly, and warns. If an index is not a
    class of this package, the detector does not use the returned distances. The detector computes the Euclidean
    distances to the returned rows instead, and warns if most of the returned distances are not Euclidean.

    An index can have more members. All of them are optional:

    - ``kneighbors(..., exclude=rows)``: parameter of `kneighbors` with row indices of the bank. The result of
      `kneighbors` must contain none of these rows. If `kneighbors` has no parameter ``exclude``, the detector requests
      as many additional neighbours as rows are to be excluded, and drops the excluded rows from the result.
    - ``stored_rows``: array with the bank as the index stores it, e.g. rounded to float16. If the dtype of this array
      differs from the dtype of the matrix in `fit`, the detector uses this array as its memory bank.
    - ``random_state`` and ``device``: parameters. If ``random_state`` is None and the ``random_state`` of the detector
      is not None, the detector draws a seed and sets it here. If ``device`` is ``"auto"``, the detector sets this
      parameter to its own ``device``.
    """

    def fit(self, X: Any, y: Any = None) -> Any:
        """Store the rows of `X`, of shape (n_rows, n_features), and return the estimator."""

    def kneighbors(self, X: Any, n_neighbors: int, return_distance: bool = True) -> Any:
        """Return the Euclidean distances to the nearest rows, and the indices of these rows.

        Parameters
        ----------
        X : array of shape (n_queries, n_features)
            The queries.
        n_neighbors : int
            Number of nearest rows per query.
        return_distance : bool, default=True
            If False, only the indices are returned.

        Returns
        -------
        distances : array of shape (n_queries, n_neighbors)
            Euclidean distances, ascending in each row.
        indices : array of shape (n_queries, n_neighbors), int
            Indices of the rows. -1 means that no row was found.
        """


class ViewExtractor(Extractor, Protocol):
    """Protocol of extractors that yield features in batches and report the view of each image."""

    def iter_transform(self, X: Any) -> Iterator[tuple[np.ndarray, list[View]]]:
        """Yield the features of each batch of images, with one view per image."""


class BatchSampler(Sampler, Protocol):
    """Protocol of samplers that can select rows in a single pass over batches of rows."""

    def fit_batches(self, batches: Iterable[np.ndarray], n_samples: int, max_memory: int | None) -> Any:
        """Select from `n_samples` rows in batches with at most `max_memory` bytes, and return the estimator."""

    def estimate_memory(self, n_samples: int, n_features: int) -> int:
        """Return the number of bytes that `fit_batches` needs without a memory limit."""


def reports_views(extractor: Any) -> TypeGuard[ViewExtractor]:
    """Return whether an extractor has the method ``iter_transform``, which also reports the view of each image."""
    return hasattr(extractor, "iter_transform")


def batch_size_of(extractor: Extractor, default: int) -> int:
    """Return the number of images in an extractor's batches; `default` if the extractor has no ``batch_size``."""
    size: int = getattr(extractor, "batch_size", default)
    return size


def input_sizes_of(extractor: Extractor | None, X: Any) -> np.ndarray | None:
    """Return the size of the network's input for each image; None if all sizes are equal or unknown."""
    sizes_of = getattr(extractor, "input_sizes", None)
    return None if sizes_of is None else sizes_of(X)


def tile_shape_of(extractor: Any, input_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the size of the tiles into which an extractor cuts an image; None if it does not cut the image."""
    shape_of = getattr(extractor, "tile_shape", None)
    return None if shape_of is None else shape_of(input_size)


def resizing_of(extractor: Any) -> tuple[Any, Any] | None:
    """Return ``(image_size, crop_size)`` of an extractor; None if the extractor lacks one of these parameters."""
    if not hasattr(extractor, "image_size") or not hasattr(extractor, "crop_size"):
        return None
    return extractor.image_size, extractor.crop_size


def pixel_format_or_none(extractor: Any) -> PixelFormat | None:
    """Return the pixel format of an extractor; None if it has no ``channel_order`` or no ``value_range``."""
    if not hasattr(extractor, "channel_order") or not hasattr(extractor, "value_range"):
        return None
    value_range = extractor.value_range
    return PixelFormat(extractor.channel_order, None if value_range is None else tuple(value_range))


def max_pixels_of(extractor: Any) -> int | None:
    """Return the maximum number of pixels per image; None if the extractor has no ``max_pixels``."""
    limit: int | None = getattr(extractor, "max_pixels", None)
    return limit


def pixel_format_of(estimator: Any) -> PixelFormat:
    """Return the pixel format of an extractor, or of the extractor of a fitted detector or ensemble."""
    first_member = [*getattr(estimator, "estimators_", ())][:1]
    extractors = [getattr(owner, "extractor_", None) for owner in (estimator, *first_member)]
    for owner in (estimator, *extractors):
        if (found := pixel_format_or_none(owner)) is not None:
            return found
    return DEFAULT_FORMAT


def image_size_of(extractor: Any) -> Any:
    """Return ``image_size`` of an extractor; None if the extractor has no such parameter."""
    return getattr(extractor, "image_size", None)


def layer_channels_of(extractor: Any) -> tuple[int, ...] | None:
    """Return how many channels come from each layer of an extractor; None if this is unknown."""
    channels_of = getattr(extractor, "layer_channels", None)
    return None if channels_of is None else channels_of()


def with_layer_channels(transformer: Any, extractor: Any) -> Any:
    """Return a transformer, after setting its parameter ``layer_channels`` to the channels of an extractor.

    The parameter is set only if it is None. This includes a transformer that is the first step of a pipeline. A
    transformer without this parameter is not changed. An extractor whose settings mix the layers gives a warning.
    """
    steps = getattr(transformer, "steps", None)
    first = transformer if steps is None else steps[0][1]
    if not hasattr(first, "get_params") or "layer_channels" not in first.get_params(deep=False):
        return transformer
    if first.layer_channels is None and hasattr(extractor, "layer_channels"):
        channels = layer_channels_of(extractor)
        if channels is None:
            warn_user(
                f"{type(first).__name__}: the extractor does not state which channels come from which layer, so all "
                "channels are scaled by one factor. Pass layer_channels, or use an extractor with n_channels=None."
            )
        else:
            first.set_params(layer_channels=channels)
    return transformer


def fits_in_parts(transformer: Any) -> bool:
    """Return whether a transformer has the method ``partial_fit``."""
    return hasattr(transformer, "partial_fit")


def drop_fit_state(transformer: Any) -> None:
    """Free the memory that only ``partial_fit`` of a transformer needs, if the transformer can do so.

    Fitted arrays become C-contiguous, as they are after saving and loading: products of arrays in another order would
    be rounded in another way.
    """
    if hasattr(transformer, "drop_fit_state"):
        transformer.drop_fit_state()
    for part in [transformer, *(step for _, step in getattr(transformer, "steps", ()))]:
        for name, value in vars(part).items() if hasattr(part, "__dict__") else ():
            if name.endswith("_") and isinstance(value, np.ndarray) and value.ndim > 1:
                setattr(part, name, np.ascontiguousarray(value))


def n_columns_of(transformer: Any, n_channels: int) -> int:
    """Return the number of columns after a transformer: `n_channels`, or ``n_components`` if this number is smaller."""
    n_components = getattr(transformer, "n_components", None)
    return min(n_components, n_channels) if isinstance(n_components, int) else n_channels


def selects_from_batches(sampler: Any) -> TypeGuard[BatchSampler]:
    """Return whether a sampler has the methods ``fit_batches`` and ``estimate_memory``."""
    return hasattr(sampler, "fit_batches") and hasattr(sampler, "estimate_memory")


def selects_folds(sampler: Any) -> bool:
    """Return whether a sampler has the method ``fit_folds``."""
    return hasattr(sampler, "fit_folds")


def selects_reserve(sampler: Any) -> bool:
    """Return whether a sampler has the method ``refill``, and therefore selects a reserve."""
    return hasattr(sampler, "refill")


def require_extension(sampler: Any) -> None:
    """Raise a ValueError if a sampler has no method ``extend``."""
    if not hasattr(sampler, "extend"):
        raise ValueError(
            f"sampler={sampler!r} cannot go on selecting from new images: it has no method extend. Use "
            "GreedyCoresetSampler or RandomSampler, or fit again on all images."
        )


def with_components(sampler: Any, places: np.ndarray, indices: np.ndarray, rows: np.ndarray) -> Any:
    """Return a copy of a fitted sampler with other selected rows.

    Parameters
    ----------
    sampler : Sampler
        The fitted sampler. It is not changed.
    places : array of int
        Places of the previously selected rows that stay.
    indices : array of int64
        Indices of rows that are selected in addition.
    rows : array of shape (n_selected, n_features)
        All rows that are selected now.

    Raises
    ------
    ValueError
        If the sampler computes its components.
    """
    if getattr(sampler, "computes_components", False):
        raise ValueError(
            f"sampler={sampler!r} computes the rows of the memory bank from all images, so that no row belongs to one "
            "image only. Fit again without the images."
        )
    changed = copy(sampler)
    changed.component_indices_ = np.concatenate([selected_by(sampler)[places], indices])
    if hasattr(sampler, "components_"):
        changed.components_ = rows
    if hasattr(sampler, "selection_distances_"):
        radii = sampler.selection_distances_[places]
        added = np.full(len(indices), getattr(sampler, "covering_radius_", np.nan))
        changed.selection_distances_ = np.concatenate([radii, added])
    return changed


def columns_of(sampler: Any, n_features: int) -> int:
    """Return the number of columns with which a sampler computes; `n_features` if it has no ``n_projections``."""
    n_projections = getattr(sampler, "n_projections", None)
    return min(n_features, n_projections) if isinstance(n_projections, int) else n_features


def ratio_of(sampler: Sampler) -> float:
    """Return the fraction or number of rows that a sampler selects; 1.0 (all rows) if the sampler has no ``ratio``."""
    ratio: float = getattr(sampler, "ratio", 1.0)
    return ratio


def selected_by(sampler: Any) -> np.ndarray:
    """Return the indices of the rows that a fitted sampler selected.

    Raises
    ------
    ValueError
        If the sampler has no ``component_indices_``.
    """
    if not hasattr(sampler, "component_indices_"):
        raise ValueError(
            f"sampler={sampler!r} has no component_indices_ after fit. Use a sampler that sets this attribute."
        )
    return np.asarray(sampler.component_indices_, np.int64)


def components_of(sampler: Sampler) -> np.ndarray | None:
    """Return ``components_`` of a fitted sampler; None if the sampler has no such attribute."""
    rows: np.ndarray | None = getattr(sampler, "components_", None)
    return rows


def can_exclude(index: Index) -> bool:
    """Return whether the method ``kneighbors`` of an index has the parameter ``exclude``."""
    return "exclude" in signature(index.kneighbors).parameters


def stored_rows_of(index: Index, rows: np.ndarray) -> np.ndarray:
    """Return the bank as a fitted index stores it; `rows`, the fitted matrix, if the index has no ``stored_rows``."""
    stored: np.ndarray = getattr(index, "stored_rows", rows)
    return stored
