"""Suspicious patches of training images: :func:`learnt_cells` finds the patches that a fit should not learn.

A training set may hold a few defective images. A defect in the memory bank makes similar defects look normal. The
patches of a defect are unlike the patches of most other images, so they are found without labels: by their distances
to patches of other images. No alignment of the images is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import phase
from skpatchcore.coreset._projection import gaussian_projection
from skpatchcore.images.turns import Turn
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource

# Number of random patches with which each patch is compared, and number of columns after a random projection. The
# comparison of an image then takes less time than its pass through a small network.
_N_REFERENCES, _N_COLUMNS = 8192, 64
# The distance to this nearest reference patch counts, so that a few similar defects in other images do not hide one.
_N_NEIGHBORS = 5
# A patch in a sparse region is not suspicious because of the sparseness. This fraction of the median distance is added
# to the typical distance of its neighbours: otherwise, tiny deviations in very dense regions (a uniform background)
# would be suspicious.
_DENSE = 0.5
# The typical distance counts as at most this multiple of the median distance: otherwise, a few equal defects in several
# images would be a sparse region of their own.
_SPARSE = 3.0
# Standard deviation, in cells of the grid, of the Gaussian that smooths the suspicion of an image.
_SMOOTHING = 1.0
# Number of patches that are compared at once.
_N_ROWS = 256


def learnt_cells(
    patches: PatchSource, share: float, groups: np.ndarray, seed: int, turns: Sequence[Turn] = ()
) -> list[np.ndarray | None]:
    """Return the patches of each training image that are not suspicious.

    Parameters
    ----------
    patches : Patches or PatchStream
        Patches of the training images, and then of other images, e.g. of turned views. A stream is read twice.
    share : float in (0, 0.5)
        Fraction of all patches of the training images that are suspicious; rounded down to a whole number.
    groups : array of shape (n_images,), int
        Group of each training image. Patches of the same group are not compared.
    seed : int
        Seed of the random patches with which all patches are compared, and of the random projection.
    turns : sequence of Turn, default=()
        Turned views of the training images. A patch of a view is suspicious if its patch in the original image is.

    Returns
    -------
    list of (array of int or None)
        For each training image, and then for each image of each turned view, the row-major positions in its grid of the
        patches that are not suspicious and lie in the region of interest, ascending. None for all patches of the grid.

    Raises
    ------
    ValueError
        If all images are in one group, so that there are no patches of other images.
    """
    grids = suspicion(patches, groups, seed)
    values = np.concatenate([grid.ravel() for grid in grids])
    rows = np.flatnonzero(~np.isnan(values))
    n_suspects = int(share * len(rows) + 1e-9)
    is_learnt = ~np.isnan(values)
    # Of patches with the same suspicion, the last is left out first: the order of the sort is stable.
    is_learnt[rows[np.argsort(values[rows], kind="stable")[len(rows) - n_suspects :]]] = False
    parts = np.split(is_learnt, np.cumsum([grid.size for grid in grids])[:-1])
    masks = [part.reshape(grid.shape) for part, grid in zip(parts, grids, strict=True)]
    masks += [turn.of(mask) for turn in turns for mask in masks]
    return [None if mask.all() else np.flatnonzero(mask) for mask in masks]


@default_modes()
def suspicion(patches: PatchSource, groups: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return how unlike the patches of other images each patch is, **bigger = more suspicious**.

    Parameters
    ----------
    patches, groups, seed
        As for :func:`learnt_cells`.

    Returns
    -------
    list of arrays of shape (grid_height, grid_width), float64
        One grid per training image. NaN for patches outside the region of interest.

    Notes
    -----
    The measure is a local outlier factor with a random sample of reference patches:

    1. The distance of a patch to its 5th nearest reference patch of other groups is computed.
    2. The distance is divided by the typical value of this distance for the patch's nearest reference patches, within
       limits. A patch between rare but normal patches is therefore less suspicious than a patch that lies apart from
       all others.
    3. The values are smoothed within the image, because a defect usually covers several neighbouring patches.
    4. The median of the image is subtracted. An image that differs as a whole, e.g. in brightness, is less suspicious
       than an image with a few deviating patches.

    The result does not depend on the division of the images into batches.

    References
    ----------
    Breunig, Kriegel, Ng and Sander, "LOF: Identifying density-based local outliers", SIGMOD 2000. Jiang et al.,
    "SoftPatch: Unsupervised anomaly detection with noisy data", NeurIPS 2022, uses this factor for patches at the same
    position of all images.
    """
    with phase("selection"):
        references = _References(patches, groups, seed)
        found: list[np.ndarray] = []
        for batch in _originals(patches, len(groups)):
            for i in range(len(batch)):
                image = batch.between(i, i + 1)
                values = references.factors_of(image.rows, groups[len(found)])
                found.append(_smoothed(image.as_grids(values)[0]))
    return found


