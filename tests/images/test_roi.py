"""Regions of interest: all forms of the parameter, and the cells of a patch grid that lie in a region."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skpatchcore.images.roi import as_region, cells_inside, scaled_mask


def not_called():
    """Fail: a region that is not a function must not read the image."""
    raise AssertionError("the image was read")


def rectangle(size, top, left, height, width):
    """Return a mask that is True in a rectangle."""
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


FORMS = {
    "mask": rectangle((30, 40), 5, 10, 12, 20),
    "mask of 0 and 255": rectangle((30, 40), 5, 10, 12, 20) * np.uint8(255),
    "box": (5, 10, 12, 20),
    "box as an array": np.array([5, 10, 12, 20]),
    "box of floats": (5.0, 10.0, 12.0, 20.0),
    "boxes": [(5, 10, 12, 8), (5, 18, 12, 12)],
    "polygon": [(5, 10), (5, 30), (17, 30), (17, 10)],
    "polygon as an array": np.array([(5, 10), (5, 30), (17, 30), (17, 10)]),
    "polygons": [[(5, 10), (5, 30), (17, 30), (17, 10)], [(6, 11), (6, 12), (7, 12)]],
    "fractions": (5 / 30, 10 / 40, 12 / 30, 20 / 40),
}


@pytest.mark.parametrize("roi", FORMS.values(), ids=FORMS)
def test_all_forms_of_a_region_give_the_same_mask(roi):
    np.testing.assert_array_equal(as_region(roi).mask_of((30, 40), not_called), rectangle((30, 40), 5, 10, 12, 20))


def test_a_region_of_a_mask_image_and_of_a_function(tmp_path):
    mask = rectangle((30, 40), 5, 10, 12, 20)
    Image.fromarray(np.uint8(mask)).save(tmp_path / "mask.png")  # 1 instead of 255: not black
    np.testing.assert_array_equal(as_region(tmp_path / "mask.png").mask_of((30, 40), not_called), mask)
    image = np.where(mask, 0.9, 0.1).astype(np.float32)[..., None]
    bright = as_region(lambda pixels: pixels[..., 0] > 0.5)
    np.testing.assert_array_equal(bright.mask_of((30, 40), lambda: image), mask)
    with pytest.raises(ValueError, match=r"returned an array of shape \(3, 3\), expected \(30, 40\)"):
        as_region(lambda pixels: np.ones((3, 3))).mask_of((30, 40), lambda: image)


def test_masks_and_fractions_are_scaled_to_each_image():
    mask = rectangle((10, 20), 2, 5, 4, 10)
    for region in (as_region(mask), as_region((0.2, 0.25, 0.4, 0.5))):
        found = region.mask_of((30, 80), not_called)
        np.testing.assert_array_equal(found, rectangle((30, 80), 6, 20, 12, 40))
    assert scaled_mask(mask, (10, 20)) is mask


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (np.zeros((4, 5), bool), "completely black"),
        ("missing.png", "does not exist"),
        ((1, 2, 3), "expected a boolean mask"),
        ([], "expected a boolean mask"),
        ([(1, 2, 3, 4), (1, 2)], "expected a boolean mask"),
        (7, "expected a boolean mask"),
        ((0, 0, 0, 5), "has no area"),
        ((0, 0, 1, 1), "Write 1.0 for fractions"),
        (np.ones((28, 512)).tolist(), r"pass an array: np.array\(mask\)"),
        ((0.5, 0.5, 0.6, 0.2), "beyond the image"),
        ((-1, 0, 5, 5), "not negative"),
        ((0, 0, float("nan"), 5), "finite"),
        ([(1, 1), (2, 2), (3, 3)], "has no area"),
    ],
)
def test_a_region_that_is_not_valid_raises(roi, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        as_region(roi)
    assert len(str(caught.value)) < 500


def test_a_region_in_pixels_beyond_the_image_raises():
    with pytest.raises(ValueError, match="reaches row 50 and column 20, but the image has 30×40 pixels"):
        as_region((10, 10, 40, 10)).mask_of((30, 40), not_called)


def shares_by_overlap(mask, box, grid):
    """Return the fraction of each cell's area in the region, from the overlaps of all cells with all pixels."""
    top, left, height, width = box
    weights = []
    for start, length, n_cells, n_pixels in ((top, height, grid[0], len(mask)), (left, width, grid[1], mask.shape[1])):
        edges = start + length * np.arange(n_cells + 1) / n_cells
        pixels = np.arange(n_pixels)
        low, high = np.maximum(edges[:-1, None], pixels), np.minimum(edges[1:, None], pixels + 1)
        weights.append((high - low).clip(min=0))
    areas = np.outer(weights[0].sum(axis=1), weights[1].sum(axis=1))
    with np.errstate(invalid="ignore"):
        return np.where(areas > 0, weights[0] @ mask @ weights[1].T / areas, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.floats(-2, 4), st.floats(-2, 4), st.floats(1, 14), st.floats(1, 14)),
    st.integers(0, 2**31 - 1),
)
def test_a_cell_counts_if_half_of_its_area_lies_in_the_region(size, grid, box, seed):
    mask = np.random.default_rng(seed).random(size) < 0.5
    shares = shares_by_overlap(mask, box, grid)
    found = cells_inside(mask, box, grid)
    assert found.shape == grid
    assert found[shares > 0.5 + 1e-5].all()
    assert not found[shares < 0.5 - 1e-5].any()


def test_exactly_half_of_a_cell_is_enough():
    mask = rectangle((8, 8), 0, 0, 8, 4)
    assert cells_inside(mask, (0, 0, 8, 8), (1, 1)).all()
    assert not cells_inside(~mask & rectangle((8, 8), 1, 0, 7, 8), (0, 0, 8, 8), (1, 1)).any()
