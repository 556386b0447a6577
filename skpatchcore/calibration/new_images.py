"""`HeldOutScores`: calibration scores of new images by a model that was not fitted on them; `recent_scores`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from skpatchcore.calibration.conformal import AUTO_CONTAMINATION
from skpatchcore.calibration.plans import CalibrationScores, SketchOf
from skpatchcore.calibration.sketches import no_sketches
from skpatchcore.patches.model import PatchModel, score_batches
from skpatchcore.patches.patches import Patches

# Scores are not extrapolated to more than this multiple of the images of the model that computed them.
_MOST_GROWTH = 2
# Probability below which a number of flagged images is reported, and number of images that the report names.
_IMPROBABLE, _N_NAMED = 1e-3, 5
# Number of recent calibration scores that suffices, in units of the inverse of the accepted false-positive rate.
_N_RECENT = 5


def recent_scores(sizes: np.ndarray, n_now: int, scores: np.ndarray, contamination: float | str) -> np.ndarray:
    """Return which calibration scores are used after a detector has grown.

    Parameters
    ----------
    sizes : array of shape (n_scores,), int
        Number of training images of the model that computed each score.
    n_now : int
        Number of training images of the detector now.
    scores : array of shape (n_scores,), float64
        The scores. NaN does not count.
    contamination : float or "auto"
        Accepted false-positive rate.

    Returns
    -------
    array of shape (n_scores,), bool
        True for scores by models of at least half of the training images, if there are at least five times as many of
        them as the smallest number that can promise the rate (100 for 5 %). Otherwise, all are True: the scores by
        small models are too high, but a threshold from few scores is unreliable.
    """
    rate = AUTO_CONTAMINATION if contamination == "auto" else float(contamination)
    is_recent = sizes >= n_now / _MOST_GROWTH
    if np.count_nonzero(is_recent & ~np.isnan(scores)) < _N_RECENT / rate:
        return np.ones(len(sizes), bool)
    return is_recent


def is_improbable(n_flagged: int, n_images: int, rate: float) -> bool:
    """Return whether so many flagged images among new good ones have a probability of less than 1 in 1,000.

    Parameters
    ----------
    n_flagged, n_images : int
        Number of flagged images, and of all new images.
    rate : float
        Promised false-positive rate.
    """
    from scipy.stats import binom

    return bool(binom.sf(n_flagged - 1, n_images, rate) < _IMPROBABLE)


def describe_flagged(names: Sequence[str], n_images: int, rate: float) -> str:
    """Return the text of a warning that many new images are flagged.

    Parameters
    ----------
    names : sequence of str
        Names of the flagged images.
    n_images : int
        Number of all new images.
    rate : float
        Promised false-positive rate.
    """
    more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    return (
        f"partial_fit: {len(names)} of {n_images} new images are flagged by the detector as it was, although "
        f"{100 * rate:.3g} % is promised: {', '.join(names[:_N_NAMED])}{more}. If they are good, the detector now "
        "accepts more. If they are defective, or show another product, the thresholds are now too tolerant: remove "
        "them with forget."
    )


def relative_sizes(sizes: np.ndarray, n_images: tuple[int, int], n_rows: tuple[int, int]) -> np.ndarray:
    """Return the size before a change of a detector, relative to the size after it, as each calibration score sees it.

    Parameters
    ----------
    sizes : array of shape (n_scores,), int
        Number of training images of the model that computed each score.
    n_images : (int, int)
        Number of training images before and after the change.
    n_rows : (int, int)
        Number of rows of the memory bank before and after the change.

    Returns
    -------
    array of shape (n_scores,), float64
        At most 1 if images were added, and at least 1 if images were removed. Scores are multiplied by a power of it.

    Notes
    -----
    The exponent comes from folds, whose banks grow in proportion to the number of images. If the bank has grown less,
    e.g. because the new images show nothing new, the scores fall less, too: the smaller of both growths counts. Beyond
    twice the images of the model that computed a score, the score stays as it is, because the exponent falls with the
    number of images. Removing images reverses the change.
    """
    (before, after), (rows_before, rows_after) = n_images, n_rows
    limits = [np.clip(sizes / n, 1 / _MOST_GROWTH, 1) for n in n_images]
    limit = limits[1] / limits[0]
    changes = before / after, rows_before / rows_after
    if after > before:
        return np.maximum(min(1.0, max(changes)), limit)
    return np.minimum(max(1.0, min(changes)), np.maximum(limit, 1.0))


class HeldOutScores:
    """Scores new images before a model is extended by them.

    Parameters
    ----------
    model : PatchModel
        Model of the earlier images.
    sketch_of : callable
        Returns the sketch of an anomaly map, as for the calibration plans.
    numbers : array of shape (n_images,), int64
        Index of each new image among all training images.
    kin : dict of int to array of int
        For the index of a new image, the earlier images of its group. The model leaves them out when it scores the
        image. Images that are not in the dict have no such images.
    """

    def __init__(self, model: PatchModel, sketch_of: SketchOf, numbers: np.ndarray, kin: dict[int, np.ndarray]):
        self._model, self._sketch_of, self._numbers, self._kin = model, sketch_of, numbers, kin
        self._scores, self._sketches = np.full(len(numbers), np.nan), no_sketches(len(numbers))
        self._models: dict[bytes, PatchModel | None] = {b"": model}

    def add(self, batch: Patches, first: int) -> None:
        """Score the images of a batch. `first` is the place of its first image in `numbers`; later places are ignored.

        An image has no score if all rows of the model come from its group.
        """
        n_own = min(len(batch), len(self._numbers) - first)

        def group_of(place: int) -> bytes:
            return self._kin.get(int(self._numbers[first + place]), np.zeros(0, np.int64)).tobytes()

        for key, places in groupby(range(n_own), group_of):
            some = list(places)
            if key not in self._models:
                self._models = {b"": self._model, key: self._model.without(np.frombuffer(key, np.int64))}
            if (model := self._models[key]) is None:
                continue
            part = batch.between(some[0], some[-1] + 1)
            for scores, sketches in score_batches([part], model, self._sketch_of):
                here = slice(first + some[0], first + some[-1] + 1)
                self._scores[here], self._sketches[here] = scores, np.array(sketches)

    def found(self) -> CalibrationScores:
        """Return the scores and sketches of all images, bigger = more anomalous."""
        return CalibrationScores(self._numbers, self._scores, self._sketches)
