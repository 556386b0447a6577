"""Tests of the division of images into shards."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("distributed", reason="needs the extra dask")
from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore.dask._shards import PartitionedImages, cut_points


@pytest.mark.parametrize(
    ("n_images", "n_shards", "batch_size"), [(100, 4, 8), (7, 3, 4), (5, 9, 1), (1, 1, 4), (3, 8, 4)]
)
def test_shards_start_with_a_batch_and_are_of_similar_size(n_images, n_shards, batch_size):
    cuts = cut_points(n_images, n_shards, batch_size)
    assert (cuts[0], cuts[-1]) == (0, n_images)
    assert all(cut % batch_size == 0 for cut in cuts[:-1])
    assert (np.diff(cuts) > 0).all()
    assert len(cuts) - 1 == min(n_shards, -(-n_images // batch_size))
    assert max(np.diff(cuts)) <= n_images / n_shards + batch_size


def test_shards_do_not_divide_a_batch_of_images_of_one_size():
    # runs of 3, 5, 1 and 8 images have the same size, so that batches of 4 start at these images:
    starts = {0, 3, 7, 8, 9, 13}
    sizes = np.repeat([[32, 32], [32, 48], [64, 32], [32, 32]], [3, 5, 1, 8], axis=0)
    for n_shards in range(1, 18):
        assert set(cut_points(17, n_shards, 4, sizes)[:-1]) <= starts
    assert cut_points(17, 17, 4, sizes) == [*sorted(starts), 17]


def test_partitions_list_the_images_that_are_used():
    images = PartitionedImages(["a", "b", "c", "d"], [3, 0, 2, 4])
    assert len(images) == 9
    some = safe_indexing(safe_indexing(images, np.array([0, 2, 3, 4, 8])), np.array([1, 2, 3, 4]))
    found = [(part, None if positions is None else positions.tolist(), n) for part, positions, n in some.parts()]
    assert found == [(0, [2], 1), (2, None, 2), (3, [3], 1)]
    with pytest.raises(TypeError, match="on the workers"):
        images[0]
