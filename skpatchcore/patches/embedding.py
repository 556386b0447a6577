"""EmbeddingLog: a short vector per image, which tells whether images as a whole differ from the training images.

An anomaly score of a training image is not comparable with that of a new image, because the model was fitted on the
training image. An embedding depends on the extractor and on the image only. Therefore, the embeddings of the training
images are exchangeable with those of new good images of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import numpy as np

from skpatchcore.images.appearance import Appearance
from skpatchcore.patches.patches import Patches

# Maximum number of columns of an embedding.
N_COLUMNS = 32


def embeddings_of(patches: Patches) -> np.ndarray:
    """Return the embedding of each image: the mean of its patch features, projected to at most 32 columns.

    Parameters
    ----------
    patches : Patches
        The patches of the images.

    Returns
    -------
    array of shape (n_images, min(n_channels, 32)), float32
        The projection is random and the same for all images with the same number of channels. With at most 32 channels,
        there is no projection. Values beyond the range of float32 are infinite.
    """
    directions = _directions(patches.n_channels)
    found = np.empty((len(patches), N_COLUMNS if directions is not None else patches.n_channels), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        # One image after the other: the result for an image does not depend on the other images of its batch.
        for i in range(len(patches)):
            mean = patches.part(i).mean(axis=0, dtype=np.float64)
            found[i] = mean if directions is None else mean @ directions
    return found


@lru_cache(maxsize=4)
def _directions(n_channels: int) -> np.ndarray | None:
    """Return the random directions of the projection; None if there are at most 32 channels."""
    if n_channels <= N_COLUMNS:
        return None
    # The numbers of RandomState are the same in all versions of numpy, and model files contain embeddings.
    drawn: np.ndarray = np.random.RandomState(0).standard_normal((n_channels, N_COLUMNS)) / np.sqrt(n_channels)
    return drawn


class EmbeddingLog:
    """Collects embeddings and appearances of images that arrive in batches.

    The same image may arrive several times. Its first values are kept.
    """

    def __init__(self) -> None:
        self._embeddings: dict[int, np.ndarray] = {}
        self._appearances: dict[int, Appearance | None] = {}

    def __len__(self) -> int:
        return len(self._embeddings)

    def add(self, patches: Patches, numbers: np.ndarray) -> None:
        """Record a batch of images.

        Parameters
        ----------
        patches : Patches
            The patches of the images.
        numbers : array of int
            Index of each image.
        """
        if all(number in self._embeddings for number in numbers.tolist()):
            return
        for number, row, view in zip(numbers.tolist(), embeddings_of(patches), patches.views, strict=True):
            self._embeddings.setdefault(number, row)
            self._appearances.setdefault(number, None if view is None else view.appearance)

    def include(self, other: EmbeddingLog) -> None:
        """Add the images of another log."""
        self._embeddings.update(other._embeddings)
        self._appearances.update(other._appearances)

    def taken(self, indices: np.ndarray) -> EmbeddingLog:
        """Return a log of the images with the given indices, in this order."""
        some = EmbeddingLog()
        for i, number in enumerate(indices.tolist()):
            some._embeddings[i], some._appearances[i] = self._embeddings[number], self._appearances[number]
        return some

    def embeddings(self) -> np.ndarray | None:
        """Return an array of shape (n_images, n_columns), in the order of the indices; None without images."""
        rows = [self._embeddings[number] for number in sorted(self._embeddings)]
        return np.stack(rows) if rows else None

    def appearances(self) -> np.ndarray | None:
        """Return an array of shape (n_images, 5), in the order of the indices; None if the appearance is unknown."""
        rows = [self._appearances[number] for number in sorted(self._appearances)]
        return np.array(rows) if rows and all(row is not None for row in rows) else None


_live: ContextVar[EmbeddingLog | None] = ContextVar("live", default=None)


@contextmanager
def recorded_embeddings() -> Iterator[EmbeddingLog]:
    """Record the embeddings of all images that detectors score within the block, in the order of their scores.

    The embeddings and the scores then come from the same pass of the network. Images that cannot be scored have no
    embedding. Only detectors with patch features record embeddings.
    """
    log = EmbeddingLog()
    token = _live.set(log)
    try:
        yield log
    finally:
        _live.reset(token)


def record_live(patches: Patches) -> None:
    """Record scored images in the log of the surrounding :func:`recorded_embeddings`, if there is one."""
    if (log := _live.get()) is not None:
        log.add(patches, np.arange(len(log), len(log) + len(patches)))
