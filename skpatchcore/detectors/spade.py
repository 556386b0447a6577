"""SPADEDetector: the SPADE baseline, which compares an image with its nearest good images and their patches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics import pairwise_distances_argmin_min

from skpatchcore._utils.progress import phase
from skpatchcore._utils.sklearn import Interval
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.detectors._whole_image import mean_patches
from skpatchcore.patches.model import check_channels
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource


@dataclass(frozen=True)
class Gallery:
    """The model of SPADE: all patch features of the good images.

    Attributes
    ----------
    rows : array of shape (n_patches, n_channels)
        Patch features, image after image.
    starts : array of shape (n_images + 1,)
        Index in `rows` of the first patch of each image. The last item is the total number of patches.
    images : array of int
        Indices of the images that are used. `without` removes images from this array only.
    descriptors : array of shape (n_images, n_channels)
        Mean patch feature of each image.
    n_neighbors : int
        Number of good images with which a new image is compared.
    """

    rows: np.ndarray
    starts: np.ndarray
    images: np.ndarray
    descriptors: np.ndarray
    n_neighbors: int

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores and grids of patch scores, **bigger = more anomalous**.

        The image score is the mean distance to the `n_neighbors` nearest images of the gallery. The patch score is the
        distance to the nearest patch in these nearest images.
        """
        check_channels(patches, self.rows.shape[1])
        to_images = cdist(mean_patches(patches.rows, patches.starts), self.descriptors[self.images])
        k = min(self.n_neighbors, len(self.images))
        nearest = np.argsort(to_images, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(to_images, nearest, axis=1).mean(axis=1)
        if not with_patch_scores:
            return scores, []
        distances = np.empty(len(patches.rows))
        for (start, stop), images in zip(pairwise(patches.starts), self.images[nearest], strict=True):
            rows = np.concatenate([self.rows[self.starts[i] : self.starts[i + 1]] for i in images])
            distances[start:stop] = pairwise_distances_argmin_min(patches.rows[start:stop], rows)[1]
        return scores, patches.as_grids(distances)

    def without(self, images: np.ndarray) -> Gallery | None:
        """Return the gallery without the given images; None if no image is left."""
        others = np.setdiff1d(self.images, images)
        return replace(self, images=others) if len(others) else None


class SPADEDetector(PatchDetector):
    """Detect anomalous images and pixels with SPADE, an earlier method with which the PatchCore paper compares.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. ``segment`` returns anomaly maps, **bigger = more anomalous**.

    SPADE (Semantic Pyramid Anomaly Detection) compares a new image with the *K* most similar training images. The
    distance between two images is the distance between the means of their patch features. The image score is the mean
    distance to the *K* nearest training images, with a negative sign. The score of a patch is the distance to the most
    similar patch in these *K* images, wherever that patch lies in its image. SPADE has no parameter `image_score`: its
    image score compares whole images and is not computed from patch scores.

    Parameters
    ----------
    extractor : estimator, "precomputed" or None, default=None
        The extractor turns images into grids of patch features. None uses ``TorchFeatureExtractor()``. With
        ``"precomputed"``, `X` contains patch features. For a fair comparison of several detectors, pass the same
        extractor to all of them.
    n_neighbors : int, default=50
        Number *K* of nearest training images with which a new image is compared. If there are fewer training images,
        all of them are used.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted false-positive rate: the fraction of *good* images for which `predict` may return -1 (anomalous).
        ``"auto"`` accepts 1 %, or ``1 / (n_calibration + 1)`` if this is larger: this is the smallest rate that can be
        promised with as many calibration images.
    pixel_contamination : float in (0, 0.5] or None, default=None
        Accepted fraction of the *pixels* of good images above the pixel threshold. None derives the pixel threshold
        from `contamination` instead: about this fraction of good *images* may have a pixel above it. A fraction of
        pixels, e.g. 0.001, gives larger masks, which cover more of each defect. See `predict_mask`.
    calibration : "auto", "leave-one-out", float, int, splitter or None, default="auto"
        Method that scores good images in order to set the thresholds. No image is compared with itself or its group.
        ``"auto"`` and ``"leave-one-out"`` compare each training image with the training images of all other groups. A
        float is the fraction of the images (or groups) that are scored, but not stored in the model. An int is a number
        of folds. None sets no threshold. For details, see :class:`~skpatchcore.PatchCoreDetector`.
    smoothing : float, default=4.0
        Standard deviation of the Gaussian filter on anomaly maps, in pixels of the network's input.
    roi : mask, path, box, polygon, list, callable or None, default=None
        Region of interest: the part of the images that is inspected, in one of the forms that are listed in
        :class:`~skpatchcore.PatchCoreDetector`. None inspects whole images.
    max_memory : int, str or None, default="auto"
        Maximum memory (RAM) that `fit` may use, in bytes or as a string, e.g. ``"4GB"``. ``"auto"`` uses a fraction of
        the free memory, or more if all patch features need more. None means no limit. `fit` raises an error if a number
        or a string is too small for all patch features.
    device : str, default="auto"
        Device of an extractor with ``device="auto"``. ``"auto"`` uses CUDA if available, otherwise the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed for the draws of held-out images and folds, and for an extractor with ``random_state=None``.
    verbose : int, default=0
        If 1, progress bars are shown for extraction, calibration and scoring.

    Attributes
    ----------
    extractor_ : estimator
        The fitted extractor. None with precomputed features.
    model_ : Gallery
        All patch features of the training images, and the mean patch feature of each image.
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
    The detector stores all patch features of all training images, and compares each patch of a new image with all
    patches of *K* training images. Therefore a saved detector is a large file, and predictions are slow.

    This implementation differs from the SPADE paper in two points. First, the SPADE paper compares images by the output
    of the network's last pooling layer. Extractors of patch features do not return this output. Therefore the mean of
    the patch features is used instead. Second, distances are not squared.

    References
    ----------
    Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import SPADEDetector, TorchFeatureExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (12, 64, 64, 3)).clip(0, 1)
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None)
    >>> bad = good[:1].copy()
    >>> bad[0, 20:40, 20:40] = 0
    >>> SPADEDetector(extractor).fit(good).predict(bad)
    array([-1])
    """

    _parameter_constraints: dict[str, Any] = {
        **PatchDetector._parameter_constraints,
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        extractor: Any = None,
        *,
        n_neighbors: int = 50,
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
        self.n_neighbors = n_neighbors
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination
        self.calibration = calibration
        self.smoothing = smoothing
        self.roi = roi
        self.max_memory = max_memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _learn(self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int) -> Gallery:
        held = patches if isinstance(patches, Patches) else Patches.gather(patches, budget.n_patches)
        with phase("learning"):
            descriptors = mean_patches(held.rows, held.starts)
        return Gallery(held.rows, held.starts, np.arange(len(held)), descriptors, self.n_neighbors)

    def _memory_needs(self, n_patches: int, first: Patches, stages: dict[str, Any]) -> MemoryNeeds:
        # All patch features are held in memory. Scoring copies the patch features of the nearest images.
        per_image = first.rows.nbytes // len(first)
        n_images = max(1, n_patches * first.rows.shape[1] * first.rows.itemsize // per_image)
        return MemoryNeeds(learning=None, model=min(self.n_neighbors, n_images) * per_image)
