"""PaDiM: a Gaussian at each place of the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.sklearn import Interval
from skpatchcore.detectors._baseline import BaselineDetector, Batch, as_patch_scores, check_channels
from skpatchcore.patches.patches import PatchGrids


@dataclass(frozen=True)
class Gaussians:
    """What PaDiM learns: the distribution of patch features at each place of the grid.

    Attributes
    ----------
    means : array of shape (n_patches, n_kept), float32
        Of the channels that are kept, one row a place, in row-major order.
    whitening : array of shape (n_patches, n_kept, n_kept), float32
        Inverse Cholesky factors of the covariances: ``norm(whitening @ (x - mean))`` is Mahalanobis' distance.
    channels : array of shape (n_kept,), int64
        Which channels are kept, ascending.
    n_channels : int
        Of how many.
    grid : (int, int)
        Height and width of the grid.
    """

    means: np.ndarray
    whitening: np.ndarray
    channels: np.ndarray
    n_channels: int
    grid: tuple[int, int]

    def score(self, grids: PatchGrids, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the largest distance in each image, and the distance of each patch."""
        check_channels(grids, self.n_channels)
        features = grids.rows[:, self.channels].reshape(len(grids), len(self.means), len(self.channels))
        distances = mahalanobis_distances(features, self.means, self.whitening)
        return distances.max(axis=1), as_patch_scores(distances.ravel(), grids) if with_patch_scores else []


