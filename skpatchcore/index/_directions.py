"""cheapest_directions: the principal directions of a bank with which a search is expected to take the least time."""

from __future__ import annotations

import torch

from skpatchcore.index._bounds import Bounds
from skpatchcore.index._speeds import Speeds

# Candidates for the number of principal directions. Candidates up to _N_FEW are tried first.
_N_DIRECTIONS = (32, 64, 96, 128, 192, 256, 384, 512)
_N_FEW = 128
# Number of rows from which principal directions are computed, and number of rows on which their number is tried.
_N_LEARNED, _N_TRIED = 4096, 64
# Seconds for each pair that the bounds do not skip, apart from its inner product (approximate).
_SECONDS_PAIR = 1.5e-7


def sampled_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return evenly spaced rows, from which the directions are computed."""
    return rows[:: -(-len(rows) // _N_LEARNED)]


def cheapest_directions(sample: torch.Tensor, n_rows: int, speeds: Speeds) -> torch.Tensor | None:
    """Return the principal directions with which a search is cheapest.

    Parameters
    ----------
    sample : tensor of shape (n_sampled, n_features), float32
        Some rows of the bank, centred.
    n_rows : int
        Number of rows of the bank.
    speeds : Speeds
        Speeds of this machine.

    Returns
    -------
    tensor of shape (n_features, n_directions), float32, or None
        Orthonormal directions, one per column. None if bounds over all features are cheapest.
    """
    n_features = sample.shape[1]
    n_directions = [n for n in _N_DIRECTIONS if n < 0.75 * n_features]
    # Many directions are expensive to compute and rarely needed. They are tried only if the largest of the few numbers,
    # or a product over all features, is cheapest.
    directions, cheapest = None, n_features
    for tried in dict.fromkeys((tuple(n for n in n_directions if n <= _N_FEW), tuple(n_directions))):
        if tried:
            directions = principal_directions(sample, tried[-1])
            cheapest = _cheapest(sample, directions, tried, n_rows, speeds)
            if cheapest < tried[-1]:
                break
    return None if directions is None or cheapest == n_features else directions[:, :cheapest].contiguous()


def _cheapest(
    sample: torch.Tensor, directions: torch.Tensor, n_directions: tuple[int, ...], n_rows: int, speeds: Speeds
) -> int:
    """Return the number of directions with the lowest expected cost; the number of features if all are cheapest."""
    # Some rows of the sample act as queries, and all other rows as the bank. For each number of directions, the
    # fraction of pairs with a bound up to the true nearest distance is counted: these pairs need full distances.
    n_features, dtype = sample.shape[1], speeds.fastest
    tried = torch.linspace(0, len(sample) - 1, min(_N_TRIED, len(sample))).long()
    norms, coordinates = sample.square().sum(1), sample @ directions
    squares = norms[tried, None] + norms - 2 * sample[tried] @ sample.T
    squares[torch.arange(len(tried)), tried] = torch.inf
    nearest = squares.amin(1).clamp_min(0)
    costs = {}
    for n in (*n_directions, n_features):
        points = sample if n == n_features else coordinates[:, :n]
        bounds = Bounds(points, norms, n_features, dtype)
        left, added = bounds.left(points[tried], norms[tried])
        keys = torch.cat([bounds.keys(left, block) for block in bounds.blocks], dim=1)
        is_left = (keys[:, : len(sample)] <= bounds.limits(nearest, added)[:, None]).float().sum() - len(tried)
        share_left = float(is_left.clamp_min(0)) / (len(tried) * len(sample))
        # The queries must be multiplied by the directions first. This cost is divided among all rows of the bank.
        projection = 0.0 if n == n_features else n * n_features * speeds.products[torch.float32] / n_rows
        costs[n] = n * speeds.products[dtype] + projection + share_left * (n_features * speeds.pairs + _SECONDS_PAIR)
    return min(costs, key=lambda n: costs[n])


def principal_directions(rows: torch.Tensor, n_directions: int) -> torch.Tensor:
    """Return approximate principal directions of `rows`: orthonormal, in order of decreasing variance.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_features)
        Centred rows.
    n_directions : int
        Number of directions, less than `n_features`.

    Returns
    -------
    tensor of shape (n_features, n_directions), float32
        One direction per column.

    Notes
    -----
    The directions come from three steps of orthogonal iteration, which starts from fixed random numbers. The bounds are
    valid for any orthonormal directions. Better directions only make the bounds tighter, so approximate ones suffice.
    """
    # Iterate a few more directions than needed: the wanted ones then converge faster. The eigenvectors within the
    # iterated subspace sort the directions by variance.
    covariance = rows.T @ rows
    n_spare = min(rows.shape[1], n_directions + 16)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn((rows.shape[1], n_spare), generator=generator, dtype=rows.dtype)
    for _ in range(3):
        directions = torch.linalg.qr(covariance @ directions).Q
    _, vectors = torch.linalg.eigh(directions.T @ covariance @ directions)
    principal: torch.Tensor = (directions @ vectors.flip(1))[:, :n_directions].float().contiguous()
    return principal
