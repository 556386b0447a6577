"""GreedyCoresetSampler: k-center greedy selection (Eq. 5, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._device import as_tensor, require_device
from skpatchcore._progress import progress_bar
from skpatchcore._sklearn import Interval, StrOptions, fit_context
from skpatchcore.coreset.projection import gaussian_projection

# Rows that compete for the next picks between two passes over all rows.
_N_CANDIDATES = 2048
# Bytes of squared distances that a pass holds at once.
_CHUNK_BYTES = 1 << 24


def k_center_greedy(
    X: torch.Tensor, n_selected: int, start: int, on_pick: Callable[[int], Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pick rows one after the other, each the farthest from those before it (Algorithm 1).

    Parameters
    ----------
    X : tensor of shape (n_samples, n_features), float32 or float64
        The rows, on any device.
    n_selected : int
        How many to pick, at most `n_samples`.
    start : int
        The first pick.
    on_pick : callable or None
        Called with the number of new picks, for a progress bar.

    Returns
    -------
    order : array of shape (n_selected,), int64
        The rows picked, in order, all distinct.
    radii : array of shape (n_selected,), float64
        Distance from the row that lies farthest from the picks up to and including this one: their covering radius.

    Notes
    -----
    A row's distance to the picks can only shrink, so what was computed a while ago is an upper bound. Greedy
    selection may therefore go on among the few rows with the largest bounds, alone, for as long as the best of them
    is no nearer than the largest bound outside: no row outside can be the farthest. Only then all bounds are
    refreshed, with one matrix product against all the picks since the last time. The picks are those of the textbook
    loop, which needs a pass over all rows for each of them.
    """
    n_samples = len(X)
    X = X - X.mean(0)  # smaller norms, so less is cancelled in |x|² + |y|² - 2 x·y
    norms = (X * X).sum(1)
    bounds = torch.full_like(norms, torch.inf)
    order = np.empty(n_selected, np.int64)
    radii = np.empty(n_selected, np.float64)
    order[0], fresh, n_picked = start, [start], 1
    while True:
        _lower_bounds(bounds, X, norms, fresh)
        # Picked rows stand at -1, below the 0 of their duplicates: no row is picked twice.
        bounds[fresh] = -1.0
        if n_picked == n_selected:
            radii[-1] = max(float(bounds.max()), 0.0) ** 0.5
            return order, radii
        if on_pick is not None:
            on_pick(len(fresh))
        largest, candidates = torch.topk(bounds, min(_N_CANDIDATES + 1, n_samples))
        outside = float(largest[-1]) if n_samples > _N_CANDIDATES else -torch.inf
        candidates, distances = candidates[:_N_CANDIDATES], largest[:_N_CANDIDATES].clone()
        rows, row_norms = X[candidates], norms[candidates]
        fresh = []
        while n_picked < n_selected:
            best = int(distances.argmax())
            radius = float(distances[best])
            if fresh and radius < outside:
                break
            radii[n_picked - 1] = max(radius, 0.0) ** 0.5
            order[n_picked] = int(candidates[best])
            fresh.append(int(candidates[best]))
            n_picked += 1
            to_pick = (row_norms + row_norms[best] - 2 * (rows @ rows[best])).clamp_min_(0)
            torch.minimum(distances, to_pick, out=distances)
            distances[best] = -1.0


