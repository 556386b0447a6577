"""pick_on_device: the greedy loop among candidates on a GPU, in one Triton program or in a few operations of torch.

Both ways use the matrix of the exact squared distances between all candidates. The distances are integers below 2**53
(see :mod:`skpatchcore.coreset._grid`), so the matrix product is exact in any order of summation, and the picks are
those of the CPU.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import cache

import torch

from skpatchcore._utils.device import is_out_of_memory
from skpatchcore._utils.warning import warn_user
from skpatchcore.coreset._farthest import Candidates

# Function of the matrix of squared distances, the squared distances from the earlier picks, the smallest valid squared
# distances and the number of wanted picks. It returns the places of the picks and their squared distances.
Loop = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]

# Maximum number of candidates of the Triton program. The distances of so many fit in the registers of one program.
_MOST_IN_PROGRAM = 2048
# Number of picks between two checks that the picks are still valid. Each check makes the host wait for the GPU.
_N_UNASKED = 128


def pick_on_device(points: torch.Tensor, found: Candidates, n_wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the textbook loop among candidates, as :func:`~skpatchcore.coreset._k_center.pick_among` does on the CPU.

    Parameters and results are those of that function. The host waits for the GPU once.
    """
    norms = torch.linalg.vecdot(points, points)
    matrix = torch.addmm(norms, points, points.T, alpha=-2).add_(norms[:, None]).clamp_min_(0)
    # A candidate is a valid pick if it is farther than all other rows, or equally far and before them.
    least = torch.full_like(norms, math.nextafter(found.floor, math.inf))
    least = least.masked_fill_(found.rows < found.first_tie, found.floor).clamp_min_(0)
    loop = _program(points.device) if points.is_cuda and len(points) <= _MOST_IN_PROGRAM else None
    return (loop or pick_in_steps)(matrix, found.squares, least, min(n_wanted, len(points)))


@cache
def _program(device: torch.device) -> Loop | None:
    """Return the Triton program; None if Triton is missing, or with a warning if it does not work on a device."""
    try:  # a damaged installation fails at the import
        if importlib.util.find_spec("triton") is None:  # e.g. on Windows
            return None
        from skpatchcore.coreset._pick_kernel import pick_in_program

        # Triton compiles at the first call, for which it needs a C compiler.
        trial = torch.zeros(2, dtype=torch.float64, device=device)
        pick_in_program(trial.new_zeros((2, 2)), trial, trial, 1)
    except Exception as error:  # of Triton, the compiler or the driver
        if is_out_of_memory(error):
            raise
        warn_user(
            f"Triton does not work on {str(device)!r} ({' '.join(str(error).split())[:200]}): the coreset is selected "
            "by torch instead, which is slower and selects the same rows.",
            RuntimeWarning,
        )
        return None
    return pick_in_program


def pick_in_steps(
    matrix: torch.Tensor, squares: torch.Tensor, least: torch.Tensor, n_wanted: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick the farthest candidate again and again, as long as the pick is valid, with operations of torch.

    Parameters
    ----------
    matrix : tensor of shape (n_candidates, n_candidates), float64
        Squared distances between the candidates.
    squares : tensor of shape (n_candidates,), float64
        Their squared distances from the earlier picks.
    least : tensor of shape (n_candidates,), float64
        Smallest squared distance at which each candidate is a valid pick, at least 0.
    n_wanted : int
        Maximum number of picks, at least 1 and at most the number of candidates.

    Returns
    -------
    places : tensor of shape (n_picks,), int64
        Places of the picks among the candidates, in order of selection.
    squares : tensor of shape (n_picks,), float64
        Squared distance of each pick from its nearest earlier pick.
    """
    nearest = squares.clone()
    order = torch.empty(n_wanted, dtype=torch.int64, device=matrix.device)
    made = torch.empty(n_wanted, dtype=torch.float64, device=matrix.device)
    n_made = n_held = 0
    while n_made < n_wanted and n_held == n_made:
        for i in range(n_made, min(n_made + _N_UNASKED, n_wanted)):
            # The place stays a tensor of one item: indexing by a tensor without axes would make the host wait.
            largest, place = nearest.max(0, keepdim=True)  # the first one, if several candidates are equally far
            made[i : i + 1], order[i : i + 1] = largest, place
            torch.minimum(nearest, matrix.index_select(0, place)[0], out=nearest)
            nearest.index_fill_(0, place, -1.0)  # never pick this candidate again
        n_made = min(n_made + _N_UNASKED, n_wanted)
        is_valid = made[:n_made] >= least[order[:n_made]]
        n_held = int(is_valid.to(torch.int64).cumprod(0).sum())
    return order[:n_held], made[:n_held]
