"""PaDiMDetector: the PaDiM baseline, which fits one Gaussian per position of the patch grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import phase
from skpatchcore._utils.sklearn import Interval
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.detectors._image_scores import image_score_constraints
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.images.errors import ImageError
from skpatchcore.patches.model import check_channels
from skpatchcore.patches.patches import Patches, PatchLayout
from skpatchcore.patches.stream import Check, PatchSource

_NOT_LEARNT = (
    "the region of interest holds cells that were outside the region of the training images: PaDiM has no distribution "
    "for them. Pass the region of the training images as roi, or use PatchCoreDetector."
)


@dataclass(frozen=True)
class Gaussians:
    """The model of PaDiM: a Gaussian distribution of patch features at each position of the patch grid.

    Attributes
    ----------
    means : array of shape (n_patches, n_kept), float32
        Mean of the kept channels at each position of the grid, in row-major order.
    whitening : array of shape (n_patches, n_kept, n_kept), float32
        Inverse Cholesky factors of the covariances: ``norm(whitening @ (x - mean))`` is the Mahalanobis distance.
    channels : array of shape (n_kept,), int64
        Indices of the kept channels, in ascending order.
    n_channels : int
        Number of channels of the patch features, kept or not.
    grid : (int, int)
        Height and width of the patch grid.
    cells : array of shape (n_patches,), int, or None, default=None
        Row-major positions in the grid that have a Gaussian: those in the region of interest. None for all positions.
    training : Training or None, default=None
        Training data that `without` needs. None in a fitted detector.
    """

    means: np.ndarray
    whitening: np.ndarray
    channels: np.ndarray
    n_channels: int
    grid: tuple[int, int]
    training: Training | None = None
    cells: np.ndarray | None = None

    @default_modes()
    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores (largest patch score) and grids of patch scores, **bigger = more anomalous**."""
        check_channels(patches, self.n_channels)
        features = patches.rows[:, self.channels]
        places = [self._places_of(own) for own in patches.cells]
        if all(own is None for own in places):
            features = features.reshape(len(patches), len(self.means), len(self.channels))
            distances = mahalanobis_distances(features, self.means, self.whitening).ravel()
        else:
            distances = np.concatenate(
                [
                    mahalanobis_distances(features[None, start:stop], self.means[own], self.whitening[own])[0]
                    for (start, stop), own in zip(
                        pairwise(patches.starts), [slice(None) if own is None else own for own in places], strict=True
                    )
                ]
            )
        scores = np.maximum.reduceat(distances, patches.starts[:-1])
        return scores, patches.as_grids(distances) if with_patch_scores else []

    def _places_of(self, cells: np.ndarray | None) -> np.ndarray | None:
        """Return the indices of the Gaussians of an image's cells; None if the cells are those of the Gaussians."""
        known, cells = _all_cells(self.grid, self.cells), _all_cells(self.grid, cells)
        if np.array_equal(cells, known):
            return None
        if not np.isin(cells, known).all():
            raise ValueError(_NOT_LEARNT)
        return np.searchsorted(known, cells)

    @default_modes()
    def without(self, images: np.ndarray) -> Gaussians | None:
        """Return the Gaussians without the contribution of the given images; None if no image is left."""
        if self.training is None:
            raise ValueError("images can be left out during the fit only: a fitted model holds no training features.")
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
    """Training data of the Gaussians, from which images can be left out.

    Attributes
    ----------
    features : array of shape (n_images, n_patches, n_kept)
        Kept channels of the patch features.
    moments : Moments
        Moments of all training images.
    regularization : float
        Value that is added to the diagonal of the covariances.
    """

    features: np.ndarray
    moments: Moments
    regularization: float