def _lower_bounds(bounds: torch.Tensor, X: torch.Tensor, norms: torch.Tensor, picks: list[int]) -> None:
    """Lower, in place, each row's squared distance to that from the nearest of `picks`."""
    columns = X[picks].T.contiguous()
    column_norms = norms[picks]
    chunk = max(1, _CHUNK_BYTES // (X.element_size() * len(picks)))
    for i in range(0, len(X), chunk):
        part = slice(i, i + chunk)
        squares = torch.addmm(column_norms, X[part], columns, alpha=-2).amin(1).add_(norms[part]).clamp_min_(0)
        torch.minimum(bounds[part], squares, out=bounds[part])


class GreedyCoresetSampler(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Subset of the rows that covers them all: k-center greedy (Eq. 5, Algorithm 1).

    The first row is drawn at random, each further one is the row farthest from those before it, so the largest distance
    from any row to the subset, the covering radius, is at most twice the smallest possible. The order is nested: a
    smaller `ratio` selects a prefix of what a larger one does.

    Parameters
    ----------
    ratio : float or int, default=0.1
        Share of the rows, in (0, 1]: ``max(1, ceil(ratio * n_samples))`` are selected. An int is their number.
    n_projections : int or None, default=128
        Selection looks at a random Gaussian projection to that many columns (Johnson-Lindenstrauss), where the data
        have more; None looks at the data as they are. The selected rows are always the original ones.
    start : "random" or int, default="random"
        The first row: an index, or the row that lies farthest along a random direction. So "random" depends on the
        values of the rows and on `random_state`, but not on the order in which the rows come.
    device : str, default="auto"
        ``"auto"`` is CUDA where there is one, else the CPU.
    random_state : int, RandomState instance or None, default=None
        Draws projection and start, in numpy: all devices see the same problem. Pass an int for the same subset each
        time.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    components_ : array of shape (n_selected, n_features)
        The selected rows, in order of selection.
    component_indices_ : array of shape (n_selected,), int64
        Which rows of `X` they are.
    selection_distances_ : array of shape (n_selected,), float64
        Covering radius, in the projected space, once each row is selected: never increasing. The first ``k`` rows alone
        cover the data within ``selection_distances_[k - 1]``.
    n_features_in_ : int
        Columns of `X`.
    feature_names_in_ : array of str
        Names of the columns, where `X` had them.

    References
    ----------
    Roth et al., CVPR 2022, section 3.2; Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import GreedyCoresetSampler
    >>> X = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]])
    >>> sampler = GreedyCoresetSampler(ratio=3, start=0).fit(X)
    >>> sampler.component_indices_
    array([0, 4, 2])
    >>> sampler.selection_distances_.round(6)
    array([9. , 4. , 0.1])
    """

    _parameter_constraints: dict = {
        "ratio": [Interval(Real, 0, 1, closed="right"), Interval(Integral, 1, None, closed="left")],
        "n_projections": [Interval(Integral, 1, None, closed="left"), None],
        "start": [StrOptions({"random"}), Interval(Integral, 0, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        ratio: float = 0.1,
        *,
        n_projections: int | None = 128,
        start: str | int = "random",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.ratio = ratio
        self.n_projections = n_projections
        self.start = start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> GreedyCoresetSampler:
        """Select rows of `X`.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            The rows; float32 and float64 are kept, anything else becomes float64 (float16: float32).
        y : ignored
            Present by convention.

        Returns
        -------
        GreedyCoresetSampler
            Itself.

        Raises
        ------
        ValueError
            If `X` holds NaN or infinity, if an int `ratio` or `start` is beyond the number of rows, or the device is
            absent.
        """
        device = require_device(self.device)
        if getattr(X, "dtype", None) == np.float16:
            X = np.asarray(X, np.float32)
        X = validate_data(self, X, dtype=[np.float32, np.float64])
        n_samples, n_features = X.shape
        n_selected = self._n_selected(n_samples)
        if self.start != "random" and int(self.start) >= n_samples:
            raise ValueError(f"start={self.start} is beyond the {n_samples} rows of X.")
        rng = check_random_state(self.random_state)
        rows = as_tensor(X, device)
        if self.n_projections is not None and n_features > self.n_projections:
            matrix = gaussian_projection(n_features, int(self.n_projections), rng)
            rows = rows @ torch.from_numpy(matrix).to(rows)
        start = self.start
        if start == "random":
            direction = torch.from_numpy(rng.standard_normal(rows.shape[1])).to(rows)
            start = int((rows @ direction).argmax())
        with progress_bar(n_selected, "selecting the coreset", "row", self.verbose) as bar:
            order, radii = k_center_greedy(rows, n_selected, int(start), bar.update)
            bar.update(n_selected - bar.n)
        self.components_ = X[order]
        self.component_indices_ = order
        self.selection_distances_ = radii
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return distances to the selected rows, as KMeans does to its centres.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Any rows.

        Returns
        -------
        array of shape (n_samples, n_selected)
            Euclidean distances in the original space.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        return euclidean_distances(X, self.components_)

    def _n_selected(self, n_samples: int) -> int:
        if isinstance(self.ratio, Integral):
            if self.ratio > n_samples:
                raise ValueError(f"ratio={self.ratio} rows were asked for, but X has n_samples={n_samples}.")
            return int(self.ratio)
        # 0.07 * 100 is a little more than 7 in floating point: that alone shall not select an eighth row.
        return max(1, math.ceil(self.ratio * n_samples - 1e-9))

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
