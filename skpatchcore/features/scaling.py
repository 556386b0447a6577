"""LayerScaling: scale the channels of each layer of a network to the same size."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import OneToOneFeatureMixin
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.sklearn import fit_context
from skpatchcore.features._rows import RowTransformer, summed_parts


class LayerScaling(OneToOneFeatureMixin, RowTransformer):
    """Scale patch features so that the values of each layer have a root mean square of 1.

    The layers of a network can differ in the size of their values. The layer with the largest values then dominates the
    distances between patch features. After the scaling, each layer has a weight in proportion to its number of
    channels. All channels of a layer are multiplied by the same factor.

    Parameters
    ----------
    layer_channels : sequence of int or None, default=None
        Number of channels of each layer, in order. The sum must be the number of columns of `X`. With None, a
        detector passes the numbers of its extractor, also if the scaling is the first step of a pipeline. Outside a
        detector, None means that all channels belong to one layer.

    Attributes
    ----------
    scale_ : array of shape (n_features,), float32
        Factor of each column.
    mean_squares_ : array of shape (n_features,), float64
        Mean of the squares of each column.
    n_samples_seen_ : int
        Number of rows of the fit.
    n_features_in_ : int
        Number of columns of `X`.
    feature_names_in_ : array of str
        Names of the columns of `X`, if `X` has column names.

    See Also
    --------
    PatchWhitening : Give all directions of the patch features the same variance.

    Notes
    -----
    The values are not centred: a shift of all rows does not change distances. A layer whose values are all 0 keeps its
    values.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import LayerScaling
    >>> X = np.array([[3.0, 4.0, 10.0], [4.0, 3.0, -10.0]])
    >>> LayerScaling(layer_channels=(2, 1)).fit(X).scale_.astype(float).round(4).tolist()
    [0.2828, 0.2828, 0.1]
    """

    _parameter_constraints: dict[str, Any] = {"layer_channels": ["array-like", None]}

    scale_: np.ndarray
    mean_squares_: np.ndarray

    def __init__(self, layer_channels: Any = None):
        self.layer_channels = layer_channels

    def fit(self, X: Any, y: Any = None) -> LayerScaling:
        """Compute the factors from rows of patch features.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Patch features, one row per patch.
        y : ignored
            Present for API consistency.

        Returns
        -------
        LayerScaling
            The fitted transformer.

        Raises
        ------
        ValueError
            If `X` contains NaN or infinity, or if the sum of `layer_channels` is not the number of columns.
        """
        if self._sums_begun():
            del self.n_samples_seen_
        self.partial_fit(X)
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None) -> LayerScaling:
        """Continue the fit with more rows. The result is that of `fit` on all rows, except for rounding.

        Parameters
        ----------
        X, y : as for `fit`
            More rows.

        Returns
        -------
        LayerScaling
            The fitted transformer.

        Raises
        ------
        ValueError
            As in `fit`, or if the number of columns differs from that of the first rows.
        """
        is_first = not self._sums_begun()
        rows = self._validated(X, reset=is_first)
        channels = [rows.shape[1]] if self.layer_channels is None else [int(n) for n in self.layer_channels]
        if sum(channels) != rows.shape[1] or min(channels) < 1:
            raise ValueError(
                f"layer_channels={self.layer_channels}: expected positive numbers whose sum is {rows.shape[1]}, the "
                "number of columns of X."
            )
        n, means = (0, np.zeros(rows.shape[1])) if is_first else (self.n_samples_seen_, self.mean_squares_)
        for part in summed_parts(rows):
            n += len(part)
            means = means + ((part**2).sum(axis=0) - len(part) * means) / n
        self.n_samples_seen_, self.mean_squares_ = n, means
        stops = np.cumsum(channels)
        squares = np.array([means[stop - size : stop].mean() for size, stop in zip(channels, stops, strict=True)])
        factors = 1 / np.sqrt(np.where(squares > 0, squares, 1.0))
        self.scale_ = np.repeat(factors, channels).astype(np.float32)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return scaled rows.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Patch features, one row per patch.

        Returns
        -------
        array of shape (n_samples, n_features)
            The rows, multiplied by ``scale_``. float64 if `X` is float64, otherwise float32.
        """
        check_is_fitted(self, "scale_")
        rows = self._validated(X, reset=False)
        scaled: np.ndarray = rows * self.scale_.astype(rows.dtype)
        return scaled

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the rows before the scaling.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Scaled rows.

        Returns
        -------
        array of shape (n_samples, n_features)
            The rows, divided by ``scale_``.
        """
        check_is_fitted(self, "scale_")
        rows = self._validated(X, reset=False)
        original: np.ndarray = rows / self.scale_.astype(rows.dtype)
        return original
