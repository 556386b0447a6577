"""learn_and_calibrate: the step of a fit that learns the model from the patches and scores the calibration images.

The detector's `fit` validates the images before this step and sets the thresholds after it. A detector that is fitted
on several machines replaces this step only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from skpatchcore._utils.progress import phase
from skpatchcore._utils.warning import warn_user
from skpatchcore.bank.budget import Budget, within_memory
from skpatchcore.bank.suspects import learnt_cells
from skpatchcore.calibration.plans import CalibrationScores, LeaveOneOut, NoCalibration
from skpatchcore.patches.model import PatchModel
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource, PatchStream

if TYPE_CHECKING:
    from skpatchcore.detectors._patch_detector import PatchDetector


@dataclass
class Learned:
    """Result of the step that learns and calibrates.

    Attributes
    ----------
    model : PatchModel
        Model of the images on which the detector is fitted.
    numbers : array of int
        Index in `X` of each of these images.
    found : CalibrationScores
        Scores of the calibration images.
    description : str
        How the calibration images were scored, in words.
    """

    model: PatchModel
    numbers: np.ndarray
    found: CalibrationScores
    description: str


def learn_and_calibrate(
    detector: PatchDetector, stream: PatchStream, plan: NoCalibration, stages: dict[str, Any], seed: int
) -> Learned:
    """Learn the model of a detector, and score the calibration images.

    Parameters
    ----------
    detector : PatchDetector
        The detector. It is not changed.
    stream : PatchStream
        Patches of all good images, and then of their turned views if the detector has the parameter `augment`.
    plan : NoCalibration
        Calibration plan of these images.
    stages : dict of str to estimator
        The stages by name. They are not changed.
    seed : int
        Seed of the detector's own random draws.

    Returns
    -------
    Learned
    """
    max_memory = detector._memory_limit()
    n_views = 1 + len(detector._turns())
    n_images = len(stream) // n_views

    def with_views(images: np.ndarray, n_images: int) -> np.ndarray:
        """Return the indices of some original images, and of their turned views, which follow `n_images` originals."""
        return np.concatenate([images + view * n_images for view in range(n_views)])

    source = stream if plan.learnt is None else stream.subset(with_views(plan.learnt, n_images))
    n_learnt = len(source) // n_views
    needs = partial(detector._memory_needs, stages=stages)

    def held(some: PatchSource, extra_copies: int = 0) -> tuple[PatchSource, Budget]:
        if isinstance(some, Patches):
            return some, Budget(some.n_rows, None)
        return within_memory(some, max_memory, extra_copies, needs)

    share = getattr(detector, "suspect_share", None)
    n_copies = (detector._copies_for_folds(stages) if plan.left_out else 0) + (share is not None)
    patches, budget = held(source, n_copies)
    # The calibration scores whole images, also with suspicious patches: nobody knows these of new images.
    learnt = patches
    if share is not None:
        groups = detector._groups_of(source.numbers[:n_learnt])
        learnt = patches.limited_to(learnt_cells(patches, share, groups, seed, detector._turns()))
        if isinstance(learnt, Patches):
            budget = replace(budget, n_patches=learnt.n_rows)
    has_transformer = stages.get("transformer") is not None
    # The scores of a transformer are no linear function of the number of images: the correction is too large.
    plan = plan.resolved(lambda: detector._n_folds(learnt, budget, stages), is_corrected=not has_transformer)
    if has_transformer and isinstance(plan, LeaveOneOut) and len(patches) > 1:
        warn_user(
            "leave-one-out scores images with a transformer that was fitted on them: more good images are flagged than "
            "contamination accepts, especially with few training images. Use calibration='auto', a number of folds or "
            "a held-out fraction."
        )
    left_out = [with_views(images, n_learnt) for images in plan.left_out]
    model, fold_models = detector._learn_folds(learnt, stages, budget, seed, left_out, held)
    if n_views > 1:
        # The calibration scores the original images. A model leaves out an image together with its views.
        model = model.of_originals(n_learnt)  # type: ignore[attr-defined]
        is_held = isinstance(patches, Patches)
        patches = patches.between(0, n_learnt) if is_held else patches.subset(np.arange(n_learnt))
    with phase("calibration"):
        scoring = detector._image_scoring()
        scored_folds = scoring.of_each(fold_models)
        found = plan.calibrate(stream, patches, scoring.of(model), scored_folds, detector._sketch_of())
    return Learned(model, source.numbers[:n_learnt], found, plan.description)
