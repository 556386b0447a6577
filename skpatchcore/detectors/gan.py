"""GANDetector: a baseline with a generator that reconstructs images, and a discriminator that compares them."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch.nn import functional

from skpatchcore._utils.sklearn import Interval
from skpatchcore.detectors._networks import Adversaries
from skpatchcore.detectors._reconstruction import ReconstructionDetector

# Weights of the reconstruction error and of the feature error in the loss of the generator, as in GANomaly.
_OF_PIXELS, _OF_FEATURES = 50.0, 1.0


class _GANTrainee:
    """Generator and discriminator with their optimizers."""

    def __init__(self, network: torch.nn.Module, learning_rate: float):
        assert isinstance(network, Adversaries)
        self.network: Adversaries = network
        judges = [*network.features.parameters(), *network.decision.parameters()]
        settings: dict[str, Any] = {"lr": learning_rate, "betas": (0.5, 0.999)}
        self._of_generator = torch.optim.Adam(network.generator.parameters(), **settings)
        self._of_discriminator = torch.optim.Adam(judges, **settings)

    def step(self, images: torch.Tensor) -> float:
        """Change the weights after a look at a batch of images, and return the loss of the generator."""
        network = self.network
        made = network(images)
        true, false = (network.decision(network.features(some)) for some in (images, made.detach()))
        decision = functional.softplus(-true).mean() + functional.softplus(false).mean()
        self._of_discriminator.zero_grad()
        decision.backward()  # type: ignore[no-untyped-call]
        self._of_discriminator.step()
        loss = self._loss(images, made)
        self._of_generator.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._of_generator.step()
        return float(loss.detach())

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction error of a batch: the feature error changes with the discriminator."""
        error: torch.Tensor = (images - self.network(images)).abs().mean()
        return error

    def _loss(self, images: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        of_pixels = (images - made).abs().mean()
        features = self.network.features
        of_features = (features(images).detach() - features(made)).square().mean()
        total: torch.Tensor = _OF_PIXELS * of_pixels + _OF_FEATURES * of_features
        return total


class GANDetector(ReconstructionDetector):
    """Detect anomalies with a generative adversarial network that is trained on good images.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. ``segment`` returns anomaly maps, **bigger = more anomalous**.

    An encoder and a generator reconstruct an image. A discriminator learns to tell images from reconstructions, and the
    generator learns to have the same features in the discriminator as the image. The anomaly map is the absolute
    difference between the image and its reconstruction. The image score adds the difference of the features. The method
    uses no pretrained network. It is a baseline: expect far worse results than with PatchCore.

    Parameters
    ----------
    extractor : estimator or None, default=None
        The extractor turns images into grids of colours. None uses ``PixelExtractor(image_size=(128, 128))``. Height
        and width must be multiples of 16.
    feature_weight : float, default=0.1
        Weight of the mean squared difference of the features in the image score, beside the mean absolute difference of
        the pixels, which has the weight 1. Only for ``image_score="max"``.
    image_score : {"max", "map-max"} or float in (0, 1], default="max"
        Image score: ``"max"`` is the weighted sum of both errors, as in f-AnoGAN. ``"map-max"`` is the maximum of the
        smoothed anomaly map. A float is a fraction of the pixels: the score is the mean error of the pixels with the
        largest errors.
    latent_size : int, default=100
        Number of values to which an image is compressed.
    width : int, default=16
        Number of channels of the first level of each network.
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
    learning_rate : float, default=2e-4
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

    Notes
    -----
    The training is that of GANomaly without its second encoder: the weights of the reconstruction error and of the
    feature error are 50 and 1. It ends when the reconstruction error of held-out images has not fallen for `patience`
    epochs.

    References
    ----------
    Schlegl, Seeböck, Waldstein, Langs and Schmidt-Erfurth, "f-AnoGAN: Fast unsupervised anomaly detection with
    generative adversarial networks", Medical Image Analysis 54, 2019. Akcay, Atapour-Abarghouei and Breckon, "GANomaly:
    semi-supervised anomaly detection via adversarial training", ACCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import GANDetector, PixelExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (30, 32, 32, 3)).clip(0, 1)
    >>> bad = good[:1].copy()
    >>> bad[0, 10:20, 10:20] = 0
    >>> detector = GANDetector(PixelExtractor(image_size=(32, 32)), max_epochs=3, patience=3, width=4, random_state=0)
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # the training is too short
    ...     detector.fit(good).predict(bad)
    array([-1])
    """

    _parameter_constraints: dict[str, Any] = {
        **ReconstructionDetector._parameter_constraints,
        "feature_weight": [Interval(Real, 0, None, closed="left")],
    }
    _of_scores = ("feature_weight",)

    def __init__(
        self,
        extractor: Any = None,
        *,
        feature_weight: float = 0.1,
        image_score: str | float = "max",
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
        learning_rate: float = 2e-4,
        warm_start: bool = False,
        roi: Any = None,
        max_memory: int | str | None = "auto",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.feature_weight = feature_weight
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

    def _network(self, size: tuple[int, int], settings: dict[str, Any]) -> torch.nn.Module:
        return Adversaries(size, settings["width"], settings["latent_size"])

    def _trainee(self, network: torch.nn.Module, device: torch.device) -> _GANTrainee:
        return _GANTrainee(network, self.learning_rate)

    def _errors(self, network: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(network, Adversaries)
        made = network(images)
        of_features = (network.features(images) - network.features(made)).square().mean(1)
        return (images - made).abs().mean(1), self.feature_weight * of_features