class PaDiMDetector(BaselineDetector):
    """Find images, and places in them, that are unlike good ones at the same place: PaDiM, a baseline of the paper.

    ``score_samples`` and ``decision_function``: bigger = more normal. ``predict``: +1 normal, -1 anomalous.
    ``segment``: maps, **bigger = more anomalous**.

    At each place of the grid, the patch features of good images are taken as a Gaussian; a patch's score is its
    Mahalanobis distance from the one at its place, an image's that of its most anomalous patch.

    Parameters
    ----------
    extractor : estimator, "precomputed" or None, default=None
        As of :class:`~skpatchcore.PatchCoreDetector`: the same features for a comparison side by side. The PaDiM
        paper's own are ``TorchFeatureExtractor(layers=("layer1", "layer2", "layer3"), patch_size=1)``.
    n_channels : int, default=100
        Channels that are kept, drawn once; all, if there are not more.
    regularization : float, default=0.01
        Added to the diagonal of the covariances, in squared units of features.
    contamination, calibration, smoothing, random_state, verbose
        As of :class:`~skpatchcore.PatchCoreDetector`.

    Attributes
    ----------
    extractor_ : estimator
        As fitted; None with precomputed features.
    model_ : Gaussians
        Means, covariances' factors and channels.
    calibration_scores_, calibration_peaks_, calibration_image_indices_, offset_, pixel_offset_
        As of :class:`~skpatchcore.PatchCoreDetector`.
    n_features_in_, feature_names_in_
        Of a 2-D precomputed `X`.

    Notes
    -----
    Images whose grids differ in size are refused: there is one Gaussian for each place, and another grid has other
    places. Give the extractor an `image_size` of (height, width), or use a detector that compares patches whatever
    their place. Parts must lie alike in all images too: turned or moved ones are unlike the others at their places.

    All patch features are held in memory while it is fitted, in float64 those of the channels kept. To leave an image
    out for calibration takes its share out of means and covariances.

    References
    ----------
    Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", ICPR
    Workshops 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PaDiMDetector, TorchFeatureExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (12, 64, 64, 3)).clip(0, 1)
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None)
    >>> bad = good[:1].copy()
    >>> bad[0, 20:40, 20:40] = 0
    >>> PaDiMDetector(extractor, random_state=0).fit(good).predict(bad)
    array([-1])
    """

    _parameter_constraints: dict[str, Any] = {
        **BaselineDetector._parameter_constraints,
        "n_channels": [Interval(Integral, 1, None, closed="left")],
        "regularization": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        extractor: Any = None,
        *,
        n_channels: int = 100,
        regularization: float = 0.01,
        contamination: float | str = "auto",
        calibration: Any = "leave-one-out",
        smoothing: float = 4.0,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.n_channels = n_channels
        self.regularization = regularization
        self.contamination = contamination
        self.calibration = calibration
        self.smoothing = smoothing
        self.random_state = random_state
        self.verbose = verbose

    def _accepted(self, stream: Iterable[Batch], numbers: np.ndarray, model: Any = None) -> Iterator[Batch]:
        grid = None if model is None else np.array(model.grid)
        done = 0
        for grids, views in stream:
            grid = grids.sizes[0] if grid is None else grid
            differs = (grids.sizes != grid).any(axis=1)
            if differs.any():
                i = int(differs.argmax())
                raise ValueError(
                    f"image {numbers[done + i]} has a grid of {grids.sizes[i].tolist()} patches, others have "
                    f"{grid.tolist()}: PaDiM learns one distribution for each place of the grid, so all images "
                    "must have one size. Give the extractor an image_size of (height, width), or use PatchCoreDetector."
                )
            yield grids, views
            done += len(grids)

    def _learner(self, grids: PatchGrids, seed: int) -> Callable[[np.ndarray], Gaussians]:
        n_channels = grids.rows.shape[1]
        n_kept = min(self.n_channels, n_channels)
        channels = np.sort(np.random.default_rng(seed).choice(n_channels, n_kept, replace=False))
        grid = (int(grids.sizes[0, 0]), int(grids.sizes[0, 1]))
        features = grids.rows[:, channels].reshape(len(grids), -1, n_kept)
        everyone = Moments.of(features)

        def learn(images: np.ndarray) -> Gaussians:
            moments = everyone
            if len(images) < len(features):
                others = np.setdiff1d(np.arange(len(features)), images)
                is_most = len(others) < len(images)
                moments = everyone.without(features[others]) if is_most else Moments.of(features[images])
            return Gaussians(*moments.gaussians(self.regularization), channels, n_channels, grid)

        return learn


@dataclass(frozen=True)
class Moments:
    """How patch features are spread at each place, from which the spread of all but a few images follows.

    Attributes
    ----------
    n : int
        Images.
    means : tensor of shape (n_patches, n_channels, 1), float64
        Of the features at each place.
    scatter : tensor of shape (n_patches, n_channels, n_channels), float64
        Sum over the images of the products of their deviations.
    """

    n: int
    means: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Return those of features of shape (n_images, n_patches, n_channels)."""
        x = _by_place(features)
        means = x.mean(2, keepdim=True)
        centred = x - means
        return cls(len(features), means, centred @ centred.mT)

    def without(self, features: np.ndarray) -> Moments:
        """Return those of all images but some of them."""
        centred = _by_place(features) - self.means
        n = self.n - len(features)
        shift = -centred.sum(2, keepdim=True) / n
        return Moments(n, self.means + shift, self.scatter - centred @ centred.mT - n * shift @ shift.mT)

    def gaussians(self, regularization: float) -> tuple[np.ndarray, np.ndarray]:
        """Return means and whitening as :class:`Gaussians` has them.

        Parameters
        ----------
        regularization : float
            Added to the covariances' diagonal.

        References
        ----------
        Defard et al., Eq. 1: the sample covariance, divided by n - 1.
        """
        covariances = self.scatter / max(self.n - 1, 1)
        covariances.diagonal(dim1=1, dim2=2).add_(regularization)
        factors = torch.linalg.cholesky(covariances)
        unit = torch.eye(factors.shape[1], dtype=torch.float64).expand_as(factors)
        whitening = torch.linalg.solve_triangular(factors, unit, upper=False)
        return self.means[:, :, 0].float().numpy(), whitening.float().numpy()


def _by_place(features: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(features.transpose(1, 2, 0), np.float64))


def mahalanobis_distances(features: np.ndarray, means: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    """Return Mahalanobis distances of patch features from the distributions at their places.

    Parameters
    ----------
    features : array of shape (n_images, n_patches, n_channels)
        Patch features.
    means, whitening
        As :class:`Gaussians` has them.

    Returns
    -------
    array of shape (n_images, n_patches), float64

    References
    ----------
    Defard et al., Eq. 2.
    """
    centred = torch.from_numpy(np.ascontiguousarray((features - means).transpose(1, 2, 0), np.float32))
    distances: np.ndarray = (torch.from_numpy(whitening) @ centred).norm(dim=1).T.double().numpy()
    return distances
