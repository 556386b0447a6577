"""DeviceBank: exact nearest neighbours on a device with fast matrix products, e.g. a CUDA GPU."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from skpatchcore._utils.arrays import as_array, largest_value

# Maximum memory of one chunk of distances, in bytes.
_CHUNK_BYTES = 1 << 28
# Number of additional candidates per query. The rounding of the matrix product may rank a true neighbour too low.
# Therefore the distances of all candidates are computed again, without the product.
_N_SPARE = 16


class DeviceBank:
    """Memory bank on a device, searched in two steps: candidates from a matrix product, then exact distances.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_features), float32 or float64
        The bank.

    Attributes
    ----------
    limit : float
        Largest absolute value of a query. Squared distances of larger queries would overflow.

    Notes
    -----
    For centred vectors, ``|q - b|² = |q|² + |b|² - 2 q·b``. One matrix product computes ``q·b`` for all pairs. The term
    ``|q|²`` is the same for all rows, so it does not change the order of the rows and is left out. The product uses the
    rows of the bank without centring. This changes all values of a query by the same amount, and it needs no centred
    copy of the bank.

    The sum loses digits by cancellation if the distance is small. The remaining rounding error depends on the shape of
    the batch. Therefore the product only chooses the candidates: a few more rows than needed. The distances of the
    candidates are then computed from the differences between the query and the rows.
    """

    def __init__(self, rows: torch.Tensor):
        self._rows = rows
        self.limit = largest_value(np.float64 if rows.dtype == torch.float64 else np.float32)
        self._center = rows.mean(0)
        self._norms = torch.cat([(part - self._center).square().sum(1) for part in torch.split(rows, 8192)])

    def kneighbors(
        self, queries: torch.Tensor, n_neighbors: int, excluded: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the distances and the indices of the nearest rows, as ``BoundedBank.kneighbors``.

        Rows at equal distances are sorted by index, also rows with equal values.
        """
        norms, n_counting = self._norms, len(self._rows)
        if excluded is not None:  # an infinite squared length keeps a row from being a candidate
            norms = norms.index_fill(0, torch.from_numpy(excluded).to(norms.device), torch.inf)
            n_counting -= len(excluded)
        n_candidates = min(n_neighbors + _N_SPARE, n_counting)
        # The chunk size limits the memory of the distances to the whole bank and of the gathered candidate rows.
        row_bytes = queries.element_size() * max(len(self._rows), 2 * n_candidates * queries.shape[1])
        distances, indices = [], []
        for part in torch.split(queries, max(1, _CHUNK_BYTES // row_bytes)):
            # Step 1: choose the rows with the smallest values of |b|² - 2 q·b as candidates. Sort the candidates by
            # index: rows at equal distances are then sorted by index.
            squares = torch.addmm(norms, part - self._center, self._rows.T, alpha=-2)
            nominated = squares.topk(n_candidates, largest=False).indices.sort(dim=1).values
            # Step 2: compute the squared distances of the candidates from differences, summed in float64.
            squares = (self._rows[nominated] - part[:, None]).square_().sum(2, dtype=torch.float64)
            squares, order = squares.sort(dim=1, stable=True)
            distances.append(squares[:, :n_neighbors].sqrt())
            indices.append(nominated.gather(1, order[:, :n_neighbors]))
        # One transfer, because each one makes the host wait. Row numbers are below 2**53, so float64 is exact.
        found = as_array(torch.cat([torch.cat(distances), torch.cat(indices).to(torch.float64)], dim=1))
        return found[:, :n_neighbors].copy(), found[:, n_neighbors:].astype(np.int64)

    def farthest(
        self, queries: torch.Tensor, starts: np.ndarray, excluded: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the query with the largest distance to its nearest row for each group, as ``BoundedBank.farthest``."""
        distances, indices = (found[:, 0] for found in self.kneighbors(queries, 1, excluded))
        tops = np.array([start + distances[start:stop].argmax() for start, stop in pairwise(starts)])
        return tops, distances[tops], indices[tops]
