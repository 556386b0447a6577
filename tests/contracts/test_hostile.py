"""Test hostile, damaged and unusual images.

Each image must be read correctly or be refused with its index and path. No failure may label an image as normal.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from skpatchcore import (
    AutoencoderDetector,
    ImageError,
    ImageWarning,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PixelExtractor,
    SPADEDetector,
)
from skpatchcore.features import _batches
from skpatchcore.images.reading import image_size, load_image
from tests.factories import extractor

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = RGB[..., 0]
FEW = RGB // 128 * 255  # an image with few colours


@pytest.fixture(scope="module")
def detector(parts):
    return PatchCoreDetector(extractor(), random_state=0).fit(parts[0])


def bomb(width, height):
    """Return the bytes of a small PNG file whose header declares `width` × `height` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def write_hostile(folder):
    """Write files that cannot be read as images; return a dict from file name to the expected error message."""
    whole = io.BytesIO()
    Image.fromarray(RGB).save(whole, "JPEG")
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (folder / "below-the-bomb.png").write_bytes(bomb(9_500, 9_500))
    (folder / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (folder / "folder.png").mkdir()
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(folder / "nan.tif")
    os.symlink("loop.png", folder / "loop.png")
    os.symlink("gone", folder / "dangling.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "locked.png").write_bytes(whole.getvalue())
    return {
        "empty.png": "cannot be read", "half.jpg": "cannot be read", "text.png": "cannot be read",
        "bomb.png": "cannot be read|more than max_pixels", "below-the-bomb.png": "more than max_pixels|exceeds",
        "page.eps": "cannot be read", "folder.png": "is a directory", "moving.gif": "several pages",
        "pages.tif": "several pages", "nan.tif": "NaN", "loop.png": "cannot be read", "dangling.png": "no such file",
        "pipe.png": "is not a regular file", "gone.png": "no such file", "zero\0byte.png": "cannot be read",
        "x" * 300: "cannot be read",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_files_raise_with_index_and_path_or_are_flagged(detector, parts, tmp_path):
    expected = write_hostile(tmp_path)
    paths = [f"{tmp_path}/{name}" for name in expected]
    for path, message in zip(paths, expected.values(), strict=True):
        for method in (detector.predict, detector.regions):
            with pytest.raises(ImageError, match=message) as caught:
                method([parts[1][0], path])
            assert (caught.value.index, caught.value.path) == (1, path)
    X = [parts[1][0], *paths, parts[2][0]]
    with pytest.warns(
        ImageWarning, match=f"{len(paths)} images could not be scored: their scores are NaN. First error: image 1"
    ) as caught:
        labels = detector.predict(X, on_error="flag")
    assert labels.tolist() == [1] + [-1] * len(paths) + [-1]
    (warning,) = [w.message for w in caught if isinstance(w.message, ImageWarning)]
    assert [failure.index for failure in warning.failures] == list(range(1, len(paths) + 1))
    assert [failure.path for failure in warning.failures] == paths
    with pytest.raises(ImageError, match="image 0"):
        PatchCoreDetector(extractor()).fit(paths)


@pytest.mark.filterwarnings("ignore::skpatchcore.ImageWarning", "ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("make", [
    lambda: PatchCoreDetector(extractor(), random_state=0),
    lambda: PatchCoreDetector(extractor(), index="pynndescent", random_state=0),
    lambda: SPADEDetector(extractor()),
    lambda: PaDiMDetector(extractor(), n_channels=10, random_state=0),
    lambda: AutoencoderDetector(PixelExtractor(image_size=(16, 32)), max_epochs=2, width=4, random_state=0),
    lambda: PatchCoreEnsemble([("a", PatchCoreDetector(extractor(), random_state=0)),
                               ("b", PatchCoreDetector(extractor(), n_neighbors=1, random_state=0))]),
])  # fmt: skip
def test_flagged_images_are_anomalous_with_score_nan_and_others_are_unchanged(make, parts):
    fitted = make().fit(parts[0])
    good = np.concatenate(parts[1:])
    many = [*good] * 20  # more images than fit in one chunk
    bad = {0: "gone.png", 3: np.full((48, 64, 3), np.nan), 40: None, 70: "gone.png", 99: np.zeros((2, 48, 64, 3))}
    X = [bad.get(i, image) for i, image in enumerate(many)]
    whole = np.setdiff1d(np.arange(len(X)), [*bad])
    scores, maps = fitted.score_and_segment(X, on_error="flag")
    expected, expected_maps = fitted.score_and_segment(good)
    np.testing.assert_allclose(scores[whole], np.tile(expected, 20)[whole], rtol=1e-5)
    assert np.isnan(scores[[*bad]]).all()
    assert all(maps[i] is None for i in bad)
    np.testing.assert_allclose(maps[1], expected_maps[1], rtol=1e-4, atol=1e-5)
    for name in ("score_samples", "decision_function"):
        assert np.isnan(getattr(fitted, name)(X, on_error="flag")).sum() == len(bad)
    labels = fitted.predict(X, on_error="flag")
    assert (labels[[*bad]] == -1).all()
    np.testing.assert_array_equal(labels[whole], np.tile(fitted.predict(good), 20)[whole])


def test_on_error_flag_without_failures_equals_on_error_raise_without_warnings(detector, parts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("predict", "score_samples", "decision_function"):
            method = getattr(detector, name)
            np.testing.assert_array_equal(method(parts[1], on_error="flag"), method(parts[1]))
    with pytest.raises(ValueError, match="on_error='ignore': expected 'raise' or 'flag'"):
        detector.predict(parts[1], on_error="ignore")
    for nothing in ([], parts[1][0], "part.png", None):
        with pytest.raises(ValueError, match="X "):
            detector.predict(nothing, on_error="flag")


@pytest.mark.filterwarnings("ignore::skpatchcore.ImageWarning")
def test_on_error_flag_accepts_a_call_in_which_every_image_fails(detector):
    assert detector.predict(["gone.png"], on_error="flag").tolist() == [-1]
    assert detector.score_and_segment(["gone.png"] * 2, on_error="flag")[1] == [None, None]


def test_failures_not_caused_by_an_image_raise_even_with_on_error_flag(detector, parts, monkeypatch):
    def broken(*args, **kwargs):
        raise MemoryError("none is left")

    monkeypatch.setattr(type(detector.index_), "farthest", broken)
    with pytest.raises(MemoryError):
        detector.predict(parts[1], on_error="flag")


@pytest.mark.parametrize("shape", [(1, 1), (30_000, 3), (3, 30_000), (1, 500), (5000, 4000)])
def test_images_of_extreme_sizes_are_scored_or_refused(parts, shape, tmp_path):
    image = np.full(shape, 120, np.uint8)
    Image.fromarray(image).save(tmp_path / "odd.png")
    for own_size in (True, False):
        model = PatchCoreDetector(
            extractor(image_size=None if own_size else (64, 64)), random_state=0, calibration=None
        ).fit(parts[0])
        # at 20 megapixels, one pass of the network is enough: an array and its file have equal pixels
        for form in (image, tmp_path / "odd.png")[own_size and image.size > 10**7 :]:
            try:
                score, anomaly_map = model.score_and_segment([form])
            except ImageError as error:
                assert own_size and min(shape) < 4, error  # noqa: PT017, PT018
            else:
                assert np.isfinite(score).all()
                assert anomaly_map[0].shape == shape


def test_max_pixels_limits_image_and_resized_image(tmp_path):
    with pytest.raises(ImageError, match="3×30000 pixels, 256×2560000 after resizing: more than max_pixels=89478485"):
        extractor(image_size=256).transform([np.zeros((3, 30_000), np.uint8)])
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="20×30 pixels, more than max_pixels=599"):
        extractor(max_pixels=599).transform([tmp_path / "a.png"])
    with pytest.raises(ImageError, match="more than max_pixels=599"):
        extractor(max_pixels=599).transform([Image.fromarray(RGB)])
    for limit in (600, None):
        assert extractor(max_pixels=limit).transform([np.tile(RGB, (3, 3, 1)), tmp_path / "a.png"])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, name):
    turned = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1), 7: np.rot90(RGB, 2).transpose(1, 0, 2), 8: np.rot90(RGB),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 100, "subsampling": 0}}.get(name, {})
    Image.fromarray(RGB).save(tmp_path / name, exif=exif, **lossless)
    found = load_image(tmp_path / name, 0)
    assert image_size(tmp_path / name, 0) == found.shape[:2] == turned.shape[:2]
    np.testing.assert_allclose(found, turned / 255, atol=0.06 if name == "a.jpg" else 1e-6)
    content = (tmp_path / name).read_bytes()
    np.testing.assert_array_equal(load_image("elsewhere", 0, content=content), found)


