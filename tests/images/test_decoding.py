"""Tests that decoded files of every bit depth, layout and compression equal the arrays that were written."""

from __future__ import annotations

import io
import itertools
import struct
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from skpatchcore import ImageError
from skpatchcore.images.decoding import decode_file
from skpatchcore.images.raster import upright
from skpatchcore.images.reading import PixelFormat, image_size, load_image

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 37, 29


def values(dtype, n_channels=None, top=None):
    shape = (HEIGHT, WIDTH) if n_channels is None else (HEIGHT, WIDTH, n_channels)
    if np.dtype(dtype).kind == "f":
        return RNG.random(shape).astype(dtype)
    top = np.iinfo(dtype).max if top is None else top
    return RNG.integers(0, top, shape, dtype=dtype, endpoint=True)


def as_pixels(array, top):
    pixels = array[..., None] if array.ndim == 2 else array
    return pixels.astype(np.float32) / np.float32(top)


def as_tiff(array, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, metadata=None, **options)
    return stream.getvalue()


def read(content):
    return load_image("part.img", 3, content=content)


TIFF_DTYPES = {np.uint8: 255, np.uint16: 65535, np.float32: 1, np.float16: 1, np.float64: 1}
VOLUME = {"volumetric": True, "tile": (4, 16, 16)}
COMPRESSIONS = [None, "zlib", "lzw", "packbits", "lzma", "zstd"]


@pytest.mark.parametrize("dtype", TIFF_DTYPES)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_tiff_of_any_layout_gives_its_array(dtype, compression):
    n_read = 0
    for n_channels, planar, order, tile, predictor in itertools.product(
        (None, 3, 4), ("contig", "separate"), "<>", (None, (16, 16)), (False, True)
    ):
        if (planar == "separate" and n_channels is None) or (predictor and compression in (None, "packbits")):
            continue
        array = values(dtype, n_channels)
        written = array if planar == "contig" else np.moveaxis(array, -1, 0)
        photometric = "minisblack" if n_channels is None else "rgb"
        content = as_tiff(
            written, photometric=photometric, planarconfig=None if n_channels is None else planar, byteorder=order,
            tile=tile, compression=compression, predictor=predictor, rowsperstrip=None if tile else 8,
            extrasamples=["unassalpha"] if n_channels == 4 else None,
        )  # fmt: skip
        np.testing.assert_array_equal(
            read(content), as_pixels(array[..., :3] if n_channels == 4 else array, TIFF_DTYPES[dtype])
        )
        n_read += 1
    assert n_read >= 20


@pytest.mark.parametrize("n_bits", [1, 2, 4, 6, 10, 12, 14])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_tiff_of_odd_bit_depths_gives_its_array(n_bits, photometric):
    dtype, top = (np.uint8 if n_bits <= 8 else np.uint16), 2**n_bits - 1
    array = values(dtype, top=top)
    try:
        content = as_tiff(array, photometric=photometric, bitspersample=n_bits)
    except NotImplementedError:
        pytest.skip("this version of imagecodecs can read packed integers but cannot write them")
    expected = array if photometric == "minisblack" else (top - array).astype(dtype)
    np.testing.assert_array_equal(read(content), as_pixels(expected, top))


