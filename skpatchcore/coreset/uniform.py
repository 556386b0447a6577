"""RandomSampler: a uniform random subset of the rows, the baseline of the paper's Figure 5."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np

from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.sklearn import Interval, fit_context
from skpatchcore.coreset._base import SubsetSampler, count_of


class RandomSampler(SubsetSampler):
    """Select rows at random, all with the same probability, as a baseline for comparisons with a coreset.

    This sampler is fast. Patches that look alike are common in the training images, and this sampler selects many of
    them. Rare kinds of good patches are often not selected, and are then missing from the memory bank.

    Parameters
    ----------
    ratio : float or int, default=0.1
        Size of the subset. A float in (0, 1] is a fraction of the rows: ``max(1, ceil(ratio * n_samples))`` rows are
        selected. An int is the number of rows.
    random_state : int, RandomState instance or None, default=None
        Source of the random numbers that choose the rows. With the same int, the rows for a smaller `ratio` are the
        first of the rows for a larger `ratio`.

    Attributes
    ----------
    components_ : array of shape (n_selected, n_features)
        The selected rows.
    component_indices_ : array of shape (n_selected,), int64
        Indices of the selected rows in `X`, in random order.
    ratio_ : float
        Fraction of the rows that `fit` selected: `ratio`, or `ratio` divided by the number of rows if `ratio` is an
        int.
    n_samples_seen_ : int
        Number of rows in `fit` and all calls of `extend`.
    seed_ : int or None
        Seed of the random numbers: `random_state` if it is an int, otherwise a number that `fit` draws from it. None if
        an older version fitted the sampler without an int. The rows of `extend` are then not reproducible.
    n_features_in_ : int
        Number of columns of `X`.
    feature_names_in_ : array of str
        Names of the columns of `X`, if `X` has column names.

    See Also
    --------
    GreedyCoresetSampler : Select rows that cover all rows.

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
        """Select random rows of `X`.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Rows to select from. The selection computes in the dtype of `X` if this dtype is float32 or float64. Rows of
            dtype float16 are converted to float32, and rows of any other dtype are converted to float64.
        y : ignored
            Present for API consistency.

        Returns
        -------
        RandomSampler
            The fitted sampler.

        Raises
        ------
        ValueError
            If `X` contains NaN, infinity, or a value beyond ±1e15 (float32) or ±1e150 (float64). The error is also
            raised if `ratio` is an int and larger than the number of rows.
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
        """Select the same random rows as `fit` from rows that arrive in batches.

        This method does not set ``components_``. The selected rows are the rows at ``component_indices_``, counted over
        all batches.

        Parameters
        ----------
        batches : iterable of arrays of shape (n_rows, n_features)
            The rows, in order. Only the number of rows is used.
        n_samples, max_memory : ignored
            Present for API consistency.

        Returns
        -------
        RandomSampler
            The fitted sampler.

        Raises
        ------
        ValueError
            If `ratio` is an int and larger than the number of rows.
        """
        n_samples = 0
        for batch in batches:
            n_samples, self.n_features_in_ = n_samples + len(batch), batch.shape[1]
        self.component_indices_ = self._draw(n_samples)
        if hasattr(self, "components_"):  # set by an earlier fit
            del self.components_
        return self

    def extend(
        self,
        batches: Iterable[np.ndarray],
        n_samples: int,
        growth: str = "ratio",
        reserve: Any = None,
    ) -> np.ndarray:
        """Select additional rows from new rows. The rows that were selected earlier stay selected.

        Parameters
        ----------
        batches : iterable of arrays of shape (n_rows, n_features)
            The new rows, in order. Only the number of rows is used.
        n_samples : ignored
            Present for API consistency.
        growth : {"ratio"}, default="ratio"
            After the call, the rows selected in all calls are the fraction `ratio_` of all rows seen in all calls.
        reserve : ignored
            Present for API consistency. There is no reserve.

        Returns
        -------
        array of int64
            Indices of the newly selected rows among the new rows.

        Raises
        ------
        ValueError
            If `growth` is not ``"ratio"``.
        """
        if growth != "ratio":
            raise ValueError(
                f"growth={growth!r} needs a GreedyCoresetSampler, which knows its covering radius: use growth='ratio'."
            )
        n_new = sum(map(len, batches))
        seen = self.n_samples_seen_
        n_wanted = min(n_new, count_of(self.ratio_, seen + n_new) - count_of(self.ratio_, seen))
        rng = np.random.RandomState(None if self.seed_ is None else [self.seed_, seen])
        picks = rng.permutation(n_new)[:n_wanted].astype(np.int64)
        self.component_indices_ = np.concatenate([self.component_indices_, picks + seen])
        self.n_samples_seen_ += n_new
        return picks

    def estimate_memory(self, n_samples: int, n_features: int) -> int:
        """Return the memory that `fit_batches` needs.

        Parameters
        ----------
        n_samples : int
            Number of rows.
        n_features : int
            Number of columns of the rows.

        Returns
        -------
        int
            Memory in bytes, without the memory of the batches.
        """
        return 8 * n_samples

    def _draw(self, n_samples: int) -> np.ndarray:
        """Return random row indices: the first entries of a random permutation of all row indices."""
        self.seed_: int | None = self._new_seed()
        order: np.ndarray = np.random.RandomState(self.seed_).permutation(n_samples)
        picked = order[: count_of(self.ratio, n_samples)]
        self.ratio_ = len(picked) / n_samples if isinstance(self.ratio, Integral) else float(self.ratio)
        self.n_samples_seen_ = n_samples
        return picked

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "component_indices_" in state and "ratio_" not in state:  # fitted by an older version
            order = state["component_indices_"]
            seen = max(int(order.max()) + 1, len(order))
            ratio = len(order) / seen if isinstance(state["ratio"], Integral) else float(state["ratio"])
            state = {"ratio_": ratio, "n_samples_seen_": seen, **state}
        if "component_indices_" in state and "seed_" not in state:
            seed = state["random_state"]
            state = {"seed_": int(seed) if isinstance(seed, Integral) else None, **state}
        super().__setstate__(state)
