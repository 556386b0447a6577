"""PatchModel: the protocol of models that are fitted on patches of good images and score patches of new images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import phase
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View
from skpatchcore.patches.patches import Patches

# Function that returns the result to keep for an image. Its arguments are the image's patch scores, of shape
# (grid_height, grid_width), the image's view, and the image's pixels in the region of interest (None for all pixels).
Keep = Callable[[np.ndarray, View | None, PixelMask | None], Any]


class PatchModel(Protocol):
    """Protocol of the models of detectors: fitted on patches of good images, they score patches of new images."""

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores and patch scores, **bigger = more anomalous**.

        Parameters
        ----------
        patches : Patches
            Patches of the images to score.
        with_patch_scores : bool, default=True
            If False, the list of patch scores is empty, which may be faster. The image scores do not change.

        Returns
        -------
        scores : array of shape (n_images,), float64
            One score per image.
        patch_scores : list of arrays of shape (grid_height, grid_width)
            One grid of scores per image.

        Raises
        ------
        ValueError
            If the patches do not fit the model, e.g. because the number of channels differs.
        """

    def without(self, images: np.ndarray) -> PatchModel | None:
        """Return the model without the contribution of some training images; None if nothing would be left.

        Parameters
        ----------
        images : array of int
            Indices of the images to leave out, among the training images.

        Returns
        -------
        PatchModel or None
            Model for leave-one-out scores. The model itself does not change.
        """


def score_batches(
    batches: Iterable[Patches], model: PatchModel, keep: Keep | None
) -> Iterator[tuple[np.ndarray, list[Any]]]:
    """Score images batch by batch (bigger = more anomalous) and keep a result per image.

    Parameters
    ----------
    batches : iterable of Patches
        Patches of the images.
    model : PatchModel
        Model that scores the patches.
    keep : callable or None
        ``keep(patch_scores, view, mask)`` returns the result to keep for an image, such as its anomaly map. None keeps
        nothing.

    Yields
    ------
    scores : array of shape (n_batch,), float64
        Image scores, bigger = more anomalous.
    kept : list
        Results of `keep`, one per image. The list is empty if `keep` is None.
    """
    for patches in batches:
        with phase("search"), default_modes():
            scores, patch_scores = model.score(patches, with_patch_scores=keep is not None)
        kept: list[Any] = []
        if keep is not None:
            with phase("maps"), default_modes():
                kept = [keep(*image) for image in zip(patch_scores, patches.views, patches.masks, strict=True)]
        yield scores, kept


def check_channels(patches: Patches, n_channels: int, of: str = "the training features have") -> None:
    """Raise a ValueError if patches do not have `n_channels` channels; `of` starts the second half of the message."""
    if patches.n_channels != n_channels:
        raise ValueError(f"patch features have {patches.n_channels} channels, but {of} {n_channels}.")
