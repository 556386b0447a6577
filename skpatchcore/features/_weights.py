"""read_weights and load_weights: weights from a file of the user, read without running code and loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skpatchcore.features._digests import digest_of_file


class WeightsError(RuntimeError):
    """Raised if the weights of a neural network are missing, are unreadable or belong to another network.

    The weights are the numbers that a network has learned. Usually, they come from torchvision, from a package of this
    project's extra ``offline``, or from a file. The error is raised in these cases: the weights are not on this machine
    and cannot be downloaded, a required package is not installed, a weights file is missing or damaged, the weights
    belong to another architecture, or the weights differ from those with which the detector was fitted. The message
    states the case and what to do.
    """


def weights_file(weights: str | Path | None) -> Path | None:
    """Return the path of the weights file; None if `weights` is neither a path nor a string with a file suffix."""
    if isinstance(weights, Path):
        return weights
    if isinstance(weights, str) and weights.endswith((".pth", ".pt", ".safetensors")):
        return Path(weights)
    return None


def digest_of_weights(file: Path) -> str:
    """Return the SHA-256 of a weights file, or raise a WeightsError if the file cannot be read."""
    try:
        return digest_of_file(file)
    except OSError as error:
        raise WeightsError(f"weights: there is no readable file {str(file)!r}. Check the path.") from error


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Read a state dictionary without running code from the file."""
    try:
        if file.suffix == ".safetensors":
            try:
                from safetensors.torch import load_file
            except ImportError as error:
                raise WeightsError(
                    "weights: a .safetensors file needs the package safetensors, which is not installed. Install it "
                    "with pip install safetensors."
                ) from error
            state: Any = load_file(str(file))
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # torch and safetensors raise many types of errors for invalid files
        raise WeightsError(f"weights: {str(file)!r} cannot be read as a state dictionary: {error}") from error
    for name in ("state_dict", "model"):  # checkpoints of a training contain more than the weights
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"weights: {str(file)!r} holds no state dictionary of tensors.")
    return {str(name).removeprefix("module."): value for name, value in state.items()}  # the prefix of DataParallel


def load_weights(cut: nn.Module, state: Mapping[str, torch.Tensor], file: Path) -> None:
    """Load the weights up to the last layer; other tensors of the file, such as the classifier's, are ignored."""
    needed = cut.state_dict()
    missing = [name for name in needed if name not in state]
    if missing:
        raise WeightsError(
            f"weights: {str(file)!r} lacks {len(missing)} of the network's tensors, the first is {missing[0]!r}. Use "
            "weights of the same architecture."
        )
    for name, value in needed.items():
        if state[name].shape != value.shape:
            raise WeightsError(
                f"weights: {name!r} in {str(file)!r} has shape {tuple(state[name].shape)}, "
                f"expected {tuple(value.shape)}. Use weights of the same architecture."
            )
    cut.load_state_dict({name: state[name] for name in needed}, strict=True)
