"""pair_products: inner products of selected pairs of rows, without copying the rows."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch

# Number of pairs per block if the rows of the pairs have to be copied.
_N_PAIRS = 2048


def pair_products(X: torch.Tensor, Y: torch.Tensor, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the inner product ``X[rows[i]] @ Y[others[i]]`` of each pair ``i``.

    Parameters
    ----------
    X : tensor of shape (n_rows, n_features)
        First factors.
    Y : tensor of shape (n_others, n_features)
        Second factors.
    rows : tensor of shape (n_pairs,), int64
        Index of the row of `X` in each pair, ascending.
    others : tensor of shape (n_pairs,), int64
        Index of the row of `Y` in each pair.

    Returns
    -------
    tensor of shape (n_pairs,)
        Inner products, in the order of the pairs.
    """
    # The products are selected entries of the matrix X @ Y.T. The kernel `sampled_addmm` computes only these entries
    # and reads the rows in place. The entries are described by a sparse matrix in CSR format:
    #   - The stored entries of row k of the sparse matrix are the pairs with rows == k. They are contiguous, because
    #     `rows` is ascending. `starts[k]` is the first of them.
    #   - The column of an entry is the index of the row of Y.
    # With beta=0, the values of the sparse matrix are ignored, and the result contains the products in the same order.
    if not _can_sample():
        # Without the kernel, copy the rows of a block of pairs and multiply them.
        parts = zip(torch.split(rows, _N_PAIRS), torch.split(others, _N_PAIRS), strict=True)
        return torch.cat([(X[i] * Y[j]).sum(1) for i, j in parts])
    starts = torch.searchsorted(rows, torch.arange(len(X) + 1))
    pattern = torch.sparse_csr_tensor(starts, others, X.new_zeros(len(rows)), (len(X), len(Y)), check_invariants=False)
    sampled: torch.Tensor = torch.sparse.sampled_addmm(pattern, X.contiguous(), Y.T, beta=0.0)
    return sampled.values()


@lru_cache(maxsize=1)
def _can_sample() -> bool:
    """Return whether this build of torch can compute selected entries of a matrix product (`sampled_addmm`)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns once per process that sparse tensors are in beta
        try:
            pattern = torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))
            return bool(
                torch.sparse.sampled_addmm(pattern, torch.ones(1, 2), torch.ones(2, 1), beta=0.0).values()[0] == 2
            )
        except RuntimeError:  # this build of torch lacks the kernel
            return False
