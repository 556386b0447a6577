"""PatchWhitening: give all directions of the patch features about the same variance, in a streaming fit."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin
from sklearn.utils.validation import check_array, check_is_fitted

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.sklearn import Interval, fit_context
from skpatchcore.features._rows import RowTransformer, product, summed_parts

# A variance below this fraction of the largest variance counts as 0.
_RELATIVE = 1e-12


class PatchWhitening(ClassNamePrefixFeaturesOutMixin, RowTransformer):
    r"""Whiten patch features: good patches have about the same variance in all directions after the transformation.

    Distances between whitened patch features are about Mahalanobis distances. A deviation counts more in a direction in
    which good patches differ little, and less in a direction in which they differ much. This can make subtle defects
    stand out, and it can amplify noise. If you have labelled defects, compare the results with and without whitening.

    Parameters
    ----------
    shrinkage : float in [0, 1], default=0.1
        Weight *s* of the mean variance: the whitening uses the covariance :math:`(1 - s) C + s \frac{tr(C)}{d} I` in
        place of the covariance *C* of the *d* columns. Larger values amplify directions of small variance less. 1
        divides all columns by the same number. 0 is the exact whitening, which needs a covariance that is not singular.
    n_components : int or None, default=None
        Number of columns of the result: the directions with the largest variances. The result then takes less memory,
        and the selection and the search take less time. None keeps as many columns as `X` has.

    Attributes
    ----------
    mean_ : array of shape (n_features,), float64
        Mean of each column.
    covariance_ : array of shape (n_features, n_features), float64
        Covariance of the columns, divided by the number of rows, before the shrinkage. A fitted detector drops this
        array.
    components_ : array of shape (n_columns, n_features), float32
        ``transform`` returns ``(X - mean_) @ components_.T``. With ``n_components=None``, this is the symmetric (ZCA)
        matrix :math:`S^{-1/2}` of the covariance *S* after the shrinkage: whitened rows stay as close to the original
        rows as possible. Otherwise, each row is a principal direction, divided by the root of its variance after the
        shrinkage.
    n_samples_seen_ : int
        Number of rows of the fit.
    n_features_in_ : int
        Number of columns of `X`.
    feature_names_in_ : array of str
        Names of the columns of `X`, if `X` has column names.

    See Also
    --------
    LayerScaling : Scale the channels of each layer by one factor.

    Notes
    -----
    The mean and the covariance are computed in float64 in one pass over the rows. The moments of parts are merged with
    the formulas of Chan, Golub and LeVeque, which do not lose digits if the mean is large. Therefore, a fit on all rows
    at once and a fit in parts return the same result, except for rounding. The memory does not depend on the number of
    rows: with 1,536 columns, the covariance takes 19 MB.

    References
    ----------
    Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate
    Analysis 88, 2004, for the shrinkage towards the mean variance.

    Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", The American Statistician 72, 2018, for ZCA.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PatchWhitening
    >>> X = np.random.default_rng(0).normal(size=(1000, 3)) * [1, 10, 100]
    >>> PatchWhitening(shrinkage=0).fit_transform(X).std(axis=0).round(3).tolist()
    [1.0, 1.0, 1.0]
    >>> PatchWhitening(n_components=2).fit_transform(X).shape
    (1000, 2)
    """

    _parameter_constraints: dict[str, Any] = {
        "shrinkage": [Interval(Real, 0, 1, closed="both")],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
    }

    mean_: np.ndarray
    covariance_: np.ndarray
    components_: np.ndarray

    def __init__(self, shrinkage: float = 0.1, n_components: int | None = None):
        self.shrinkage = shrinkage
        self.n_components = n_components

    def fit(self, X: Any, y: Any = None) -> PatchWhitening:
        """Compute the whitening from rows of patch features.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Patch features, one row per patch.
        y : ignored
            Present for API consistency.

        Returns
        -------
        PatchWhitening
            The fitted transformer.

        Raises
        ------
        ValueError
            If `X` contains NaN or infinity; if `n_components` is larger than the number of columns; if all rows are
            equal; or if the covariance is singular, and ``shrinkage=0``.
        """
        if self._sums_begun():
            del self.n_samples_seen_
        self.partial_fit(X)
        self.components_ = self._computed()
        return self

    @fit_context(prefer_skip_nested_validation=True)
    @default_modes()
    def partial_fit(self, X: Any, y: Any = None) -> PatchWhitening:
        """Continue the fit with more rows. The result is that of `fit` on all rows, except for rounding.

        This method deletes ``components_``. The next call of `transform` or `inverse_transform` computes it again.

        Parameters
        ----------
        X, y : as for `fit`
            More rows.

        Returns
        -------
        PatchWhitening
            The transformer itself.

        Raises
        ------
        ValueError
            If `X` contains NaN or infinity, if its number of columns differs from that of the first rows, or if
            ``covariance_`` was deleted, e.g. because a detector was fitted with this transformer.
        """
        is_first = not self._sums_begun()
        rows = self._validated(X, reset=is_first)
        d = rows.shape[1]
        if self.n_components is not None and self.n_components > d:
            raise ValueError(f"n_components={self.n_components} is larger than the number of columns of X, {d}.")
        if not is_first and not hasattr(self, "covariance_"):
            raise ValueError("covariance_ was dropped after the fit, so more rows cannot be added: fit again.")
        n, mean, covariance = 0, np.zeros(d), np.zeros((d, d))
        if not is_first:
            n, mean, covariance = self.n_samples_seen_, self.mean_, self.covariance_
        for part in summed_parts(rows):
            # Merge the moments of two sets of rows (Chan, Golub and LeVeque): the scatter of their union is the sum of
            # both scatters and a term for the difference of the means.
            n_new = len(part)
            own = part.mean(axis=0)
            part -= own
            deviations = torch.from_numpy(part)
            scatter = (deviations.T @ deviations).numpy()
            shift, total = own - mean, n + n_new
            covariance = (covariance * n + scatter + np.outer(shift, shift) * (n * n_new / total)) / total
            mean, n = mean + shift * (n_new / total), total
        self.n_samples_seen_, self.mean_, self.covariance_ = n, mean, covariance
        if hasattr(self, "components_"):
            del self.components_
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return whitened rows. The result for a row does not depend on the other rows.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Patch features, one row per patch.

        Returns
        -------
        array of shape (n_samples, n_columns)
            Whitened rows. float64 if `X` is float64, otherwise float32.
        """
        check_is_fitted(self, "mean_")
        rows = self._validated(X, reset=False)
        self._complete()
        return product(rows, self.mean_, self.components_.T)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the rows of patch features that belong to whitened rows.

        Parameters
        ----------
        X : array of shape (n_samples, n_columns)
            Whitened rows.

        Returns
        -------
        array of shape (n_samples, n_features)
            The original rows, except for rounding. With `n_components`, their projections on the kept directions.
        """
        check_is_fitted(self, "mean_")
        rows = check_array(X, dtype=[np.float64, np.float32])
        self._complete()
        inverse = np.linalg.pinv(self.components_.astype(np.float64))
        found: np.ndarray = product(rows, np.zeros(rows.shape[1]), inverse.T) + self.mean_.astype(rows.dtype)
        return found

    def drop_fit_state(self) -> None:
        """Delete ``covariance_``, which only `partial_fit` needs. Detectors call this method after the fit."""
        self._complete()
        if hasattr(self, "covariance_"):
            del self.covariance_

    def _complete(self) -> None:
        """Compute ``components_`` if `partial_fit` has changed the covariance."""
        if not hasattr(self, "components_"):
            self.components_ = self._computed()

    @default_modes()
    def _computed(self) -> np.ndarray:
        """Return the matrix of the whitening, of shape (n_columns, n_features), float32."""
        variances, directions = (some.numpy() for some in torch.linalg.eigh(torch.from_numpy(self.covariance_)))
        variances, directions = variances[::-1], directions[:, ::-1]  # descending
        mean = max(float(np.trace(self.covariance_)), 0.0) / len(self.mean_)
        shrunk = (1 - self.shrinkage) * np.maximum(variances, 0) + self.shrinkage * mean
        n_kept = len(shrunk) if self.n_components is None else self.n_components
        if not mean > 0 or not np.isfinite(mean):
            raise ValueError(
                f"the variance of all {self.n_samples_seen_} rows is {mean:g} (n_samples={self.n_samples_seen_}): "
                "whitening needs rows that differ."
            )
        if shrunk[n_kept - 1] <= _RELATIVE * shrunk[0]:
            raise ValueError(
                f"the covariance of {self.n_samples_seen_} rows is singular with shrinkage={self.shrinkage:g}: use a "
                "larger shrinkage or a smaller n_components."
            )
        scaled = directions[:, :n_kept] / np.sqrt(shrunk[:n_kept])
        if self.n_components is None:
            found = scaled @ directions.T
        else:
            # The sign of a direction is arbitrary: its largest entry becomes positive.
            largest = np.abs(scaled).argmax(axis=0)
            found = (scaled * np.sign(scaled[largest, np.arange(n_kept)])).T
        return np.ascontiguousarray(found, np.float32)

    @property
    def _n_features_out(self) -> int:
        n_columns: int = self.n_features_in_ if self.n_components is None else self.n_components
        return n_columns
