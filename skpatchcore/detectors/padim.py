"""PaDiM: a Gaussian at each place of the grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import phase
from skpatchcore._utils.sklearn import Interval
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.patches.model import check_channels
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import Check, PatchSource


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
    training : Training or None, default=None
        What `without` needs; None in a fitted detector.
    """

    means: np.ndarray
    whitening: np.ndarray
    channels: np.ndarray
    n_channels: int
    grid: tuple[int, int]
    training: Training | None = None

    @default_modes()
    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the largest distance in each image and the distance of each patch, **bigger = more anomalous**."""
        check_channels(patches, self.n_channels)
        features = patches.rows[:, self.channels].reshape(len(patches), len(self.means), len(self.channels))
        distances = mahalanobis_distances(features, self.means, self.whitening)
        return distances.max(axis=1), patches.as_grids(distances.ravel()) if with_patch_scores else []

    @default_modes()
    def without(self, images: np.ndarray) -> Gaussians | None:
        """Return the Gaussians of the other images: the share of `images` is taken out of means and covariances."""
        if self.training is None:
            raise ValueError("images can be left out during the fit only: a fitted model does not hold their features.")
        features, regularization = self.training.features, self.training.regularization
        others = np.setdiff1d(np.arange(len(features)), images)
        if not len(others):
            return None
        is_most = len(images) < len(others)
        moments = self.training.moments.without(features[images]) if is_most else Moments.of(features[others])
        means, whitening = moments.gaussians(regularization)
        return replace(self, means=means, whitening=whitening, training=None)


@dataclass(frozen=True)
class Training:
    """What Gaussians were learnt from.

    Attributes
    ----------
    features : array of shape (n_images, n_patches, n_kept)
        The kept channels.
    moments : Moments
        Of all images.
    regularization : float
        Added to the covariances' diagonal.
    """

    features: np.ndarray
    moments: Moments
    regularization: float


class PaDiMDetector(PatchDetector):
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
    contamination, calibration, smoothing, max_memory, device, random_state, verbose
        As of :class:`~skpatchcore.PatchCoreDetector`.

    Attributes
    ----------
    extractor_ : estimator
        As fitted; None with precomputed features.
    model_ : Gaussians
        Means, covariances' factors and channels.
    calibration_scores_, calibration_peaks_, calibration_image_indices_, offset_, pixel_offset_, appearance_range_
        As of :class:`~skpatchcore.PatchCoreDetector`.
    n_features_in_, feature_names_in_
        Of a 2-D precomputed `X`.

    Notes
    -----
    Images whose grids differ in size are refused: there is one Gaussian for each place, and another grid has other
    places. Give the extractor an `image_size` of (height, width), or use a detector that compares patches whatever
    their place. Parts must lie alike in all images too: turned or moved ones are unlike the others at their places.

    The kept channels of all patch features are held in memory during the fit, and in float64 while moments are
    computed. All channels are held too if `max_memory` allows it; otherwise calibration extracts them again. To leave
    an image out for calibration, its share is taken out of means and covariances.

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
        **PatchDetector._parameter_constraints,
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
        max_memory: int | str | None = "auto",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.n_channels = n_channels
        self.regularization = regularization
        self.contamination = contamination
        self.calibration = calibration
        self.smoothing = smoothing
        self.max_memory = max_memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @default_modes()
    def _learn(self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int) -> Gaussians:
        channels, n_channels = np.zeros(0, np.int64), 0

        def thinned() -> Iterator[Patches]:
            nonlocal channels, n_channels
            for batch in patches:
                if not n_channels:
                    n_channels = batch.rows.shape[1]
                    n_kept = min(self.n_channels, n_channels)
                    channels = np.sort(np.random.default_rng(seed).choice(n_channels, n_kept, replace=False))
                yield Patches(batch.rows[:, channels], batch.sizes, batch.views)

        held = Patches.gather(thinned(), budget.n_patches)
        with phase("learning"):
            features = held.rows.reshape(len(held), -1, len(channels))
            moments = Moments.of(features)
            means, whitening = moments.gaussians(self.regularization)
        grid = (int(held.sizes[0, 0]), int(held.sizes[0, 1]))
        return Gaussians(means, whitening, channels, n_channels, grid, Training(features, moments, self.regularization))

    def _memory_needs(self, n_patches: int, first: Patches, stages: dict[str, Any]) -> MemoryNeeds:
        n_kept = min(self.n_channels, first.rows.shape[1])
        matrices = len(first.rows) // len(first) * n_kept**2
        # The kept channels as they come, in float64 and centred; scatter, covariances and factors.
        learning = n_patches * n_kept * (first.rows.itemsize + 2 * 8) + matrices * 4 * 8
        return MemoryNeeds(learning=learning, model=4 * matrices)

    def _keep(self, model: Gaussians, numbers: np.ndarray) -> None:
        self.model_ = replace(model, training=None)

    def _patch_check(self, is_fitted: bool) -> Check:
        return _OneGrid(self.model_.grid if is_fitted else None)


class _OneGrid:
    """Refuses images whose grids have another size than the first one, or than those that were learnt from."""

    def __init__(self, grid: tuple[int, int] | None):
        self.grid = grid

    def __call__(self, patches: Patches, numbers: np.ndarray) -> None:
        if self.grid is None:
            self.grid = (int(patches.sizes[0, 0]), int(patches.sizes[0, 1]))
        differs = (patches.sizes != self.grid).any(axis=1)
        if differs.any():
            i = int(differs.argmax())
            raise ValueError(
                f"image {numbers[i]} has a grid of {patches.sizes[i].tolist()} patches, others have "
                f"{list(self.grid)}: PaDiM learns one distribution for each place of the grid, so all images "
                "must have one size. Give the extractor an image_size of (height, width), or use PatchCoreDetector."
            )


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
        factors, status = torch.linalg.cholesky_ex(covariances)
        if status.any():
            place = int(status.ne(0).int().argmax())
            raise ValueError(
                f"the covariance of patch {place} of the grid is not positive definite: raise regularization="
                f"{regularization:g}, or scale the features, whose largest variance is "
                f"{float(covariances.diagonal(dim1=1, dim2=2).max()):.3g}."
            )
        unit = torch.eye(factors.shape[1], dtype=torch.float64).expand_as(factors)
        whitening = torch.linalg.solve_triangular(factors, unit, upper=False)
        return self.means[:, :, 0].float().numpy(), whitening.float().numpy()


def _by_place(features: np.ndarray) -> torch.Tensor:
    return as_tensor(np.ascontiguousarray(features.transpose(1, 2, 0), np.float64), torch.device("cpu"))


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
    distances: np.ndarray = (as_tensor(whitening, torch.device("cpu")) @ centred).norm(dim=1).T.double().numpy()
    return distances
