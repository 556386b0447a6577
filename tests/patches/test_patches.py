from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore._utils.digests import DigestedArray
from skpatchcore.patches.patches import Patches


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((2, 3, 4)), "expected"),
        ([np.zeros((2, 2, 3)), np.zeros((2, 2, 4))], "image 1"),
        ([np.zeros((2, 3))], "image 0"),
        (np.zeros((0, 2, 2, 3)), "no patch features"),
        ([], "no patch features"),
        (np.stack([np.zeros((2, 2, 3)), np.full((2, 2, 3), np.nan)]), "image 1 hold NaN"),
        ([np.zeros((1, 2, 3)), np.zeros((3, 1, 3)), np.full((1, 1, 3), np.inf)], "image 2 hold NaN or infinity"),
    ],
)
def test_from_features_refuses_wrong_shapes_and_non_finite_values(features, message):
    with pytest.raises(ValueError, match=message):
        Patches.from_features(features)


@pytest.mark.parametrize("sizes", [[(2, 3)] * 7, [(2, 3), (4, 4), (1, 1), (9, 2), (2, 3), (5, 5), (7, 7)]])
@pytest.mark.parametrize("expected", [1, 20, 500])
def test_gathered_batches_equal_the_patches_of_all_features(sizes, expected):
    rng = np.random.default_rng(0)
    features = [rng.random((*size, 5)).astype(np.float32) for size in sizes]
    whole = Patches.from_features(features)
    gathered = Patches.gather((Patches.from_features([f]) for f in features), expected)
    np.testing.assert_array_equal(gathered.rows, whole.rows)
    np.testing.assert_array_equal(gathered.sizes, whole.sizes)
    for i, feature in enumerate(features):
        np.testing.assert_array_equal(gathered.subset(np.array([i])).rows, feature.reshape(-1, 5))
        np.testing.assert_array_equal(gathered.between(i, i + 1).rows, feature.reshape(-1, 5))
    some = np.arange(len(whole.rows))
    images, positions = whole.image_of(some), whole.positions_of(some)
    for row, image, (y, x) in zip(whole.rows, images, positions, strict=True):
        np.testing.assert_array_equal(row, features[image][y, x])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6), st.data())
def test_parts_that_are_not_joined_give_the_same_results_as_one_matrix(sizes, data):
    rng = np.random.default_rng(len(sizes))
    grids = [rng.normal(size=(*size, 3)).astype(np.float32) for size in sizes]
    stored = [DigestedArray.of(grid.copy(), str(i).encode(), np.abs(grid).max()) for i, grid in enumerate(grids)]
    whole = Patches.from_features(grids)

    def parts():
        return Patches.gather([Patches.from_features([grid]) for grid in stored], 1)

    assert parts().is_mapped()
    assert (parts().n_rows, parts().n_channels, parts().itemsize) == (len(whole.rows), 3, 4)
    np.testing.assert_array_equal(np.concatenate(list(parts().parts())), whole.rows)
    numbers = np.array(data.draw(st.lists(st.integers(0, whole.n_rows - 1), max_size=12)), np.int64)
    np.testing.assert_array_equal(parts().taken(numbers), whole.rows[numbers])
    np.testing.assert_array_equal(whole.taken(numbers), whole.rows[numbers])
    images = np.array(data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=5)))
    start = data.draw(st.integers(0, len(sizes) - 1))
    for of_parts, of_rows in (
        (parts().subset(images), whole.subset(images)),
        (parts().between(start, len(sizes)), whole.between(start, len(sizes))),
    ):
        np.testing.assert_array_equal(of_parts.rows, of_rows.rows)
        np.testing.assert_array_equal(of_parts.starts, of_rows.starts)
    assert [int(digest) for digest in parts().subset(images).digests] == images.tolist()
    cells = [np.arange(0, height * width, 2) if data.draw(st.booleans()) else None for height, width in sizes]
    nothing = [None] * len(sizes)
    for limited, expected in (
        (parts().limited_to(cells), whole.limited_to(cells)),
        (parts().within(cells, nothing, nothing), whole.within(cells, nothing, nothing)),
    ):
        np.testing.assert_array_equal(limited.rows, expected.rows)
        same = [digest == str(i).encode() for i, digest in enumerate(limited.digests)]
        assert same == [own is None for own in cells]
    np.testing.assert_array_equal(parts().rows, whole.rows)


def test_gathered_parts_and_arrays_are_in_order():
    rng = np.random.default_rng(0)
    grids = [rng.random((2, 2, 3), np.float32) for _ in range(4)]
    stored = [DigestedArray.of(grid, b"digest", 1.0) for grid in grids]
    batches = [stored[:1], grids[1:2], stored[2:]]
    gathered = Patches.gather((Patches.from_features(batch) for batch in batches), 16)
    np.testing.assert_array_equal(gathered.rows, np.concatenate(grids).reshape(-1, 3))
    assert gathered.digests == [b"digest", None, b"digest", b"digest"]
    assert gathered.digest() is None


def test_values_of_stored_features_beyond_the_limit_are_refused():
    grid = np.ones((2, 2, 3), np.float32)
    grid[1, 0, 2] = 1e20
    for peak in (1e20, np.inf):
        with pytest.raises(ValueError, match="image 5 hold 1e\\+20 in channel 2"):
            Patches.from_features([DigestedArray.of(grid, b"", peak)], numbers=np.array([5]), limit=1e15)
    assert Patches.from_features([DigestedArray.of(grid, b"", 1e20)]).digests == [b""]
    with pytest.raises(ValueError, match="image 1"):
        Patches.from_features([DigestedArray.of(grid, b"", 1e20), DigestedArray.of(grid[..., :2].copy(), b"", 1.0)])


def test_digest_of_all_images_depends_on_order_and_borders():
    rows = np.random.default_rng(0).random((1, 6, 2), np.float32)
    one, other = DigestedArray.of(rows, b"a", 1.0), DigestedArray.of(rows, b"b", 1.0)
    digests = {Patches.from_features(grids).digest() for grids in ([one, other], [other, one], [one], [one, one])}
    assert len(digests) == 4
    assert None not in digests


def test_rows_with_digests_cannot_be_changed():
    grids = [np.random.default_rng(i).random((2, 3, 2), np.float32) for i in range(3)]
    stored = [DigestedArray.of(grid.copy(), str(i).encode(), 1.0) for i, grid in enumerate(grids)]
    mixed = Patches.gather((Patches.from_features([grid]) for grid in (grids[0], stored[1])), 12)
    cells = [np.array([1, 2]), None, None]
    for patches in (
        Patches.from_features(stored),
        Patches.from_features(stored[:1]),
        Patches.from_features(stored).subset(np.array([1])),
        Patches.from_features(stored).within(cells, [None] * 3, [None] * 3),
        Patches.from_features(stored).limited_to(cells),
        mixed,
    ):
        for part in (*patches.parts(), patches.rows, patches.between(0, 1).rows):
            with pytest.raises(ValueError, match="read-only"):
                part += 1
    assert Patches.from_features(grids).rows.flags.writeable
