"""ShardedSelection: the part of GreedyCoresetSampler that selects from rows which are divided among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from skpatchcore._utils.device import require_device
from skpatchcore._utils.modes import default_modes
from skpatchcore.coreset._base import checked_batches, count_of
from skpatchcore.coreset._projecting import ProjectingSampler
from skpatchcore.coreset._rows import RowBuffer
from skpatchcore.coreset._shard_work import features_of
from skpatchcore.coreset._shards import peek
from skpatchcore.coreset.distributed import (
    ProjectedRows,
    Request,
    SelectionReport,
    ShardGroup,
    select_exactly,
    select_merged,
)


class ShardedSelection(ProjectingSampler):
    """Mixin of :class:`~skpatchcore.GreedyCoresetSampler` with the methods for shards in several processes."""

    def project_batches(self, batches: Iterable[np.ndarray], images: Iterable[np.ndarray]) -> ProjectedRows:
        """Return the projected rows of a shard, for :meth:`fit_shards`. `random_state` must be an int.

        Parameters
        ----------
        batches : iterable of arrays of shape (n_rows, n_features)
            The rows of the shard, in order, as float32 or float64.
        images : iterable of arrays of shape (n_rows,)
            Index of the image of each row, per batch. It is read after the last batch. All rows of an image must be in
            one shard.

        Returns
        -------
        ProjectedRows
            The projected rows with their images.

        Raises
        ------
        ValueError
            As for `fit`. The number of the row is counted within the shard.
        """
        first, batches = peek(checked_batches(batches))
        n_columns = self._columns_of_shards(first.shape[1])
        matrix, _ = self._draw(first.shape[1], n_columns, check_random_state(self.random_state))
        dtype = torch.float64 if first.dtype == np.float64 else torch.float32
        with default_modes():
            buffer = RowBuffer(matrix, first.shape[1], dtype, require_device(self.device))
            for batch in batches:
                buffer.extend(batch)
            values = buffer.take()[0][:, :-1].cpu().numpy()
        return ProjectedRows(values, np.concatenate(list(images)).astype(np.int64), first.shape[1])

    def fit_shards(
        self,
        group: ShardGroup,
        projected: list[Any],
        left_out: Sequence[np.ndarray] = (),
        mode: str = "exact",
        oversampling: float = 2.0,
        on_progress: Callable[[int, int], Any] | None = None,
    ) -> tuple[SelectionReport, list[np.ndarray]]:
        """Fit on rows that are divided among several processes. `random_state` must be an int.

        Sets the same attributes as `fit`, except ``components_``. In ``"exact"`` mode, they have the same values, if
        the rows are the same. The cache `memory` is not used.

        Parameters
        ----------
        group : ShardGroup
            The shards; see ``skpatchcore.coreset.distributed``.
        projected : list of handles
            Result of `project_batches` for each shard, in the order of the rows. The list is emptied, so that the group
            can free the memory of the results.
        left_out : sequence of arrays of int, default=()
            Images that each additional selection leaves out, as in `fit_folds` with `images`. In ``"merge"`` mode, no
            pool is used.
        mode : {"exact", "merge"}, default="exact"
            ``"exact"`` selects the same rows as `fit`. ``"merge"`` selects from each shard, and then from the selected
            rows: two rounds, and a little larger covering radius.
        oversampling : float, default=2.0
            In ``"merge"`` mode, each of m shards selects ``oversampling / m`` times the requested number of rows.
        on_progress : callable or None, default=None
            Called with the number of new picks and the number of rounds so far.

        Returns
        -------
        report : SelectionReport
            Work, communication and quality of the selection.
        picks : list of arrays of int64
            Per item of `left_out`, the selected rows, as in `fit_folds`.

        Raises
        ------
        ValueError
            In the same cases as in `fit` and `fit_folds`.
        """
        n_seen: list[int] = []

        def check(n_rows: int) -> None:
            n_seen.append(n_rows)
            count_of(self.ratio, n_rows)
            self._check_start(n_rows)

        def count(n_rows: int) -> int:
            if not n_rows:
                raise ValueError("a fold leaves out all rows: pass folds that leave at least one row.")
            return min(int(self.ratio), n_rows) if isinstance(self.ratio, Integral) else count_of(self.ratio, n_rows)

        n_features = group.gather(group.map("skpatchcore-measure", features_of, projected[:1]))[0]
        seed, n_columns = self._new_seed(), self._columns_of_shards(n_features)
        _, direction = self._draw(n_features, n_columns, check_random_state(seed))
        start = 0 if self.start == "random" else int(self.start)
        nothing = np.zeros(0, np.int64)
        request = Request(direction, start, check, count, [nothing, *left_out])
        if mode == "merge":
            found, report = select_merged(group, projected, request, oversampling, on_progress)
        else:
            found, report = select_exactly(group, projected, request, on_progress=on_progress)
        self.component_indices_, self.selection_distances_ = found[0].order, found[0].radii
        self._remember(seed, n_features, n_columns, n_seen[0])
        if hasattr(self, "components_"):  # set by an earlier fit
            del self.components_
        return report, [selection.order for selection in found[1:]]

    def _columns_of_shards(self, n_features: int) -> int:
        """Return the number of columns after the projection of shards, which must not depend on the number of rows."""
        if self.n_projections == "auto":
            raise ValueError(
                "n_projections='auto' depends on the number of patches, which is not known before the projection if "
                "the patches are divided among several processes: choose a number, e.g. 128."
            )
        return self._n_columns(0, n_features)
