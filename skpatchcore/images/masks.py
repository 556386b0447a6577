"""Masks: :func:`read_mask` reads an image that marks pixels of another image."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from skpatchcore._utils.missing import is_missing
from skpatchcore._utils.warning import warn_user
from skpatchcore.images.decoding import decode_file, decode_image
from skpatchcore.images.errors import ImageError
from skpatchcore.images.files import read_content
from skpatchcore.images.raster import Raster

# Lossy formats blur edges and change dark values. Values up to this fraction of white count as black in lossy files.
_LOSSY_LEVEL = 1 / 8
# A mask with more grey levels than this has soft edges or is a photograph: its values are not label numbers.
_MAX_LEVELS = 32


def read_mask(mask: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask and return a boolean array that is True for defective pixels.

    A mask is an image that marks the defective pixels of another image.

    Parameters
    ----------
    mask : path, PIL image, array of shape (height, width) or (height, width, n_channels), or None
        The mask. None, NaN or an empty string means that there is no mask, because the image is good. Then all values
        of the result are False.
    size : (int, int) or None, default=None
        Height and width in pixels of the image to which the mask belongs, after the image has been turned upright. None
        returns the mask at its own size. If there is no mask, `size` is required.

    Returns
    -------
    array of shape (height, width), bool
        True for defective pixels, False for background.

    Raises
    ------
    ValueError
        If one of these conditions holds: `size` is given and the mask has another height or width; the mask is not a
        readable image; the mask is an array of another type than numbers or bool; a pixel of the mask is NaN (in files
        also infinity); there is no mask and `size` is None.
    FileNotFoundError
        If `mask` is a path and the file does not exist.

    Warns
    -----
    UserWarning
        If the mask is a file or a PIL image, and seems to be wrong: if no pixel or every pixel is defective, or if more
        than half of all pixels and all four corners are defective. The cases in which the Notes mention a warning cause
        a warning too. Arrays cause no warnings.

    Notes
    -----
    Every pixel that is not background is defective. The first of these rules that applies to a mask defines its
    background:

    1. Mask with an alpha channel that is not constant: fully transparent pixels are background, all other pixels are
       defective. The colour is not used, with one exception: if some of the other pixels are black and some are not,
       the black pixels are background too, with a warning.
    2. Mask with a palette: pixels with the palette index 0 are background. If the colour of index 0 is not black, the
       mask can contain both pixels with index 0 and black pixels. Then the more frequent of the two is background and
       the other is defective, with a warning. If the mask contains black pixels but no index 0, black is background.
    3. File in a lossy format, e.g., JPEG: values of at most 1/8 of white are background, because black is not stored
       exactly in such files. These masks are always read with a warning.
    4. Any other mask (grey values, colours, label numbers, bool): 0 (black) is background. If a file or PIL image has
       more than 32 different values, the mask is read with a warning, because its edges are probably blurred.

    Files and PIL images are first turned upright by their EXIF orientation.
    """
    if is_missing(mask):
        if size is None:
            raise ValueError("there is no mask, and size is None. Pass size=(height, width) of the image.")
        return np.zeros(size, bool)
    name = f" {os.fspath(mask)!r}" if isinstance(mask, str | os.PathLike) else ""
    if isinstance(mask, str | os.PathLike | Image.Image):
        pixels, problem = marked_pixels(_decoded(mask))
        if problem:
            warn_user(f"the mask{name} {problem}")
    else:
        pixels = _marked_in_array(np.asarray(mask))
    if size is not None and pixels.shape != tuple(size):
        raise ValueError(
            f"the mask{name} has shape {pixels.shape}, but the image has shape {tuple(size)}. Pass a mask of the same "
            "size as the image."
        )
    return pixels


def pixels_of_mask(mask: Any) -> np.ndarray:
    """Return the marked pixels of a mask of any form, by the rules of :func:`read_mask`, without warnings.

    Parameters
    ----------
    mask : path, PIL image or array of shape (height, width) or (height, width, n_channels)
        The mask.

    Returns
    -------
    array of shape (height, width), bool
        True for pixels that are not background.

    Raises
    ------
    ValueError, FileNotFoundError
        As in :func:`read_mask`.
    """
    if isinstance(mask, str | os.PathLike | Image.Image):
        return _marked(_decoded(mask))[0]
    return _marked_in_array(np.asarray(mask))


