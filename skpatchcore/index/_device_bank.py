"""Nearest neighbours on a device whose matrix products are fast: the plain blocked product, then exact distances."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from skpatchcore._utils.arrays import largest_value

# Bytes of distances held at once.
_CHUNK_BYTES = 1 << 28
# Runners-up measured beside the winners of the matrix product: its rounding may have put the true winner among them.
_N_SPARE = 16


class DeviceBank:
    """A memory bank on a device.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_features), float32 or float64
        The bank.

    Notes
    -----
    With everything seen from the centre, ``|q - b|² = |q|² + |b|² - 2 q·b``: one matrix product, and ``|q|²`` changes
    nothing about who is nearest; nor does taking ``b`` unshifted in the product, which needs no shifted copy of the
    bank. But the sum cancels, and what is left near zero is rounding, which changes with the shape of the batch. So
    the product only nominates a few more rows than are needed.
    """

    def __init__(self, rows: torch.Tensor):
        self._rows = rows
        # Beyond it, squared distances of queries would overflow.
        self.limit = largest_value(np.float64 if rows.dtype == torch.float64 else np.float32)
        self._center = rows.mean(0)
        self._norms = torch.cat([(part - self._center).square().sum(1) for part in torch.split(rows, 8192)])

    def kneighbors(
        self, queries: torch.Tensor, n_neighbors: int, excluded: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest rows: distances, ascending, and indices; see ``BoundedBank.kneighbors``."""
        norms, n_counting = self._norms, len(self._rows)
        if excluded is not None:
            norms = norms.index_fill(0, torch.from_numpy(excluded).to(norms.device), torch.inf)
            n_counting -= len(excluded)
        n_candidates = min(n_neighbors + _N_SPARE, n_counting)
        # Neither the distances to the whole bank nor the candidates' rows shall outgrow the budget.
        row_bytes = queries.element_size() * max(len(self._rows), 2 * n_candidates * queries.shape[1])
        distances, indices = [], []
        for part in torch.split(queries, max(1, _CHUNK_BYTES // row_bytes)):
            squares = torch.addmm(norms, part - self._center, self._rows.T, alpha=-2)
            nominated = squares.topk(n_candidates, largest=False).indices.sort(dim=1).values
            squares = (self._rows[nominated] - part[:, None]).square_().sum(2, dtype=torch.float64)
            squares, order = squares.sort(dim=1, stable=True)
            distances.append(squares[:, :n_neighbors].sqrt())
            indices.append(nominated.gather(1, order[:, :n_neighbors]))
        return torch.cat(distances).cpu().numpy(), torch.cat(indices).cpu().numpy()

    def farthest(
        self, queries: torch.Tensor, starts: np.ndarray, excluded: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, of each group of queries, the one whose nearest row is farthest; see ``BoundedBank.farthest``."""
        distances, indices = (found[:, 0] for found in self.kneighbors(queries, 1, excluded))
        tops = np.array([start + distances[start:stop].argmax() for start, stop in pairwise(starts)])
        return tops, distances[tops], indices[tops]
