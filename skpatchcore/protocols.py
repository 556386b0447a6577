"""The plug points: what an extractor, a sampler and an index must have, and what they may have.

A stage of a detector can be any estimator that fits one of these protocols: scikit-learn's own, and classes of yours
that derive from ``sklearn.base.BaseEstimator``, because detectors clone their stages. Each protocol names the required
members; its docstring lists the optional ones. The functions below are the only places where the package asks for an
optional member.
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
    """Turns images into grids of patch features. It is stateless: `fit` learns nothing from images.

    Notes
    -----
    Optional members:

    - ``iter_transform(X)`` yields ``(features, views)`` batch by batch: an array of shape (n_batch, grid_height,
      grid_width, n_channels) and one ``skpatchcore.images.View`` per image. Without it, `transform` is called on
      a few images at a time, and each grid is assumed to cover its whole image.
    - ``input_sizes(X)`` returns the height and width that the network sees of each image, an array of shape (n_images,
      2), or None if all are equal. It makes memory estimates exact for images of different sizes.
    - ``batch_size`` is the number of images in a batch; 16 is assumed without it.
    - ``channel_order`` and ``value_range`` say how the values of images are understood, as in
      :class:`~skpatchcore.TorchFeatureExtractor`. They are needed to draw images as the network sees them.
    - ``image_size`` and ``crop_size`` say how images are resized and cropped, as in
      :class:`~skpatchcore.TorchFeatureExtractor`. They are needed to compare pixels at the size that the network sees.
    - The detector sets a parameter ``random_state`` if it is None, and ``device`` if it is ``"auto"``.
    """

    def fit(self, X: Any, y: Any = None) -> Any:
        """Check parameters and load what is needed; return the estimator."""

    def transform(self, X: Any) -> Any:
        """Return an array of shape (n_images, grid_height, grid_width, n_channels), or a list of grids."""


class Sampler(Protocol):
    """Selects the coreset from the rows of a matrix.

    Attributes
    ----------
    component_indices_ : array of shape (n_selected,)
        Indices of the selected rows, in order of selection. Set by `fit`.

    Notes
    -----
    Optional members:

    - ``components_``, set by `fit`: the selected rows, of shape (n_selected, n_features). A sampler that learns
      prototypes returns them here. Without it, the rows at ``component_indices_`` are the memory bank.
    - ``fit_batches(batches, n_samples, max_memory)`` together with ``estimate_memory(n_samples, n_features)`` selects
      from rows that arrive in batches and are seen once. Needed for fits in which not all patch features fit in memory.
    - ``ratio`` is the fraction or number of rows that are selected; all rows are assumed without it.
    - The detector sets a parameter ``random_state`` if it is None, ``device`` if it is ``"auto"``, and ``verbose`` if
      it is 0. It also sets ``components_`` after ``fit_batches``, and where the index keeps the rows in another dtype.
    """

    component_indices_: Any

    def fit(self, X: Any, y: Any = None) -> Any:
        """Select rows of `X`; return the estimator."""


class Index(Protocol):
    """Finds the nearest rows of the memory bank, as ``sklearn.neighbors.NearestNeighbors`` does.

    Notes
    -----
    The answers are checked (``skpatchcore.bank.answers``). Rows that the bank does not have, wrong shapes and wrong
    types raise a ValueError. A row of -1 marks a neighbour that was not found: a query with too few distinct rows is
    searched exactly, with a warning. Distances are measured from the rows: they are Euclidean whatever the index
    returns.

    Optional members:

    - ``kneighbors(..., exclude=rows)`` searches as if these rows of the bank were absent. Without it, as many more
      neighbours are requested as rows are excluded.
    - ``stored_rows`` is the bank as the index keeps it. The detector shares that array if its dtype differs.
    - The detector sets a parameter ``random_state`` if it is None, and ``device`` if it is ``"auto"``.
    """

    def fit(self, X: Any, y: Any = None) -> Any:
        """Keep the rows of `X`, of shape (n_rows, n_features); return the estimator."""

    def kneighbors(self, X: Any, n_neighbors: int, return_distance: bool = True) -> Any:
        """Return Euclidean distances, ascending, and row indices, each of shape (n_queries, n_neighbors)."""


class ViewExtractor(Extractor, Protocol):
    """An extractor that reports its batches and what it sees of each image."""

    def iter_transform(self, X: Any) -> Iterator[tuple[np.ndarray, list[View]]]:
        """Yield the features of the next images, with one view per image."""


class BatchSampler(Sampler, Protocol):
    """A sampler that can select from rows that it sees once."""

    def fit_batches(self, batches: Iterable[np.ndarray], n_samples: int, max_memory: int | None) -> Any:
        """Select from batches of rows within `max_memory` bytes; return the estimator."""

    def estimate_memory(self, n_samples: int, n_features: int) -> int:
        """Return the bytes that `fit_batches` needs without a limit."""


def reports_views(extractor: Any) -> TypeGuard[ViewExtractor]:
    """Return whether an extractor has ``iter_transform``."""
    return hasattr(extractor, "iter_transform")


def batch_size_of(extractor: Extractor, default: int) -> int:
    """Return the number of images in an extractor's batches."""
    size: int = getattr(extractor, "batch_size", default)
    return size


