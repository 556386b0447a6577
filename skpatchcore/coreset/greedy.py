"""GreedyCoresetSampler: k-center greedy selection of rows (Equation 5, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from skpatchcore._utils.device import require_device
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import phase, progress_bar
from skpatchcore._utils.sklearn import HasMethods, Interval, StrOptions, fit_context
from skpatchcore._utils.threads import SMALL_PRODUCT, one_thread
from skpatchcore.coreset._base import checked_batches, count_of
from skpatchcore.coreset._growth import GrowingSelection
from skpatchcore.coreset._k_center import k_center_greedy
from skpatchcore.coreset._order_cache import OrderCache, SelectionCache
from skpatchcore.coreset._pools import cover_of_images, rows_for_fold, select_from_pool
from skpatchcore.coreset._projecting import PROJECTIONS
from skpatchcore.coreset._rows import RowBuffer, Rows
from skpatchcore.coreset._sharded import ShardedSelection
from skpatchcore.coreset._shards import SCRATCH_BYTES, peek, row_bytes, select_at_once, select_from_shards
from skpatchcore.coreset.reserve import ReserveRequest


class GreedyCoresetSampler(GrowingSelection, ShardedSelection):
    """Select a coreset: a subset of the rows such that every row is near a selected row (k-center greedy algorithm).

    The selection follows Equation 5 and Algorithm 1 of the PatchCore paper (Roth et al., 2022). By default, the first
    row is chosen at random. Then the row that is farthest from its nearest selected row is selected, until enough rows
    are selected. The covering radius is the largest distance from any row to its nearest selected row. The covering
    radius of the selected rows is at most twice the smallest possible covering radius of as many rows (Gonzalez, 1985).
    The rows that are selected with a smaller `ratio` are the first of the rows that are selected with a larger `ratio`.

    Parameters
    ----------
    ratio : float or int, default=0.1
        Size of the coreset. A float in (0, 1] is a fraction of the rows: ``max(1, ceil(ratio * n_samples))`` rows are
        selected. An int is the number of rows.
    n_projections : int, "auto" or None, default=128
        Number of columns to which the rows are reduced by a random projection. The selection then computes distances
        between projected rows, which is faster. The projection nearly keeps the distances (lemma of Johnson and
        Lindenstrauss). Rows with at most `n_projections` columns are not projected. ``"auto"`` takes the number of
        columns that the lemma requires for a relative error of 0.9 of the squared distances. None disables the
        projection. The selected rows always keep their original columns.
    projection : {"gaussian", "sparse"}, default="gaussian"
        Kind of random matrix: ``"gaussian"`` has normal entries, ``"sparse"`` has mostly zero entries (Li et al. 2006).
    start : "random" or int, default="random"
        First selected row. An int is the index of the row. ``"random"`` selects the row that lies farthest along a
        random direction. This row depends on the values of the rows and on `random_state`, but not on the order of
        the rows.
    device : str, default="auto"
        Device on which the selection runs. ``"auto"`` uses CUDA if CUDA is available, otherwise the CPU.
    memory : str, joblib.Memory or None, default=None
        Folder of a cache on disk for the order of selection. For the same rows, seed and start, the selection for a
        smaller `ratio` is read from the cache, and the selection for a larger `ratio` continues from the cached order.
        Therefore, a search over several values of `ratio` takes as long as the selection for the largest value. If the
        projection or the start is random, the order is only cached if `random_state` of the sampler or of the detector
        is an int, because otherwise each fit draws other random numbers. If the extractor of a detector has a cache,
        too, the projected rows (at most 2 GB) and the results of the searches of the memory bank (at most 1 GB) are
        also stored. None disables the cache.
    random_state : int, RandomState instance or None, default=None
        Source of the random numbers for the projection and the start. The numbers are the same on all devices. Pass an
        int to select the same rows in each call of `fit`.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    components_ : array of shape (n_selected, n_features)
        The selected rows, in order of selection.
    component_indices_ : array of shape (n_selected,), int64
        Indices of the selected rows in `X`, in order of selection.
    selection_distances_ : array of shape (n_selected,), float64
        Covering radius after each selected row, measured between projected rows. Every row is at most
        ``selection_distances_[k - 1]`` away from the nearest of the first ``k`` selected rows. The values of the rows
        that `fit` has selected never increase. The values of the rows that `extend` has selected are upper bounds for
        all rows seen, and can be larger than the values before.
    covering_radius_ : float
        Upper bound of the distance from any row seen to its nearest selected row, measured between projected rows.
    radius_ : float
        Covering radius of the rows that `fit` selected, which `extend` keeps with ``growth="radius"``.
    ratio_ : float
        Fraction of the rows that `fit` selected: `ratio`, or `ratio` divided by the number of rows if `ratio` is an
        int.
    n_beyond_ratio_ : int
        Number of rows that `extend` with ``growth="ratio"`` has selected beyond this fraction, to keep the radius.
    n_samples_seen_ : int
        Number of rows in `fit` and all calls of `extend`.
    n_projections_ : int
        Number of columns of the projected rows.
    seed_ : int
        Seed of the projection and the start: `random_state` if it is an int, otherwise a random number.
    n_features_in_ : int
        Number of columns of `X`.
    feature_names_in_ : array of str
        Names of the columns of `X`, if `X` has column names.

    Notes
    -----
    The simple algorithm compares every row with each newly selected row, and its speed is limited by memory bandwidth.
    This implementation selects the same rows, but compares many rows at once by matrix products. Rows that cannot be
    the farthest row at the moment are skipped. Therefore, the selection takes about as long as *one* matrix product of
    all rows with the selected rows, or less. The saving is largest if many rows lie near a few selected rows, as for
    patch features of images. For unstructured data with many columns, few rows are skipped, and the selection takes as
    long as the whole matrix product.

    The projected rows are rounded to multiples of a power of two, about 2**-22 times the largest values (2**-20 for
    rows with more than 1,000 columns). All distances that decide about a selected row are exact for these rounded rows,
    and of several rows with the same distance, the first is selected. Therefore, the same rows are selected for any
    number of threads, on any device, and by several processes that divide the rows among themselves. The only exception
    are single rows whose values are more than 256 times as large as those of 99.9 % of the rows: their distances are
    not exact in the last bits of float64, so that two such rows that are equally far may be selected in another order.

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
        "projection": [StrOptions(set(PROJECTIONS))],
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
            Rows to select from. Rows of dtype float16 are converted to float32, and rows of other dtypes than float32
            and float64 are converted to float64.
        y : ignored
            Present for API consistency.

        Returns
        -------
        GreedyCoresetSampler
            The fitted sampler.

        Raises
        ------
        ValueError
            If `X` contains NaN, infinity, or a value beyond ±1e15 (float32) or ±1e150 (float64), because the squares of
            such values could overflow. The error names the row and the column. The error is also raised if `ratio` is
            an int and larger than the number of rows, if there is no row with the index `start`, or if the device is
            not available.
        """
        X = self._validated_rows(X)
        self._fit([X], len(X), None)
        self.components_ = X[self.component_indices_]
        return self

    @fit_context(prefer_skip_nested_validation=True)
    @default_modes()
    def fit_batches(
        self,
        batches: Iterable[np.ndarray],
        n_samples: int,
        max_memory: int | None = None,
        reserve: ReserveRequest | None = None,
        digest: bytes | None = None,
    ) -> GreedyCoresetSampler:
        """Select rows from batches in a single pass, with only the projected rows in memory.

        If all projected rows fit in `max_memory`, the same rows are selected as in `fit`, for any sizes of the batches.
        Otherwise, the rows are divided into shards: parts that fit in `max_memory`. Rows are selected from each shard.
        The final rows are then selected from the rows that were selected from all shards. The covering radius is at
        most 4 times the smallest possible covering radius, instead of 2 times as for `fit`. If the selected rows of all
        shards do not fit in memory together, the selected rows are merged several times, and each additional merge adds
        2 to the factor 4. With shards, the values of ``selection_distances_`` are upper bounds of the covering radii,
        and a smaller `ratio` can select rows that a larger `ratio` does not select.

        This method sets the same attributes as `fit`, except ``components_``. The selected rows are the rows at
        ``component_indices_``, counted over all batches.

        Parameters
        ----------
        batches : iterable of arrays of shape (n_rows, n_features)
            The rows, in order, as float32 or float64.
        n_samples : int
            Expected total number of rows. If the actual number differs, the selection is still correct, but may need
            more memory.
        max_memory : int or None, default=None
            Maximum memory of the selection in bytes. None sets no limit: all projected rows are kept in memory.
        reserve : ReserveRequest or None, default=None
            If given, further rows are selected: the reserve. If images are removed later, `refill` selects rows of the
            reserve in the place of their rows. There is no reserve if the rows are divided into shards, or if it would
            be larger than the request allows. None selects no reserve.
        digest : bytes or None, default=None
            Digest of all rows in their order, which is equal for equal rows. `n_samples` is then the exact number of
            rows. With `memory`, results are looked up by this digest. If all of them are found, only the first batch is
            read. None identifies the rows by their values.

        Returns
        -------
        GreedyCoresetSampler
            The fitted sampler.

        Raises
        ------
        ValueError
            In the same cases as in `fit`. The error is also raised if there are no batches, or if the projected rows do
            not fit in `max_memory` and `max_memory` is too small for 6 times as many rows as are to be selected.
        """
        self._fit(checked_batches(batches), n_samples, max_memory, reserve=reserve, digest=digest)
        if hasattr(self, "components_"):  # set by an earlier fit
            del self.components_
        return self

    @fit_context(prefer_skip_nested_validation=True)
    @default_modes()
    def fit_folds(
        self,
        batches: Iterable[np.ndarray],
        n_samples: int,
        folds: Iterable[np.ndarray],
        reserve: ReserveRequest | None = None,
        digest: bytes | None = None,
        images: Iterable[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Fit as `fit_batches` does without a memory limit, and select rows once more for each fold.

        The rows are projected once for all selections. All selections use the same projection and, with
        ``start="random"``, the same random direction.

        Parameters
        ----------
        batches : iterable of arrays of shape (n_rows, n_features)
            The rows, in order, as float32 or float64.
        n_samples : int
            Expected total number of rows, as in `fit_batches`.
        folds : iterable of arrays of int
            Indices of the rows that each additional selection leaves out, counted over all batches. The iterable is
            read after the last batch.
        reserve : ReserveRequest or None, default=None
            As for `fit_batches`. The folds have no reserve.
        digest : bytes or None, default=None
            As for `fit_batches`.
        images : iterable of arrays of int or None, default=None
            Image of each row, as arrays for consecutive rows. It is read after the last batch. If given, the rows of
            folds are selected from a pool: a few rows of each image that cover all rows of this image with 0.8 times
            the covering radius of the selection from all rows. This takes a fraction of the time, and the covering
            radius is about the same. A fold must then leave out whole images. If the pool has more than half of the
            rows, or too few rows, the rows of a fold are selected from all rows. None always selects from all rows.

        Returns
        -------
        list of arrays of shape (n_selected,), int64
            One array per item of `folds`: the indices of the selected rows, in order of selection. Without `images`,
            these are the rows that `fit` selects from the remaining rows. `ratio` refers to the remaining rows. If
            `ratio` is an int and larger than their number, all of them are selected.

        Raises
        ------
        ValueError
            In the same cases as in `fit`, and if a fold leaves out all rows.
        """
        return self._fit(checked_batches(batches), n_samples, None, folds, reserve, digest, images)

    def estimate_memory(self, n_samples: int, n_features: int) -> int:
        """Return the memory that `fit_batches` needs if all projected rows are kept in memory.

        Parameters
        ----------
        n_samples : int
            Number of rows.
        n_features : int
            Number of columns of the rows. The rows are assumed to be float32.

        Returns
        -------
        int
            Memory in bytes, without the memory of the batches.
        """
        return SCRATCH_BYTES + n_samples * row_bytes(self._n_columns(n_samples, n_features))

    def _fit(
        self,
        batches: Iterable[np.ndarray],
        n_samples: int,
        max_memory: int | None,
        folds: Iterable[np.ndarray] = (),
        reserve: ReserveRequest | None = None,
        digest: bytes | None = None,
        images: Iterable[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Select rows from validated batches, and set the fitted attributes except ``components_``.

        Return the selections of the folds, as in `fit_folds`. Folds require that all rows fit in memory.
        """
        device = require_device(self.device)
        if device.type == "mps":  # exact distances need float64, which this device does not have
            device = torch.device("cpu")
        n_selected = count_of(self.ratio, n_samples)
        self._check_start(n_samples)
        first, batches = peek(batches)
        n_features = first.shape[1]
        n_columns = self._n_columns(n_samples, n_features)
        seed = self._new_seed()
        matrix, direction = self._draw(n_features, n_columns, check_random_state(seed))
        dtype = torch.float64 if first.dtype == np.float64 else torch.float32
        # Without an int seed, the random draws differ from fit to fit. A cached order would never be read again.
        is_drawn = matrix is not None or direction is not None
        memory = None if is_drawn and not isinstance(self.random_state, Integral) else self.memory
        capacity = None
        if max_memory is not None and max_memory < SCRATCH_BYTES + n_samples * row_bytes(n_columns, first.itemsize):
            capacity = max(0, max_memory - SCRATCH_BYTES) // row_bytes(n_columns, first.itemsize)
        settings = (
            seed if is_drawn else None,
            self.start,
            n_columns,
            None if matrix is None else self.projection,
            str(dtype),
        )
        cache = SelectionCache.at(memory, digest if capacity is None else None, settings)
        n_pooled = None if images is None else n_selected  # the pool depends on the number of selected rows
        if cache is not None:
            folds = list(folds)
            known = self._read(cache, n_selected, n_samples, folds, n_pooled, reserve)
            if known is not None:
                self._remember(seed, n_features, n_columns, n_samples)
                return known
        buffer = RowBuffer(matrix, n_features, dtype, device)

        def start_of(rows: Rows, numbers: np.ndarray, left_out: torch.Tensor | None = None) -> int:
            """Return the first pick. `numbers` are the indices of the rows among all rows."""
            if direction is not None:
                along = rows.along(direction)
            else:  # the row `start` if it is there, otherwise the first row
                along = torch.from_numpy((numbers == self.start).astype(np.float64)).to(rows.left.device)
            if left_out is not None:
                along[left_out] = -torch.inf
            return int(along.argmax())

        def select(rows: Rows, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Return the order of selection from `rows` and the radii. `numbers` are the indices among all rows."""
            n_wanted = count_of(self.ratio, len(rows)) if capacity is None else min(n_selected, len(rows))
            with one_thread(rows.left.numel() * n_wanted < SMALL_PRODUCT):
                start = start_of(rows, numbers)
                if cache is not None:
                    orders = cache.order
                else:
                    orders = OrderCache.of_rows(memory if capacity is None else None, rows.left, start)
                order, radii = self._select(rows, n_wanted, start, orders)
                if reserve is not None and capacity is None and not (cache and cache.read_reserve(reserve, n_wanted)):
                    reserve.select(rows, order, float(radii[-1]))
                    if cache is not None:
                        cache.write_reserve(reserve, n_wanted)
                with phase("calibration"), progress_bar(None, "selecting for calibration", "fold", self.verbose) as bar:

                    @lru_cache(maxsize=1)
                    def pool() -> np.ndarray | None:
                        if images is None:
                            return None
                        return cover_of_images(rows, np.concatenate(list(images)), float(radii[-1]), len(rows))

                    for left_out in folds:
                        selected.append(self._select_without(rows, left_out, start_of, cache, pool, n_pooled))
                        bar.update()
            return order, radii

        selected: list[np.ndarray] = []
        if capacity is None:
            summary = select_at_once(batches, n_samples, buffer, select, None if matrix is None else cache)
        else:
            summary = select_from_shards(batches, capacity, n_selected, buffer, select)
        self.component_indices_, self.selection_distances_ = summary.numbers, summary.radii
        self._remember(seed, n_features, n_columns, buffer.n_seen)
        return selected

    def _read(
        self,
        cache: SelectionCache,
        n_selected: int,
        n_samples: int,
        folds: Sequence[np.ndarray],
        n_pooled: int | None,
        reserve: ReserveRequest | None,
    ) -> list[np.ndarray] | None:
        """Set the order and the radii from the cache, and return the selections of the folds; None if one is missing.

        `folds` are the rows that each fold leaves out. `n_pooled` is the number of selected rows if folds are selected
        from a pool, otherwise None.
        """
        found = cache.order.read_first(n_selected)
        if found is None or (reserve is not None and not cache.read_reserve(reserve, n_selected)):
            return None
        selected = []
        for left_out in folds:
            n_wanted = self._count_without(n_samples, len(left_out))
            order = cache.without(left_out, n_wanted, n_pooled).read_first(n_wanted)
            if order is None:
                return None
            selected.append(order[0])
        self.component_indices_, self.selection_distances_ = found
        return selected

    def _select(self, rows: Rows, n_selected: int, start: int, cache: OrderCache) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of selection and the radii, from the cache as far as possible."""
        known = cache.read()
        if known is not None and len(known[0]) >= n_selected:
            return known[0][:n_selected], known[1][:n_selected]
        with progress_bar(n_selected, "selecting the coreset", "row", self.verbose) as bar:
            order, radii = k_center_greedy(rows, n_selected, start, bar.update, known)
            bar.update(n_selected - bar.n)  # the first pick and picks from the cache
        cache.write(order, radii)
        return order, radii

    def _count_without(self, n_samples: int, n_left_out: int) -> int:
        """Return the number of rows to select if some rows are left out."""
        n_left = n_samples - n_left_out
        if n_left == 0:
            raise ValueError("a fold leaves out all rows: pass folds that leave at least one row.")
        return n_left if isinstance(self.ratio, Integral) and self.ratio > n_left else count_of(self.ratio, n_left)

    def _select_without(
        self,
        rows: Rows,
        left_out: np.ndarray,
        start_of: Callable[..., int],
        cache: SelectionCache | None,
        pool: Callable[[], np.ndarray | None],
        n_pooled: int | None,
    ) -> np.ndarray:
        """Return the order of selection from all rows except `left_out`, from the cache as far as possible.

        ``pool()`` computes the pool, or returns None. `n_pooled` is as in `_read`.
        """
        n_wanted = self._count_without(len(rows), len(left_out))
        orders = OrderCache(None) if cache is None else cache.without(left_out, n_wanted, n_pooled)
        known = orders.read()
        if known is not None and len(known[0]) >= n_wanted:
            return known[0][:n_wanted]
        kept = rows_for_fold(pool(), left_out, n_wanted)
        if kept is not None:
            others = np.delete(np.arange(len(rows)), kept)
            start = start_of(rows, np.arange(len(rows)), torch.from_numpy(others).to(rows.left.device))
            order, radii = select_from_pool(rows, others, n_wanted, start)
            orders.write(order, radii)
            return order
        excluded = torch.from_numpy(np.asarray(left_out, np.int64)).to(rows.left.device)
        start = start_of(rows, np.arange(len(rows)), excluded)
        order, radii = k_center_greedy(rows, n_wanted, start, resume=known, left_out=excluded)
        orders.write(order, radii)
        return order
