"""ReconstructionDetector: the base class of detectors that train a network to reconstruct good images."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skpatchcore._utils.device import available_device
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import phase
from skpatchcore._utils.sklearn import Interval
from skpatchcore._utils.threads import SMALL_PASS, one_thread
from skpatchcore._utils.warning import warn_user
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.detectors._image_scores import image_score_constraints
from skpatchcore.detectors._networks import MULTIPLE
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.detectors._training import State, Trainee, Training, seeded, train, with_state
from skpatchcore.features.pixels import PixelExtractor
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import Check, PatchSource

# Function of images and reconstructions, (n, 3, height, width), that returns errors of shape (n, height, width).
Errors = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Reconstruction:
    """The model: weights of a network that reconstructs images.

    Attributes
    ----------
    kind : str
        Name of the detector that knows the network.
    size : tuple of int
        Height and width of the images in pixels.
    settings : dict of str to object
        Arguments of the network, and the kind of error.
    state : dict of str to array
        Weights by name.
    losses, held_out_losses : list of float
        Mean loss of the training images and of the held-out images in each epoch.
    trained_on : str
        SHA-256 of the images of the training, held-out ones included.
    """

    kind: str
    size: tuple[int, int]
    settings: dict[str, Any]
    state: State
    losses: list[float]
    held_out_losses: list[float]
    trained_on: str


class Reconstructor:
    """A :class:`~skpatchcore.patches.model.PatchModel` that scores each pixel by the error of its reconstruction.

    Parameters
    ----------
    model : Reconstruction
        Weights.
    errors : callable
        ``errors(network, images)`` returns the errors of the pixels, of shape (n, height, width), and an additional
        error of each image, of shape (n,).
    network : Module
        The network with the weights of the model, on its device.
    device : torch.device
        Device of the network.
    """

    def __init__(
        self,
        model: Reconstruction,
        errors: Callable[[torch.nn.Module, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        network: torch.nn.Module,
        device: torch.device,
    ):
        self.model, self._errors, self._network, self._device = model, errors, network.eval(), device

    @default_modes()
    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores and errors of pixels, **bigger = more anomalous**.

        The image score is the mean error of the pixels in the region of interest, plus the additional error.
        """
        scores, grids = np.empty(len(patches)), []
        # Rounding depends on the number of threads, and scores must not.
        is_small = self.model.size[0] * self.model.size[1] <= SMALL_PASS
        with torch.inference_mode(), one_thread(is_small):
            for i in range(len(patches)):  # one by one: the result does not depend on the other images of a batch
                images = images_of(patches.between(i, i + 1), self.model.size).to(self._device)
                pixels, more = (
                    part.cpu().numpy().astype(np.float64)[0] for part in self._errors(self._network, images)
                )
                cells = patches.cells[i]
                known = pixels.ravel() if cells is None else pixels.ravel()[cells]
                scores[i] = known.mean() + more
                if with_patch_scores:
                    grid = np.full(pixels.size, np.nan)
                    grid[slice(None) if cells is None else cells] = known
                    grids.append(grid.reshape(pixels.shape))
        return scores, grids

    def without(self, images: np.ndarray) -> None:
        """Raise a ValueError: the network would have to be trained again for each image."""
        raise ValueError(
            "calibration='leave-one-out' would train a network for each image: choose a fraction such as 0.2, or a "
            "number of folds."
        )


def images_of(patches: Patches, size: tuple[int, int]) -> torch.Tensor:
    """Return the pixels of patches as images of shape (n_images, 3, height, width). Pixels without a row are grey."""
    images = torch.full((len(patches), size[0] * size[1], 3), 0.5)
    for i in range(len(patches)):
        own = torch.from_numpy(np.ascontiguousarray(patches.part(i), np.float32))
        cells = patches.cells[i]
        images[i, slice(None) if cells is None else torch.from_numpy(cells)] = own
    return images.reshape(len(patches), *size, 3).permute(0, 3, 1, 2).contiguous()


