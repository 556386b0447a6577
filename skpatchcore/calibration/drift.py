"""DriftMonitor: raises an alarm if new images are no longer exchangeable with the images of the calibration."""

from __future__ import annotations

import math
from array import array
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skpatchcore.calibration.martingale import SLOPES, ConformalRanks, TestMartingale
from skpatchcore.calibration.whole_images import MIN_IMAGES, WholeImages, fit_whole_images
from skpatchcore.images.containers import listed
from skpatchcore.patches.embedding import EmbeddingLog, recorded_embeddings

SCORES, BRIGHTNESS, CONTRAST, EMBEDDING = "scores", "brightness", "contrast", "embedding"
# Fraction of the initial capital that bets on each kind of value.
_SHARES = {SCORES: 0.4, EMBEDDING: 0.3, BRIGHTNESS: 0.15, CONTRAST: 0.15}
# Fraction of the capital of the embedding that bets on its distance. The rest bets on its directions.
_DISTANCE = 2 / 3
_WORDS = {
    (SCORES, "higher"): "the anomaly scores are higher",
    (BRIGHTNESS, "higher"): "the images are brighter",
    (BRIGHTNESS, "lower"): "the images are darker",
    (CONTRAST, "higher"): "the contrast is higher",
    (CONTRAST, "lower"): "the contrast is lower",
    (EMBEDDING, "changed"): "the features of the network, averaged over the image, have changed",
}


class _Channel(NamedTuple):
    """One sequence of p-values: its kind, its reference values, and whether low values count as drift, too."""

    kind: str
    reference: np.ndarray
    is_two_sided: bool


