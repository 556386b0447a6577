"""InputRules: read images as the graph of an exported ONNX file takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import PixelFormat, load_image, path_of
from skpatchcore.images.views import Size, View, placed

# Largest distance of a value from a whole number of the 255 levels of 8-bit images. It allows for rounding of float
# images. The values of 16-bit images have a distance of at least 1/257.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Prepared:
    """An image as the graph takes it.

    Attributes
    ----------
    index : int
        Position of the image in `X`.
    path : str or None
        Path of the image's file; None if the image was not given by its path.
    pixels : array of shape (height, width, 3), uint8 or float32 in [0, 1]
        Red, green and blue.
    view : View
        Region of the image that the network sees.
    """

    index: int
    path: str | None
    pixels: np.ndarray
    view: View


@dataclass(frozen=True)
class InputRules:
    """Rules by which images are read, and the images that the graph accepts.

    Attributes
    ----------
    is_uint8 : bool
        Whether the graph takes 8 bits per channel. Otherwise it takes float32 in [0, 1].
    pixel_format : PixelFormat
        Order of the channels and range of the values.
    max_pixels : int or None
        Maximum number of pixels of an image, before and after resizing.
    image_size : (int, int) or None
        The only height and width that the graph takes; None for all sizes.
    resize, crop : int, (int, int) or None
        Sizes after resizing and after cropping, as for :func:`~skpatchcore.images.resizing.resize_and_crop`.
    rounded_to : int
        Without a crop, the sides differ by a multiple of this number of pixels.
    """

    is_uint8: bool
    pixel_format: PixelFormat
    max_pixels: int | None
    image_size: tuple[int, int] | None
    resize: Size
    crop: Size
    rounded_to: int

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> InputRules:
        """Return the rules that the manifest of an exported file states."""
        given, resize = manifest["input"], manifest["resize"]
        value_range, image_size = given["value_range"], given["image_size"]
        return cls(
            {"uint8": True, "float32": False}[given["dtype"]],
            PixelFormat(given["channel_order"], None if value_range is None else (value_range[0], value_range[1])),
            given["max_pixels"],
            None if image_size is None else (image_size[0], image_size[1]),
            _as_size(resize["image_size"]),
            _as_size(resize["crop_size"]),
            resize["rounded_to"],
        )

    def read(self, image: Any, index: int) -> Prepared:
        """Return an image as the graph takes it.

        Parameters
        ----------
        image : path, bytes, binary file, PIL image, array or tensor
            The image.
        index : int
            Position of the image in `X`.

        Returns
        -------
        Prepared

        Raises
        ------
        ImageError
            If the image cannot be read, or if the graph does not take such an image.
        """
        path = path_of(image)
        pixels = load_image(image, index, self.max_pixels, pixel_format=self.pixel_format)
        size = (pixels.shape[0], pixels.shape[1])
        if self.image_size is not None and size != self.image_size:
            raise ImageError(
                f"{size[0]}×{size[1]} pixels, but this file takes only images of {self.image_size[0]}×"
                f"{self.image_size[1]} pixels.",
                index,
                path,
            )
        _, _, view = placed(size, self.resize, self.crop, index, path, self.max_pixels, self.rounded_to)
        if self.is_uint8:
            pixels = _as_uint8(pixels, index, path)
        return Prepared(index, path, np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels, view)

    def batches(self, images: Sequence[Any], batch_size: int) -> Iterator[list[Prepared]]:
        """Yield the images in order, in batches of at most `batch_size` consecutive images of one size.

        An image that cannot be read raises its error after the batch of the images before it.
        """
        batch: list[Prepared] = []
        for index in range(len(images)):
            try:
                image = self.read(images[index], index)
            except ImageError:
                if batch:
                    yield batch
                raise
            if batch and (len(batch) == batch_size or image.pixels.shape != batch[0].pixels.shape):
                yield batch
                batch = []
            batch.append(image)
        if batch:
            yield batch


def _as_size(size: Any) -> Size:
    """Return a size of the manifest, in which a pair is a list."""
    return (size[0], size[1]) if isinstance(size, list) else size


def _as_uint8(pixels: np.ndarray, index: int, path: str | None) -> np.ndarray:
    """Return pixels in [0, 1] as uint8. Raise an ImageError if this would change them."""
    levels = pixels * np.float32(255)
    whole = np.rint(levels)
    if np.abs(levels - whole).max() > _TOLERANCE:
        raise ImageError(
            "the image has more than 8 bits per channel, but this file takes 8-bit images: export with "
            "input_dtype='float32'.",
            index,
            path,
        )
    return whole.clip(0, 255).astype(np.uint8)