def marked_pixels(raster: Raster) -> tuple[np.ndarray, str | None]:
    """Return the marked pixels of a mask, and the text of a warning if the mask is ambiguous.

    Parameters
    ----------
    raster : Raster
        The mask as stored.

    Returns
    -------
    marked : array of shape (height, width), bool
        True for defective pixels, by the rules of :func:`read_mask`.
    problem : str or None
        Text of the warning, without its subject "the mask". None if there is no reason for a warning.
    """
    marked, doubt = _marked(raster)
    problems = []
    if not marked.any():
        problems.append("marks no pixel.")
    elif marked.all():
        problems.append("marks every pixel.")
    elif marked.mean() > 0.5 and marked[:: max(1, len(marked) - 1), :: max(1, marked.shape[1] - 1)].all():
        problems.append(
            "marks more than half of all pixels and all four corners: the mask may be inverted. Background must be 0."
        )
    if doubt is not None:
        problems.append(f"It {doubt}" if problems else doubt)
    return marked, " ".join(problems) or None


def _decoded(mask: Any) -> Raster:
    """Decode the file or PIL image of a mask."""
    if isinstance(mask, Image.Image):
        try:
            return decode_image(mask, 0, None)
        except ImageError as error:
            raise ValueError(f"the mask cannot be read: {error.message}") from error
    path = os.fspath(mask)
    try:
        return decode_file(read_content(path, 0), 0, path, None)
    except ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise FileNotFoundError(f"the mask {path!r} does not exist.") from error
        raise ValueError(f"the mask {path!r} cannot be read: {error.message}") from error


def _marked(raster: Raster) -> tuple[np.ndarray, str | None]:
    """Return the marked pixels by the kind of mask, and the text of a warning if the kind is ambiguous."""
    if raster.pixels.dtype.kind == "f" and not np.isfinite(raster.pixels).all():
        raise ValueError("the mask holds NaN or infinity. Use 0 for background, and any other number for defects.")
    is_coloured = (raster.pixels != 0).any(axis=-1)
    if raster.alpha is not None and raster.alpha.min() != raster.alpha.max():
        is_visible = raster.alpha != 0
        visible = is_coloured[is_visible]
        if visible.all() or not visible.any():
            return is_visible, None
        return is_visible & is_coloured, "has transparent, black and coloured pixels: only coloured ones are marked."
    if raster.labels is not None:
        return _marked_by_palette(raster.labels, is_coloured)
    if raster.is_lossy:
        level = raster.pixels.max(axis=-1) / (raster.white or 1)
        marked = level > _LOSSY_LEVEL
        return marked, "is in a lossy format: values up to 1/8 of white count as background. Save masks as PNG."
    n_levels = len(np.unique(raster.pixels))
    if n_levels > _MAX_LEVELS:
        return is_coloured, f"has {n_levels} grey levels, as with soft edges: every pixel that is not 0 is marked."
    return is_coloured, None


def _marked_by_palette(labels: np.ndarray, is_coloured: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Return the marked pixels of a mask with a palette, and the text of a warning if the background is ambiguous."""
    is_first, is_black = labels == 0, ~is_coloured
    if not is_black.any() or (is_first == is_black).all():
        return ~is_first, None
    if not is_first.any():
        return is_coloured, None
    background = is_first if is_first.sum() >= is_black.sum() else is_black
    chosen = "index 0" if background is is_first else "black"
    return (
        ~background,
        f"has a palette in which index 0 is not black, and contains index 0 and black: {chosen} counts as background.",
    )


def _marked_in_array(mask: np.ndarray) -> np.ndarray:
    """Return the marked pixels of a mask that is an array of numbers or bool."""
    if mask.ndim == 3 and mask.shape[2] in (1, 2, 3, 4):
        has_alpha = mask.shape[2] in (2, 4)
        raster = Raster(mask[..., :-1] if has_alpha else mask, None, mask[..., -1] if has_alpha else None)
        return _marked(raster)[0]
    if mask.dtype.kind not in "biuf":
        raise ValueError(f"the mask is an array of dtype {mask.dtype}: expected numbers or bool.")
    if mask.dtype.kind == "f" and np.isnan(mask).any():
        raise ValueError("the mask holds NaN. Use 0 for background, and any other number for defects.")
    marked: np.ndarray = mask != 0
    return marked
