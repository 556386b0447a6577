"""TrainingReport: the base class with `training_report`, which shows the training images that may be defective."""

from __future__ import annotations

from typing import Any

import numpy as np


class TrainingReport:
    """Base class of detectors with a memory bank that report on their training images."""

    training_groups_: list[Any] | None
    training_image_indices_: np.ndarray
