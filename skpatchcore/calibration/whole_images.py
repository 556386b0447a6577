"""WholeImages: channels of values that show whether images as a whole differ from the training images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.covariance import ledoit_wolf

# Number of directions in which a shift to either side is looked for.
N_DIRECTIONS = 4
# Minimum number of training images. Half of them determine the directions, and the other half are the reference.
MIN_IMAGES = 8


class WholeImages(NamedTuple):
    """Location, directions and reference values of whole images; the result of :func:`fit_whole_images`.

    Attributes
    ----------
    mean : array of shape (n_columns,)
        Mean embedding of the first half of the training images.
    whitening : array of shape (n_columns, n_columns)
        Directions as columns, in descending order of variance. In each direction, the first half has about unit
        variance.
    reference : array of shape (n_reference, n_channels)
        Values of the second half of the training images, as :meth:`values` returns them.
    """

    mean: np.ndarray
    whitening: np.ndarray
    reference: np.ndarray

    def values(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the values of images.

        Parameters
        ----------
        embeddings : array of shape (n_images, n_columns)
            Embeddings of the images.

        Returns
        -------
        array of shape (n_images, n_channels), float64
            The first column is the squared Mahalanobis distance, bigger = more unusual. An embedding that is not finite
            has the distance infinity. The other columns are signed positions along up to 4 directions.
        """
        return _values(embeddings, self.mean, self.whitening)


def fit_whole_images(embeddings: np.ndarray, random_state: np.random.RandomState) -> WholeImages:
    """Fit location and directions to half of the training images, and compute the values of the other half.

    Parameters
    ----------
    embeddings : array of shape (n_images, n_columns)
        Embeddings of the training images, at least `MIN_IMAGES`.
    random_state : RandomState
        Source of the random split.

    Returns
    -------
    WholeImages
        The second half had no influence on location and directions. Therefore its values are exchangeable with those of
        new good images.

    Notes
    -----
    The covariance matrix is shrunk as Ledoit and Wolf suggest, because there are often fewer images than columns.

    References
    ----------
    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate
    Analysis 88, 2004.
    """
    order = random_state.permutation(len(embeddings))
    first, second = np.split(embeddings[order].astype(np.float64), [len(order) // 2])
    mean = first.mean(axis=0)
    scale = float(np.abs(first - mean).max()) or 1.0  # squares of huge features would overflow
    covariance, _ = ledoit_wolf((first - mean) / scale, assume_centered=True)
    variances, directions = np.linalg.eigh(covariance)
    floor = max(float(variances[-1]) * 1e-12, np.finfo(np.float64).tiny)
    whitening = (directions / np.sqrt(np.maximum(variances, floor)))[:, ::-1] / scale
    return WholeImages(mean, whitening, _values(second, mean, whitening))


def _values(embeddings: np.ndarray, mean: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        # One image after the other: the result for an image does not depend on the number of images.
        positions = [(row - mean) @ whitening for row in np.asarray(embeddings, np.float64)]
        values = np.array([[position @ position, *position[:N_DIRECTIONS]] for position in positions])
    return np.asarray(np.where(np.isnan(values), np.inf, values)).reshape(len(positions), -1)
