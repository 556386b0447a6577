"""GrowingSelection: the part of GreedyCoresetSampler that goes on selecting from new rows, and fills holes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.device import require_device
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import phase, progress_bar
from skpatchcore._utils.threads import SMALL_PRODUCT, one_thread
from skpatchcore.coreset._base import checked_batches, count_of
from skpatchcore.coreset._k_center import k_center_greedy
from skpatchcore.coreset._projecting import ProjectingSampler
from skpatchcore.coreset._rows import RowBuffer, Rows
from skpatchcore.coreset._shards import peek
from skpatchcore.coreset.reserve import ReserveRequest


class GrowingSelection(ProjectingSampler):
    """Mixin of :class:`~skpatchcore.GreedyCoresetSampler` with the methods that change a fitted selection."""

    @default_modes()
    def extend(
        self,
        batches: Iterable[np.ndarray],
        n_samples: int,
        growth: str = "radius",
        reserve: ReserveRequest | None = None,
    ) -> np.ndarray:
        """Go on selecting from new rows. The rows that are already selected stay.

        Parameters
        ----------
        batches : iterable of arrays of shape (n_rows, n_features)
            The new rows, in order, as float32 or float64.
        n_samples : int
            Expected number of new rows. If the actual number differs, the selection is still correct.
        growth : {"radius", "ratio"}, default="radius"
            When the selection stops. ``"radius"``: as soon as each new row is within the covering radius of `fit` from
            a selected row. ``"ratio"``: as soon as, in addition, the fraction `ratio_` of all rows is selected. Rows
            that the radius needs beyond this fraction are saved in later calls.
        reserve : ReserveRequest or None, default=None
            If given, a reserve is selected from the new rows, too.

        Returns
        -------
        array of int64
            Indices of the newly selected rows among the new rows, in order of selection. `component_indices_` counts on
            from the rows seen before. The caller must append the rows themselves to ``components_``.

        Raises
        ------
        ValueError
            If `growth` has another value, if the rows have another number of columns than those in `fit`, or are not
            finite, or if the sampler was fitted by an older version without an int as `random_state`.
        """
        if growth not in ("radius", "ratio"):
            raise ValueError(f"growth={growth!r}: expected 'radius' or 'ratio'.")
        first, batches = peek(checked_batches(batches))
        rows, n_known = self._gathered(first, batches, n_samples)
        n_new = len(rows) - n_known
        n_wanted = 0
        if growth == "ratio":
            before, after = (count_of(self.ratio_, n) for n in (self.n_samples_seen_, self.n_samples_seen_ + n_new))
            n_wanted = max(0, min(n_new, after - before - self.n_beyond_ratio_))
        known = np.arange(n_known), np.zeros(n_known)
        with phase("selection"), progress_bar(None, "selecting the coreset", "row", self.verbose) as bar:
            with one_thread(rows.left.numel() * (n_known + n_wanted) < SMALL_PRODUCT):
                order, radii = k_center_greedy(
                    rows, len(rows), 0, bar.update, known, radius=self.radius_, at_least=n_known + n_wanted
                )
        # Old rows stay within the old radius. Therefore the larger radius holds for all rows.
        bounds = np.maximum(radii[n_known - 1 :], self.covering_radius_)
        picks = order[n_known:] - n_known
        if growth == "ratio":
            self.n_beyond_ratio_ = max(0, self.n_beyond_ratio_ + len(picks) - (after - before))
        self.component_indices_ = np.concatenate([self.component_indices_, picks + self.n_samples_seen_])
        self.selection_distances_ = np.concatenate([self.selection_distances_, bounds[1:]])
        self.covering_radius_ = float(bounds[-1])
        if reserve is not None:
            reserve.select(rows, order, self.covering_radius_)
        self.n_samples_seen_ += n_new
        return picks

    @default_modes()
    def refill(self, reserve: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """Return which rows of the reserve must be selected after selected rows were dropped.

        Parameters
        ----------
        reserve : array of shape (n_reserve, n_features)
            The rows of the reserve that remain.
        needed : array of int64
            Rows of the reserve, by number, that must be among the result.

        Returns
        -------
        array of int64
            Row numbers in `reserve`: the needed ones, and then so many others in order of selection that all rows of
            the reserve are within `covering_radius_` of a selected row. The sampler itself is not changed.
        """
        if not len(reserve):
            return np.zeros(0, np.int64)
        rows, n_known = self._gathered(reserve, [reserve], len(reserve))
        known = np.concatenate([np.arange(n_known), n_known + needed])
        if len(known):
            given = known, np.zeros(len(known))
            order, _ = k_center_greedy(rows, len(rows), 0, None, given, radius=self.covering_radius_)
        else:
            order, _ = k_center_greedy(rows, len(rows), 0, radius=self.covering_radius_)
        return order[n_known:] - n_known

    def _gathered(self, first: np.ndarray, batches: Iterable[np.ndarray], n_samples: int) -> tuple[Rows, int]:
        """Return the projected components, followed by the projected rows of batches, and the number of the former."""
        check_is_fitted(self, "components_")
        if first.shape[1] != self.n_features_in_:
            raise ValueError(
                f"the new rows have {first.shape[1]} columns, but the sampler was fitted on rows with "
                f"{self.n_features_in_} columns."
            )
        matrix = None
        if self.n_projections_ < self.n_features_in_:
            if self.seed_ is None:
                raise ValueError(
                    "the random projection of the coreset is unknown, because the detector was fitted by an older "
                    "version of skpatchcore with random_state=None. Fit again on all images."
                )
            matrix, _ = self._draw(self.n_features_in_, self.n_projections_, check_random_state(self.seed_))
        device = require_device(self.device)
        if device.type == "mps":  # exact distances need float64, which this device does not have
            device = torch.device("cpu")
        dtype = torch.float64 if first.dtype == np.float64 else torch.float32
        buffer = RowBuffer(matrix, self.n_features_in_, dtype, device)
        buffer.reserve(len(self.components_) + n_samples)
        buffer.extend(self.components_.astype(first.dtype, copy=False))
        for batch in batches:
            buffer.extend(batch)
        return Rows(buffer.take()[0]), len(self.components_)
