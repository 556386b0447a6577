"""plan_calibration: build the calibration plan for the parameter `calibration` of a detector."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from skpatchcore._utils.warning import warn_user
from skpatchcore.calibration.folds import Automatic, CrossFitted, is_splitter
from skpatchcore.calibration.plans import HeldOut, LeaveOneOut, NoCalibration


def kind_of(calibration: Any) -> type[NoCalibration]:
    """Return the class of plan for the value of a detector's parameter `calibration`."""
    if calibration is None:
        return NoCalibration
    if isinstance(calibration, str):
        return Automatic if calibration == "auto" else LeaveOneOut
    return CrossFitted if is_splitter(calibration) or isinstance(calibration, Integral) else HeldOut


def plan_calibration(
    calibration: Any,
    groups: np.ndarray | None,
    n_images: int,
    rng: np.random.RandomState,
    contamination: float | str = "auto",
    verbose: int = 0,
) -> NoCalibration:
    """Build the calibration plan: which images are scored against which model.

    Parameters
    ----------
    calibration : "auto", "leave-one-out", float, int, splitter or None
        The detector's parameter `calibration`. ``"auto"`` chooses folds or leave-one-out when the patches are known. A
        float is the fraction of the groups that are held out. An int is the number of folds. None turns calibration
        off.
    groups : array of shape (n_images,) or None
        Group of each image. None makes each image its own group.
    n_images : int
        Number of images.
    rng : RandomState
        Random number generator that selects held-out images and folds.
    contamination : float or "auto", default="auto"
        The detector's parameter `contamination`.
    verbose : int, default=0
        1 shows progress bars, 0 does not.

    Returns
    -------
    NoCalibration
        An instance of :class:`NoCalibration` or of one of its subclasses.

    Raises
    ------
    ValueError
        If all images have the same group, or if there are too few images for the number of folds or for the held-out
        fraction. A splitter raises the error if an image is in two test sets, if all test sets are empty, or if the
        training and the test set of a fold share an image or a group.

    Warns
    -----
    UserWarning
        If the calibration images come from so few groups that more than the fraction `contamination` of good images of
        new groups may be flagged.
    """
    kind = kind_of(calibration)
    if kind is NoCalibration:
        return NoCalibration()
    if groups is not None and len(np.unique(groups)) == 1:
        raise ValueError(
            "groups: all training images share one group, so no image can be scored by a model without its own group. "
            "Pass images of several groups, or set calibration=None."
        )
    own = np.arange(n_images) if groups is None else groups
    plan: NoCalibration
    if kind is CrossFitted:
        plan = CrossFitted(n_images, groups, calibration, rng, verbose)
    elif kind is LeaveOneOut:
        plan = LeaveOneOut(own, verbose)
    elif kind is Automatic:
        plan = Automatic(n_images, groups, rng, verbose)
    else:
        plan = HeldOut(own, calibration, rng)
    if groups is not None:
        _warn_of_few_groups(len(np.unique(groups[plan.images()])), contamination)
    return plan


def _warn_of_few_groups(n_groups: int, contamination: float | str) -> None:
    """Warn if the number of groups is too small to promise `contamination` for images of new groups."""
    if not isinstance(contamination, str) and n_groups + 1 < 1 / contamination:
        warn_user(
            f"contamination={contamination:g} cannot be promised for images of new groups, because the calibration "
            f"images come from {n_groups} groups only: about 1/{n_groups + 1} = {1 / (n_groups + 1):.3g} may be "
            "flagged. Fit on images of more groups, or increase contamination.",
        )
