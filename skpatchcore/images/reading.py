"""Images of any form a user has, as one kind of array.

Everything becomes float32 in [0, 1] with one or three channels before it is resized, whatever form it came in, so
the same picture as uint8, uint16, float, file or PIL image gives the same features. What can't be read or can't be
an image raises :class:`ImageError`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps

# How far rounding may carry a float image beyond [0, 1].
_TOLERANCE = 1e-5
# What cameras and programs write. Of the others that PIL opens, some run programs of their own (EPS).
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP", "AVIF")
# More than any camera writes: what is read to be hashed is held in memory.
_MOST_BYTES = 2**31
# What another file would meet too.
_NOT_THE_FILES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class ImageError(ValueError):
    """An image that can't be read or isn't one.

    Parameters
    ----------
    message : str
        What is wrong with it.
    index : int
        Its position in `X`.
    path : str or None
        Its file, if it came from one.

    Attributes
    ----------
    index, path
        As above, to find the image again.
    """

    def __init__(self, message: str, index: int, path: str | None = None):
        super().__init__(f"image {index}{f' ({path})' if path else ''}: {message}")
        self.message, self.index, self.path = message, index, path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.index, self.path)


class ImageWarning(UserWarning):
    """Images that can't be judged were flagged as anomalous, with a score of NaN.

    Parameters
    ----------
    failures : list of ImageError
        One an image: its index, its path and what is wrong with it.

    Attributes
    ----------
    failures
        As above.
    """

    def __init__(self, failures: Sequence[ImageError]):
        super().__init__(f"{len(failures)} images could not be judged; first {failures[0]}")
        self.failures = list(failures)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failures,)


def as_image_sequence(X: Any) -> Sequence[Any]:
    """Return `X` as a sequence of single images, none of them read yet.

    Parameters
    ----------
    X : sequence of images, or array of shape (n_images, height, width, n_channels)
        Paths, arrays or PIL images, in a list, a tuple, an array or a pandas Series.

    Returns
    -------
    sequence
        Its items go to :func:`load_image`.

    Raises
    ------
    ValueError
        If `X` is a single image or path, or no sequence, or an array of another number of dimensions, or empty.
    """
    if isinstance(X, str | os.PathLike):
        raise ValueError(
            f"X is the single path {os.fspath(X)!r}: pass a list of paths; "
            "skpatchcore.list_images(directory) makes one of a directory."
        )
    if isinstance(X, Image.Image):
        raise ValueError("X is a single image: pass a list of images.")
    if isinstance(X, pd.DataFrame):
        raise ValueError(f"X is a DataFrame: pass the column that holds the images, such as X[{X.columns[0]!r}].")
    if isinstance(X, pd.Series):
        X = X.tolist()
    elif isinstance(X, torch.Tensor):
        X = from_tensor(X)
    elif hasattr(X, "__array__") and not isinstance(X, np.ndarray):
        X = np.asarray(X)
    if isinstance(X, np.ndarray):
        if X.ndim == 1 and X.dtype.kind in "OUT":
            X = X.tolist()
        elif X.ndim != 4:
            raise ValueError(
                f"X is an array of shape {X.shape}: expected (n_images, height, width, n_channels). "
                "Add the channel axis with X[..., None] to grey images, wrap a single image in a list."
            )
    elif not isinstance(X, Sequence):
        raise ValueError(
            f"X is of type {type(X).__name__}: expected a list of paths, arrays or PIL images, or a 4-D array."
        )
    if len(X) == 0:
        raise ValueError("X holds no images: at least one is needed.")
    images: Sequence[Any] = X
    return images


def load_image(image: Any, index: int, max_pixels: int | None = None, content: bytes | None = None) -> np.ndarray:
    """Read one image.

    Parameters
    ----------
    image : path, PIL image or array of shape (height, width) or (height, width, n_channels)
        Grey, RGB or RGBA; uint8, uint16 (of which 65535 is white, also where only 12 bits are used) or float in
        [0, 1]. An alpha channel is left out. The EXIF orientation of files and PIL images is applied.
    index : int
        Position in `X`, for the error.
    max_pixels : int or None, default=None
        Files and PIL images of more are refused before they are decoded. None: no limit but PIL's own.
    content : bytes or None, default=None
        Of the file, where it has been read.

    Returns
    -------
    array of shape (height, width, 1 or 3), float32 in [0, 1]

    Raises
    ------
    ImageError
        If the file can't be read to its end, holds several pages or too many pixels, or if shape, dtype, range or a NaN
        rule it out.
    """
    path = path_of(image)
    if path is not None:
        pixels = _read_file(path, index, max_pixels, content)
    elif isinstance(image, Image.Image):
        pixels = _decode(image, index, None, max_pixels)
    elif isinstance(image, torch.Tensor):
        pixels = from_tensor(image)
    elif isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
        raise ImageError("has masked pixels, which have no value: fill them.", index)
    elif isinstance(image, np.ndarray):
        pixels = np.asarray(image)
    else:
        raise ImageError(f"of type {type(image).__name__}, expected a path, an array or a PIL image.", index)
    return _to_float(pixels, index, path)


def read_content(path: str, index: int) -> bytes:
    """Return a file's bytes.

    Raises
    ------
    ImageError
        If there is no such file, or it is no plain one: a pipe might never end.
    """
    with _opened(path, index) as file:
        if (size := os.fstat(file.fileno()).st_size) > _MOST_BYTES:
            raise ImageError(f"has {size} bytes, more than any image.", index, path)
        return file.read()


@contextmanager
def _opened(path: str, index: int) -> Iterator[BinaryIO]:
    """Open a plain file; what goes wrong in reading it is said of the image, but for what is the system's fault."""
    _require_plain_file(path, index)
    try:
        with open(path, "rb") as file:
            yield file
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # PIL reports damaged files in many ways
        if getattr(error, "errno", None) in _NOT_THE_FILES_FAULT:
            raise
        raise ImageError(f"can't be read: {error}", index, path) from error


