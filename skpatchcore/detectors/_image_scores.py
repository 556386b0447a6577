""":class:`ImageScoring`: how the patch scores of an image become its image score (the parameter `image_score`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from skpatchcore._utils.sklearn import Interval, StrOptions
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View
from skpatchcore.maps import map_peak
from skpatchcore.patches.model import PatchModel
from skpatchcore.patches.patches import Patches

# Values of `image_score` for which the model itself computes the image scores.
_BY_MODEL = (None, "max", "reweighted")
# The product of the share and the number of patches may be larger than a whole number by this, and still counts as this
# number: 0.1 * 30 is 3 patches, although the product is 3.0000000000000004. Exported graphs compute it in float32.
ROUNDING_OF_SHARES = 1e-3


def image_score_constraints(*names: str) -> list[object]:
    """Return the constraints of a parameter `image_score` that accepts the given names."""
    return [StrOptions({*names}), Interval(Real, 0, 1, closed="right")]


def n_top(share: float, n_patches: int) -> int:
    """Return how many of `n_patches` patches are the largest `share` of them: rounded up, at least 1."""
    return max(1, math.ceil(share * n_patches - ROUNDING_OF_SHARES))


def top_mean(patch_scores: np.ndarray, share: float) -> float:
    """Return the mean of the largest patch scores of an image, bigger = more anomalous.

    Parameters
    ----------
    patch_scores : array of shape (grid_height, grid_width)
        One score per patch. NaN for patches that are not inspected; they do not count.
    share : float in (0, 1]
        Fraction of the patches whose mean is returned.
    """
    known = np.sort(patch_scores[~np.isnan(patch_scores)])
    return float(known[-n_top(share, len(known)) :].mean())


@dataclass(frozen=True)
class ImageScoring:
    """Rule that turns the patch scores of an image into its image score.

    Attributes
    ----------
    image_score : {"reweighted", "max", "map-max"}, float or None
        Value of the detector's parameter `image_score`. With ``"reweighted"``, ``"max"`` and None (a detector without
        the parameter), the model itself computes the image scores.
    smoothing : float
        Standard deviation of the Gaussian filter on anomaly maps, in pixels of the network's input.
    """

    image_score: str | float | None
    smoothing: float

    def __post_init__(self) -> None:
        value = self.image_score
        is_share = isinstance(value, Real) and not isinstance(value, bool) and 0 < value <= 1
        if value not in (*_BY_MODEL, "map-max") and not is_share:
            raise ValueError(
                f"image_score={value!r}: expected 'reweighted', 'max', 'map-max' or a fraction of patches in (0, 1]."
            )

    def needs_views(self) -> bool:
        """Return whether the image scores depend on the sizes of the images."""
        return self.image_score == "map-max"

    def score_of(self, patch_scores: np.ndarray, view: View | None, mask: PixelMask | None) -> float:
        """Return the image score of one image from its patch scores, view and mask, bigger = more anomalous."""
        if self.image_score == "map-max":
            return map_peak(patch_scores, view, self.smoothing, mask)
        assert isinstance(self.image_score, Real)
        return top_mean(patch_scores, float(self.image_score))

    def of(self, model: PatchModel) -> PatchModel:
        """Return the model with the image scores of this rule."""
        return model if self.image_score in _BY_MODEL else ScoredByPatches(model, self)

    def of_each(self, models: Iterable[Sequence[PatchModel]]) -> Iterator[Sequence[PatchModel]]:
        """Return the lists of models with the image scores of this rule. No list is kept after the next one is made."""
        return map(self._of_list, models)

    def _of_list(self, models: Sequence[PatchModel]) -> Sequence[PatchModel]:
        return [self.of(model) for model in models]


@dataclass(frozen=True)
class ScoredByPatches:
    """A :class:`~skpatchcore.patches.model.PatchModel` whose image scores are computed from the patch scores only.

    Attributes
    ----------
    model : PatchModel
        Model of the patch scores.
    scoring : ImageScoring
        Rule of the image scores.
    """

    model: PatchModel
    scoring: ImageScoring

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores and patch scores, **bigger = more anomalous**."""
        _, patch_scores = self.model.score(patches)
        of_images = zip(patch_scores, patches.views, patches.masks, strict=True)
        scores = np.array([self.scoring.score_of(*image) for image in of_images], np.float64)
        return scores, patch_scores if with_patch_scores else []

    def without(self, images: np.ndarray) -> PatchModel | None:
        """Return the model without the contribution of the given images; None if nothing is left."""
        model = self.model.without(images)
        return None if model is None else ScoredByPatches(model, self.scoring)
