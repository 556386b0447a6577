"""ConformalRanks and TestMartingale: evidence, image by image, that new values differ from reference values.

:class:`ConformalRanks` turns each new value into a p-value. If the new values are exchangeable with the reference
values, these p-values are independent and uniform. :class:`TestMartingale` bets against that: its capital grows if the
p-values are not uniform. Otherwise, the probability that its evidence ever reaches ``1 / alpha`` is at most `alpha`.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right, insort

import numpy as np

# Slopes of the bets. A bet with the slope 2 risks the whole capital at p = 1, and doubles it at p = 0.
SLOPES = (0.5, 1.0, 2.0)


class ConformalRanks:
    """Smoothed conformal p-values of values that arrive one by one, **small = the value is large**.

    Parameters
    ----------
    reference : array of shape (n_reference,)
        Values of good images.

    Notes
    -----
    A new value is ranked among the reference values *and* all earlier new values. A tie is broken at random. If all
    values are exchangeable, the p-values are therefore independent and uniform in (0, 1), exactly and for any number
    of reference values. P-values from ranks among the reference values only would depend on each other: all of them
    are small if the reference values happen to be small.

    References
    ----------
    Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005: smoothed conformal predictors.
    """

    def __init__(self, reference: np.ndarray):
        self._sorted = array("d", np.sort(np.asarray(reference, np.float64)).tolist())

    def add(self, value: float, tie: float) -> float:
        """Return the p-value of the next value, and include the value in the later comparisons.

        Parameters
        ----------
        value : float
            The new value.
        tie : float in (0, 1)
            A random number from the uniform distribution.

        Returns
        -------
        float
            ``(number of larger values + tie * (1 + number of equal values)) / (1 + number of values)``.
        """
        low, high = bisect_left(self._sorted, value), bisect_right(self._sorted, value)
        n = len(self._sorted)
        insort(self._sorted, value)
        return (n - high + tie * (1 + high - low)) / (n + 1)


def bets(p_values: np.ndarray, defect_rate: float = 0.0) -> np.ndarray:
    """Return the factors by which the capital of each bet changes.

    Parameters
    ----------
    p_values : array of shape (n_channels,)
        P-values of an image. NaN, if the value of a channel is unknown, changes no capital.
    defect_rate : float in [0, 1), default=0
        Fraction of images that may have any p-values without a growth of the expected capital.

    Returns
    -------
    array of shape (n_channels, 6)
        For each slope ``s`` in ``0.5, 1, 2``, the factor ``(1 + s (1/2 - p)) / (1 + s defect_rate / 2)``, which is
        large if `p` is small. Then the same with ``1 - p`` in place of ``p``.

    Notes
    -----
    The integral of each factor over uniform `p` is 1 if `defect_rate` is 0. Otherwise, let an image be defective with a
    probability of at most `defect_rate`. The largest factor without the denominator is ``1 + s / 2``. The expected
    factor without the denominator is therefore at most ``(1 - defect_rate) + defect_rate (1 + s / 2)``, which is the
    denominator.
    """
    slopes = np.array(SLOPES)
    gain = slopes * (0.5 - p_values[:, None])
    factors = np.hstack([1 + gain, 1 - gain]) / np.tile(1 + slopes * defect_rate / 2, 2)
    return np.where(np.isnan(factors), 1.0, factors)


class TestMartingale:
    """Capital of a gambler who bets against uniform p-values in several channels, **bigger = more evidence of drift**.

    Parameters
    ----------
    weights : array of shape (n_channels, 6)
        Fraction of the initial capital 1 for each channel and each of the :func:`bets`. The sum is 1.
    defect_rate : float in [0, 1), default=0
        As for :func:`bets`.

    Notes
    -----
    Each bet gets its capital in parts: the fraction ``1 / (n (n + 1))`` before image `n`. The rest,
    ``1 / (n + 1)``, is kept back for the later images. The capital is thus an average over all images at which a drift
    may begin. A late drift costs a factor of about ``n^2``, i.e. ``2 log(n)`` in the logarithm, and quiet images before
    it cost nothing else.

    The capital of each channel, in units of its weight, is a test martingale in the p-values of this channel. The
    evidence is the largest capital of any channel. It reaches ``1 / alpha`` with a probability of at most the sum of
    ``weight * alpha``, which is `alpha`. The channels may depend on each other. Their sum would be no valid evidence:
    the p-values of a channel are uniform given its own earlier p-values, but not given those of all channels.
    """

    __test__ = False  # not a test class of pytest

    def __init__(self, weights: np.ndarray, defect_rate: float = 0.0):
        self.weights = weights
        self.defect_rate = defect_rate
        self.n = 0
        self._log_active = np.full(weights.shape, -np.inf)

    def update(self, p_values: np.ndarray) -> float:
        """Bet on the p-values of the next image, of shape (n_channels,). Return the logarithm of the evidence."""
        self.n += 1
        started = np.logaddexp(self._log_active, -math.log(self.n * (self.n + 1)))
        with np.errstate(divide="ignore"):  # a bet that loses everything has the logarithm -inf
            self._log_active = started + np.log(bets(p_values, self.defect_rate))
        return float(self.log_capital().max())

    def log_capital(self) -> np.ndarray:
        """Return the logarithm of the capital of each channel, of shape (n_channels,)."""
        kept_back = -math.log(self.n + 1)
        with np.errstate(divide="ignore"):
            capital = np.logaddexp(self._log_active, kept_back) + np.log(self.weights)
            found: np.ndarray = np.logaddexp.reduce(capital, axis=1)
        return found
