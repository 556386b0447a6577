"""Protocols of the stages of a detector: `Extractor`, `Sampler` and `Index`.

Any estimator that implements one of these protocols can be used as a stage. This includes estimators of scikit-learn
and your own classes. Your classes must derive from ``sklearn.base.BaseEstimator``, because detectors clone their
stages. Each protocol defines the required members, and its docstring lists the optional members. Only the functions in
this module check whether a stage has an optional member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from skpatchcore.images.reading import DEFAULT_FORMAT, PixelFormat

if TYPE_CHECKING:
    from typing import TypeGuard

    from skpatchcore.images.views import View


class Extractor(Protocol):
    """Protocol of feature extractors, which turn images into grids of patch features.

    An extractor is stateless: `fit` does not estimate anything from images.

    Notes
    -----
    Optional members:

    - ``iter_transform(X)`` yields one pair ``(features, views)`` per batch. ``features`` is an array of shape (n_batch,
      grid_height, grid_width, n_channels), and ``views`` holds one ``skpatchcore.images.View`` per image. If this
      method is missing, `transform` is called on a few images at a time, and each grid is assumed to cover its
      complete image.
    - ``input_sizes(X)`` returns the height and width of the network's input for each image, as an array of shape
      (n_images, 2). It returns None if all sizes are equal. With this method, memory estimates are exact for images of
      different sizes.
    - ``batch_size`` is the number of images per batch. If it is missing, 16 is assumed.
    - ``channel_order`` and ``value_range`` define the interpretation of the values of images, as in
      :class:`~skpatchcore.TorchFeatureExtractor`. They are used to draw images as the network sees them.
    - ``image_size`` and ``crop_size`` define how images are resized and cropped, as in
      :class:`~skpatchcore.TorchFeatureExtractor`. They are used to compare pixels at the size of the network's input.
    - Parameters ``random_state`` and ``device``: the detector sets ``random_state`` if it is None, and ``device`` if it
      is ``"auto"``.
    """

    def fit(self, X: Any, y: Any = None) -> Any:
        """Check the parameters and load the required resources, such as weights; return the estimator."""

    def transform(self, X: Any) -> Any:
        """Return an array of shape (n_images, grid_height, grid_width, n_channels), or a list of grids."""


class Sampler(Protocol):
    """Protocol of samplers, which select the coreset from the rows of a matrix.

    Attributes
    ----------
    component_indices_ : array of shape (n_selected,)
        Indices of the selected rows, in order of selection. Set by `fit`.

    Notes
    -----
    Optional members:

    - ``components_`` holds the rows of the memory bank, of shape (n_selected, n_features). `fit` sets this attribute.
      A sampler that computes prototypes stores them here. If it is missing, the rows at ``component_indices_`` are the
      memory bank.
    - ``fit_batches(batches, n_samples, max_memory)`` selects rows that arrive in batches and are read only once. It
      must be accompanied by ``estimate_memory(n_samples, n_features)``. Both are required if not all patch features
      fit in memory.
    - ``ratio`` is the fraction or the number of rows that are selected. If it is missing, all rows are assumed.
    - Parameters ``random_state``, ``device`` and ``verbose``: the detector sets ``random_state`` if it is None,
      ``device`` if it is ``"auto"``, and ``verbose`` if it is 0.

    The detector also sets ``components_`` after ``fit_batches``, and if the index stores the rows in another dtype.
    """

    component_indices_: Any

    def fit(self, X: Any, y: Any = None) -> Any:
        """Select rows of `X`; return the estimator."""


class Index(Protocol):
    """Protocol of indexes, which find the nearest rows of the memory bank for given patch features.

    ``sklearn.neighbors.NearestNeighbors`` implements this protocol.

    Notes
    -----
    The results of an index are checked in ``skpatchcore.bank.answers``. Row indices outside the bank, wrong shapes and
    wrong types raise a ValueError. A row index of -1 means that a neighbour was not found. If the index returns too few
    distinct rows for a query, this query is searched exactly, with a warning. The distances that your own index classes
    return are not used. Euclidean distances are computed from the rows instead. A warning is issued if most of the
    returned distances are not Euclidean.

    Optional members:

    - ``kneighbors(..., exclude=rows)`` searches as if these rows of the bank were absent. If this parameter is missing,
      the number of requested neighbours is increased by the number of excluded rows.
    - ``stored_rows`` is the bank as the index stores it. The detector uses this array if its dtype differs.
    - Parameters ``random_state`` and ``device``: the detector sets ``random_state`` if it is None, and ``device`` if it
      is ``"auto"``.
    """

    def fit(self, X: Any, y: Any = None) -> Any:
        """Store the rows of `X`, of shape (n_rows, n_features); return the estimator."""

    def kneighbors(self, X: Any, n_neighbors: int, return_distance: bool = True) -> Any:
        """Return Euclidean distances, ascending, and row indices, each of shape (n_queries, n_neighbors)."""


class ViewExtractor(Extractor, Protocol):
    """Protocol of extractors that yield features in batches and report the view of each image."""

    def iter_transform(self, X: Any) -> Iterator[tuple[np.ndarray, list[View]]]:
        """Yield the features of each batch of images, with one view per image."""


class BatchSampler(Sampler, Protocol):
    """Protocol of samplers that can select from batches of rows that are read only once."""

    def fit_batches(self, batches: Iterable[np.ndarray], n_samples: int, max_memory: int | None) -> Any:
        """Select from `n_samples` rows in batches, using at most `max_memory` bytes; return the estimator."""

    def estimate_memory(self, n_samples: int, n_features: int) -> int:
        """Return the number of bytes that `fit_batches` needs without a memory limit."""


def reports_views(extractor: Any) -> TypeGuard[ViewExtractor]:
    """Return whether an extractor has the method ``iter_transform``."""
    return hasattr(extractor, "iter_transform")


def batch_size_of(extractor: Extractor, default: int) -> int:
    """Return the number of images in an extractor's batches; `default` if the extractor has no ``batch_size``."""
    size: int = getattr(extractor, "batch_size", default)
    return size


