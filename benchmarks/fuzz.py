"""Fuzz the readers of images, arrays and model files with coverage-guided random inputs.

    pip install atheris
    python benchmarks/fuzz.py images CORPUS -max_total_time=1200 -timeout=10
    python benchmarks/fuzz.py arrays CORPUS -max_total_time=600
    python benchmarks/fuzz.py models CORPUS -max_total_time=600

Every input must be read correctly or be refused with the documented error. ``CORPUS`` is a folder of inputs. If the
folder is empty, the script fills it with small examples. Further arguments are passed to libFuzzer. The run stops at a
crash, a hang, an undocumented error or pixels outside [0, 1], and libFuzzer then writes the input to a file.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "skops", "skpatchcore"]):
    import numpy as np
    import skops.io
    from PIL import Image

    from skpatchcore import ImageError, ModelFileError, PatchCoreDetector, load, save
    from skpatchcore.images.reading import image_size, load_image
from skpatchcore.images.resizing import resize_and_crop

MAX_PIXELS = 250_000
DTYPES = ("u1", "<u2", ">u2", "f2", "f4", "<f8", ">f8", "i4", "?", "c8", "O", "U3", "M8[s]", "V5")


def check_pixels(pixels: np.ndarray) -> None:
    """Raise an AssertionError if the pixels of an accepted image violate what later steps rely on."""
    assert pixels.dtype == np.float32, pixels.dtype
    assert pixels.ndim == 3, pixels.shape
    assert pixels.shape[2] in (1, 3), pixels.shape
    assert pixels.size, pixels.shape
    assert np.isfinite(pixels).all()
    assert pixels.min() > -1e-4, pixels.min()
    assert pixels.max() < 1 + 1e-4, pixels.max()


def check_error(error: ImageError, path: str | None) -> None:
    """Raise an AssertionError if the error does not report index and path of the image."""
    assert (error.index, error.path) == (3, path)


def fuzz_images(data: bytes) -> None:
    """Read the bytes as an image file, from memory and from disk, then resize and crop the image."""
    try:
        pixels = load_image("fuzzed.png", 3, MAX_PIXELS, data)
    except ImageError as error:
        check_error(error, "fuzzed.png")
        return
    check_pixels(pixels)
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(data)
        file.flush()
        assert image_size(file.name, 3) == pixels.shape[:2]
        np.testing.assert_array_equal(load_image(file.name, 3, MAX_PIXELS), pixels)
    try:
        seen, view = resize_and_crop(pixels, 32, 24, 3, None, MAX_PIXELS)
    except ImageError:
        return
    assert tuple(seen.shape[1:]) == view.input_size == (24, 24)


def fuzz_arrays(data: bytes) -> None:
    """Make an array with a random dtype, shape and memory layout from the bytes, and read the array as an image."""
    provider = atheris.FuzzedDataProvider(data)
    dtype = np.dtype(DTYPES[provider.ConsumeIntInRange(0, len(DTYPES) - 1)])
    shape = tuple(provider.ConsumeIntInRange(0, 6) for _ in range(provider.ConsumeIntInRange(0, 4)))
    layout = provider.ConsumeIntInRange(0, 4)
    if dtype.kind == "O":
        array = np.full(shape, None)
    else:
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        array = np.frombuffer(provider.ConsumeBytes(n_bytes).ljust(n_bytes, b"\0"), dtype).reshape(shape)
    if layout == 1:
        array = array.T
    elif layout == 2 and array.ndim:
        array = array[::-1]
    elif layout == 3:
        array = np.asfortranarray(array)
    elif layout == 4:
        array = np.ma.masked_array(array, mask=False)
    before = array.copy()
    try:
        with np.errstate(all="ignore"):
            pixels = load_image(array, 3)
    except ImageError as error:
        check_error(error, None)
        return
    check_pixels(pixels)
    np.testing.assert_array_equal(array, before)


def fuzz_models(data: bytes) -> None:
    """Read the bytes as a model file; if the file loads, score an image with the detector."""
    with tempfile.NamedTemporaryFile(suffix=".skops") as file:
        file.write(data)
        file.flush()
        try:
            loaded = load(file.name)
        except ModelFileError:
            return
    loaded.score_samples(np.zeros((1, 2, 2, 3), np.float32))


def examples(kind: str) -> list[bytes]:
    """Return small valid inputs, from which the fuzzing starts."""
    rng = np.random.default_rng(0)
    if kind == "arrays":
        return [rng.bytes(100) for _ in range(20)]
    if kind == "models":
        detector = PatchCoreDetector("precomputed", random_state=0).fit(rng.random((4, 2, 2, 3), np.float32))
        with tempfile.TemporaryDirectory() as folder:
            save(detector, Path(folder) / "a.skops")
            skops.io.dump(detector, Path(folder) / "b.skops")
            return [path.read_bytes() for path in Path(folder).iterdir()]
    picture = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    found = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "I;16", "F", "YCbCr"):
        image = picture.convert("L").convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
        for name in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "PPM", "TGA", "PCX"):
            for options in ({}, {"exif": exif}, {"save_all": True, "append_images": [image]}):
                stream = io.BytesIO()
                try:
                    image.save(stream, name, **options)
                except (OSError, KeyError, ValueError, TypeError):
                    continue
                found.append(stream.getvalue())
    return found


def main() -> None:
    """Fill the corpus if it is empty, and run libFuzzer."""
    kind, corpus = sys.argv[1], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for i, data in enumerate(examples(kind)):
            (corpus / f"example-{i:03}").write_bytes(data)
    target = {"images": fuzz_images, "arrays": fuzz_arrays, "models": fuzz_models}[kind]
    atheris.Setup([sys.argv[0], str(corpus), "-rss_limit_mb=4096", *sys.argv[3:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
