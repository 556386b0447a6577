"""train: the training loop of detectors that train a small network, with early stopping on held-out good images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from skpatchcore._utils.progress import progress_bar

State = dict[str, np.ndarray]


class Trainee(Protocol):
    """What is trained: networks, and how one batch changes them."""

    @property
    def network(self) -> torch.nn.Module:
        """The networks."""

    def step(self, images: torch.Tensor) -> float:
        """Change the networks after a look at a batch of images, and return its loss."""

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch of images that decides when the training ends, a scalar."""


@dataclass
class Training:
    """Result of a training.

    Attributes
    ----------
    state : dict of str to array
        Weights of the networks in the epoch with the lowest loss of the held-out images.
    losses, held_out_losses : list of float
        Mean loss of the training images and of the held-out images in each epoch, over all calls.
    has_ended : bool
        Whether the loss has not fallen for some epochs. False if the training was ended by `max_epochs`.
    """

    state: State
    losses: list[float] = field(default_factory=list)
    held_out_losses: list[float] = field(default_factory=list)
    has_ended: bool = False


def seeded(make: Callable[[], torch.nn.Module], seed: int) -> torch.nn.Module:
    """Return a new network whose random weights depend on the seed only. The global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would change the generators of GPUs, too
        return make()


def state_of(network: torch.nn.Module) -> State:
    """Return copies of the weights of a network as arrays."""
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def with_state(network: torch.nn.Module, state: State) -> torch.nn.Module:
    """Return a network after setting its weights."""
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return network


def train(
    trainee: Trainee,
    images: torch.Tensor,
    held_out: torch.Tensor,
    *,
    max_epochs: int,
    batch_size: int,
    patience: int,
    seed: int,
    verbose: int | bool,
    before: Training | None = None,
) -> Training:
    """Train networks until the loss of held-out images has not fallen for some epochs.

    Parameters
    ----------
    trainee : Trainee
        The networks, on their device. They are changed.
    images, held_out : tensors of shape (n_images, 3, height, width)
        Images to train on, and images that decide when the training ends. Without held-out images, the loss of the
        training images decides.
    max_epochs : int
        Maximum number of epochs.
    batch_size : int
        Number of images of a batch.
    patience : int
        Number of epochs without a lower loss, after which the training ends.
    seed : int
        Seed of the order of the images.
    verbose : int
        1 shows a progress bar.
    before : Training or None, default=None
        Earlier training, which is continued: its losses count, and the networks have its weights already.

    Returns
    -------
    Training

    Raises
    ------
    ValueError
        If the loss becomes infinite or NaN.
    """
    found = Training(state_of(trainee.network)) if before is None else before
    order = np.random.default_rng([seed, len(found.losses)])
    best, n_worse = min(found.held_out_losses, default=math.inf), 0
    with progress_bar(max_epochs, "training", "epoch", verbose) as bar:
        for _ in range(max_epochs):
            trainee.network.train()
            total = 0.0
            for rows in np.array_split(order.permutation(len(images)), math.ceil(len(images) / batch_size)):
                total += trainee.step(images[torch.from_numpy(rows)]) * len(rows)
            found.losses.append(total / len(images))
            of_others = _mean_loss(trainee, held_out, batch_size) if len(held_out) else found.losses[-1]
            found.held_out_losses.append(of_others)
            bar.update(1)
            if not math.isfinite(found.losses[-1] + of_others):
                raise ValueError(
                    f"the loss is not finite after {len(found.losses)} epochs: choose a smaller learning_rate."
                )
            if of_others < best:
                best, n_worse, found.state = of_others, 0, state_of(trainee.network)
            else:
                n_worse += 1
                if n_worse >= patience:
                    found.has_ended = True
                    break
    return found


@torch.inference_mode()
def _mean_loss(trainee: Trainee, images: torch.Tensor, batch_size: int) -> float:
    """Return the mean loss of images."""
    trainee.network.eval()
    values: list[Any] = [float(trainee.loss(batch)) * len(batch) for batch in torch.split(images, batch_size)]
    return float(sum(values) / len(images))
