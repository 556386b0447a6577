"""pick_in_program: the greedy loop among candidates as one Triton program.

Each pick needs the largest of about 1,000 distances, and the minimum of two vectors of this length. As separate
operations of torch, each pick starts half a dozen small kernels, and starting them takes longer than the work. Here one
program makes all picks of a round:

1. It keeps the squared distance of each candidate from the nearest pick in registers.
2. Per pick, it finds the largest one, and lowers all of them to the distances from the new pick, which are one row of
   the matrix of squared distances.
3. It stops by itself at the first invalid pick. The host reads one number per round: how many picks were made.

Triton is installed with torch on Linux. This module imports it, so it must be imported only where it is used.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# 256 threads: each of them holds four of 1,024 distances.
_N_WARPS = 8


@triton.jit
def _greedy(squares, least, matrix, order, made, n_made, n, n_wanted, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.arange(0, BLOCK)
    is_inside = places < n
    nearest = tl.load(squares + places, mask=is_inside, other=-2.0)
    i = 0
    largest = tl.max(nearest, 0)
    place = tl.min(tl.where(nearest == largest, places, BLOCK), 0)  # the first one, if several are equally far
    is_valid = (largest >= tl.load(least + place)) & (i < n_wanted)
    while is_valid:
        tl.store(order + i, place.to(tl.int64))
        tl.store(made + i, largest)
        row = tl.load(matrix + place * n + places, mask=is_inside, other=-2.0)
        nearest = tl.minimum(nearest, row)
        nearest = tl.where(places == place, -1.0, nearest)  # never pick this candidate again
        i += 1
        largest = tl.max(nearest, 0)
        place = tl.min(tl.where(nearest == largest, places, BLOCK), 0)
        is_valid = (largest >= tl.load(least + place)) & (i < n_wanted)
    tl.store(n_made, i)


def pick_in_program(
    matrix: torch.Tensor, squares: torch.Tensor, least: torch.Tensor, n_wanted: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick the farthest candidate again and again, as long as the pick is valid, in one program.

    Parameters and results are those of :func:`~skpatchcore.coreset._gpu_picks.pick_in_steps`.
    """
    n = len(matrix)
    order = torch.empty(n_wanted, dtype=torch.int64, device=matrix.device)
    made = torch.empty(n_wanted, dtype=torch.float64, device=matrix.device)
    n_made = torch.zeros(1, dtype=torch.int32, device=matrix.device)
    sizes = {"BLOCK": triton.next_power_of_2(n), "num_warps": _N_WARPS}
    with torch.cuda.device_of(matrix):  # type: ignore[no-untyped-call]  # Triton uses the current device
        _greedy[(1,)](squares, least, matrix, order, made, n_made, n, n_wanted, **sizes)
    n_picks = int(n_made)  # the only wait for the GPU
    return order[:n_picks], made[:n_picks]
