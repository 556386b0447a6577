"""PatchModel: the protocol of everything that is learnt from patches and scores new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import phase
from skpatchcore.images.views import View
from skpatchcore.patches.patches import Patches

# Returns what is kept of an image, from its patch scores of shape (grid_height, grid_width) and its view.
Keep = Callable[[np.ndarray, View | None], Any]


class PatchModel(Protocol):
    """What a detector has learnt from the patches of good images."""

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores and patch scores, **bigger = more anomalous**.

        Parameters
        ----------
        patches : Patches
            Of the images to score.
        with_patch_scores : bool, default=True
            If False, the list of patch scores is empty, which may be faster. The image scores are the same.

        Returns
        -------
        scores : array of shape (n_images,), float64
            One per image.
        patch_scores : list of arrays of shape (grid_height, grid_width)
            One grid per image.

        Raises
        ------
        ValueError
            If the patches do not fit those that were learnt from.
        """

    def without(self, images: np.ndarray) -> PatchModel | None:
        """Return the model as if it had not learnt from some images; None if nothing would be left.

        Parameters
        ----------
        images : array of int
            Indices into the images that were learnt from.
        """


def score_batches(
    batches: Iterable[Patches], model: PatchModel, keep: Keep | None
) -> Iterator[tuple[np.ndarray, list[Any]]]:
    """Score images batch by batch.

    Parameters
    ----------
    batches : iterable of Patches
        The images' patches.
    model : PatchModel
        Scores them.
    keep : callable or None
        ``keep(patch_scores, view)`` returns what is kept of an image's patch scores; None keeps nothing.

    Yields
    ------
    scores : array of shape (n_batch,), float64
        Bigger = more anomalous.
    kept : list
        One item per image; empty without `keep`.
    """
    for patches in batches:
        with phase("search"), default_modes():
            scores, patch_scores = model.score(patches, with_patch_scores=keep is not None)
        kept: list[Any] = []
        if keep is not None:
            with phase("maps"), default_modes():
                kept = [keep(some, view) for some, view in zip(patch_scores, patches.views, strict=True)]
        yield scores, kept


def check_channels(patches: Patches, n_channels: int, of: str = "those learnt from have") -> None:
    """Raise a ValueError if patches have other channels than those that were learnt from."""
    if patches.rows.shape[1] != n_channels:
        raise ValueError(f"patch features have {patches.rows.shape[1]} channels, but {of} {n_channels}.")