def test_invalid_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 22341  # a value found by fuzzing; valid values are 1 to 8
    Image.fromarray(RGB).save(tmp_path / "a.webp", exif=exif)
    assert image_size(tmp_path / "a.webp", 0) == load_image(tmp_path / "a.webp", 0).shape[:2] == (20, 30)


@pytest.mark.parametrize(
    "form",
    {
        "wrong extension": lambda folder: save_as(folder / "a.jpg", Image.fromarray(RGB), "PNG"),
        "no extension": lambda folder: save_as(folder / "a", Image.fromarray(RGB), "PNG"),
        "palette": lambda folder: save_as(folder / "few.png", Image.fromarray(FEW).quantize(8, dither=0), "PNG"),
        "16 bits": lambda folder: save_as(folder / "a.png", Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        "CMYK": lambda folder: save_as(folder / "a.tif", Image.fromarray(RGB).convert("CMYK"), "TIFF"),
        "one frame of a GIF": lambda folder: save_as(folder / "few.gif", Image.fromarray(FEW), "GIF"),
        "link": lambda folder: link_to(save_as(folder / "a.png", Image.fromarray(RGB), "PNG")),
        "bytes path": lambda folder: os.fsencode(save_as(folder / "a.png", Image.fromarray(RGB), "PNG")).decode(),
        "read-only": lambda folder: read_only(RGB.copy()),
        "every other pixel": lambda folder: np.repeat(np.repeat(RGB, 2, 0), 2, 1)[::2, ::2],
        "backwards": lambda folder: RGB[::-1, ::-1].copy()[::-1, ::-1],
        "Fortran's order": lambda folder: np.asfortranarray(RGB),
        "half precision": lambda folder: (RGB / 255).astype(np.float16),
        "double precision": lambda folder: RGB / 255,
        "masked, with nothing masked": lambda folder: np.ma.masked_array(RGB),
        "tensor with a gradient": lambda folder: torch.tensor(RGB / 255, requires_grad=True),
        "bfloat16 tensor": lambda folder: torch.tensor(RGB / 255).bfloat16(),
    }.values(),
)
def test_unusual_files_and_arrays_are_read_correctly(form, tmp_path):
    picture = form(tmp_path)
    found = load_image(picture, 0)
    expected = GREY[..., None] if found.shape[2] == 1 else FEW if "few" in str(picture) else RGB
    np.testing.assert_allclose(found, expected / 255, atol=0.05)


def save_as(path, image, name):
    image.save(path, name)
    return path


def link_to(path):
    os.symlink(path, path.with_name("link.png"))
    return path.with_name("link.png")


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ma.masked_array(RGB, mask=RGB > 250), "masked"),
        (np.full((9, 9), -np.inf), "infinity"),
        (np.array([[None, 1]], object), "dtype object"),
        (np.zeros((9, 9), complex), "dtype complex"),
        (np.zeros((9, 9), "U3"), "dtype <U3"),
        (np.zeros((9, 9), "M8[s]"), "dtype datetime64"),
        (np.zeros((9, 9, 3, 1), np.uint8), "shape"),
        (np.zeros((), np.uint8), "shape"),
        (b"bytes", "not an image of a known format"),
    ],
)
def test_invalid_arrays_are_refused(array, message):
    with pytest.raises(ImageError, match=message):
        load_image(array, 4)


