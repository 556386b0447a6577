"""ImageRecords: what a detector records of each image while the patches stream by."""

from __future__ import annotations

import numpy as np

from skpatchcore._utils.warning import warn_user
from skpatchcore.images.appearance import AppearanceLog, appearance_range, describe_darkness, describe_difference
from skpatchcore.images.errors import AppearanceWarning
from skpatchcore.patches.embedding import EmbeddingLog, record_live
from skpatchcore.patches.inspection import InspectionLog
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import Check


class ImageRecords:
    """Check of a stream of patches that records the appearance, the embedding and the inspected area of each image.

    Parameters
    ----------
    check : callable or None
        Another check, which is called first for each batch. None calls no other check.
    of_good_images : bool
        True for the training images, and for other images that are known to be good. Otherwise, embeddings are recorded
        for the caller (:func:`~skpatchcore.patches.embedding.recorded_embeddings`).
    """

    def __init__(self, check: Check | None, of_good_images: bool):
        self.check, self.of_good_images = check, of_good_images
        self.appearance, self.embedding, self.inspection = AppearanceLog(), EmbeddingLog(), InspectionLog()

    def __call__(self, patches: Patches, numbers: np.ndarray) -> None:
        # Turned views of training images are checked, but not recorded.
        own = [i for i, view in enumerate(patches.views) if view is None or view.turn is None]
        self.appearance.add([patches.views[i] for i in own], numbers[own])
        if self.check is not None:
            self.check(patches, numbers)
        if len(own) < len(patches):
            if not own:
                return
            patches, numbers = patches.subset(np.array(own)), numbers[own]
        if self.of_good_images:
            self.embedding.add(patches, numbers)
            self.inspection.add(patches, numbers)
        else:
            record_live(patches)

    def include(self, other: ImageRecords) -> None:
        """Add the records of other images, e.g. of images that another process has extracted."""
        self.appearance.include(other.appearance)
        self.embedding.include(other.embedding)
        self.inspection.include(other.inspection)

    def range_of_appearance(self) -> np.ndarray | None:
        """Return the range of the appearances, or None if they are unknown. Warn if all images are nearly black."""
        appearances = self.appearance.as_array()
        if appearances is None:
            return None
        found = appearance_range(appearances)
        if problem := describe_darkness(found):
            warn_user(problem, AppearanceWarning)
        return found

    def extended_range(self, known: np.ndarray | None) -> np.ndarray | None:
        """Return the range of the appearances of good images together with a known range."""
        appearances = self.appearance.as_array()
        return known if known is None or appearances is None else appearance_range(np.concatenate([known, appearances]))

    def warn_of_difference(self, known: np.ndarray | None) -> None:
        """Warn if all images look unlike the training images, whose range of appearances is `known`."""
        appearances = self.appearance.as_array()
        if known is not None and appearances is not None and (problem := describe_difference(known, appearances)):
            warn_user(problem, AppearanceWarning)
