"""Tests of `load_image`, `as_image_sequence` and `resize_and_crop`."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skpatchcore import ImageError, ImageWarning
from skpatchcore.datasets import ImageFolder
from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.reading import PixelFormat, image_size, load_image
from skpatchcore.images.resizing import resize_and_crop
from skpatchcore.images.views import placed

RNG = np.random.default_rng(0)
RGB8 = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_load_image_returns_the_same_pixels_for_every_form_of_an_image(tmp_path):
    Image.fromarray(RGB8).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([RGB8, RGB8[:, :, :1]])).save(tmp_path / "rgba.png")
    forms = [
        RGB8,
        RGB8.astype(np.uint16) * 257,
        RGB8 / 255.0,
        np.dstack([RGB8, RGB8[:, :, 0]]),
        Image.fromarray(RGB8),
        str(tmp_path / "rgb.png"),
        tmp_path / "rgba.png",
        torch.from_numpy(RGB8),
        np.asfortranarray(RGB8),
    ]
    expected = RGB8.astype(np.float32) / 255
    for form in forms:
        found = load_image(form, 0)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK", "I;16", "I", "F"])
def test_load_image_reads_pil_images_of_any_mode(mode):
    grey = RGB8[:, :, 0]
    image = {
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(grey.astype(np.int32) * 257),
        "F": lambda: Image.fromarray(grey.astype(np.float32) / 255),
        "P": lambda: Image.fromarray(RGB8).quantize(256),
        "CMYK": lambda: Image.fromarray(RGB8).convert("CMYK"),
    }.get(mode, lambda: Image.fromarray(grey).convert(mode))()
    assert image.mode == mode
    found = load_image(image, 0)
    assert found.shape == (20, 30, 3 if mode in ("P", "CMYK") else 1)
    if mode in ("L", "LA", "I;16", "I", "F"):
        np.testing.assert_allclose(found[:, :, 0], grey / 255, atol=1e-5)


def test_load_image_applies_the_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation of a camera that was turned by 90 degrees
    Image.fromarray(RGB8).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_allclose(load_image(tmp_path / "turned.png", 0), np.rot90(RGB8, -1) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 5, 2), np.uint8), "2 channels"),
        (np.zeros((3, 40, 50), np.uint8), "channels-first"),
        (np.zeros(7, np.uint8), "shape"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((4, 5), np.int64), "dtype int64"),
        (np.zeros((4, 5), complex), "dtype complex128"),
        (np.full((4, 5), 200.0), r"\[200, 200\], expected \[0, 1\]"),
        (np.full((4, 5), -0.5), r"expected \[0, 1\]"),
        (np.full((4, 5), np.nan), "NaN"),
        (np.full((4, 5), np.inf), "infinity"),
        (Image.fromarray(np.full((4, 5), 70000, np.int32)), "dtype int32 does not define white"),
        (3.5, "float"),
        (None, r"is missing \(None\)"),
        (np.nan, r"is missing \(nan\)"),
    ],
)
def test_load_image_refuses_invalid_images_with_their_index(bad, message):
    with pytest.raises(ImageError, match=message) as caught:
        load_image(bad, 7)
    assert caught.value.index == 7
    assert "image 7" in str(caught.value)


def make_bad_files(folder):
    Image.fromarray(RGB8).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "folder.png").mkdir()
    frames = [Image.fromarray(RGB8), Image.fromarray(RGB8[::-1].copy())]
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    return ["truncated.png", "empty.png", "text.png", "folder.png", "pages.tif", "missing.png"]


def test_load_image_refuses_unreadable_files_with_index_and_path(tmp_path):
    names = make_bad_files(tmp_path)
    for name in names:
        with pytest.raises(ImageError, match=name) as caught:
            load_image(tmp_path / name, 3)
        assert (caught.value.index, caught.value.path) == (3, str(tmp_path / name))


def test_load_image_reads_opened_pil_images_like_their_files(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(RGB8).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        np.testing.assert_array_equal(load_image(image, 0), load_image(tmp_path / "turned.jpg", 0))
    Image.fromarray(RNG.integers(0, 256, (200, 200), dtype=np.uint8)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "half.jpg") as image, pytest.raises(ImageError, match="image 4: cannot be read"):
        load_image(image, 4)
    with pytest.raises(ImageError, match="image 4: cannot be read"):
        load_image(image, 4)  # the file is closed


def test_load_image_refuses_the_setting_load_truncated_images(tmp_path, monkeypatch):
    Image.fromarray(RGB8).save(tmp_path / "part.png")
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
        load_image(tmp_path / "part.png", 0)


def test_load_image_reads_big_endian_arrays():
    big = (RGB8.astype(np.uint16) * 257).astype(">u2")
    np.testing.assert_allclose(load_image(big, 0), RGB8 / 255, atol=1e-6)


def test_image_errors_and_warnings_can_be_pickled():
    error = pickle.loads(pickle.dumps(ImageError("is odd.", 3, "a.png")))
    assert (str(error), error.index, error.path) == ("image 3 (a.png): is odd.", 3, "a.png")
    warning = pickle.loads(pickle.dumps(ImageWarning([error])))
    assert str(warning) == f"1 images could not be scored: their scores are NaN. First error: {error}"
    assert warning.failures[0].index == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("part.png", "single path"),
        (Image.fromarray(RGB8), "single image"),
        (RGB8, "expected \\(n_images"),
        (RGB8[:, :, 0], "expected \\(n_images"),
        ([], "no images"),
        (np.zeros((0, 4, 4, 3)), "no images"),
        (pd.DataFrame({"file": ["a.png"], "kind": [1]}), r"2 columns: .* such as X\['file'\]"),
        (5, "type int"),
        ({"a.png": 1}, "type dict"),
        (b"\x89PNG", "single image"),
        (torch.zeros(2, 3, 8, 3), "may be the second or the last axis"),
    ],
)
def test_as_image_sequence_refuses_other_objects(bad, message):
    with pytest.raises(ValueError, match=message):
        as_image_sequence(bad)


@pytest.mark.parametrize("container", [list, tuple, np.array, pd.Series, lambda p: pd.Series(p, index=[5, 3])])
def test_as_image_sequence_accepts_containers_of_paths(container):
    assert list(as_image_sequence(container(["a.png", "b.png"]))) == ["a.png", "b.png"]


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(8, 80),
    width=st.integers(8, 80),
    size=st.integers(8, 60),
    crop=st.integers(1, 8),
    pair=st.booleans(),
)
def test_resize_and_crop_equals_torchvision(height, width, size, crop, pair):
    image = np.random.default_rng(height * 100 + width).random((height, width, 3), np.float32)
    wanted = (size, size + 5) if pair else size
    expected = tv.resize(torch.from_numpy(image).permute(2, 0, 1), [*wanted] if pair else [wanted], antialias=True)
    found, view = resize_and_crop(image, wanted, (crop, crop + 1 if crop < 8 else crop), 0)
    torch.testing.assert_close(found, tv.center_crop(expected, list(view.input_size)), atol=1e-6, rtol=0)
    found, view = resize_and_crop(image, wanted, None, 0)
    # Without a crop, the longer side is rounded. torchvision resizes to the same pair of sides.
    expected = tv.resize(torch.from_numpy(image).permute(2, 0, 1), list(view.input_size), antialias=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert view.box == pytest.approx((0, 0, height, width))


@settings(deadline=None, max_examples=100)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), size=st.integers(1, 600))
def test_sides_without_a_crop_differ_by_a_multiple_of_16_and_by_at_most_8_from_the_proportions(height, width, size):
    resized, corner, view = placed((height, width), size, None, 0)
    short, long = sorted(resized)
    assert (short, corner) == (size, (0, 0))
    assert resized == view.input_size
    assert (long - short) % 16 == 0
    assert abs(long - size * max(height, width) / min(height, width)) <= 8 + 1e-6
    assert (resized[0] > resized[1]) <= (height > width)
    assert (resized[0] < resized[1]) <= (height < width)


def test_sides_with_a_crop_a_pair_or_none_are_not_rounded():
    own = (480, 640)
    assert placed(own, 256, None, 0)[0] == (256, 336)
    assert placed(own, 256, 224, 0)[0] == (256, 341)  # torchvision truncates
    assert placed(own, (100, 101), None, 0)[0] == (100, 101)
    assert placed(own, None, None, 0)[0] == own


@settings(deadline=None, max_examples=40)
@given(height=st.integers(20, 90), width=st.integers(20, 90), size=st.integers(16, 40), crop=st.integers(4, 16))
def test_view_lies_in_the_centre_of_the_image(height, width, size, crop):
    _, view = resize_and_crop(np.zeros((height, width, 1), np.float32), size, crop, 0)
    top, left, box_height, box_width = view.box
    assert view.image_size == (height, width)
    assert -1e-9 <= top <= top + box_height <= height + 1e-9
    assert -1e-9 <= left <= left + box_width <= width + 1e-9
    # the view is centred to within one pixel of the resized image
    scale = max(height, width) / size + 1
    assert abs(top + box_height / 2 - height / 2) <= scale
    assert abs(left + box_width / 2 - width / 2) <= scale


def test_resize_and_crop_refuses_a_crop_larger_than_the_image():
    with pytest.raises(ImageError, match="smaller than crop_size 64×64"):
        resize_and_crop(np.zeros((40, 90, 1), np.float32), None, 64, 2)


FORMS = {
    "bool array": lambda folder: RGB8 > 127,
    "bytes": lambda folder: (folder / "a.png").read_bytes(),
    "memoryview": lambda folder: memoryview((folder / "a.png").read_bytes()),
    "open file": lambda folder: io.BytesIO((folder / "a.png").read_bytes()),
    "tensor, channels first": lambda folder: torch.from_numpy(RGB8).permute(2, 0, 1),
    "tensor, channels last": lambda folder: torch.from_numpy(RGB8),
}


@pytest.mark.parametrize("form", FORMS)
def test_load_image_reads_unambiguous_forms_repeatedly(form, tmp_path):
    Image.fromarray(RGB8).save(tmp_path / "a.png")
    image = FORMS[form](tmp_path)
    expected = (RGB8 > 127).astype(np.float32) if form == "bool array" else RGB8.astype(np.float32) / 255
    for _ in range(2):
        np.testing.assert_array_equal(load_image(image, 0), expected)
        assert image_size(image, 0) == (20, 30)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 5), 7), r"astype\(np.uint8\) if white is 255, or set value_range"),
        (torch.zeros(3, 9, 3), "may be the first or the last axis"),
        (io.StringIO("text"), "open as text"),
        (Image.fromarray(np.full((4, 5), 200, np.float32)), "Divide them by the value of white"),
    ],
)
def test_load_image_refuses_ambiguous_forms_with_advice(image, message):
    with pytest.raises(ImageError, match=message):
        load_image(image, 0)


class Pairs:
    """Map-style dataset like torchvision's ImageFolder. Each item is an image and its class."""

    classes = ("good", "bad")

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return RGB8 // (index + 1), index % 2


