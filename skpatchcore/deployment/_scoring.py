"""ScoringGraph: the anomaly scores and anomaly maps that the graph of an exported ONNX file computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from skpatchcore._utils.ahead import prefetched
from skpatchcore.deployment._drawing import MapRules
from skpatchcore.deployment._reading import InputRules, Prepared
from skpatchcore.deployment.runtimes import Runner
from skpatchcore.detectors._results import turned
from skpatchcore.images.errors import ImageError


class ScoringGraph:
    """The graph of an exported file, with the reading of images before it and the drawing of maps after it.

    Parameters
    ----------
    runner : Runner
        The graph in a runtime.
    inputs : InputRules
        How images are read.
    maps : MapRules
        How anomaly maps are drawn.
    batch_size : int
        Maximum number of images that are passed to the graph at once.
    """

    def __init__(self, runner: Runner, inputs: InputRules, maps: MapRules, batch_size: int):
        self._runner, self._inputs, self._maps, self._batch_size = runner, inputs, maps, batch_size

    def iter_scores(
        self, images: Any, of_map: Callable[[np.ndarray], Any] | None
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        """Yield the scores of each batch of images.

        Parameters
        ----------
        images : sequence of images
            The images, as :func:`~skpatchcore.images.containers.as_image_sequence` returns them.
        of_map : callable or None
            Function of an anomaly map, bigger = more anomalous. None computes no maps.

        Yields
        ------
        scores : array of shape (n_batch,), float64
            Anomaly scores, **bigger = more anomalous**.
        kept : list
            The values of `of_map`, one per image. Empty if `of_map` is None.

        Raises
        ------
        ImageError
            If an image cannot be read, or if the graph does not take such an image. With `of_map`, the error is also
            raised if the score of an inspected patch is not finite.
        """
        outputs = ["score"] if of_map is None else ["score", "patch_scores", "grid"]
        batches = self._inputs.batches(images, self._batch_size)
        for batch in prefetched(batches) if len(images) > self._batch_size else batches:
            found = self._run(batch, outputs)
            kept = []
            if of_map is not None:
                grid = (int(found[2][0]), int(found[2][1]))
                for image, patch_scores in zip(batch, found[1], strict=True):
                    if not self._maps.are_usable(patch_scores):
                        raise ImageError("the score of a patch is not finite.", image.index, image.path)
                    kept.append(of_map(self._maps.draw(patch_scores, grid, image.view)))
            yield np.asarray(turned(found[0].astype(np.float64))), kept

    def _run(self, batch: list[Prepared], outputs: list[str]) -> list[np.ndarray]:
        """Return outputs of the graph for images of one size."""
        images, first = np.stack([image.pixels for image in batch]), batch[0]
        try:
            return self._runner.run(images, outputs)
        except Exception as error:  # runtimes raise their own classes of errors
            size, reason = f"{images.shape[1]}×{images.shape[2]}", " ".join(str(error).split())
            if isinstance(error, MemoryError) or "allocate memory" in reason or "bad_alloc" in reason:
                raise MemoryError(f"image {first.index} at {size} pixels takes more memory than is left.") from error
            raise ImageError(
                f"the graph cannot be run on an image of {size} pixels: {reason}", first.index, first.path
            ) from error
