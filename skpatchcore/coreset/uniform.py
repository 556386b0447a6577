"""RandomSampler: a uniform random subset, the baseline of the paper's Figure 5."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.sklearn import Interval, fit_context
from skpatchcore.coreset._base import SubsetSampler, count_of


class RandomSampler(SubsetSampler):
    """Uniform random subset of the rows: the baseline that a coreset is measured against.

    Fast, and crowded where the data are crowded: rare kinds of good patches may be missing from the memory bank.

    Parameters
    ----------
    ratio : float or int, default=0.1
        Share of the rows, in (0, 1]: ``max(1, ceil(ratio * n_samples))`` are selected. An int is their number.
    random_state : int, RandomState instance or None, default=None
        Draws the rows. With the same int, a smaller `ratio` selects a prefix of what a larger one does.

    Attributes
    ----------
    components_ : array of shape (n_selected, n_features)
        The selected rows.
    component_indices_ : array of shape (n_selected,), int64
        Which rows of `X` they are.
    n_features_in_ : int
        Columns of `X`.
    feature_names_in_ : array of str
        Names of the columns, where `X` had them.

    See Also
    --------
    GreedyCoresetSampler : Covers the rows instead.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import RandomSampler
    >>> RandomSampler(ratio=0.5, random_state=0).fit(np.eye(4)).components_.shape
    (2, 4)
    """

    _parameter_constraints: dict[str, Any] = {
        "ratio": [Interval(Real, 0, 1, closed="right"), Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(self, ratio: float = 0.1, *, random_state: Any = None):
        self.ratio = ratio
        self.random_state = random_state

    @fit_context(prefer_skip_nested_validation=True)
    @default_modes()
    def fit(self, X: Any, y: Any = None) -> RandomSampler:
        """Draw rows of `X`.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            The rows.
        y : ignored
            Present by convention.

        Returns
        -------
        RandomSampler
            Itself.

        Raises
        ------
        ValueError
            If `X` holds NaN, infinity or values beyond ±1e15 (float32) or ±1e150 (float64), or an int `ratio` is larger
            than the number of rows.
        """
        X = self._validated_rows(X)
        self.component_indices_ = self._draw(len(X))
        self.components_ = X[self.component_indices_]
        return self

    @fit_context(prefer_skip_nested_validation=True)
    @default_modes()
    def fit_batches(
        self, batches: Iterable[np.ndarray], n_samples: int | None = None, max_memory: int | None = None
    ) -> RandomSampler:
        """Draw from rows that come in batches, as `fit` would; ``components_`` is not set.

        Parameters
        ----------
        batches : iterable of arrays of shape (n_rows, n_features)
            The rows: they are only counted.
        n_samples, max_memory : ignored
            Present by convention.

        Returns
        -------
        RandomSampler
            Itself.
        """
        n_samples = 0
        for batch in batches:
            n_samples, self.n_features_in_ = n_samples + len(batch), batch.shape[1]
        self.component_indices_ = self._draw(n_samples)
        if hasattr(self, "components_"):  # of an earlier fit
            del self.components_
        return self

    def estimate_memory(self, n_samples: int, n_features: int) -> int:
        """Return how many bytes `fit_batches` takes.

        Parameters
        ----------
        n_samples, n_features : int
            Shape of the rows, which are not counted.

        Returns
        -------
        int
            Bytes.
        """
        return 8 * n_samples

    def _draw(self, n_samples: int) -> np.ndarray:
        order: np.ndarray = check_random_state(self.random_state).permutation(n_samples)
        return order[: count_of(self.ratio, n_samples)]
