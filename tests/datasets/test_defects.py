"""draw_defect: size, dtype, region of interest, seeds and bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore.datasets import DEFECT_KINDS, SURFACE_KINDS, draw_defect

ALL_KINDS = (*DEFECT_KINDS, *SURFACE_KINDS)
SURFACE = np.random.default_rng(0).normal(0.5, 0.05, (90, 120, 4)).clip(0, 1)
# Surfaces of all accepted shapes and dtypes.
FORMS = {
    "grey uint8": (SURFACE[..., 0] * 255).astype(np.uint8),
    "RGB uint16": (SURFACE[..., :3] * 65535).astype(np.uint16),
    "RGBA uint8": (SURFACE * 255).astype(np.uint8),
    "grey float32": SURFACE[..., :1].astype(np.float32),
    "RGB float64": SURFACE[..., :3],
}


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_draw_defect_keeps_shape_dtype_and_input(form, kind):
    image = FORMS[form]
    before = image.copy()
    drawn, mask = draw_defect(image, kind, 8, random_state=1)
    assert (drawn.shape, drawn.dtype, mask.shape) == (image.shape, image.dtype, (90, 120))
    assert np.array_equal(image, before)
    changed = np.any(np.reshape(drawn != image, (90, 120, -1)), axis=2)
    assert changed[mask].mean() > 0.9
    if image.ndim == 3 and image.shape[2] == 4:
        assert np.array_equal(drawn[..., 3], image[..., 3])
    if image.dtype.kind == "f":
        assert 0 <= drawn.min() <= drawn.max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(ALL_KINDS),
    size=st.floats(0.3, 60),
    contrast=st.floats(0.05, 1),
    seed=st.integers(0, 2**31),
    form=st.sampled_from(sorted(FORMS)),
    box=st.tuples(st.integers(0, 60), st.integers(0, 90), st.integers(1, 60), st.integers(1, 60)),
)
def test_draw_defect_changes_only_the_region_and_is_reproducible(kind, size, contrast, seed, form, box):
    image = FORMS[form]
    region = np.zeros((90, 120), bool)
    region[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    drawn, mask = draw_defect(image, kind, size, contrast=contrast, region=region, random_state=seed)
    again, _ = draw_defect(image, kind, size, contrast=contrast, region=region, random_state=seed)
    assert np.array_equal(drawn, again)
    assert np.array_equal(drawn[~region], image[~region])
    assert not mask[~region].any()


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind not in ("scratch", "crack")])
@pytest.mark.parametrize("size", [3, 10, 40])
def test_area_of_the_mask_is_that_of_a_circle_with_the_diameter(kind, size):
    areas = [draw_defect(FORMS["grey uint8"], kind, size, random_state=seed)[1].sum() for seed in range(20)]
    assert np.mean(areas) == pytest.approx(np.pi * size**2 / 4, rel=0.05)


@pytest.mark.parametrize("kind", ["scratch", "crack"])
@pytest.mark.parametrize("size", [2, 5, 9])
def test_line_has_its_width(kind, size):
    for seed in range(8):
        mask = draw_defect(np.zeros((256, 256)), kind, size, random_state=seed)[1]
        rows, columns = np.nonzero(mask)
        spread = np.linalg.eigvalsh(np.cov(rows, columns))
        length = np.sqrt(12 * spread[1])  # of a line with this variance
        assert mask.sum() / length == pytest.approx(size, rel=0.25)


@pytest.mark.parametrize("kind", DEFECT_KINDS)
@pytest.mark.parametrize("grey", [0, 25, 128, 230, 255])
def test_defect_is_visible_on_a_flat_surface_of_any_brightness(kind, grey):
    for channels in (1, 3):
        image = np.full((64, 64, channels), grey, np.uint8)
        drawn, mask = draw_defect(image, kind, 10, contrast=1, random_state=grey)
        difference = np.abs(drawn.astype(int) - image)[mask].max(axis=1)
        if kind == "foreign" and grey in (0, 255):
            assert difference.max() > 3
        elif not (kind == "shift" and channels == 3 and grey in (0, 255)):
            assert difference.mean() > 5


def test_stronger_contrast_changes_more():
    image = FORMS["RGB float64"]
    for kind in ALL_KINDS:
        changes = [np.abs(draw_defect(image, kind, 12, contrast=c)[0] - image).sum() for c in (0.2, 0.5, 1.0)]
        assert changes == sorted(changes)
        assert changes[0] > 0


def test_strength_of_a_crack_follows_the_variation_of_the_surface():
    rng = np.random.default_rng(0)
    changes = []
    for deviation in (0.02, 0.06):
        image = rng.normal(0.5, deviation, (80, 80))
        drawn, mask = draw_defect(image, "crack", 4, random_state=5)
        changes.append(np.abs(drawn - image)[mask].mean())
    assert 2 < changes[1] / changes[0] < 4


def test_misplaced_piece_comes_from_the_image():
    image = np.random.default_rng(0).choice(np.array([0, 200], np.uint8), (80, 100))
    drawn, mask = draw_defect(image, "misplaced", 40, contrast=1, random_state=1)
    rows, columns = np.nonzero(mask)
    centre = drawn[int(rows.mean()) - 8 : int(rows.mean()) + 8, int(columns.mean()) - 8 : int(columns.mean()) + 8]
    assert np.isin(centre, (0, 199, 200)).all()  # no new grey values, except for the rounding of the opacity
    assert 0.3 < (drawn != image)[mask].mean() < 0.7  # about half of the random pixels differ


def test_value_range_of_twelve_bits_is_kept():
    image = np.full((60, 60), 2048, np.uint16)
    drawn, mask = draw_defect(image, "blob", 20, contrast=1, value_range=(0, 4095), random_state=3)
    assert drawn.max() <= 4095
    assert np.abs(drawn[mask].astype(int) - 2048).mean() > 1000


def test_defect_larger_than_the_image_is_cut():
    drawn, mask = draw_defect(np.zeros((12, 9)), "blob", 200, contrast=1)
    assert mask.all()
    assert drawn.min() > 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "dent"}, "kind='dent': expected one of"),
        ({"size": 0}, "size=0: expected a positive number of pixels"),
        ({"size": np.nan}, "expected a positive number"),
        ({"contrast": 1.5}, r"contrast=1.5: expected a number in \(0, 1\]"),
        ({"region": np.ones((3, 3), bool)}, r"region has shape \(3, 3\), but the image has shape \(90, 120\)"),
        ({"region": np.zeros((90, 120), bool)}, "region is empty"),
        ({"image": np.zeros((5, 5, 2))}, "expected"),
        ({"image": np.zeros((5, 5), np.int64)}, "dtype int64: expected uint8, uint16 or float"),
    ],
)
def test_draw_defect_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_defect(**{"image": FORMS["grey uint8"], "kind": "blob", "size": 5, **arguments})
