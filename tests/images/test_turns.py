from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore import ImageError
from skpatchcore.images.containers import ImagesWithRegions
from skpatchcore.images.inside import InsideImages, RegionMasks
from skpatchcore.images.reading import PixelFormat, load_image
from skpatchcore.images.roi import as_region
from skpatchcore.images.turned import TurnedImages, with_turned_views
from skpatchcore.images.turns import TURNS, Turn

ALL = TURNS["rotations+flips"]
PLAIN = PixelFormat("rgb", None)


def test_turns_are_the_symmetries_of_the_square():
    image = np.arange(6).reshape(2, 3)
    expected = {
        "rotations": [np.rot90(image), np.rot90(image, 2), np.rot90(image, 3)],
        "flips": [image[:, ::-1], image[::-1]],
    }
    expected["rotations+flips"] = [*expected["rotations"], *expected["flips"], image.T, image[::-1, ::-1].T]
    for name, views in expected.items():
        found = {turn.of(image).tobytes() + bytes(turn.of(image).shape) for turn in TURNS[name]}
        assert found == {np.ascontiguousarray(view).tobytes() + bytes(view.shape) for view in views}
        assert len(TURNS[name]) == len(views)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ALL),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.randoms(use_true_random=False),
)
def test_boxes_of_turned_images_lead_back_to_the_same_pixels(turn, size, random):
    image = np.arange(size[0] * size[1]).reshape(size)
    turned = turn.of(image)
    assert turned.shape == turn.size_of(size)
    top, left = random.randrange(turned.shape[0]), random.randrange(turned.shape[1])
    height, width = random.randint(1, turned.shape[0] - top), random.randint(1, turned.shape[1] - left)
    (box,) = turn.original_boxes(np.array([[top, left, height, width]]), turned.shape).tolist()
    found = image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
    assert sorted(found.ravel()) == sorted(turned[top : top + height, left : left + width].ravel())


@pytest.mark.parametrize("pixel_format", [PLAIN, PixelFormat("bgr", None), PixelFormat("rgb", (0.0, 4095.0))])
def test_views_have_the_pixels_of_the_image_in_another_order(pixel_format):
    image = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    images = with_turned_views([image, image[:4]], ALL, pixel_format, None)
    assert len(images) == 16
    assert images[0] is image
    original = load_image(image, 0, pixel_format=pixel_format)
    for view, turn in enumerate(ALL, 1):
        pixels = load_image(images[2 * view], 0, pixel_format=pixel_format)
        np.testing.assert_allclose(pixels, turn.of(original), rtol=0, atol=1e-7)


def test_images_are_read_when_they_are_accessed_and_errors_name_the_file(tmp_path):
    images = with_turned_views([tmp_path / "nowhere.png"], TURNS["flips"], PLAIN, None)
    some = images[1:].taken([1])
    assert isinstance(some, TurnedImages)
    assert len(some) == 1
    with pytest.raises(ImageError, match=r"nowhere.png"):
        some[0]


def test_sizes_of_views_come_from_those_of_the_images():
    images = with_turned_views([None, None], (Turn(1), Turn(2)), PLAIN, None)
    sizes = images.sizes_from(np.array([[32, 48], [64, 32]]))
    assert sizes.tolist() == [[32, 48], [64, 32], [48, 32], [32, 64], [32, 48], [64, 32]]
    assert images.sizes_from(None) is None


@pytest.mark.parametrize("turn", ALL)
@pytest.mark.parametrize("kind", ["mask", "box in pixels", "polygon", "function"])
def test_region_of_interest_turns_with_the_image(turn, kind):
    image = np.random.default_rng(0).random((12, 20, 3))
    inside = np.zeros((12, 20), bool)
    inside[2:7, 3:11] = True
    roi = {
        "mask": inside,
        "box in pixels": (2, 3, 5, 8),
        "polygon": [(2 / 12, 3 / 20), (2 / 12, 11 / 20), (7 / 12, 11 / 20), (7 / 12, 3 / 20)],
        "function": lambda pixels: inside & (pixels[:, :, 0] >= 0),
    }[kind]
    images = with_turned_views(ImagesWithRegions([image], [roi]), [turn], PLAIN, None)
    seen = InsideImages(images.images, RegionMasks(None), images.regions, PLAIN, None)
    mask = as_region(roi).mask_of((12, 20), lambda: load_image(image, 0))
    np.testing.assert_allclose(load_image(seen[1], 1), turn.of(load_image(seen[0], 0)), rtol=0, atol=1e-7)
    assert (seen.seen[1][0].as_array() == turn.of(mask)).all()
