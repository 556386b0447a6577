from __future__ import annotations

import pytest
from sklearn.kernel_approximation import Nystroem
from sklearn.neighbors import NearestNeighbors

from skpatchcore import ExactIndex, GreedyCoresetSampler, RandomSampler
from skpatchcore.bank.folds import affordable_folds


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.1, 0.5, 500])
@pytest.mark.parametrize("n_patches", [1_000, 64_000, 160_000, 3_000_000])
@pytest.mark.parametrize("n_channels", [40, 168, 1536])
def test_affordable_folds_lie_between_their_limits_and_fall_with_the_ratio(ratio, n_patches, n_channels):
    n_folds = affordable_folds(n_patches, n_channels, GreedyCoresetSampler(ratio), ExactIndex())
    assert 5 <= n_folds <= 40
    more = affordable_folds(n_patches, n_channels, GreedyCoresetSampler(0.9), ExactIndex())
    assert more <= n_folds
    assert affordable_folds(n_patches, n_channels, GreedyCoresetSampler(ratio), NearestNeighbors()) == 5


def test_affordable_folds_grow_with_the_work_of_the_network():
    folds = [
        affordable_folds(160_000, n_channels, GreedyCoresetSampler(0.02), ExactIndex())
        for n_channels in (384, 768, 1536)
    ]
    assert folds == sorted(folds)
    assert folds[0] < folds[-1]


@pytest.mark.parametrize(
    "sampler",
    [GreedyCoresetSampler(1.0), GreedyCoresetSampler(2000), RandomSampler(0.1), Nystroem(n_components=9)],
    ids=str,
)
def test_affordable_folds_are_0_if_rows_can_be_left_out_without_new_selection(sampler):
    assert affordable_folds(1000, 10, sampler, ExactIndex()) == 0