# Valid image files, which the tests below damage.
SEEDS = []
for _mode in ("RGB", "L", "P", "CMYK", "RGBA", "F"):
    for _format in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        _stream = io.BytesIO()
        try:
            Image.fromarray(RGB).convert(_mode).save(_stream, _format)
        except (OSError, KeyError, ValueError):
            continue
        SEEDS.append(_stream.getvalue())


def damaged(data, changes):
    """Return the bytes with some bytes replaced: `changes` holds pairs of position and new byte."""
    for place, byte in changes:
        data = data[: place % len(data)] + bytes([byte]) + data[place % len(data) + 1 :]
    return data


@settings(deadline=None, max_examples=200)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.builds(
            damaged, st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=8)
        ),
        st.builds(lambda seed, end: seed[:end], st.sampled_from(SEEDS), st.integers(0, 3000)),
    )
)
@pytest.mark.filterwarnings("ignore")  # PIL warns about damaged files
def test_load_image_reads_or_refuses_any_bytes(data):
    try:
        pixels = load_image("fuzzed.png", 5, 100_000, data)
    except ImageError as error:
        assert (error.index, error.path) == (5, "fuzzed.png")  # noqa: PT017
    else:
        assert pixels.dtype == np.float32
        assert pixels.ndim == 3
        assert pixels.size
        assert pixels.min() > -1e-4
        assert pixels.max() < 1 + 1e-4