class ReconstructionDetector(PatchDetector):
    """Base class of detectors that train a network on good images, whose features are pixels.

    A subclass has the parameters in ``_parameter_constraints`` and implements `_network`, `_trainee` and `_errors`.
    """

    _parameter_constraints: dict[str, Any] = {
        **{name: given for name, given in PatchDetector._parameter_constraints.items() if name != "calibration"},
        "calibration": [
            option for option in PatchDetector._parameter_constraints["calibration"] if "auto" not in str(option)
        ],
        "image_score": image_score_constraints("max", "map-max"),
        "latent_size": [Interval(Integral, 1, None, closed="left")],
        "width": [Interval(Integral, 1, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "warm_start": ["boolean"],
    }

    # Parameters that change the scores of a fitted detector, in addition to those of all detectors.
    _of_scores: tuple[str, ...] = ()

    latent_size: int
    width: int
    max_epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    validation_fraction: float
    warm_start: bool

    @abstractmethod
    def _network(self, size: tuple[int, int], settings: dict[str, Any]) -> torch.nn.Module:
        """Return a new network for images of a size."""

    @abstractmethod
    def _trainee(self, network: torch.nn.Module, device: torch.device) -> Trainee:
        """Return how a network is trained."""

    @abstractmethod
    def _errors(self, network: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the errors of the pixels, of shape (n, height, width), and an additional error of each image."""

    def _fit(self, X: Any, y: Any, groups: Any) -> Any:
        if self.warm_start and hasattr(self, "model_") and not isinstance(self.random_state, Integral):
            raise ValueError(
                "warm_start=True needs an int as random_state: with other draws, images on which the earlier fit was "
                "trained would set the thresholds."
            )
        return super()._fit(X, y, groups)

    def _warn_of_thresholds(self, params: dict[str, Any]) -> None:
        super()._warn_of_thresholds(params)
        for name in self._of_scores:
            if hasattr(self, "offset_") and params.get(name, getattr(self, name)) != getattr(self, name):
                warn_user(
                    f"{name} changes the scores of a fitted detector, but not its thresholds. Pass good images that "
                    "were not used for the fit to recalibrate, or fit again."
                )

    def _default_stage(self, name: str, given: Any) -> Any:
        return PixelExtractor()

    def _settings(self) -> dict[str, Any]:
        """Return the arguments of the network, and what the errors depend on."""
        return {"width": int(self.width), "latent_size": int(self.latent_size)}

    def _learn(self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int) -> Reconstructor:
        return self._trained(patches, budget, seed, None)

    def _learn_all(self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int) -> Reconstructor:
        # Networks of folds start anew: the earlier network knows the images that a fold leaves out.
        return self._trained(patches, budget, seed, getattr(self, "model_", None) if self.warm_start else None)

    @default_modes(grad=True)
    def _trained(self, patches: PatchSource, budget: Budget, seed: int, before: Reconstruction | None) -> Reconstructor:
        """Train a network, and continue an earlier training if there is one."""
        held = patches if isinstance(patches, Patches) else Patches.gather(patches, budget.n_patches)
        size = (int(held.sizes[0, 0]), int(held.sizes[0, 1]))
        images = images_of(held, size)
        order = np.random.default_rng(seed).permutation(len(images))
        n_held_out = int(self.validation_fraction * len(images))
        device, settings = available_device(self.device), self._settings()
        network = seeded(lambda: self._network(size, settings), seed)
        earlier, trained_on = None, hashlib.sha256(images.numpy().tobytes()).hexdigest()
        if before is not None:
            if before.trained_on != trained_on:
                raise ValueError(
                    "warm_start=True: the training images are not those of the earlier fit, in the same order. With "
                    "others, images that the network knows could set the thresholds. Pass the same images, and keep "
                    "random_state and calibration. Set warm_start=False to train anew."
                )
            if (before.size, before.settings) != (size, settings):
                raise ValueError(
                    "warm_start=True: the network of the earlier fit has another size or other settings. Set "
                    "warm_start=False to train anew."
                )
            with_state(network, before.state)
            earlier = Training(before.state, list(before.losses), list(before.held_out_losses))
        with phase("training"):
            found = train(
                self._trainee(network.to(device), device),
                images[torch.from_numpy(order[n_held_out:])].to(device),
                images[torch.from_numpy(order[:n_held_out])].to(device),
                max_epochs=self.max_epochs,
                batch_size=self.batch_size,
                patience=self.patience,
                seed=seed,
                verbose=self.verbose,
                before=earlier,
            )
        if not found.has_ended:
            warn_user(
                f"the training ended after max_epochs={self.max_epochs}, before its loss had stopped falling for "
                f"patience={self.patience} epochs. Fit again with warm_start=True, or with more epochs.",
                ConvergenceWarning,
            )
        losses = found.losses, found.held_out_losses
        model = Reconstruction(type(self).__name__, size, settings, found.state, *losses, trained_on)
        return self._reconstructor(model)

    @default_modes()
    def _reconstructor(self, model: Reconstruction) -> Reconstructor:
        device = available_device(self.device)
        # Random weights, which are replaced at once, must not take numbers from the global generator.
        network = with_state(seeded(lambda: self._network(model.size, model.settings), 0), model.state).to(device)
        return Reconstructor(model, self._errors, network, device)

    def _keep(self, model: Reconstructor, numbers: np.ndarray) -> None:
        self.model_ = model.model

    def _model(self) -> Reconstructor:
        model: Any = super()._model()
        return self._reconstructor(model)

    def _memory_needs(self, n_patches: int, first: Patches, stages: dict[str, Any]) -> MemoryNeeds:
        return MemoryNeeds(learning=2 * 4 * 3 * n_patches, model=0)

    def _patch_check(self, is_fitted: bool) -> Check:
        return _OneSize(self.model_.size if is_fitted else None)


class _OneSize:
    """Check that raises an error for images of another size, or of a size that the network cannot have."""

    def __init__(self, size: tuple[int, int] | None):
        self.size = size

    def __call__(self, patches: Patches, numbers: np.ndarray) -> None:
        if patches.n_channels != 3:
            raise ValueError(
                f"patch features have {patches.n_channels} channels: expected the 3 colours of a PixelExtractor."
            )
        if self.size is None:
            self.size = (int(patches.sizes[0, 0]), int(patches.sizes[0, 1]))
            if self.size[0] % MULTIPLE or self.size[1] % MULTIPLE:
                raise ValueError(
                    f"images have {self.size[0]} x {self.size[1]} pixels: expected multiples of {MULTIPLE}. Choose an "
                    "extractor such as PixelExtractor(image_size=(128, 128))."
                )
        if (differs := (patches.sizes != self.size).any(axis=1)).any():
            i = int(differs.argmax())
            raise ValueError(
                f"image {numbers[i]} has {patches.sizes[i].tolist()} pixels, other images have {list(self.size)}: use "
                "an extractor with image_size=(height, width)."
            )
