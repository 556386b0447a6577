"""Memory banks of calibration folds: how many folds are affordable, and one bank per fold.

:func:`affordable_folds` is a cost model. :class:`FoldBanks` builds the bank of one fold after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from sklearn.base import clone

from skpatchcore._utils.progress import phase
from skpatchcore.bank.memory_bank import MemoryBank
from skpatchcore.coreset._base import count_of
from skpatchcore.index.exact import ExactIndex
from skpatchcore.protocols import Index, Sampler, columns_of, ratio_of, selects_folds

# Limits of the number of folds. Fewer folds have banks of clearly fewer images than the final bank. More folds change
# the scores by less than their noise.
FEWEST_FOLDS, _MOST = 5, 40
# Work of the additional coarse folds (see `Extrapolated`), in selections.
_COARSE = 2
# Work in units of one multiply-add of a matrix product. The constants were fitted to measured times on a CPU, and only
# their ratios matter. Work of the network per patch, and per channel of a patch.
_NETWORK_PATCH, _NETWORK_CHANNEL = 2.0e6, 5.0e3
# Work of a selection: per patch, per selected row, and per distance between a patch and a selected row. About half of
# the distances are computed; see `k_center_greedy`.
_SELECTION_PATCH, _SELECTION_ROW, _DISTANCE = 1.5e5, 9.0e6, 0.75
# From all patches, the selections of all folds may take this multiple of the network's pass. From the pool of patches
# (see `skpatchcore.coreset._pools`), they take a fraction of it. The whole fit then takes at most about twice as long
# as with leave-one-out. Fewer folds would be less exact.
_PASSES = 2
# Work that is always affordable: about half a second.
_LITTLE = 5.0e10
# Work of a selection that takes about an hour on two cores of a CPU.
_LONG = 1.0e14


def affordable_folds(n_patches: int, n_channels: int, sampler: Sampler, index: Index) -> int:
    """Return the number of folds whose selections from all patches take about twice as long as the network's pass.

    The number depends only on shapes and parameters, so it is the same on all machines. The network's time is estimated
    from its output, because the network is not known for precomputed patch features.

    Parameters
    ----------
    n_patches : int
        Number of patches of all training images.
    n_channels : int
        Number of channels of a patch feature.
    sampler : Sampler
        Sampler that selects the bank of each fold.
    index : Index
        Index that searches the bank of each fold.

    Returns
    -------
    int
        Number of folds from 5 to 40; 5 for an index that is not an :class:`~skpatchcore.ExactIndex`, because such an
        index may take long to build. 0 if leave-one-out without new selections is at least as good: the sampler
        selects all rows, or it has no method ``fit_folds``.
    """
    ratio = ratio_of(sampler)
    n_selected = min(int(ratio), n_patches) if isinstance(ratio, Integral) else count_of(ratio, n_patches)
    if n_selected >= n_patches or not selects_folds(sampler):
        return 0
    if not isinstance(index, ExactIndex):
        return FEWEST_FOLDS
    network = n_patches * (_NETWORK_PATCH + _NETWORK_CHANNEL * n_channels)
    products = _DISTANCE * n_patches * n_selected * columns_of(sampler, n_channels)
    selection = products + _SELECTION_PATCH * n_patches + _SELECTION_ROW * n_selected
    return int(np.clip(max(_PASSES * network, _LITTLE) / selection - _COARSE, FEWEST_FOLDS, _MOST))


def describe_long_selection(n_patches: int, n_channels: int, sampler: Sampler) -> str | None:
    """Return the text of a warning if the selection of the memory bank can take more than an hour; otherwise None.

    Parameters
    ----------
    n_patches, n_channels, sampler
        As for :func:`affordable_folds`. The work of samplers without ``fit_folds`` is unknown: the result is None.
    """
    ratio = ratio_of(sampler)
    n_selected = min(int(ratio), n_patches) if isinstance(ratio, Integral) else count_of(ratio, n_patches)
    work = _DISTANCE * n_patches * n_selected * columns_of(sampler, n_channels)
    if not selects_folds(sampler) or n_selected >= n_patches or work < _LONG:
        return None
    return (
        f"the sampler selects {n_selected:,} of about {n_patches:,} patches, which can take more than an hour, and "
        "several times as long with calibration folds. A smaller ratio takes less time, e.g. "
        "sampler=GreedyCoresetSampler(10_000) for 10,000 patches, and so does a smaller image_size of the extractor."
    )


@dataclass
class FoldBanks:
    """Iterable over the memory banks of calibration folds: each bank is selected without the images of its fold.

    The iterator yields lists of banks. All banks of a list are in memory at the same time, so one pass over the patches
    can score the images of all these folds.

    Attributes
    ----------
    picks : list of arrays of int
        Rows of each bank, as row numbers among all patches.
    image_of : callable
        ``image_of(numbers)`` returns the index of the image of each of these rows.
    rows_of : callable
        ``rows_of(numbers)`` returns the patch features with these row numbers, in this order.
    sampler, index, n_neighbors
        As for :class:`MemoryBank`.
    capacity : int, default=0
        Maximum number of rows of the banks in one list. A list has at least one bank.
    """

    picks: list[np.ndarray]
    image_of: Callable[[np.ndarray], np.ndarray]
    rows_of: Callable[[np.ndarray], np.ndarray]
    sampler: Sampler
    index: Index
    n_neighbors: int
    capacity: int = 0

    def __iter__(self) -> Iterator[list[MemoryBank]]:
        for group in self._groups():
            numbers = np.unique(np.concatenate(group))
            rows = self.rows_of(numbers)
            yield [self._bank(rows[np.searchsorted(numbers, picked)], picked) for picked in group]

    def _groups(self) -> Iterator[list[np.ndarray]]:
        """Yield the picks of the banks of each list."""
        group: list[np.ndarray] = []
        for picked in self.picks:
            if group and sum(map(len, group)) + len(picked) > self.capacity:
                yield group
                group = []
            group.append(picked)
        if group:
            yield group

    def _bank(self, rows: np.ndarray, picked: np.ndarray) -> MemoryBank:
        positions, boxes = np.empty((0, 2), np.int64), np.empty((0, 4))  # calibration does not use them
        bank = MemoryBank(
            rows, self.image_of(picked), positions, boxes, self.sampler, clone(self.index), self.n_neighbors
        )
        with phase("index"):
            bank.build_index()
        return bank