def test_as_image_sequence_accepts_generators_tables_tensors_and_datasets():
    polars, arrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    paths = ["a.png", "b.png"]
    frame = pd.DataFrame({"path": paths}, index=[7, 3])
    for X in (
        (path for path in paths), frame, frame.to_numpy(), frame["path"], frame["path"].astype("string"),
        polars.Series(paths), polars.DataFrame({"path": paths}), arrow.array(paths), arrow.chunked_array([paths]),
        arrow.table({"path": paths}),
    ):  # fmt: skip
        assert list(as_image_sequence(X)) == paths
    tensors = torch.from_numpy(np.stack([RGB8, RGB8])).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(as_image_sequence(tensors), np.stack([RGB8, RGB8]))
    images = as_image_sequence(Pairs())
    assert images.classes == ["good", "bad"]
    np.testing.assert_array_equal(images[2], RGB8 // 3)
    np.testing.assert_array_equal(images[1:][0], RGB8 // 2)


def test_as_image_sequence_refuses_an_image_folder_and_names_its_parts():
    data = ImageFolder(*[np.array(["a.png"])] * 2, np.array([1]), np.array(["good"]), np.array([None]))
    with pytest.raises(ValueError, match="pass its train_images to fit, and its test_images to predict"):
        as_image_sequence(data)


def test_channel_order_applies_to_arrays_but_not_to_files(tmp_path):
    Image.fromarray(RGB8).save(tmp_path / "a.png")
    bgr = PixelFormat("bgr")
    for image in (
        RGB8[..., ::-1],
        np.dstack([RGB8[..., ::-1], RGB8[..., 0]]),
        tmp_path / "a.png",
        Image.fromarray(RGB8),
    ):
        np.testing.assert_array_equal(load_image(image, 0, pixel_format=bgr), RGB8.astype(np.float32) / 255)


def test_value_range_scales_stored_values_and_refuses_values_outside(tmp_path):
    twelve = RNG.integers(0, 4096, (9, 7), dtype=np.uint16)
    Image.fromarray(twelve).save(tmp_path / "a.png")
    twelve_bits = PixelFormat(value_range=(0, 4095))
    for image in (
        twelve,
        twelve.astype(np.int64),
        twelve.astype(np.float64),
        tmp_path / "a.png",
        Image.fromarray(twelve),
    ):
        np.testing.assert_allclose(load_image(image, 0, pixel_format=twelve_bits)[..., 0], twelve / 4095, atol=1e-7)
    with pytest.raises(ImageError, match=r"image 2: the values are in \[0, 4096\], outside value_range=\(0, 4095\)"):
        load_image(np.array([[0, 4096]], np.uint16), 2, pixel_format=twelve_bits)
