"""TrainingReport: the base class with `training_report`, which shows the training images that may be defective."""

from __future__ import annotations

from typing import Any

import numpy as np


class TrainingReport:
    """Base class of detectors with a memory bank that report on their training images."""

    training_groups_: list[Any] | None
    training_image_indices_: np.ndarray

    def _keep_numbers(self, n_images: int, kept: np.ndarray, groups: Any) -> None:
        """Set fitted attributes from the number of images, the indices of the good images and the groups of all."""
        super()._keep_numbers(n_images, kept, groups)  # type: ignore[misc]
        self.training_image_indices_ = kept
        self.training_groups_ = (
            None if groups is None else [g.item() if isinstance(g, np.generic) else g for g in groups]
        )
