"""GreedyCoresetSampler: k-center greedy selection (Eq. 5, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from skpatchcore._utils.arrays import largest_value
from skpatchcore._utils.device import require_device
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import progress_bar
from skpatchcore._utils.sklearn import HasMethods, Interval, StrOptions, fit_context
from skpatchcore._utils.threads import SMALL_PRODUCT, one_thread
from skpatchcore.coreset._base import SubsetSampler, count_of, refuse_beyond
from skpatchcore.coreset._k_center import k_center_greedy
from skpatchcore.coreset._order_cache import OrderCache
from skpatchcore.coreset._projection import gaussian_projection, lemma_projections, sparse_projection
from skpatchcore.coreset._rows import RowBuffer, Rows
from skpatchcore.coreset._shards import SCRATCH_BYTES, peek, row_bytes, select_at_once, select_from_shards

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
        larger one goes on from there. So a search over `ratio` costs its largest member. Needs an int as
        `random_state` (or the detector's): what is drawn anew each time is never found again, and not kept.
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

    _parameter_constraints: dict[str, Any] = {
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
    @default_modes()
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
            If `X` holds NaN, infinity or values beyond ±1e15 (float32) or ±1e150 (float64), whose squares could
            overflow: the error names row and column; if an int `ratio` or `start` is beyond the number of
            rows, or the device is absent.
        """
        X = self._validated_rows(X)
        self._fit([X], len(X), None)
        self.components_ = X[self.component_indices_]
        return self

    @fit_context(prefer_skip_nested_validation=True)
    @default_modes()
    def fit_batches(
        self, batches: Iterable[np.ndarray], n_samples: int, max_memory: int | None = None
    ) -> GreedyCoresetSampler:
        """Select from rows that come in batches, are looked at once and not kept: only their projections are.

        Selects the rows that `fit` would, whatever the batches, while all projections fit in `max_memory`. Beyond that,
        shards that fit are reduced to their own picks, and the picks of all shards to the final ones (merge and
        reduce): every row then lies within 4 times the smallest radius possible, where `fit` promises 2; 2 more for
        each time that picks had to be merged because those of all shards don't fit. ``selection_distances_`` are upper
        bounds then, and a smaller `ratio` need not select a prefix.

        Sets what `fit` sets but for ``components_``, which whoever has the rows may look up.

        Parameters
        ----------
        batches : iterable of arrays of shape (n_rows, n_features)
            The rows, in order; float32 or float64.
        n_samples : int
            How many will come in all. If others come, the selection is right, but may take more memory.
        max_memory : int or None, default=None
            Bytes that selection may use; None does without shards.

        Returns
        -------
        GreedyCoresetSampler
            Itself.

        Raises
        ------
        ValueError
            As `fit`, and if `max_memory` is too little for the selected rows alone.
        """
        self._fit(_checked(batches), n_samples, max_memory)
        if hasattr(self, "components_"):  # of an earlier fit
            del self.components_
        return self

    def estimate_memory(self, n_samples: int, n_features: int) -> int:
        """Return how many bytes `fit_batches` takes without shards.

        Parameters
        ----------
        n_samples, n_features : int
            Shape of the rows, which are taken as float32 and not counted.

        Returns
        -------
        int
            Bytes.
        """
        return SCRATCH_BYTES + n_samples * row_bytes(self._n_columns(n_samples, n_features))

    def _n_columns(self, n_samples: int, n_features: int) -> int:
        """Return how many columns selection looks at."""
        if self.n_projections == "auto":
            return lemma_projections(n_samples, n_features)
        return n_features if self.n_projections is None else min(n_features, int(self.n_projections))

    def _fit(self, batches: Iterable[np.ndarray], n_samples: int, max_memory: int | None) -> None:
        device = require_device(self.device)
        n_selected = count_of(self.ratio, n_samples)
        if self.start != "random" and int(self.start) >= n_samples:
            raise ValueError(f"start={self.start} is beyond the {n_samples} rows of X.")
        first, batches = peek(batches)
        n_features = first.shape[1]
        n_columns = self._n_columns(n_samples, n_features)
        rng = check_random_state(self.random_state)
        matrix = None
        if n_columns < n_features:
            matrix = _PROJECTIONS[self.projection](n_features, n_columns, rng)
        # Drawn after the projection; all shards are looked at along the same one.
        direction = rng.standard_normal(n_columns) if self.start == "random" else None
        dtype = torch.float64 if first.dtype == np.float64 else torch.float32
        # What is drawn anew each time will not be found again.
        is_drawn = matrix is not None or direction is not None
        memory = None if is_drawn and not isinstance(self.random_state, Integral) else self.memory
        buffer = RowBuffer(matrix, n_features, dtype, device)
        capacity = None
        if max_memory is not None and max_memory < SCRATCH_BYTES + n_samples * row_bytes(n_columns, first.itemsize):
            capacity = max(0, max_memory - SCRATCH_BYTES) // row_bytes(n_columns, first.itemsize)

        def select(rows: Rows, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            n_wanted = count_of(self.ratio, len(rows)) if capacity is None else min(n_selected, len(rows))
            with one_thread(rows.left.numel() * n_wanted < SMALL_PRODUCT):
                if direction is None:
                    start = int((numbers == self.start).argmax())  # the first row of a shard without it
                else:
                    start = int((rows.left @ rows.left.new_tensor([*direction, 0.0])).argmax())
                return self._select(rows, n_wanted, start, memory if capacity is None else None)

        if capacity is None:
            summary = select_at_once(batches, n_samples, buffer, select)
        else:
            summary = select_from_shards(batches, capacity, n_selected, buffer, select)
        self.n_features_in_ = n_features
        self.component_indices_ = summary.numbers
        self.selection_distances_ = summary.radii

    def _select(self, rows: Rows, n_selected: int, start: int, memory: Any) -> tuple[np.ndarray, np.ndarray]:
        cache = OrderCache(memory, rows.left, start)
        known = cache.read()
        if known is not None and len(known[0]) >= n_selected:
            return known[0][:n_selected], known[1][:n_selected]
        with progress_bar(n_selected, "selecting the coreset", "row", self.verbose) as bar:
            order, radii = k_center_greedy(rows, n_selected, start, bar.update, known)
            bar.update(n_selected - bar.n)
        cache.write(order, radii)
        return order, radii


def _checked(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the batches. Values whose squares could overflow are refused; NaN and infinity are among them."""
    limit, n_before = None, 0
    for batch in batches:
        limit = limit or largest_value(batch.dtype)  # the first batch decides in which dtype selection computes
        refuse_beyond(batch, limit, n_before)
        yield batch
        n_before += len(batch)