@settings(deadline=None, max_examples=100)
@given(
    array=hnp.arrays(
        st.sampled_from(["u1", "u2", ">u2", "f2", "f4", "f8", "i4", "?"]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    )
)
def test_load_image_reads_or_refuses_any_array(array):
    try:
        with np.errstate(all="ignore"):
            pixels = load_image(array, 5)
    except ImageError as error:
        assert error.index == 5  # noqa: PT017
    else:
        assert np.isfinite(pixels).all()
        assert pixels.shape[:2] == array.shape[:2]


@settings(deadline=None, max_examples=25)
@given(bad=st.sets(st.integers(0, 11), max_size=11), batch_size=st.integers(1, 7))
@pytest.mark.filterwarnings("ignore::skpatchcore.ImageWarning")
def test_every_image_that_does_not_fail_is_scored_unchanged(detector, parts, bad, batch_size):
    images = [*parts[0], *parts[1][:2]]
    X = ["gone.png" if i in bad else image for i, image in enumerate(images)]
    scores = detector.score_samples(X, on_error="flag")
    assert set(np.flatnonzero(np.isnan(scores))) == bad
    whole = [i for i in range(len(X)) if i not in bad]
    np.testing.assert_allclose(scores[whole], detector.score_samples(images)[whole], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        OSError(errno.EMFILE, "Too many open files"),
        MemoryError("no memory"),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:.*go through the network in halves:RuntimeWarning")
def test_errors_of_the_machine_raise_and_are_not_image_errors(detector, parts, monkeypatch, tmp_path, error):
    """If the machine fails, a production line must stop. It must not reject all parts."""
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)

    def broken(*args, **kwargs):
        raise error

    if isinstance(error, RuntimeError):
        network = detector.extractor_._load(torch.device("cpu"))
        monkeypatch.setattr(network.module, "forward", broken)
    elif isinstance(error, OSError):
        monkeypatch.setattr("builtins.open", broken)
    else:
        monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
    with pytest.raises((RuntimeError, OSError, MemoryError)) as caught:
        detector.predict([path, path], on_error="flag")
    assert not isinstance(caught.value, ImageError)


def test_extractor_with_a_cache_refuses_the_same_images_as_without(tmp_path):
    model = extractor(memory=str(tmp_path / "cache"), max_pixels=RGB.size)
    model.transform([RGB])
    with pytest.raises(ImageError, match="masked"):
        model.transform([np.ma.masked_array(RGB, mask=RGB > 250)])
    with pytest.raises(ImageError, match="max_pixels"):
        extractor(memory=str(tmp_path / "cache"), max_pixels=10).transform([Image.fromarray(RGB)])
    plain = extractor().transform([torch.tensor(RGB / 255, requires_grad=True), torch.tensor(RGB / 255).bfloat16()])
    kept = model.transform([torch.tensor(RGB / 255, requires_grad=True), torch.tensor(RGB / 255).bfloat16()])
    np.testing.assert_allclose(kept, plain, atol=1e-5)


def test_file_larger_than_any_image_is_refused_without_reading_it(tmp_path):
    for name in ("sparse.png", "sparse.tif"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 42)
        for memory in (None, str(tmp_path / "cache")):
            with pytest.raises(ImageError):
                extractor(memory=memory).transform([tmp_path / name])


def test_each_image_is_read_a_bounded_number_of_times_if_many_fail(detector, parts, monkeypatch):
    seen = []
    read = _batches.load_image

    def counting(image, *args, **kwargs):
        seen.append(id(image))
        return read(image, *args, **kwargs)

    monkeypatch.setattr(_batches, "load_image", counting)
    X = [image if i % 2 else "gone.png" for i, image in enumerate([*parts[0]] * 4)]
    with pytest.warns(ImageWarning):
        scores = detector.score_samples(X, on_error="flag")
    assert np.isnan(scores).sum() == 20
    assert len(seen) <= 3 * len(X)  # at most two reads per image, plus images read ahead