def _require_plain_file(path: str, index: int) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise ImageError("no such file.", index, path) from error
    except (OSError, ValueError) as error:  # links in a circle, no permission; a zero byte in the path
        if getattr(error, "errno", None) in _NOT_THE_FILES_FAULT:
            raise
        raise ImageError(f"can't be read: {error}", index, path) from error
    if stat.S_ISDIR(mode):
        raise ImageError("is a directory; skpatchcore.list_images(directory) lists its images.", index, path)
    if not stat.S_ISREG(mode):
        raise ImageError("is no plain file.", index, path)


def _read_file(path: str, index: int, max_pixels: int | None, content: bytes | None) -> np.ndarray:
    # Not from the path: PIL maps some files into memory then, and forgets to turn them (TIFF with an orientation).
    if content is None:
        with _opened(path, index) as file, _open(file) as image:
            return _decode(image, index, path, max_pixels)
    try:
        with _open(BytesIO(content)) as image:
            return _decode(image, index, path, max_pixels)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # PIL reports what it can't open in many ways
        raise ImageError(f"can't be read: {error}", index, path) from error


def _open(file: BinaryIO) -> Image.Image:
    """Open an image file, of which nothing but the header is decoded yet."""
    return Image.open(file, formats=_formats())


def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _decode(image: Image.Image, index: int, path: str | None, max_pixels: int | None) -> np.ndarray:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which fills damaged images up with grey; set it to False.",
            index,
            path,
        )
    _check_size(image, index, path, max_pixels)
    try:
        # An MPO file is one photograph with previews of it.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise ImageError("holds several pages, expected one.", index, path)
        return _from_pil(ImageOps.exif_transpose(image), index, path)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # PIL reports damaged files in many ways, and some only now
        raise ImageError(f"can't be read: {error}", index, path) from error


def _check_size(image: Image.Image, index: int, path: str | None, max_pixels: int | None) -> None:
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise ImageError(f"{image.height}×{image.width} pixels, more than max_pixels={max_pixels}.", index, path)


def _from_pil(image: Image.Image, index: int, path: str | None) -> np.ndarray:
    if image.mode in ("L", "RGB", "RGBA", "F", "I;16"):
        return np.asarray(image)
    if image.mode in ("I", "I;16B", "I;16L", "I;16N"):
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ImageError("32-bit integers beyond 0..65535; convert it to 16 bit.", index, path)
        return pixels.astype(np.uint16)
    return np.asarray(image.convert("L" if image.mode in ("1", "LA", "La") else "RGB"))


def _to_float(pixels: np.ndarray, index: int, path: str | None) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3:
        raise ImageError(f"shape {pixels.shape}, expected (height, width) or (height, width, channels).", index, path)
    if 0 in pixels.shape:
        raise ImageError(f"shape {pixels.shape} holds no pixels.", index, path)
    if pixels.shape[2] not in (1, 3, 4):
        hint = " It looks channels-first: move the axis to the end." if pixels.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{pixels.shape[2]} channels, expected 1, 3 or 4 in the last axis.{hint}", index, path)
    pixels = pixels[:, :, :3]
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if pixels.dtype.kind != "f":
        raise ImageError(f"dtype {pixels.dtype}, expected uint8, uint16 or float in [0, 1].", index, path)
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # a NaN anywhere makes both NaN
        raise ImageError("holds NaN or infinity.", index, path)
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise ImageError(f"float values in [{low:g}, {high:g}], expected [0, 1].", index, path)
    return pixels.astype(np.float32)


def image_size(image: Any, index: int, max_pixels: int | None = None) -> tuple[int, int]:
    """Return the height and width in pixels of one image, as :func:`load_image` gives it; of a file from its header.

    Raises
    ------
    ImageError
        If the file can't be opened, it is no image, or has more pixels than are allowed.
    """
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        return image.shape[0], image.shape[1]
    path = path_of(image)
    if path is not None:
        _require_plain_file(path, index)
    try:
        with nullcontext(image) if path is None else Image.open(path, formats=_formats()) as opened:
            _check_size(opened, index, path, max_pixels)
            width, height = opened.size
            exif = opened.getexif()
            orientation = exif.get(ExifTags.Base.Orientation, 1)
            # PIL turns TIFF files itself, in some versions when it opens them; PNG files may say more at their end
            if (opened.format == "TIFF" and orientation != 1) or (opened.format == "PNG" and exif):
                return load_image(image, index, max_pixels).shape[:2]
            is_turned = orientation in (5, 6, 7, 8)
    except ImageError:
        raise
    except Exception:  # reading it says what is wrong with it
        return load_image(image, index, max_pixels).shape[:2]
    return (width, height) if is_turned else (height, width)


def from_tensor(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor of any device and dtype as an array."""
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def path_of(image: Any) -> str | None:
    """Return the path of an image that is given by its path, else None."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None
