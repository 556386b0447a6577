from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skpatchcore.features._aggregation import concatenate_layers, pool_layers, tokens_to_grid

REFERENCE = [("small", 1, 1), ("small", 3, 1), ("small", 5, 1), ("small", 3, 2), ("odd", 3, 1), ("wide", 3, 1)]


@pytest.mark.parametrize(("case", "patch_size", "stride"), REFERENCE)
def test_pool_layers_equals_the_reference_implementation(golden, case, patch_size, stride):
    arrays = golden("aggregation")
    maps = [torch.from_numpy(arrays[f"{case}_map{i}"]) for i in (0, 1)]
    channels = (1024, 1024) if case == "wide" else (16, 12)
    found = pool_layers(maps, patch_size, stride, *channels)
    expected = arrays[f"{case}_reference_p{patch_size}_s{stride}_{channels[0]}{channels[1]}"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("case", ["small", "odd", "wide"])
def test_concatenate_layers_equals_anomalib(golden, case):
    arrays = golden("aggregation")
    maps = [torch.from_numpy(arrays[f"{case}_map{i}"]) for i in (0, 1)]
    np.testing.assert_allclose(concatenate_layers(maps, 3), arrays[f"{case}_concat_p3"], atol=1e-5)


@pytest.mark.parametrize("aggregate", [concatenate_layers, lambda m, p, s: pool_layers(m, p, s, 7, 5)])
@pytest.mark.parametrize("patch_size", [1, 3, 5])
def test_features_of_one_image_equal_its_features_in_a_batch(aggregate, patch_size):
    maps = [torch.rand(3, 6, 9, 8), torch.rand(3, 4, 5, 4)]
    together = aggregate(maps, patch_size, 1)
    alone = aggregate([m[1:2] for m in maps], patch_size, 1)
    torch.testing.assert_close(together[1:2], alone, atol=0, rtol=0)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_concatenate_layers_with_stride_returns_every_nth_patch(stride):
    maps = [torch.rand(1, 4, 9, 7), torch.rand(1, 6, 5, 4)]
    whole = concatenate_layers(maps, 3, 1)
    torch.testing.assert_close(concatenate_layers(maps, 3, stride), whole[:, ::stride, ::stride])


def test_patch_feature_averages_only_its_neighbourhood():
    layer = torch.zeros(1, 1, 9, 9)
    layer[0, 0, 4, 4] = 9.0
    for aggregate in (concatenate_layers, lambda m, p: pool_layers(m, p, 1, 1, 1)):
        found = aggregate([layer], 3)[0, :, :, 0]
        expected = torch.zeros(9, 9)
        expected[3:6, 3:6] = 1.0
        torch.testing.assert_close(found, expected)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), side=st.integers(8, 20), prefix=st.integers(0, 5))
def test_tokens_to_grid_arranges_patch_tokens_in_row_major_order(rows, columns, side, prefix):
    # Skip examples in which a smaller patch size also explains the number of tokens.
    n_tokens = rows * columns + prefix
    others = [
        s for s in range(1, min(rows, columns) * side + 1)
        if (rows * side) % s == 0 and (columns * side) % s == 0 and s < side
        and (rows * side // s) * (columns * side // s) <= n_tokens
    ]  # fmt: skip
    if others:
        return
    grid = torch.arange(rows * columns * 2.0).reshape(1, rows * columns, 2)
    tokens = torch.cat([torch.full((1, prefix, 2), -1.0), grid], dim=1)
    found = tokens_to_grid(tokens, (rows * side, columns * side))
    torch.testing.assert_close(found.permute(0, 2, 3, 1).reshape(1, -1, 2), grid)
    assert found.shape[-2:] == (rows, columns)


def test_tokens_to_grid_refuses_tokens_that_form_no_grid():
    with pytest.raises(ValueError, match="do not form a grid of square patches"):
        tokens_to_grid(torch.zeros(1, 131, 4), (64, 64))
    with pytest.raises(ValueError, match="do not form a grid of square patches"):
        tokens_to_grid(torch.zeros(1, 5, 4), (7, 11))