def input_sizes_of(extractor: Extractor | None, X: Any) -> np.ndarray | None:
    """Return the sizes of the network's input for images; None if all sizes are equal or unknown."""
    sizes_of = getattr(extractor, "input_sizes", None)
    return None if sizes_of is None else sizes_of(X)


def resizing_of(extractor: Any) -> tuple[Any, Any] | None:
    """Return ``(image_size, crop_size)`` of an extractor; None if the extractor lacks one of these parameters."""
    if not hasattr(extractor, "image_size") or not hasattr(extractor, "crop_size"):
        return None
    return extractor.image_size, extractor.crop_size


def pixel_format_of(estimator: Any) -> PixelFormat:
    """Return the pixel format of an extractor, or of the extractor of a fitted detector or ensemble."""
    members = [member for member in getattr(estimator, "estimators_", ())[:1]]
    for owner in (estimator, getattr(estimator, "extractor_", None), *(m.extractor_ for m in members)):
        if hasattr(owner, "channel_order") and hasattr(owner, "value_range"):
            value_range = owner.value_range
            return PixelFormat(owner.channel_order, None if value_range is None else tuple(value_range))
    return DEFAULT_FORMAT


def image_size_of(extractor: Any) -> Any:
    """Return ``image_size`` of an extractor; None if the extractor has no such parameter."""
    return getattr(extractor, "image_size", None)


def selects_from_batches(sampler: Any) -> TypeGuard[BatchSampler]:
    """Return whether a sampler has the methods ``fit_batches`` and ``estimate_memory``."""
    return hasattr(sampler, "fit_batches") and hasattr(sampler, "estimate_memory")


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
    """Return the bank as a fitted index stores it; `rows`, on which the index was fitted, if this is unknown."""
    stored: np.ndarray = getattr(index, "stored_rows", rows)
    return stored
