"""`resize_and_crop`: turn the pixels of an image into the input of the network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from skpatchcore.images.appearance import appearance_of
from skpatchcore.images.views import ROUNDED_TO, Size, View, placed


def resize_and_crop(
    pixels: np.ndarray,
    size: Size,
    crop: Size,
    index: int,
    path: str | None = None,
    max_pixels: int | None = None,
    rounded_to: int = ROUNDED_TO,
) -> tuple[torch.Tensor, View]:
    """Resize an image with antialiasing and crop its centre, as torchvision's ``Resize`` and ``CenterCrop`` do.

    Parameters
    ----------
    pixels : array of shape (height, width, n_channels), float32
        The image.
    size : int, (int, int) or None
        Length of the shorter side after resizing, or height and width after resizing. None keeps the size of the image.
    crop : int, (int, int) or None
        Side length of the central square to keep, or its height and width. None keeps the complete image.
    index : int
        Position of the image in `X`, for error messages.
    path : str or None
        Path of the image's file, for error messages.
    max_pixels : int or None, default=None
        Maximum number of pixels after resizing. None means no limit.
    rounded_to : int, default=ROUNDED_TO
        Without a crop and with an int as `size`, the sides differ by a multiple of this number of pixels. 1 truncates
        the longer side, as torchvision does.

    Returns
    -------
    tensor of shape (n_channels, height, width), float32
        Input of the network.
    View
        Region of the image that the input shows.

    Raises
    ------
    ImageError
        If the crop is larger than the resized image, because images are never padded. The error is also raised if the
        resized image has more than `max_pixels` pixels.
    """
    resized, (top, left), view = placed(
        (pixels.shape[0], pixels.shape[1]), size, crop, index, path, max_pixels, rounded_to
    )
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    if resized != view.image_size:
        tensor = F.interpolate(tensor[None], size=resized, mode="bilinear", align_corners=False, antialias=True)[0]
    seen = tensor[:, top : top + view.input_size[0], left : left + view.input_size[1]]
    return seen, replace(view, appearance=appearance_of(seen.numpy()))
