"""measured_speeds: how fast this machine multiplies, measured once per process, to choose the cheapest way to search.

The choice affects the time of a search only. The results are the same for each choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from skpatchcore.index._pairs import pair_products

# Each operation is timed this many times, and the shortest time counts: the first calls also load libraries.
_N_REPEATS = 4
# A product of bfloat16 matrices must be faster by this factor: its bounds are less tight.
_GAIN = 1.3


@dataclass(frozen=True)
class Speeds:
    """Times of the operations of a search.

    Attributes
    ----------
    products : dict of torch.dtype to float
        Seconds per multiplication in a product of matrices of this type.
    pairs : float
        Seconds per multiplication in the inner products of single pairs of float32 rows, which lie scattered in memory.
    """

    products: dict[torch.dtype, float]
    pairs: float

    @property
    def fastest(self) -> torch.dtype:
        """bfloat16 if products of bfloat16 matrices are clearly faster than those of float32 matrices, else float32."""
        half, single = self.products[torch.bfloat16], self.products[torch.float32]
        return torch.bfloat16 if _GAIN * half < single else torch.float32


@lru_cache(maxsize=1)
def measured_speeds() -> Speeds:
    """Measure the speeds of this machine. The measurement takes about 20 milliseconds, once per process."""
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right, out = (torch.ones(shape, dtype=dtype) for shape in ((256, 128), (2048, 128), (256, 2048)))
        products[dtype] = _seconds(partial(torch.mm, left, right.T, out=out)) / (256 * 2048 * 128)
    # The rows are larger than most caches, like those of a large bank. Each query has 8 pairs.
    n_rows, n_columns, n_queries, n_each = 4096, 1024, 128, 8
    rows, queries = torch.ones((n_rows, n_columns)), torch.ones((n_queries, n_columns))
    numbers = torch.arange(n_queries * n_each)
    others = numbers * 1021 % n_rows  # a step without common divisor with n_rows: all rows differ
    seconds = _seconds(lambda: pair_products(queries, rows, numbers // n_each, others))
    return Speeds(products, seconds / (len(numbers) * n_columns))


def _seconds(function: Callable[[], object]) -> float:
    """Return the shortest of several times of a call, in seconds."""
    times = []
    for _ in range(_N_REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
