"""Products of chosen pairs of rows, without copies of the rows."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch

# Pairs whose rows are copied out at once, where there is no other way.
_N_PAIRS = 2048


def pair_products(X: torch.Tensor, Y: torch.Tensor, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the products of some rows of `X` with some of `Y`, pair by pair.

    Parameters
    ----------
    X : tensor of shape (n_rows, n_features)
        Rows.
    Y : tensor of shape (n_others, n_features)
        Rows.
    rows, others : tensors of shape (n_pairs,), int64
        The pairs; `rows` ascend.

    Returns
    -------
    tensor of shape (n_pairs,)
    """
    if not _can_sample():
        parts = zip(torch.split(rows, _N_PAIRS), torch.split(others, _N_PAIRS), strict=True)
        return torch.cat([(X[i] * Y[j]).sum(1) for i, j in parts])
    starts = torch.searchsorted(rows, torch.arange(len(X) + 1))
    pattern = torch.sparse_csr_tensor(starts, others, X.new_zeros(len(rows)), (len(X), len(Y)), check_invariants=False)
    sampled: torch.Tensor = torch.sparse.sampled_addmm(pattern, X.contiguous(), Y.T, beta=0.0)
    return sampled.values()


@lru_cache(maxsize=1)
def _can_sample() -> bool:
    """Return whether this build of torch computes chosen entries of a product, which needs no copies of the rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse tensors that are in beta, once a process
        try:
            pattern = torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))
            return bool(
                torch.sparse.sampled_addmm(pattern, torch.ones(1, 2), torch.ones(2, 1), beta=0.0).values()[0] == 2
            )
        except RuntimeError:  # a build of torch without that kernel: pairs are copied out instead
            return False