class _References:
    """A random sample of patches, with the typical distance to their own neighbours."""

    def __init__(self, patches: PatchSource, groups: np.ndarray, seed: int):
        if len(np.unique(groups)) < 2:
            raise ValueError(
                "suspect_share compares patches with patches of other images, and all training images are in one group "
                "(or there is one image only). Pass suspect_share=None."
            )
        rows, self.groups = _random_rows(patches, groups, seed)
        self.projection: np.ndarray | None = None
        if rows.shape[1] > _N_COLUMNS:
            rng = np.random.RandomState(seed)
            self.projection = gaussian_projection(rows.shape[1], _N_COLUMNS, rng).astype(rows.dtype)
        self.centre = rows.mean(axis=0)  # small values keep the differences of the matrix products precise
        self.rows = self._projected(rows)
        self.norms = (self.rows**2).sum(dim=1)
        self._buffer = torch.empty((_N_ROWS, len(self.rows)), dtype=self.rows.dtype)
        # The 5th nearest neighbour, or a nearer one if a group has nearly all of the sample.
        self.n_neighbors = min(_N_NEIGHBORS, len(rows) - int(np.unique(self.groups, return_counts=True)[1].max()))
        if self.n_neighbors < 1:  # the sample holds all patches of a small data set
            raise ValueError("suspect_share needs patches of at least two images. Pass suspect_share=None.")
        parts = [slice(start, start + _N_ROWS) for start in range(0, len(rows), _N_ROWS)]
        self.typical = torch.cat([self._nearest(self.rows[part], self.groups[part])[0] for part in parts])
        median = float(self.typical.median())
        self.typical.clamp_max_(_SPARSE * median)
        self.floor = _DENSE * median

    def factors_of(self, rows: np.ndarray, group: np.int64) -> np.ndarray:
        """Return the local outlier factor of each patch of one image, bigger = more suspicious."""
        projected, found = self._projected(rows), [np.zeros(0)]
        for start in range(0, len(rows), _N_ROWS):
            distances, nearest = self._nearest(projected[start : start + _N_ROWS], np.array([group]))
            scale = self.typical[nearest].mean(dim=1) + self.floor
            found.append((distances / scale.clamp_min(torch.finfo(scale.dtype).tiny)).to(torch.float64).numpy())
        return np.concatenate(found)

    def _projected(self, rows: np.ndarray) -> torch.Tensor:
        centred = as_tensor(rows - self.centre, torch.device("cpu"))
        return centred if self.projection is None else centred @ as_tensor(self.projection, torch.device("cpu"))

    def _nearest(self, rows: torch.Tensor, groups: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the distance to the 5th nearest reference of other groups, and the 5 nearest references.

        `groups` is the group of each row, or one group for all rows.
        """
        # One buffer for all: the freed memory of many large results would not always be used again.
        squares = torch.mm(rows, self.rows.T, out=self._buffer[: len(rows)])
        squares.mul_(-2).add_(self.norms).add_((rows**2).sum(dim=1, keepdim=True))
        squares.masked_fill_(torch.from_numpy(groups[:, None] == self.groups), torch.inf)
        values, nearest = torch.topk(squares, self.n_neighbors, dim=1, largest=False)
        return values[:, -1].clamp_min(0).sqrt(), nearest


def _random_rows(patches: PatchSource, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random patches of the training images and the group of each, in the order of the images.

    Each patch gets a random key that depends on its image and its position only, and the patches with the smallest keys
    are kept. The sample therefore does not depend on batches, and the number of patches need not be known.
    """
    rows, keys, owners = None, np.zeros(0), np.zeros(0, np.int64)
    done = 0
    for batch in _originals(patches, len(groups)):
        new_keys = [np.random.default_rng([seed, done + i]).random(n) for i, n in enumerate(np.diff(batch.starts))]
        new_owners = np.repeat(np.arange(done, done + len(batch)), np.diff(batch.starts))
        rows = batch.rows[:0] if rows is None else rows
        keys, owners = np.concatenate([keys, *new_keys]), np.concatenate([owners, new_owners])
        kept = np.sort(np.argsort(keys, kind="stable")[:_N_REFERENCES])
        n_old = np.searchsorted(kept, len(rows))
        rows = np.concatenate([rows[kept[:n_old]], batch.rows[kept[n_old:] - len(rows)]])
        keys, owners = keys[kept], owners[kept]
        done += len(batch)
    assert rows is not None  # there is at least one image
    return rows, groups[owners]


def _originals(patches: PatchSource, n_images: int) -> Iterator[Patches]:
    """Yield the batches of the first images."""
    done = 0
    for batch in patches:
        if done >= n_images:
            return
        yield batch if done + len(batch) <= n_images else batch.between(0, n_images - done)
        done += len(batch)


def _smoothed(grid: np.ndarray) -> np.ndarray:
    """Return the values of one image, smoothed and relative to their median. NaN affects no other value."""
    if grid.size == 1:  # patch features without a grid: there is nothing to compare within an image
        return grid
    from scipy.ndimage import gaussian_filter

    is_known = ~np.isnan(grid)
    if not is_known.any():
        return grid
    sums, weights = (
        gaussian_filter(values, _SMOOTHING, mode="nearest")
        for values in (np.where(is_known, grid, 0.0), is_known.astype(np.float64))
    )
    smoothed = np.full(grid.shape, np.nan)
    smoothed[is_known] = sums[is_known] / weights[is_known]
    smoothed -= np.median(smoothed[is_known])
    return smoothed