def test_tiff_with_white_as_zero_is_inverted_for_8_and_16_bits():
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        array = values(dtype)
        np.testing.assert_array_equal(read(as_tiff(array, photometric="miniswhite")), as_pixels(top - array, top))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation_is_applied_to_pixels_and_size(orientation, tmp_path):
    array = values(np.uint16, 3)
    content = as_tiff(array, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    (tmp_path / "turned.tif").write_bytes(content)
    expected = upright(array, orientation)
    np.testing.assert_array_equal(read(content), as_pixels(expected, 65535))
    assert image_size(tmp_path / "turned.tif", 0) == expected.shape[:2]


def test_tiff_palette_of_16_bits_gives_its_colours():
    indices, colours = values(np.uint8), RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
    content = as_tiff(indices, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(read(content), as_pixels(colours.T[indices], 65535))
    np.testing.assert_array_equal(decode_file(content, 0, None, None).labels, indices)


def test_tiff_premultiplied_colours_are_divided_by_their_opacity():
    colours, alpha = values(np.uint16, 3, top=30000), values(np.uint16)
    alpha[:2] = 0
    stored = (colours.astype(float) * alpha[..., None] / 65535).round().astype(np.uint16)
    content = as_tiff(np.dstack([stored, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    visible = alpha > 20000
    np.testing.assert_allclose(read(content)[visible], as_pixels(colours, 65535)[visible], atol=5e-5)
    assert (read(content)[:2] == 0).all()


def test_tiff_thumbnail_and_mask_pages_do_not_count_as_pages():
    stream, array = io.BytesIO(), values(np.uint16, 3)
    with tifffile.TiffWriter(stream) as writer:
        writer.write(array, photometric="rgb", metadata=None)
        writer.write(array[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read(stream.getvalue()), as_pixels(array, 65535))


@pytest.mark.parametrize(
    ("content", "message"),
    {
        "int16": (as_tiff(values(np.int16), photometric="minisblack"), "dtype int16 does not define white"),
        "uint32": (as_tiff(values(np.uint32), photometric="minisblack"), "dtype uint32 does not define white"),
        "complex": (as_tiff(np.zeros((9, 9), np.complex64), photometric="minisblack"), "complex numbers"),
        "5 channels": (as_tiff(values(np.uint8, 5), photometric="rgb", planarconfig="contig"), "5 channels"),
        "two pages": (as_tiff(values(np.uint8, 9)[..., None], photometric="minisblack"), "several pages"),
        "a volume": (as_tiff(np.zeros((4, 16, 16), np.uint8), photometric="minisblack", **VOLUME), "several pages"),
        "CMYK of 16 bits": (as_tiff(values(np.uint16, 4), photometric="separated"), "16 bits as SEPARATED"),
        "raw": (as_tiff(values(np.uint16), photometric="cfa"), "16 bits as CFA"),
    }.values(),
)  # fmt: skip
def test_tiff_without_defined_grey_or_colour_is_refused_with_index_and_path(content, message):
    with pytest.raises(ImageError, match=message) as caught:
        read(content)
    assert (caught.value.index, caught.value.path) == (3, "part.img")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_truncated_tiff_is_refused_at_every_length(compression):
    content = as_tiff(values(np.uint16, 3), photometric="rgb", compression=compression, rowsperstrip=8)
    for end in [*RNG.integers(8, len(content) - 1, 40).tolist(), len(content) - 1]:
        with pytest.raises(ImageError):
            read(content[:end])


def test_signed_and_wide_integers_are_read_with_a_value_range():
    array = values(np.int16, top=1000) - np.int16(500)
    found = load_image("a.tif", 0, content=as_tiff(array, photometric="minisblack"),
                       pixel_format=PixelFormat(value_range=(-500, 500)))  # fmt: skip
    np.testing.assert_allclose(found[..., 0], (array + 500) / 1000, atol=1e-6)


def png(array, n_bits, colour_type, interlace=False):
    """Return the content of a PNG file. It is assembled here, because no library writes all bit depths."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], n_bits, colour_type, 0, 0, interlace)
    rows = array.reshape(len(array), -1)
    if n_bits < 8:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., -n_bits:].reshape(len(rows), -1)
        packed = np.packbits(bits, axis=1)
    else:
        packed = rows.astype(">u2").view(np.uint8) if n_bits == 16 else rows
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("n_bits", "colour_type", "n_channels"),
    [
        *((n_bits, 0, None) for n_bits in (1, 2, 4, 8, 16)),
        (8, 4, 2),
        (16, 4, 2),
        (8, 2, 3),
        (16, 2, 3),
        (8, 6, 4),
        (16, 6, 4),
    ],
)
def test_png_of_any_depth_gives_its_array(n_bits, colour_type, n_channels):
    top = 2**n_bits - 1
    array = values(np.uint16 if n_bits == 16 else np.uint8, n_channels, top)
    colours = array[..., :-1] if n_channels in (2, 4) else array
    content = png(array, n_bits, colour_type)
    np.testing.assert_allclose(read(content), as_pixels(colours, top), atol=1e-7)
    if n_channels in (2, 4):
        np.testing.assert_array_equal(decode_file(content, 0, None, None).alpha, array[..., -1])


def test_png_colour_of_16_bits_is_turned_by_its_exif_orientation():
    array = values(np.uint16, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    content = png(array, 16, 2)
    np.testing.assert_array_equal(read(content[:33] + chunk + content[33:]), as_pixels(upright(array, 6), 65535))


def test_pil_image_that_is_not_loaded_yet_equals_its_file(tmp_path):
    (tmp_path / "deep.png").write_bytes(png(values(np.uint16, 3), 16, 2))
    (tmp_path / "white.tif").write_bytes(as_tiff(values(np.uint16), photometric="miniswhite"))
    for name in ("deep.png", "white.tif"):
        with Image.open(tmp_path / name) as image:
            np.testing.assert_array_equal(load_image(image, 0), load_image(tmp_path / name, 0))
            np.testing.assert_array_equal(load_image(image, 0), load_image(tmp_path / name, 0))


def test_png_with_a_flipped_bit_is_refused():
    content = png(values(np.uint8, 3), 8, 2)
    for bit in RNG.choice(8 * (len(content) - 8), 300, replace=False) + 64:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ImageError):
            read(bytes(damaged))


@pytest.mark.parametrize("maxval", [1, 7, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("n_channels", [None, 3])
@pytest.mark.parametrize("as_text", [False, True])
def test_netpbm_of_any_maximum_value_gives_its_array(maxval, n_channels, as_text):
    array = values(np.uint16 if maxval > 255 else np.uint8, n_channels, maxval)
    kind = {(None, False): "P5", (3, False): "P6", (None, True): "P2", (3, True): "P3"}[n_channels, as_text]
    header = f"{kind}\n# a comment\n{WIDTH} {HEIGHT}\n{maxval}\n".encode()
    data = array.astype(">u2" if maxval > 255 else np.uint8).tobytes()
    content = header + (" ".join(map(str, array.ravel())).encode() if as_text else data)
    np.testing.assert_array_equal(read(content), as_pixels(array, maxval))
    with pytest.raises(ImageError):
        read(content[: len(content) * 2 // 3])
    if not as_text:
        with pytest.raises(ImageError, match="several pages"):
            read(content + b"\n" + content)


def test_netpbm_bitmap_value_1_is_black():
    array = values(np.uint8, top=1)
    header = f"{WIDTH} {HEIGHT}\n".encode()
    packed, text = np.packbits(array, axis=1).tobytes(), "\n".join("".join(map(str, row)) for row in array).encode()
    for content in (b"P4\n" + header + packed, b"P1\n" + header + text):
        np.testing.assert_array_equal(read(content), as_pixels(1 - array, 1))


@pytest.mark.parametrize(("depth", "kind"), [(1, "GRAYSCALE"), (2, "GRAYSCALE_ALPHA"), (3, "RGB"), (4, "RGB_ALPHA")])
def test_netpbm_pam_gives_its_array(depth, kind):
    array = values(np.uint16, depth)
    header = f"P7\nWIDTH {WIDTH}\nHEIGHT {HEIGHT}\nDEPTH {depth}\nMAXVAL 65535\nTUPLTYPE {kind}\nENDHDR\n".encode()
    expected = array[..., :-1] if depth in (2, 4) else array
    np.testing.assert_array_equal(read(header + array.astype(">u2").tobytes()), as_pixels(expected, 65535))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("n_channels", [None, 3])
def test_netpbm_floats_are_stored_from_the_bottom_row(order, n_channels):
    array = values(np.float32, n_channels)
    header = f"{'Pf' if n_channels is None else 'PF'}\n{WIDTH} {HEIGHT}\n{'-1.0' if order == '<' else '1.0'}\n".encode()
    np.testing.assert_array_equal(read(header + array[::-1].astype(f"{order}f4").tobytes()), as_pixels(array, 1))


@pytest.mark.parametrize(
    "header",
    [
        b"P6",
        b"P5\n3 2\n",
        b"P5\n3 2\n0\n",
        b"P5\n3 2\n70000\n",
        b"P7\nWIDTH 3\nENDHDR\n",
        b"Pf\n3 2\n0\n",
        b"P5\n0 2\n255\n",
    ],
)
def test_netpbm_with_a_damaged_header_is_refused(header):
    with pytest.raises(ImageError):
        read(header + bytes(64))


@pytest.mark.parametrize("n_bits", [8, 10, 12, 16])
@pytest.mark.parametrize("n_channels", [None, 3])
def test_lossless_jpeg_2000_of_any_depth_gives_its_array(n_bits, n_channels):
    array = values(np.uint8 if n_bits == 8 else np.uint16, n_channels, 2**n_bits - 1)
    content = imagecodecs.jpeg2k_encode(array, level=0, bitspersample=n_bits, reversible=True)
    np.testing.assert_array_equal(read(content), as_pixels(array, 2**n_bits - 1))
    assert not decode_file(content, 0, None, None).is_lossy


def test_image_errors_do_not_contain_internal_names_of_decoders():
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n", b"II*\0", b"\xff\xd8\xff\xe0" + bytes(50), b"RIFF....WEBPVP8 "):
        with pytest.raises(ImageError) as caught:
            read(content)
        for word in ("PIL", "Bytes", "0x", "object", "tiff", "Error"):
            assert word not in str(caught.value).replace("TIFF", "")


@pytest.mark.parametrize("max_pixels", [None, 10**12])
def test_files_above_the_limit_of_pillow_are_refused_before_decoding(max_pixels):
    wide = as_tiff(values(np.uint16, 3), photometric="rgb")
    width = wide.index(struct.pack("<HHII", 256, 4, 1, WIDTH) if b"\x00\x01\x04\x00" in wide else b"\x00\x01\x03\x00")
    claims = bytearray(wide)
    claims[width + 2 : width + 12] = struct.pack("<HII", 4, 1, 10**8)
    for content in (b"P5\n99999999 99999999\n255\n", bytes(claims)):
        with pytest.raises(ImageError, match=r"more than (twice PIL\.Image\.MAX_IMAGE_PIXELS|max_pixels)"):
            load_image("a.img", 0, max_pixels, content)


def test_tiff_with_a_damaged_palette_is_refused():
    colours = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256)
    content = as_tiff(np.zeros((20, 30), np.uint8), photometric="palette", colormap=colours)
    number_and_type = struct.pack("<HHI", 320, 3, 3 * 256)  # the tag of the palette
    assert content.count(number_and_type) == 1
    damaged = content.replace(number_and_type, struct.pack("<HHI", 320, 3, 1))
    with pytest.raises(ImageError, match="damaged palette"):
        load_image(damaged, 0)


def test_tiff_with_a_palette_of_pillow_equals_its_png(tmp_path):
    image = Image.fromarray(values(np.uint8, 3)).quantize(64)
    image.save(tmp_path / "a.tif")
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif", 0), load_image(tmp_path / "a.png", 0))


def test_tiff_with_its_thumbnail_first_gives_the_whole_image():
    stream, array = io.BytesIO(), values(np.uint16, 3)
    with tifffile.TiffWriter(stream) as writer:
        writer.write(array[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(array, photometric="rgb", metadata=None)
    np.testing.assert_array_equal(read(stream.getvalue()), as_pixels(array, 65535))
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, photometric="rgb", subfiletype=1, metadata=None)
    with pytest.raises(ImageError, match="only a smaller copy"):
        read(stream.getvalue())


def test_tiff_without_tifffile_raises_an_error_that_names_the_package(monkeypatch):
    content = as_tiff(values(np.uint8, 3), photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match="pip install tifffile"):
        read(content)
