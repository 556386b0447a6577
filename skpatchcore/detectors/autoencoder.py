"""AutoencoderDetector: a baseline that reconstructs images, and finds what it cannot reconstruct."""

from __future__ import annotations

from typing import Any

import torch

from skpatchcore._utils.sklearn import StrOptions
from skpatchcore.detectors._networks import Autoencoder, squared_errors, ssim_errors
from skpatchcore.detectors._reconstruction import Errors, ReconstructionDetector

_ERRORS: dict[str, Errors] = {"squared": squared_errors, "ssim": ssim_errors}


class _AutoencoderTrainee:
    """An autoencoder with its optimizer."""

    def __init__(self, network: torch.nn.Module, errors: Errors, learning_rate: float):
        self.network, self._errors = network, errors
        self._optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=1e-5)

    def step(self, images: torch.Tensor) -> float:
        """Change the weights after a look at a batch of images, and return its loss."""
        loss = self.loss(images)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean error of a batch of images."""
        return self._errors(images, self.network(images)).mean()


class AutoencoderDetector(ReconstructionDetector):
    """Detect anomalies with an autoencoder: a network that is trained to reconstruct good images.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. ``segment`` returns anomaly maps, **bigger = more anomalous**.

    A convolutional network compresses an image to a few numbers, and computes the image from them. It learns to do so
    for good images only. What differs between a new image and its reconstruction is anomalous. The method uses no
    pretrained network. It is a baseline: expect far worse results than with PatchCore, because the network also
    reconstructs many defects, and blurs the details of good images.

    Parameters
    ----------
    extractor : estimator or None, default=None
        The extractor turns images into grids of colours. None uses ``PixelExtractor(image_size=(128, 128))``. Height
        and width must be multiples of 16.
    error : {"squared", "ssim"}, default="squared"
        Error between an image and its reconstruction, for the training and for the anomaly maps: the squared difference
        of the colours, or 1 minus the structural similarity (SSIM), which compares the surroundings of a pixel.
    image_score : {"max", "map-max"} or float in (0, 1], default="map-max"
        Image score from the errors: ``"map-max"`` is the maximum of the smoothed anomaly map. ``"max"`` is the mean
        error of the image, which is the usual score of an autoencoder. A float is a fraction of the pixels: the score
        is the mean error of the pixels with the largest errors.
    latent_size : int, default=100
        Number of values to which an image is compressed.
    width : int, default=16
        Number of channels of the first level of the network.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted false-positive rate, as for :class:`~skpatchcore.PatchCoreDetector`.
    pixel_contamination : float in (0, 0.5] or None, default=None
        Accepted fraction of the pixels of good images above the pixel threshold, as for
        :class:`~skpatchcore.PatchCoreDetector`.
    calibration : float, int, splitter or None, default=0.2
        Method that scores good images in order to set the thresholds. A float is the fraction of the images (or groups)
        that are scored, and on which the network is not trained. An int is a number of folds: a network is trained for
        each fold, which takes as many times longer. None sets no threshold.
    smoothing : float, default=4.0
        Standard deviation of the Gaussian filter on anomaly maps, in pixels of the resized image.
    max_epochs : int, default=100
        Maximum number of passes over the training images. If it is reached, a ConvergenceWarning says so.
    patience : int, default=20
        Number of epochs without a lower loss of the held-out images, after which the training ends. The weights of the
        best epoch are kept.
    validation_fraction : float in [0, 1), default=0.1
        Fraction of the training images that are held out of the training to decide when it ends. They are good images,
        and they do not set the thresholds. They are drawn image by image, also with groups.
    batch_size : int, default=16
        Number of images of a training batch.
    learning_rate : float, default=1e-3
        Step size of Adam.
    warm_start : bool, default=False
        If True, `fit` continues the training of the last fit, with the same images, `calibration` and `random_state`,
        which must be an int. Other training images raise an error. The losses of all fits are kept. The training goes
        on from the best weights, and Adam starts anew: two fits do not give the weights of one long fit.
    roi : mask, path, box, polygon, list, callable or None, default=None
        Region of interest, as for :class:`~skpatchcore.PatchCoreDetector`. Other pixels are grey for the network.
    max_memory : int, str or None, default="auto"
        Maximum memory (RAM) that `fit` may use, as for :class:`~skpatchcore.PatchCoreDetector`. All images are held in
        memory at their reduced size.
    device : str, default="auto"
        Device of the training and of the scores. ``"auto"`` uses CUDA if available, otherwise the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed of the first weights, of the order of the images, and of the draws of held-out images and folds. On the
        CPU, the same seed and the same number of threads give the same network.
    verbose : int, default=0
        If 1, progress bars are shown.

    Attributes
    ----------
    extractor_ : estimator
        The fitted extractor.
    model_ : Reconstruction
        Weights of the network, and the losses of each epoch in ``losses`` and ``held_out_losses``.
    calibration_scores_ : array of shape (n_calibration,), float64
        Scores of the calibration images, bigger = more normal.
    calibration_peaks_ : array of shape (n_calibration,), float64
        Maximum of the anomaly map of each calibration image, bigger = more anomalous.
    calibration_sketches_ : array of shape (n_calibration, 2, n_levels), float32
        Sketches of the calibration images' anomaly maps, as in :class:`~skpatchcore.PatchCoreDetector`.
    calibration_image_indices_ : array of shape (n_calibration,), int64
        Index in `X` of each calibration image.
    offset_ : float
        Image threshold: ``predict`` returns -1 if the image score is below `offset_`.
    pixel_offset_ : float
        Pixel threshold: pixels with an anomaly map value above `pixel_offset_` are anomalous.
    min_area_, promised_rate_, calibration_plan_, appearance_range_, roi_, inspection_, training_paths_
        As in :class:`~skpatchcore.PatchCoreDetector`.
    embeddings_, appearances_ : arrays or None
        Short vectors that describe the training images as a whole, as in :class:`~skpatchcore.PatchCoreDetector`.

    References
    ----------
    Bergmann, Löwe, Fauser, Sattlegger and Steger, "Improving unsupervised defect segmentation by applying structural
    similarity to autoencoders", VISAPP 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import AutoencoderDetector, PixelExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (30, 32, 32, 3)).clip(0, 1)
    >>> bad = good[:1].copy()
    >>> bad[0, 10:20, 10:20] = 0
    >>> extractor = PixelExtractor(image_size=(32, 32))
    >>> detector = AutoencoderDetector(extractor, max_epochs=3, patience=3, width=4, random_state=0)
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # the training is too short
    ...     detector.fit(good).predict(bad)
    array([-1])
    """

    _parameter_constraints: dict[str, Any] = {
        **ReconstructionDetector._parameter_constraints,
        "error": [StrOptions({"squared", "ssim"})],
    }
    _of_scores = ("error",)

    def __init__(
        self,
        extractor: Any = None,
        *,
        error: str = "squared",
        image_score: str | float = "map-max",
        latent_size: int = 100,
        width: int = 16,
        contamination: float | str = "auto",
        pixel_contamination: float | None = None,
        calibration: Any = 0.2,
        smoothing: float = 4.0,
        max_epochs: int = 100,
        patience: int = 20,
        validation_fraction: float = 0.1,
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        warm_start: bool = False,
        roi: Any = None,
        max_memory: int | str | None = "auto",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.error = error
        self.image_score = image_score
        self.latent_size = latent_size
        self.width = width
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination
        self.calibration = calibration
        self.smoothing = smoothing
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.warm_start = warm_start
        self.roi = roi
        self.max_memory = max_memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "error": self.error}

    def _network(self, size: tuple[int, int], settings: dict[str, Any]) -> torch.nn.Module:
        return Autoencoder(size, settings["width"], settings["latent_size"])

    def _trainee(self, network: torch.nn.Module, device: torch.device) -> _AutoencoderTrainee:
        return _AutoencoderTrainee(network, _ERRORS[self.error], self.learning_rate)

    def _errors(self, network: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        errors = _ERRORS[self.error](images, network(images))
        return errors, errors.new_zeros(len(images))
