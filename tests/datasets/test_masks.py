from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from skpatchcore import load_image_folder
from skpatchcore.datasets import read_mask
from skpatchcore.images.raster import upright

TRUTH = np.zeros((24, 36), bool)
TRUTH[4:10, 5:20] = True
TRUTH[15:17, 30:32] = True
SECOND = np.zeros_like(TRUTH)
SECOND[15:17, 30:32] = True


def grey(first, second, dtype=np.uint8):
    mask = np.zeros(TRUTH.shape, dtype)
    mask[TRUTH], mask[SECOND] = first, second
    return mask


def coloured(first, second, background=(0, 0, 0)):
    mask = np.full((*TRUTH.shape, 3), background, np.uint8)
    mask[TRUTH], mask[SECOND] = first, second
    return mask


def with_palette(first, second, colours):
    image = Image.fromarray(grey(first, second))
    image.putpalette([value for colour in colours for value in colour])
    return image


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)
MASKS = {
    "labels 1 and 2": Image.fromarray(grey(1, 2)),
    "64 and 255": Image.fromarray(grey(64, 255)),
    "127 alone": Image.fromarray(grey(127, 127)),
    "bilevel": Image.fromarray(grey(255, 255)).convert("1"),
    "16 bits": Image.fromarray(grey(1, 65535, np.uint16)),
    "16 bits, low byte 0": Image.fromarray(grey(256, 512, np.uint16)),
    "32 bits": Image.fromarray(grey(1, 70000, np.int32)),
    "red and white": Image.fromarray(coloured(RED, WHITE)),
    "dark blue": Image.fromarray(coloured((0, 0, 3), (0, 0, 3))),
    "palette": with_palette(1, 2, [BLACK, RED, WHITE]),
    "palette with a light background": with_palette(1, 2, [WHITE, RED, (0, 9, 0)]),
    "palette with black for defects": with_palette(1, 1, [(68, 1, 84), (253, 231, 36)]),
    "palette in another order": with_palette(3, 1, [(9, 9, 9), RED, BLACK, WHITE]).point(lambda v: v or 2),
    "transparent, white paint": Image.fromarray(np.dstack([np.full((24, 36, 3), 255), TRUTH * 255]).astype(np.uint8)),
    "transparent, black paint": Image.fromarray(np.dstack([np.zeros((24, 36, 3)), TRUTH * 90]).astype(np.uint8)),
    "opaque alpha": Image.fromarray(np.dstack([coloured(RED, WHITE), np.full(TRUTH.shape, 255)]).astype(np.uint8)),
    "grey with alpha": Image.fromarray(np.dstack([np.full((24, 36), 255), TRUTH * 255]).astype(np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_read_mask_marks_all_pixels_that_are_not_background(name, tmp_path):
    mask = MASKS[name]
    np.testing.assert_array_equal(read_mask(mask), TRUTH)
    for ending in ("png", "tif", "gif"):
        if ending == "gif" and (mask.mode not in ("P", "1") or "order" in name):  # Pillow sorts the palette of a GIF
            continue
        if ending == "png" and name == "32 bits":
            continue
        mask.save(tmp_path / f"mask.{ending}")
        np.testing.assert_array_equal(read_mask(tmp_path / f"mask.{ending}", TRUTH.shape), TRUTH)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_read_mask_of_a_tiff_file_with_white_as_zero_is_not_inverted(dtype, tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", np.iinfo(dtype).max - grey(1, 9, dtype), photometric="miniswhite")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), TRUTH)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_read_mask_applies_the_exif_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey(1, 255)).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), upright(TRUTH, orientation))


DOUBTFUL = {
    "marks no pixel": Image.fromarray(grey(0, 0)),
    "marks every pixel": Image.new("L", (9, 9), 7),
    "may be inverted": Image.fromarray((~TRUTH * 255).astype(np.uint8)),
    "grey levels, as with soft edges": Image.fromarray(np.tile(np.arange(36, dtype=np.uint8), (24, 1))),
    "palette in which index 0 is not black": with_palette(1, 1, [WHITE, BLACK]),
    "transparent, black and coloured": Image.fromarray(
        np.dstack([coloured(RED, RED), np.tile(np.arange(36) > 3, (24, 1)) * 255]).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("message", DOUBTFUL)
def test_read_mask_warns_of_ambiguous_masks_and_names_the_file(message, tmp_path):
    DOUBTFUL[message].save(tmp_path / "m.png")
    with pytest.warns(UserWarning, match=rf"the mask '.*m\.png' .*{message}") as caught:
        marked = read_mask(tmp_path / "m.png")
    assert caught[0].filename == __file__
    if "palette" in message or "transparent" in message:
        np.testing.assert_array_equal(marked, TRUTH)


@pytest.mark.parametrize("form", ["m.jpg", "m.tif", "m.webp", "PIL image"])
def test_read_mask_of_a_lossy_file_marks_grey_and_white_and_warns(form, tmp_path):
    path = tmp_path / ("m.jpg" if form == "PIL image" else form)
    options = {"compression": "jpeg"} if form == "m.tif" else {}
    Image.fromarray(grey(64, 255)).resize((360, 240), 0).save(path, quality=90, **options)
    with Image.open(path) as image, pytest.warns(UserWarning, match="is in a lossy format"):
        marked = read_mask(image if form == "PIL image" else path)
    truth = np.kron(TRUTH, np.ones((10, 10), bool))
    assert (marked != truth).mean() < 0.01


@given(st.integers(1, 4), st.integers(0, 3))
def test_read_mask_of_arrays_marks_nonzero_pixels(n_channels, value):
    mask = np.zeros((5, 6, n_channels))
    mask[2, 3, :] = value
    mask[..., -1] = 1 if n_channels in (2, 4) else mask[..., -1]
    assert read_mask(mask).sum() == (value > 0)
    assert read_mask(mask[..., 0] - (value > 0)).sum() == (30 - 1 if value == 1 else 30 * (value > 0))


def test_read_mask_refuses_invalid_masks(tmp_path):
    (tmp_path / "m.png").write_bytes(b"no image")
    for bad, error, message in (
        (tmp_path / "m.png", ValueError, "the mask '.*m.png' cannot be read"),
        (tmp_path / "gone.png", FileNotFoundError, "gone.png"),
        (np.full((2, 2), np.nan), ValueError, "NaN"),
        (np.array([["a"]]), ValueError, "dtype"),
        (None, ValueError, "size="),
    ):
        with pytest.raises(error, match=message):
            read_mask(bad)


def data_set(folder, images, masks):
    picture = Image.fromarray(grey(1, 255))
    for name in ("train/good/0.png", "test/good/0.png", *images, *masks):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name, "PNG")
    return load_image_folder(folder)


@pytest.mark.parametrize(
    ("images", "masks"),
    {
        "nested": (
            ["test/ko/a/0.png", "test/ko/b/0.png"], ["ground_truth/ko/a/0_mask.png", "ground_truth/ko/b/0_mask.png"],
        ),
        "upper case": (["test/KO/A.PNG"], ["Ground_Truth/ko/a_MASK.TIF"]),
        "names alike": (["test/ko/0.bmp", "test/ko/0.png"], ["ground_truth/ko/0.bmp", "ground_truth/ko/0.png"]),
        "other formats": (["test/ko/0.jfif"], ["ground_truth/ko/0.gif"]),
    }.values(),
)  # fmt: skip
def test_load_image_folder_matches_masks_by_their_paths(images, masks, tmp_path):
    data = data_set(tmp_path, images, masks)
    found = {str(image): mask for image, mask in zip(data.test_paths, data.test_masks, strict=True) if mask}
    assert found == {str(tmp_path / i): str(tmp_path / m) for i, m in zip(images, masks, strict=True)}


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (["test/ko/0.png"], ["ground_truth/ko/0.png", "ground_truth/ko/0_mask.png"], "several masks for"),
        (["test/ko/0.png", "test/ko/0.bmp"], ["ground_truth/ko/0_mask.png"], "matches both"),
        (["test/ko/a/0.png"], ["ground_truth/ko/0_mask.png"], "no mask for .*a/0.png"),
    ],
)
def test_load_image_folder_refuses_ambiguous_and_missing_masks(images, masks, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data_set(tmp_path, images, masks)


def test_load_image_folder_warns_of_masks_without_an_image(tmp_path):
    with pytest.warns(UserWarning, match="1 masks in .* belong to no image; the first is .*9_mask.png"):
        data_set(tmp_path, ["test/ko/0.png"], ["ground_truth/ko/0_mask.png", "ground_truth/ko/9_mask.png"])


def test_read_mask_of_lossless_webp_with_a_profile_marks_small_labels(tmp_path):
    image = Image.fromarray(np.dstack([grey(1, 2)] * 3))
    image.save(
        tmp_path / "m.webp",
        lossless=True,
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    )
    np.testing.assert_array_equal(read_mask(tmp_path / "m.webp"), TRUTH)


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_read_mask_treats_a_transparent_colour_as_background(mode, tmp_path):
    white = 255 if mode != "RGB" else (255, 255, 255)
    image = Image.fromarray((~TRUTH * 255).astype(np.uint8)).convert(mode)  # black strokes on white
    image.save(tmp_path / "m.png", transparency=white)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), TRUTH)


def test_load_image_folder_refuses_masks_in_several_files(tmp_path):
    with pytest.raises(ValueError, match=r"as in MVTec LOCO AD, .* Merge the masks into one file 0_mask\.png"):
        data_set(tmp_path, ["test/ko/0.png"], ["ground_truth/ko/0/000.png", "ground_truth/ko/0/001.png"])


def test_read_mask_warns_of_all_problems_of_a_mask(tmp_path):
    Image.fromarray(grey(1, 1)).save(tmp_path / "m.jpg")
    with pytest.warns(UserWarning, match="marks no pixel. It is in a lossy format"):
        read_mask(tmp_path / "m.jpg")