def input_sizes_of(extractor: Extractor | None, X: Any) -> np.ndarray | None:
    """Return the sizes at which the network sees images; None if they are equal or unknown."""
    sizes_of = getattr(extractor, "input_sizes", None)
    return None if sizes_of is None else sizes_of(X)


def resizing_of(extractor: Any) -> tuple[Any, Any] | None:
    """Return `image_size` and `crop_size` of an extractor; None if it has no such parameters."""
    if not hasattr(extractor, "image_size") or not hasattr(extractor, "crop_size"):
        return None
    return extractor.image_size, extractor.crop_size


def pixel_format_of(estimator: Any) -> PixelFormat:
    """Return how an extractor, or the extractor of a fitted detector, understands the values of images."""
    members = [member for member in getattr(estimator, "estimators_", ())[:1]]
    for owner in (estimator, getattr(estimator, "extractor_", None), *(m.extractor_ for m in members)):
        if hasattr(owner, "channel_order") and hasattr(owner, "value_range"):
            value_range = owner.value_range
            return PixelFormat(owner.channel_order, None if value_range is None else tuple(value_range))
    return DEFAULT_FORMAT


def image_size_of(extractor: Any) -> Any:
    """Return `image_size` of an extractor; None if it has no such parameter."""
    return getattr(extractor, "image_size", None)


def selects_from_batches(sampler: Any) -> TypeGuard[BatchSampler]:
    """Return whether a sampler has ``fit_batches`` and ``estimate_memory``."""
    return hasattr(sampler, "fit_batches") and hasattr(sampler, "estimate_memory")


def ratio_of(sampler: Sampler) -> float:
    """Return the fraction or number of rows that a sampler selects; 1.0, the worst case, if it does not say."""
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
        raise ValueError(f"sampler={sampler!r} selects no rows: after fit it has no component_indices_.")
    return np.asarray(sampler.component_indices_, np.int64)


def components_of(sampler: Sampler) -> np.ndarray | None:
    """Return the rows that a fitted sampler holds; None if it holds indices only."""
    rows: np.ndarray | None = getattr(sampler, "components_", None)
    return rows


def can_exclude(index: Index) -> bool:
    """Return whether ``kneighbors`` of an index has the argument ``exclude``."""
    return "exclude" in signature(index.kneighbors).parameters


def stored_rows_of(index: Index, rows: np.ndarray) -> np.ndarray:
    """Return the bank as a fitted index keeps it; `rows`, the bank it was fitted on, if it does not say."""
    stored: np.ndarray = getattr(index, "stored_rows", rows)
    return stored