class PaDiMDetector(PatchDetector):
    """Detect anomalous images and pixels with PaDiM, an earlier method with which the PatchCore paper compares.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. ``segment`` returns anomaly maps, **bigger = more anomalous**.

    PaDiM (Patch Distribution Modeling) fits a Gaussian to the patch features of the good images at each position of the
    patch grid. The patch score is the Mahalanobis distance to the Gaussian at the same position: a distance to the mean
    that is scaled by the variances and correlations of the good images. By default, the image score is the largest
    patch score, with a negative sign.

    Parameters
    ----------
    extractor : estimator, "precomputed" or None, default=None
        The extractor turns images into grids of patch features. None uses ``TorchFeatureExtractor()``. With
        ``"precomputed"``, `X` contains patch features. For a fair comparison of several detectors, pass the same
        extractor to all of them. For the layers and the patch size of the PaDiM paper, pass
        ``TorchFeatureExtractor(layers=("layer1", "layer2", "layer3"), patch_size=1)``.
    n_channels : int, default=100
        Number of randomly selected channels that are kept. If the features have at most `n_channels` channels, all of
        them are kept.
    regularization : float, default=0.01
        Value that is added to the diagonal of each covariance matrix. The sum is invertible even if there are fewer
        images than channels. A larger value makes all distances smaller. The unit is that of a variance: the square of
        the unit of the features.
    image_score : {"max", "map-max"} or float in (0, 1], default="max"
        How the image score is computed from the patch scores: the largest patch score, the maximum of the smoothed
        anomaly map, or the mean of a fraction of the patch scores, the largest ones. `score_samples` returns the result
        with a negative sign. For details, see :class:`~skpatchcore.PatchCoreDetector`.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted false-positive rate: the fraction of *good* images for which `predict` may return -1 (anomalous).
        ``"auto"`` accepts 1 %, or ``1 / (n_calibration + 1)`` if this is larger: this is the smallest rate that can be
        promised with as many calibration images.
    pixel_contamination : float in (0, 0.5] or None, default=None
        Accepted fraction of the *pixels* of good images above the pixel threshold. None derives the pixel threshold
        from `contamination` instead: about this fraction of good *images* may have a pixel above it. A fraction of
        pixels, e.g. 0.001, gives larger masks, which cover more of each defect. See `predict_mask`.
    calibration : "auto", "leave-one-out", float, int, splitter or None, default="auto"
        Method that scores good images in order to set the thresholds. No image is scored by Gaussians that were fitted
        on the image or its group. ``"leave-one-out"`` scores each training image by the Gaussians of all other groups.
        A float is the fraction of the images (or groups) that are scored, but not used for the Gaussians. An int is a
        number of folds. None sets no threshold. For details, see :class:`~skpatchcore.PatchCoreDetector`.
    smoothing : float, default=4.0
        Standard deviation of the Gaussian filter on anomaly maps, in pixels of the network's input.
    roi : mask, path, box, polygon, list, callable or None, default=None
        Region of interest: the part of the images that is inspected, in one of the forms that are listed in
        :class:`~skpatchcore.PatchCoreDetector`. None inspects whole images. All
        training images must have the same region, and the regions of new images must lie in it.
    max_memory : int, str or None, default="auto"
        Maximum memory (RAM) that `fit` may use, in bytes or as a string, e.g. ``"4GB"``. ``"auto"`` uses a fraction of
        the free memory, or more if the kept channels need more. None means no limit. `fit` raises an error if a number
        or a string is too small for the kept channels of all patch features.
    device : str, default="auto"
        Device of an extractor with ``device="auto"``. ``"auto"`` uses CUDA if available, otherwise the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed for the selection of the channels, for the draws of held-out images and folds, and for an extractor with
        ``random_state=None``. Pass an int for reproducible results.
    verbose : int, default=0
        If 1, progress bars are shown for extraction, calibration and scoring.

    Attributes
    ----------
    extractor_ : estimator
        The fitted extractor. None with precomputed features.
    model_ : Gaussians
        The Gaussian of each position of the patch grid (mean, and inverse of the Cholesky factor of the covariance
        matrix), and the indices of the kept channels.
    calibration_scores_ : array of shape (n_calibration,), float64
        Scores of the calibration images, bigger = more normal. NaN for an image that leave-one-out cannot score,
        because there is no other training image.
    calibration_peaks_ : array of shape (n_calibration,), float64
        Maximum of the anomaly map of each calibration image, bigger = more anomalous.
    calibration_sketches_ : array of shape (n_calibration, 2, n_levels), float32
        Sketch of each calibration image's anomaly map, from which `recalibrate` and `predict_mask` compute pixel
        thresholds: values that fixed fractions of the pixels exceed, and the area of the largest region above each of
        these values.
    calibration_image_indices_ : array of shape (n_calibration,), int64
        Index in `X` of each calibration image.
    appearance_range_ : array of shape (2, 5) or None
        Lowest and highest brightness, colour and contrast values of the training images, as in
        :class:`~skpatchcore.PatchCoreDetector`. Scoring methods warn if all new images lie far outside this range.
    offset_ : float
        Image threshold: ``predict`` returns -1 if the image score is below `offset_`. NaN if there is no calibration
        score.
    pixel_offset_ : float
        Pixel threshold: pixels with an anomaly map value above `pixel_offset_` are anomalous. NaN if there is no
        calibration score.
    min_area_, promised_rate_, calibration_plan_
        As in :class:`~skpatchcore.PatchCoreDetector`.
    roi_ : Region or None
        The region of interest as read from `roi`, e.g. the mask from the mask image.
    inspection_ : Inspection or None
        Fraction of the training images' pixels that is inspected, and the size of a patch in pixels of the image.
        ``print(detector.inspection_)`` describes both. None if the extractor does not report views.
    training_paths_ : list of str or None
        Absolute paths of the training images, as in :class:`~skpatchcore.PatchCoreDetector`. None if the images are not
        paths.
    embeddings_, appearances_ : arrays or None
        Short vectors that describe the training images as a whole, as in :class:`~skpatchcore.PatchCoreDetector`.
    n_features_in_, feature_names_in_
        Number and names of the columns of `X`. Set only if `X` is a 2-D array or table of precomputed features.

    Notes
    -----
    All patch grids must have the same size, because there is one Gaussian per position of the grid. Otherwise `fit` and
    `predict` raise a ValueError. Set the extractor's `image_size` to (height, width), or use a detector that compares
    patches at any position. All images must also show the part at the same position and in the same orientation:
    PaDiM flags parts that are moved or rotated.

    During the fit, the kept channels of all patch features are held in memory. Two copies of them in float64 are held
    while the means and covariances are computed. If `max_memory` is large enough, the patch features with all channels
    are held in memory too. Otherwise, the extractor computes the patch features a second time for the calibration.
    Leave-one-out is fast: `fit` subtracts the contribution of an image from the means and covariances instead of
    fitting them again.

    References
    ----------
    Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", ICPR
    Workshops 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PaDiMDetector, TorchFeatureExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (12, 64, 64, 3)).clip(0, 1)
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None)
    >>> bad = good[:1].copy()
    >>> bad[0, 20:40, 20:40] = 0
    >>> PaDiMDetector(extractor, random_state=0).fit(good).predict(bad)
    array([-1])
    """

    _parameter_constraints: dict[str, Any] = {
        **PatchDetector._parameter_constraints,
        "n_channels": [Interval(Integral, 1, None, closed="left")],
        "regularization": [Interval(Real, 0, None, closed="neither")],
        "image_score": image_score_constraints("max", "map-max"),
    }

    def __init__(
        self,
        extractor: Any = None,
        *,
        n_channels: int = 100,
        regularization: float = 0.01,
        image_score: str | float = "max",
        contamination: float | str = "auto",
        pixel_contamination: float | None = None,
        calibration: Any = "auto",
        smoothing: float = 4.0,
        roi: Any = None,
        max_memory: int | str | None = "auto",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.n_channels = n_channels
        self.regularization = regularization
        self.image_score = image_score
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination
        self.calibration = calibration
        self.smoothing = smoothing
        self.roi = roi
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
                yield Patches(batch.rows[:, channels], batch.sizes, batch.views, batch.cells, batch.masks)

        held = Patches.gather(thinned(), budget.n_patches)
        with phase("learning"):
            features = held.rows.reshape(len(held), -1, len(channels))
            moments = Moments.of(features)
            means, whitening = moments.gaussians(self.regularization)
        grid = (int(held.sizes[0, 0]), int(held.sizes[0, 1]))
        training = Training(features, moments, self.regularization)
        return Gaussians(means, whitening, channels, n_channels, grid, training, held.cells[0])

    def _memory_needs(self, n_patches: int, first: Patches, stages: dict[str, Any]) -> MemoryNeeds:
        n_kept = min(self.n_channels, first.rows.shape[1])
        matrices = len(first.rows) // len(first) * n_kept**2
        # The kept channels: as extracted, in float64, and centred. The matrices: scatter, covariances and factors.
        learning = n_patches * n_kept * (first.rows.itemsize + 2 * 8) + matrices * 4 * 8
        return MemoryNeeds(learning=learning, model=4 * matrices)

    def _keep(self, model: Gaussians, numbers: np.ndarray) -> None:
        self.model_ = replace(model, training=None)

    def _patch_check(self, is_fitted: bool) -> Check:
        return _OneGrid(self.model_) if is_fitted else _OneGrid(None)


def _all_cells(grid: tuple[int, int], cells: np.ndarray | None) -> np.ndarray:
    """Return the row-major positions of cells in a grid; those of all cells for None."""
    return np.arange(grid[0] * grid[1]) if cells is None else cells


class _OneGrid:
    """Check that raises an error for images that the Gaussians cannot score, or on which they cannot be fitted.

    All grids must have the size of the model's grid, or of the first grid if the model is None. All cells in the region
    of interest must have a Gaussian, or be the cells of the first image.
    """

    def __init__(self, model: Gaussians | None):
        self.model = model
        self.grid = None if model is None else model.grid
        self.first: PatchLayout | None = None

    def __call__(self, patches: Patches, numbers: np.ndarray) -> None:
        if self.grid is None:
            self.grid = (int(patches.sizes[0, 0]), int(patches.sizes[0, 1]))
        differs = (patches.sizes != self.grid).any(axis=1)
        if differs.any():
            i = int(differs.argmax())
            raise ValueError(
                f"image {numbers[i]} has a grid of {patches.sizes[i].tolist()} patches, other images have "
                f"{list(self.grid)}: PaDiM fits one distribution per position of the grid, so all images must have the "
                "same size. Use an extractor with image_size=(height, width), or use PatchCoreDetector."
            )
        if self.model is not None:
            for i, cells in enumerate(patches.cells):
                if self.model.cells is not None and not np.isin(_all_cells(self.grid, cells), self.model.cells).all():
                    raise ImageError(_NOT_LEARNT, int(numbers[i]))
            return
        self.first = patches.between(0, 1).layout() if self.first is None else self.first
        for i in range(len(patches)):
            if not patches.between(i, i + 1).same_as(self.first):
                raise ValueError(
                    f"image {numbers[i]} has another region of interest than the first training image: PaDiM fits one "
                    "distribution per position of the grid, so all training images must have the same region. Use "
                    "PatchCoreDetector."
                )


@dataclass(frozen=True)
class Moments:
    """First and second moments of the patch features at each position of the grid.

    The moments without a few images can be computed from these moments without a pass over the remaining images.

    Attributes
    ----------
    n : int
        Number of images.
    means : tensor of shape (n_patches, n_channels, 1), float64
        Mean feature at each position.
    scatter : tensor of shape (n_patches, n_channels, n_channels), float64
        Sum over the images of the outer products of the deviations from the mean.
    """

    n: int
    means: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Return the moments of features of shape (n_images, n_patches, n_channels)."""
        x = _by_place(features)
        means = x.mean(2, keepdim=True)
        centred = x - means
        return cls(len(features), means, centred @ centred.mT)

    def without(self, features: np.ndarray) -> Moments:
        """Return the moments without some images, where `features` are the features of the images to leave out."""
        # Let m and S be the mean and the scatter of all images, and d the deviations from m of the images to leave out.
        # The deviations of all images sum to 0, so the mean of the n remaining images is m + s with s = -sum(d) / n.
        # The scatter of the remaining images around m is S - d d^T.
        # The scatter of the remaining images around their own mean m + s is smaller by n s s^T.
        centred = _by_place(features) - self.means
        n = self.n - len(features)
        shift = -centred.sum(2, keepdim=True) / n
        return Moments(n, self.means + shift, self.scatter - centred @ centred.mT - n * shift @ shift.mT)

    def gaussians(self, regularization: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the arrays `means` and `whitening` of :class:`Gaussians`.

        Parameters
        ----------
        regularization : float
            Value that is added to the diagonal of the covariances.

        Raises
        ------
        ValueError
            If a covariance is not positive definite.

        References
        ----------
        Defard et al., Equation 1: the sample covariance, divided by n - 1.
        """
        covariances = self.scatter / max(self.n - 1, 1)
        covariances.diagonal(dim1=1, dim2=2).add_(regularization)
        factors, status = torch.linalg.cholesky_ex(covariances)
        if status.any():
            place = int(status.ne(0).int().argmax())
            raise ValueError(
                f"the covariance of patch {place} of the grid is not positive definite with regularization="
                f"{regularization:g}, and the largest variance of the features is "
                f"{float(covariances.diagonal(dim1=1, dim2=2).max()):.3g}: increase regularization, or scale the "
                "features."
            )
        unit = torch.eye(factors.shape[1], dtype=torch.float64).expand_as(factors)
        whitening = torch.linalg.solve_triangular(factors, unit, upper=False)
        return self.means[:, :, 0].float().numpy(), whitening.float().numpy()


def _by_place(features: np.ndarray) -> torch.Tensor:
    """Return features as a float64 tensor of shape (n_patches, n_channels, n_images)."""
    return as_tensor(np.ascontiguousarray(features.transpose(1, 2, 0), np.float64), torch.device("cpu"))


def mahalanobis_distances(features: np.ndarray, means: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    """Return Mahalanobis distances of patch features to the Gaussians at their positions, **bigger = more anomalous**.

    Parameters
    ----------
    features : array of shape (n_images, n_patches, n_channels)
        Patch features, with the kept channels only.
    means, whitening : arrays of shape (n_patches, n_channels) and (n_patches, n_channels, n_channels)
        Arrays of :class:`Gaussians`.

    Returns
    -------
    array of shape (n_images, n_patches), float64

    References
    ----------
    Defard et al., Equation 2.
    """
    centred = torch.from_numpy(np.ascontiguousarray((features - means).transpose(1, 2, 0), np.float32))
    distances: np.ndarray = (as_tensor(whitening, torch.device("cpu")) @ centred).norm(dim=1).T.double().numpy()
    return distances
