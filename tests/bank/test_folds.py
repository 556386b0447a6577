from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_approximation import Nystroem
from sklearn.neighbors import NearestNeighbors

from skpatchcore import ExactIndex, GreedyCoresetSampler, PatchCoreDetector, RandomSampler
from skpatchcore.bank import folds
from skpatchcore.bank.folds import affordable_folds, describe_long_selection


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


def test_a_selection_that_takes_hours_is_described():
    whole, channels = 20 * 187_500, 152  # 20 images of 12 megapixels
    text = describe_long_selection(whole, channels, GreedyCoresetSampler())
    assert "selects 375,000 of about 3,750,000 patches" in text
    for sampler in (GreedyCoresetSampler(5000), GreedyCoresetSampler(1.0), RandomSampler(0.1)):
        assert describe_long_selection(whole, channels, sampler) is None
    assert describe_long_selection(200 * 1024, channels, GreedyCoresetSampler()) is None


def test_fit_warns_of_a_selection_that_takes_hours(monkeypatch):
    monkeypatch.setattr(folds, "_LONG", 1.0)
    X = np.random.default_rng(0).random((12, 4, 4, 6))
    with pytest.warns(UserWarning, match="selects 20 of about 192 patches, which can take more than an hour"):
        PatchCoreDetector("precomputed", random_state=0).fit(X)