class DriftMonitor:
    """Watch images for drift: raise an alarm if they are no longer like the images of the calibration.

    Drift is a change that concerns many images, e.g. of the light, the focus, the position of the parts or the
    material. After a drift, a detector flags too many good images or misses defects. The monitor gets images, or
    scores, in the order in which they come. Each image is compared with images of good parts and with the earlier new
    images. **A bigger evidence means that drift is more probable.**

    Parameters
    ----------
    detector : detector
        A fitted detector of this package. It is not changed.
    alpha : float in (0, 1), default=0.01
        Upper bound on the probability that the monitor *ever* raises a false alarm, however many images it sees. The
        alarm level of the evidence is ``1 / alpha``.
    defect_rate : float in [0, 0.5], default=0.02
        Fraction of defective images that does not count as drift. The bound on false alarms still holds if each image
        is defective with a probability of at most `defect_rate`, however anomalous the defective images are. A higher
        value delays alarms.
    random_state : int, RandomState instance or None, default=0
        Seed for the split of the training images and for the order of equal values.

    Attributes
    ----------
    alarm_ : bool
        Whether the evidence has reached the alarm level. It stays True until :meth:`reset`.
    alarm_image_ : int or None
        Index of the image at which the alarm was raised, counted from 0 for the first image after :meth:`reset`.
    alarm_channel_ : str or None
        Kind of value with the most evidence when the alarm was raised: ``"scores"``, ``"embedding"``, ``"brightness"``
        or ``"contrast"``.
    channels_ : list of str
        Kinds of values that the monitor compares. ``"scores"`` needs calibration scores. The others need the
        ``embeddings_`` and ``appearances_`` of the detector.
    log_evidence_ : array of shape (n_images,), float64
        Natural logarithm of the evidence after each image. The evidence is at most 1 at the start. An image that could
        not be read does not change the evidence.
    n_seen_ : int
        Number of images since :meth:`reset`. Images that could not be read are included.
    n_unreadable_ : int
        Number of images whose score is NaN. They count as neither good nor anomalous.

    See Also
    --------
    skpatchcore.DriftDisplay : Draws the evidence.

    Notes
    -----
    The guarantee. If the reference images and the new images are exchangeable (their order carries no information), the
    capital of each channel is a test martingale: its expected value stays as it was at the start. The evidence is the
    largest capital of any channel. The probability that it ever reaches ``1 / alpha`` is then at most `alpha` (Ville's
    inequality for each channel, and the sum over the channels). This is exact for the embeddings, brightness and
    contrast, because they do not depend on the fitted model. It is exact for the scores if no model was fitted on the
    calibration images: ``calibration=0.2`` without groups, or `recalibrate`. With the other calibrations, the
    calibration images are scored by other models than the new images, so the bound is approximate. With
    ``"leave-one-out"``, their scores are slightly more anomalous than those of new good images, so alarms come later.
    For this reason, only an increase of the anomaly scores counts as drift. Several photographs of one part are not
    exchangeable with photographs of a new part.

    The method. Each image gets a conformal p-value per channel: its rank among the reference values and all earlier new
    values. The channels are the anomaly score; the distance of the image's embedding from those of the training images;
    its position along 4 directions; and brightness and contrast. The embedding is the mean of the patch features. Half
    of the training images determine the directions, and the other half are the reference. Bets of bounded gain against
    uniform p-values multiply the evidence by at most 2 per image. Therefore, a few defective images in a row raise no
    alarm. The capital of a channel is an average over all bets and all images at which the drift may begin.

    New images stay in the comparison. A drift is therefore only found if it is found soon: after many images of the
    new kind, the new kind is the usual one.

    References
    ----------
    Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005. Vovk et al., "Retrain or not retrain:
    conformal test martingales for change-point detection", COPA 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import DriftMonitor, PatchCoreDetector
    >>> rng = np.random.default_rng(0)
    >>> detector = PatchCoreDetector("precomputed", random_state=0).fit(rng.random((100, 4, 4, 8)))
    >>> monitor = DriftMonitor(detector).update(rng.random((50, 4, 4, 8)))
    >>> monitor.alarm_
    False
    >>> monitor.update(rng.random((50, 4, 4, 8)) + 0.1).alarm_
    True
    """

    def __init__(self, detector: Any, *, alpha: float = 0.01, defect_rate: float = 0.02, random_state: Any = 0):
        check_is_fitted(detector, "offset_")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha}: expected a probability between 0 and 1, e.g. 0.01.")
        if not 0 <= defect_rate <= 0.5:
            raise ValueError(f"defect_rate={defect_rate}: expected a fraction from 0 to 0.5, e.g. 0.05.")
        self.detector = detector
        self.alpha = alpha
        self.defect_rate = defect_rate
        self.random_state = random_state
        self.reset()

    def reset(self) -> DriftMonitor:
        """Forget all new images, e.g. after the cause of an alarm was removed or after ``detector.recalibrate``.

        Returns
        -------
        DriftMonitor
            The monitor itself. Its evidence is at most 1 again, and its reference is read from the detector again.

        Raises
        ------
        ValueError
            If the detector has neither calibration scores nor enough embeddings.
        """
        self._rng = check_random_state(self.random_state)
        if isinstance(self.random_state, np.random.RandomState):
            self._rng = np.random.RandomState(self.random_state.randint(2**31 - 1))
        self._whole: WholeImages | None = None
        channels = self._channels()
        if not channels:
            raise ValueError(
                f"the detector has no calibration scores, and embeddings of fewer than {MIN_IMAGES} training images: "
                "there is nothing to compare new images with. Fit with calibration, or on more images."
            )
        self._kinds = [channel.kind for channel in channels]
        self.channels_ = list(dict.fromkeys(self._kinds))
        self._ranks = [ConformalRanks(channel.reference) for channel in channels]
        self._martingale = TestMartingale(_weights(channels), self.defect_rate)
        self._history, self._sums = array("d"), np.zeros((2, len(channels)))
        self.alarm_ = False
        self.alarm_image_: int | None = None
        self.alarm_channel_: str | None = None
        self.n_seen_ = self.n_unreadable_ = 0
        return self

    def update(self, X: Any) -> DriftMonitor:
        """Score the next images, and compare them with the reference and with the earlier new images.

        Parameters
        ----------
        X : as for `fit` of the detector
            The next images, in the order in which they were taken.

        Returns
        -------
        DriftMonitor
            The monitor itself.

        Raises
        ------
        ValueError
            As in `score_samples` of the detector.

        Warns
        -----
        ImageWarning
            If an image cannot be read. It is counted in ``n_unreadable_``.
        """
        X = listed(X)
        with recorded_embeddings() as log:
            scores = self.detector.score_samples(X, on_error="flag")
        return self.update_scores(scores, log)

    def update_scores(self, scores: Any, embeddings: EmbeddingLog | None = None) -> DriftMonitor:
        """Compare images whose scores are known, e.g. the ``score`` of ``iter_results``.

        Parameters
        ----------
        scores : array of shape (n_images,)
            Scores of `score_samples`, **bigger = more normal**, in the order of the images. NaN if an image could not
            be scored.
        embeddings : EmbeddingLog or None, default=None
            The log of ``skpatchcore.patches.embedding.recorded_embeddings()`` around the call that computed the scores.
            None compares the scores only.

        Returns
        -------
        DriftMonitor
            The monitor itself. Passing images one by one or several at once gives the same result.

        Raises
        ------
        ValueError
            If `scores` is not one-dimensional, or contains infinity.
        """
        scores = np.asarray(scores, np.float64)
        if scores.ndim != 1:
            raise ValueError(f"scores have shape {scores.shape}: expected one score per image, (n_images,).")
        if np.isinf(scores).any():
            raise ValueError(f"score {int(np.isinf(scores).argmax())} is infinite: expected a number, or NaN.")
        values = self._values(scores, embeddings)
        for row, is_unreadable in zip(values, np.isnan(scores), strict=True):
            self._add(row, bool(is_unreadable))
        return self

    @property
    def log_evidence_(self) -> np.ndarray:
        """Natural logarithm of the evidence after each image."""
        return np.array(self._history, np.float64)

    def summary(self) -> pd.DataFrame:
        """Return a table of the channels (kinds of values), sorted by evidence in descending order.

        Returns
        -------
        DataFrame
            One row per channel of ``channels_``, with the columns ``channel``, ``change`` ("higher", "lower" or
            "changed"), ``evidence`` (bigger = drift is more probable; the alarm level is ``1 / alpha``) and
            ``mean_p_value`` (about 0.5 without drift; small if the new values are higher than in the reference; NaN for
            ``"embedding"``, which has several p-values per image). The values of the channel ``"scores"`` are anomaly
            scores, **bigger = more anomalous**.
        """
        log_capital, p_values = self._martingale.log_capital(), self._mean_p_values()
        rows = []
        for kind in self.channels_:
            own = np.flatnonzero([k == kind for k in self._kinds])
            mean = float(p_values[own[0]]) if kind != EMBEDDING else math.nan
            change = "changed" if kind == EMBEDDING else "lower" if mean > 0.5 and kind != SCORES else "higher"
            evidence = math.exp(min(log_capital[own].max(), 700))
            rows.append({"channel": kind, "change": change, "evidence": evidence, "mean_p_value": mean})
        return pd.DataFrame(rows).sort_values("evidence", ascending=False, kind="stable", ignore_index=True)

    def describe(self) -> str:
        """Return one or two sentences: whether there is an alarm, and what has changed.

        Returns
        -------
        str
            The sentences, e.g. that drift was found after 12 images because the images are darker.
        """
        unreadable = f" {self.n_unreadable_} images could not be read and were not compared." * (self.n_unreadable_ > 0)
        if self.alarm_image_ is None:
            return f"No drift found in {self.n_seen_} images.{unreadable}"
        return f"Drift found after {self.alarm_image_ + 1} images: {self.causes()}{unreadable}"

    def causes(self) -> str:
        """Return what has changed, and what to check, in words. Without an alarm, the text has no meaning.

        Returns
        -------
        str
            The text.
        """
        found = self.summary()
        is_strong = found["evidence"] >= 1 / self.alpha
        causes = found[is_strong] if is_strong.any() else found[:1]
        words = ", ".join(_WORDS[key] for key in zip(causes["channel"], causes["change"], strict=True))
        # Defects change the anomaly scores and, if they are large, the mean features of their images, too.
        advice = (
            f"Either more than {self.defect_rate:.0%} of the parts are defective, or the light, the camera, the "
            "position of the parts or the material has changed."
            if set(causes["channel"]) <= {SCORES, EMBEDDING}
            else "Check the light and the camera."
        )
        return f"{words}. {advice}"

    def plot(self, *, ax: Any = None) -> Any:
        """Plot the evidence after each image as a curve, with the alarm level.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None creates a new figure.

        Returns
        -------
        DriftDisplay
            The display.
        """
        import skpatchcore  # the public name: the room `display` may import this one, not the other way round

        return skpatchcore.DriftDisplay.from_monitor(self, ax=ax)

    def _channels(self) -> list[_Channel]:
        """Return the channels for which the detector has reference values."""
        channels = []
        scores = np.asarray(self.detector.calibration_scores_, np.float64)
        scores = scores[~np.isnan(scores)]
        if len(scores):
            channels.append(_Channel(SCORES, -scores, False))
        embeddings = getattr(self.detector, "embeddings_", None)
        if embeddings is not None and len(embeddings) >= MIN_IMAGES and np.isfinite(embeddings).all():
            self._whole = fit_whole_images(embeddings, self._rng)
            reference = self._whole.reference.T
            channels += [_Channel(EMBEDDING, values, i > 0) for i, values in enumerate(reference)]
        appearances = getattr(self.detector, "appearances_", None)
        if appearances is not None and len(appearances):
            channels += [
                _Channel(kind, values, True)
                for kind, values in zip((BRIGHTNESS, CONTRAST), _appearance_values(appearances).T, strict=True)
            ]
        return channels

    def _values(self, scores: np.ndarray, log: EmbeddingLog | None) -> np.ndarray:
        """Return the values of all channels, of shape (n_images, n_channels). A value is NaN if it is unknown."""
        is_scored = ~np.isnan(scores)
        found = {SCORES: -scores[:, None]}
        if log is not None and len(log) == is_scored.sum() and (embeddings := log.embeddings()) is not None:
            if self._whole is not None:
                found[EMBEDDING] = np.full((len(scores), self._whole.reference.shape[1]), np.nan)
                found[EMBEDDING][is_scored] = self._whole.values(embeddings)
            appearances = log.appearances()
            if BRIGHTNESS in self.channels_ and appearances is not None:
                of_both = np.full((len(scores), 2), np.nan)
                of_both[is_scored] = _appearance_values(appearances)
                found[BRIGHTNESS], found[CONTRAST] = of_both[:, :1], of_both[:, 1:]
        sizes = {kind: self._kinds.count(kind) for kind in self.channels_}
        unknown = {kind: np.full((len(scores), n), np.nan) for kind, n in sizes.items()}
        return np.hstack([found.get(kind, unknown[kind]) for kind in self.channels_])

    def _add(self, values: np.ndarray, is_unreadable: bool) -> None:
        """Bet on the values of one image."""
        self.n_seen_ += 1
        if is_unreadable:
            self.n_unreadable_ += 1
            self._history.append(self._history[-1] if self._history else 0.0)
            return
        ties = self._rng.random_sample(len(values)).tolist()
        p_values = np.array(
            [
                math.nan if math.isnan(value) else ranks.add(value, tie)
                for ranks, value, tie in zip(self._ranks, values.tolist(), ties, strict=True)
            ]
        )
        is_known = ~np.isnan(p_values)
        self._sums += np.stack([np.where(is_known, p_values, 0), is_known])
        log_evidence = self._martingale.update(p_values)
        self._history.append(log_evidence)
        if not self.alarm_ and log_evidence >= -math.log(self.alpha):
            self.alarm_, self.alarm_image_ = True, self.n_seen_ - 1
            self.alarm_channel_ = self._kinds[int(self._martingale.log_capital().argmax())]

    def _mean_p_values(self) -> np.ndarray:
        sums, counts = self._sums
        return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), 0.5))


def _appearance_values(appearances: np.ndarray) -> np.ndarray:
    """Return brightness (mean of the medians of red, green and blue) and contrast, of shape (n_images, 2)."""
    return np.column_stack([appearances[:, :3].mean(axis=1), appearances[:, 3]])


def _weights(channels: list[_Channel]) -> np.ndarray:
    """Return the initial capital of each channel and bet, of shape (n_channels, 6); the sum is 1."""
    kinds = [channel.kind for channel in channels]
    weights = np.zeros((len(channels), 2 * len(SLOPES)))
    for i, channel in enumerate(channels):
        n_own = kinds.count(channel.kind)
        is_first = i == kinds.index(channel.kind)  # the distance comes before the directions
        share = 1.0 if n_own == 1 else _DISTANCE if is_first else (1 - _DISTANCE) / (n_own - 1)
        n_bets = len(SLOPES) * (1 + channel.is_two_sided)
        weights[i, :n_bets] = _SHARES[channel.kind] * share / n_bets
    return np.asarray(weights / weights.sum())
