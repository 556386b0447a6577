"""WholeImageDetector: the base class of detectors that score images as a whole and have no anomaly maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np

from skpatchcore.bank.budget import MemoryNeeds
from skpatchcore.calibration.plans import SketchOf
from skpatchcore.calibration.sketches import no_sketches
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource


class WholeImageDetector(PatchDetector):
    """Base class of detectors whose model scores images, and not patches.

    A subclass has no parameters for pixels. All methods that need an anomaly map raise an error. The attributes about
    pixels exist, and are NaN, so that code for all detectors need not ask for them.
    """

    # Parameters of other detectors that have no meaning without anomaly maps.
    _parameter_constraints: dict[str, Any] = {
        name: constraint
        for name, constraint in PatchDetector._parameter_constraints.items()
        if name not in ("pixel_contamination", "smoothing")
    }
    pixel_contamination: float | None = None
    smoothing = 0.0

    def segment(self, X: Any, *, roi: Any = None) -> NoReturn:
        """Raise a NotImplementedError: the detector scores whole images, so it cannot say where a defect is."""
        raise self._without_maps("segment")

    def score_and_segment(self, X: Any, *, on_error: str = "raise", roi: Any = None) -> NoReturn:
        """Raise a NotImplementedError, as `segment` does. Use `score_samples`."""
        raise self._without_maps("score_and_segment")

    def predict_mask(
        self, X: Any, *, pixel_contamination: float | None = None, min_area: int | str = 1, roi: Any = None
    ) -> NoReturn:
        """Raise a NotImplementedError, as `segment` does."""
        raise self._without_maps("predict_mask")

    def regions(self, X: Any, *, min_area: int | str = 1, roi: Any = None) -> NoReturn:
        """Raise a NotImplementedError, as `segment` does."""
        raise self._without_maps("regions")

    def _without_maps(self, method: str) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__}.{method}: the detector compares whole images and has no anomaly maps. Use "
            "score_samples, or a detector that scores patches, such as PatchCoreDetector."
        )

    def _iter_scores(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, adapt: bool = False
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        # There is no map, so that there is nothing of it to keep. `recalibrate` needs a sketch of each image.
        rest = no_sketches(1)[0] if adapt else None
        for scores, _ in super()._iter_scores(X, None, adapt):
            yield scores, [] if of_map is None else [rest] * len(scores)

    def _sketch_of(self) -> SketchOf:
        return _no_sketch

    def _memory_needs(self, n_patches: int, first: Patches, stages: dict[str, Any]) -> MemoryNeeds:
        # Batches of patches become one row for each image.
        n_images = max(1, n_patches // max(1, first.n_rows // len(first)))
        n_bytes = 8 * n_images * first.n_channels
        return MemoryNeeds(learning=n_bytes, model=n_bytes)


def _no_sketch(patch_scores: np.ndarray, view: View | None, mask: PixelMask | None) -> np.ndarray:
    """Return the sketch of an image without a map."""
    return np.asarray(no_sketches(1)[0])


def no_patch_scores(patches: Patches, with_patch_scores: bool) -> list[np.ndarray]:
    """Return grids of NaN, which stand for the patch scores of a model that has none."""
    return patches.as_grids(np.full(len(patches.rows), np.nan)) if with_patch_scores else []


def mean_patches(rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the mean patch feature of each image: array of shape (n_images, n_channels), float64.

    Parameters
    ----------
    rows : array of shape (n_patches, n_channels)
        Patch features, image after image.
    starts : array of shape (n_images + 1,)
        Index in `rows` of the first patch of each image. The last item is the total number of patches.
    """
    return np.stack([rows[start:stop].mean(axis=0, dtype=np.float64) for start, stop in pairwise(starts)])


def descriptors_of(patches: PatchSource) -> np.ndarray:
    """Return the mean patch feature of each image of a stream, of shape (n_images, n_channels), float64."""
    return np.concatenate([mean_patches(batch.rows, batch.starts) for batch in patches])
