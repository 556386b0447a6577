"""planned_trials: the synthetic defects on which :func:`~skpatchcore.select_settings` compares settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skpatchcore.evaluation._settings_rule import found_shares
from skpatchcore.evaluation._trials import DrawnImages, Trial, spread_sizes, transition
from skpatchcore.evaluation.pod import fit_pod

# Kinds with a width instead of a diameter.
_LINES = ("scratch", "crack")
# Sizes of the small, strong defects of lines and of other kinds: fractions of the shorter side of an image, and the
# smallest size in pixels; and the range of their contrasts.
_LINE_SIZES, _SPOT_SIZES, _STRONG = (0.002, 0.05, 0.7), (0.01, 0.3, 2.0), (0.4, 1.0)
# The same for the large, faint defects.
_WIDE_LINES, _WIDE_SPOTS, _FAINT = (0.008, 0.03, 1.0), (0.08, 0.25, 4.0), (0.03, 0.8)
# Number of defects per series that are tried at first.
_N_PILOTS = 16
# A defect that changes its pixels by less than this fraction of white is drawn again at another place.
_LEAST_CHANGE, _N_TRIES = 0.004, 8

Draw = Callable[[Sequence[Trial]], DrawnImages]


@dataclass(frozen=True)
class _Series:
    """Defects of one kind whose strength is graded, either by the size or by the contrast.

    Attributes
    ----------
    kind : str
        Kind of the defects.
    by_contrast : bool
        Whether the contrast is graded: the defects are large and faint. Otherwise, the size is graded: the defects are
        small and strong.
    sizes, contrasts : (float, float)
        Ranges of the size in pixels and of the contrast.
    seed : tuple of int
        Seed of this series.
    """

    kind: str
    by_contrast: bool
    sizes: tuple[float, float]
    contrasts: tuple[float, float]
    seed: tuple[int, ...]

    @classmethod
    def of(cls, kind: str, by_contrast: bool, side: float, seed: tuple[int, ...]) -> _Series:
        """Return a series that covers all sizes or contrasts, for images with a shorter side of `side` pixels."""
        if by_contrast:
            (low, high, least), contrasts = _WIDE_LINES if kind in _LINES else _WIDE_SPOTS, _FAINT
        else:
            (low, high, least), contrasts = _LINE_SIZES if kind in _LINES else _SPOT_SIZES, _STRONG
        low = max(low * side, least)
        return cls(kind, by_contrast, (low, max(high * side, 4 * low)), contrasts, seed)

    def strength_of(self, trial: Trial) -> float:
        """Return the graded value of a defect."""
        return trial.contrast if self.by_contrast else trial.size

    def narrowed(self, pilots: Sequence[Trial], is_found: np.ndarray) -> _Series:
        """Return the series of the strengths between which detection changes from rare to nearly certain."""
        curve = fit_pod([self.strength_of(trial) for trial in pilots], is_found)
        if self.by_contrast:
            return replace(self, contrasts=transition(curve, *self.contrasts), seed=(*self.seed, 1))
        return replace(self, sizes=transition(curve, *self.sizes), seed=(*self.seed, 1))

    def trials(self, n: int, images: np.ndarray) -> list[Trial]:
        """Return `n` defects on random images. Each image occurs about equally often."""
        rng = np.random.default_rng(self.seed)
        sizes, contrasts = spread_sizes(*self.sizes, n, rng), spread_sizes(*self.contrasts, n, rng)
        graded = rng.permutation(n)
        other = rng.permutation(n)
        sizes, contrasts = (sizes[other], contrasts[graded]) if self.by_contrast else (sizes[graded], contrasts[other])
        order = np.concatenate([rng.permutation(images) for _ in range(-(-n // len(images)))])[:n]
        return [
            Trial(int(order[i]), self.kind, float(sizes[i]), float(contrasts[i]), (*self.seed, i)) for i in range(n)
        ]


def planned_trials(
    score: Callable[[Any], np.ndarray],
    good: np.ndarray,
    test: np.ndarray,
    n_images: int,
    kinds: Sequence[str],
    n_defects: int,
    side: float,
    rate: float,
    seed: int,
    draw: Draw,
) -> list[Trial]:
    """Return the defects on which the settings are compared, in the order of their images.

    Half of the defects of a kind are small and strong, and their sizes are graded. The other half are large and faint,
    and their contrasts are graded. Some real defects are of either sort, and settings differ in which they find.

    A first series of defects of all strengths is scored by the given setting. The strengths of the final defects are
    those between which the detection changes from rare to nearly certain. Stronger defects would be found, and weaker
    ones missed, by all settings.

    Parameters
    ----------
    score : callable
        ``score(images)`` returns anomaly scores, bigger = more anomalous, of the given setting.
    good : array of shape (n_test,)
        Such scores of the good images `test`.
    test : array of int
        Indices of images on which the given setting was not fitted. The first series is drawn on them.
    n_images : int
        Number of all good images.
    kinds : sequence of str
        Kinds of the defects.
    n_defects : int
        Number of defects per kind.
    side : float
        Length in pixels of the shorter side of the images.
    rate : float
        Largest false-alarm rate.
    seed : int
        Seed of sizes, contrasts, images and places.
    draw : callable
        ``draw(trials)`` returns the images with these defects.
    """
    series = [
        _Series.of(kind, bool(by_contrast), side, (seed, i, by_contrast))
        for i, kind in enumerate(kinds)
        for by_contrast in (0, 1)
    ]
    pilots = [(number, trial) for number, one in enumerate(series) for trial in one.trials(_N_PILOTS, test)]
    pilots.sort(key=lambda pilot: pilot[1].image)  # an image is read once for all its defects
    drawn = _visible([trial for _, trial in pilots], draw)
    is_found = found_shares(good, score(draw(drawn)), max(rate, 2 / (len(good) + 1)))[:, 0] > 0
    trials = []
    for number, one in enumerate(series):
        own = [j for j, (owner, _) in enumerate(pilots) if owner == number]
        n = n_defects // 2 if one.by_contrast else n_defects - n_defects // 2
        if n:
            narrowed = one.narrowed([drawn[j] for j in own], is_found[own])
            trials += narrowed.trials(n, np.arange(n_images))
    return _visible(sorted(trials, key=lambda trial: trial.image), draw)


def _visible(trials: list[Trial], draw: Draw) -> list[Trial]:
    """Return the trials in which defects that change nearly nothing, e.g. on a flat background, are drawn elsewhere."""
    drawn = draw(trials)
    kept = []
    for trial in trials:
        candidate = trial
        for attempt in range(1, _N_TRIES):
            if drawn.change_of(candidate) >= min(_LEAST_CHANGE, trial.contrast / 10):
                break
            candidate = replace(trial, seed=(*trial.seed, attempt))
        kept.append(candidate)
    return kept
