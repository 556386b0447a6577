"""GreedyCoresetSampler: k-center greedy selection (Eq. 5, Algorithm 1)."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from skpatchcore._device import as_tensor, require_device
from skpatchcore._progress import progress_bar
from skpatchcore._sklearn import HasMethods, Interval, StrOptions, fit_context
from skpatchcore.coreset.order_cache import OrderCache
from skpatchcore.coreset.projection import gaussian_projection, lemma_projections, sparse_projection
from skpatchcore.coreset.selection import count_of, k_center_greedy
from skpatchcore.coreset.subset import SubsetSampler

_PROJECTIONS = {"gaussian": gaussian_projection, "sparse": sparse_projection}


class GreedyCoresetSampler(SubsetSampler):
    """Subset of the rows that covers them all: k-center greedy (Eq. 5, Algorithm 1).

    The first row is drawn at random, each further one is the row farthest from those before it, so the largest distance
    from any row to the subset, the covering radius, is at most twice the smallest possible. The order is nested: a
    smaller `ratio` selects a prefix of what a larger one does.

    Parameters
    ----------
    ratio : float or int, default=0.1
        Share of the rows, in (0, 1]: ``max(1, ceil(ratio * n_samples))`` are selected. An int is their number.
    n_projections : int, "auto" or None, default=128
        Selection looks at a random projection to that many columns (Johnson-Lindenstrauss), where the data have more;
        ``"auto"`` takes as many as the lemma asks for at eps = 0.9; None looks at the data as they are. The selected
        rows are always the original ones.
    projection : {"gaussian", "sparse"}, default="gaussian"
        Kind of projection: normal entries, or very sparse ones (Li et al. 2006).
    start : "random" or int, default="random"
        The first row: an index, or the row that lies farthest along a random direction. So "random" depends on the
        values of the rows and on `random_state`, but not on the order in which the rows come.
    device : str, default="auto"
        ``"auto"`` is CUDA where there is one, else the CPU.
    memory : str, joblib.Memory or None, default=None
        Where the order of selection is kept: for the same rows, seed and start, a smaller `ratio` is read off, and a
        larger one goes on from there. So a search over `ratio` costs its largest member.
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

    Notes
    -----
    The textbook loop compares every row with each pick: bound by memory, and what users of other implementations
    wait for. Here the same picks are found by matrix products over blocks of picks, and rows that can't be the
    farthest for now are left alone until they can. So selection costs about as much as *one* matrix product of all
    rows with the picks, or less. It pays most where many rows lie near a few of the picks, as patches of images do;
    on data without structure, in many dimensions, all rows stay in play and the cost is that of the full product. Of
    a few hundred rows, any loop is fast.

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
        "n_projections": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), None],
        "projection": [StrOptions(set(_PROJECTIONS))],
        "start": [StrOptions({"random"}), Interval(Integral, 0, None, closed="left")],
        "device": [str],
        "memory": [str, HasMethods(["cache"]), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        ratio: float = 0.1,
        *,
        n_projections: int | str | None = 128,
        projection: str = "gaussian",
        start: str | int = "random",
        device: str = "auto",
        memory: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.ratio = ratio
        self.n_projections = n_projections
        self.projection = projection
        self.start = start
        self.device = device
        self.memory = memory
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
        n_selected = count_of(self.ratio, n_samples)
        if self.start != "random" and int(self.start) >= n_samples:
            raise ValueError(f"start={self.start} is beyond the {n_samples} rows of X.")
        rng = check_random_state(self.random_state)
        rows = as_tensor(X, device)
        n_projections: Any = n_features if self.n_projections is None else self.n_projections
        if n_projections == "auto":
            n_projections = lemma_projections(n_samples, n_features)
        if n_features > n_projections:
            matrix = _PROJECTIONS[self.projection](n_features, int(n_projections), rng)
            rows = rows @ torch.from_numpy(matrix).to(rows)
        start = self.start
        if start == "random":
            direction = torch.from_numpy(rng.standard_normal(rows.shape[1])).to(rows)
            start = int((rows @ direction).argmax())
        order, radii = self._select(rows, n_selected, int(start))
        self.components_ = X[order]
        self.component_indices_ = order
        self.selection_distances_ = radii
        return self

    def _select(self, rows: torch.Tensor, n_selected: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        cache = OrderCache(self.memory, rows, start)
        known = cache.read()
        if known is not None and len(known[0]) >= n_selected:
            return known[0][:n_selected], known[1][:n_selected]
        with progress_bar(n_selected, "selecting the coreset", "row", self.verbose) as bar:
            order, radii = k_center_greedy(rows, n_selected, start, bar.update, known)
            bar.update(n_selected - bar.n)
        cache.write(order, radii)
        return order, radii
