"""read_mask: masks of defective pixels, from files that are read as images are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from skpatchcore._utils.missing import is_missing
from skpatchcore._utils.warning import warn_user
from skpatchcore.datasets.listing import list_images
from skpatchcore.images.decoding import decode_file, decode_image
from skpatchcore.images.errors import ImageError
from skpatchcore.images.files import read_content
from skpatchcore.images.raster import Raster

# Lossy formats blur edges and dark levels: levels below this share of white are not told from black.
_LOSSY_LEVEL = 1 / 8
# More grey levels than these are those of soft edges or of a photograph, not numbers of kinds of defects.
_MAX_LEVELS = 32


def read_mask(mask: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return which pixels of an image are defective.

    Parameters
    ----------
    mask : path, PIL image, array of shape (height, width) or (height, width, n_channels), or None
        The mask. None, NaN or empty text: the image is good.
    size : (int, int) or None, default=None
        Height and width of the image; needed if there is no mask. None takes the mask's.

    Returns
    -------
    array of shape (height, width), bool
        True where a pixel is defective.

    Raises
    ------
    ValueError
        If the mask is not of that size, can't be read or holds NaN, or if there is neither a mask nor a size.
    FileNotFoundError
        If there is no such file.

    Warns
    -----
    UserWarning
        If a file or PIL image marks no pixel or every pixel, or if it is ambiguous which pixels it marks.

    Notes
    -----
    A pixel is defective if it is not background:

    - Grey values, colours and label numbers: 0 (black) is background, every other value is defective.
    - Palettes: index 0 is background, and so is black. If both are used and differ, the more frequent one is
      background, with a warning.
    - Transparency that varies: transparent pixels are background. Visible pixels are defective, whatever their
      colour; if some of them are black and others are not, black ones are background, with a warning.
    - Lossy files, such as JPEG: values up to 1/8 of white are background, because black is not exact there. They always
      cause a warning.

    The EXIF orientation of files and PIL images is applied.
    """
    if is_missing(mask):
        if size is None:
            raise ValueError("where there is no mask, size= must say how large the image is.")
        return np.zeros(size, bool)
    name = f" {os.fspath(mask)!r}" if isinstance(mask, str | os.PathLike) else ""
    if isinstance(mask, str | os.PathLike | Image.Image):
        pixels, problem = marked_pixels(_decoded(mask))
        if problem:
            warn_user(f"the mask{name} {problem}")
    else:
        pixels = _marked_in_array(np.asarray(mask))
    if size is not None and pixels.shape != tuple(size):
        raise ValueError(f"the mask{name} has shape {pixels.shape}, the image {tuple(size)}.")
    return pixels


def marked_pixels(raster: Raster) -> tuple[np.ndarray, str | None]:
    """Return which pixels a mask marks, and what is doubtful about it.

    Parameters
    ----------
    raster : Raster
        The mask as stored.

    Returns
    -------
    array of shape (height, width), bool
        By the rules of :func:`read_mask`.
    str or None
        The text of a warning, without its subject.
    """
    marked, doubt = _marked(raster)
    problems = []
    if not marked.any():
        problems.append("marks no pixel.")
    elif marked.all():
        problems.append("marks every pixel.")
    elif marked.mean() > 0.5 and marked[:: max(1, len(marked) - 1), :: max(1, marked.shape[1] - 1)].all():
        problems.append("marks more than half of all pixels and all corners: it may be inverted. Background must be 0.")
    if doubt is not None:
        problems.append(f"It {doubt}" if problems else doubt)
    return marked, " ".join(problems) or None


def match_masks(images: Sequence[str], folder: Path, truth: Path) -> list[str]:
    """Return the mask of each image of a kind of defect, matched by its path.

    Parameters
    ----------
    images : sequence of str
        Images in `folder` or in folders below it.
    folder : path
        Folder of the images, such as ``test/scratch``.
    truth : path
        Folder of the masks, such as ``ground_truth/scratch``, with the same folders below it.

    Returns
    -------
    list of str
        Files ``<stem>_mask.<ending>`` or ``<stem>.<ending>``, in upper or lower case.

    Raises
    ------
    FileNotFoundError
        If an image has no mask.
    ValueError
        If several masks fit an image, or one mask fits several images.
    """
    candidates = _masks_by_place(truth)
    found: dict[str, str] = {}
    for image in images:
        path = Path(image)
        place = tuple(part.casefold() for part in path.relative_to(folder).parent.parts)
        stem = path.stem.casefold()
        masks = [*candidates.get((*place, f"{stem}_mask"), ()), *candidates.get((*place, stem), ())]
        exact = [mask for mask in masks if Path(mask).name == path.name]
        if len(masks) > 1 and len(exact) == 1 and all(Path(mask).stem.casefold() == stem for mask in masks):
            masks = exact  # a.png and a.bmp are images with masks of the same names
        if not masks and (truth / path.relative_to(folder).with_suffix("")).is_dir():
            raise ValueError(
                f"the masks of {image!r} are several files in a folder, as in MVTec LOCO AD, which is not supported: "
                f"unite them in one file {path.stem}_mask.png."
            )
        if not masks:
            expected = truth / path.relative_to(folder).parent / f"{path.stem}_mask.png"
            raise FileNotFoundError(f"no mask for {image!r}: {str(expected)!r} is missing.")
        if len(masks) > 1:
            raise ValueError(f"several masks for {image!r}: {', '.join(map(repr, masks))}. Keep one of them.")
        if masks[0] in found:
            raise ValueError(f"the mask {masks[0]!r} fits both {found[masks[0]]!r} and {image!r}.")
        found[masks[0]] = image
    n_unused = sum(map(len, candidates.values())) - len(found)
    if n_unused:
        first = next(mask for masks in candidates.values() for mask in masks if mask not in found)
        warn_user(f"{n_unused} masks in {str(truth)!r} belong to no image; the first is {first!r}.")
    return list(found)


def _masks_by_place(truth: Path) -> Mapping[tuple[str, ...], list[str]]:
    """Return the image files below a folder, by the parts of their paths without ending, in lower case."""
    places: dict[tuple[str, ...], list[str]] = {}
    for mask in list_images(truth, warn_of_masks=False) if truth.is_dir() else ():
        inner = Path(mask).relative_to(truth)
        key = (*(part.casefold() for part in inner.parent.parts), inner.stem.casefold())
        places.setdefault(key, []).append(mask)
    return places


def _decoded(mask: Any) -> Raster:
    if isinstance(mask, Image.Image):
        try:
            return decode_image(mask, 0, None)
        except ImageError as error:
            raise ValueError(f"a mask can't be read: {error.message}") from error
    path = os.fspath(mask)
    try:
        return decode_file(read_content(path, 0), 0, path, None)
    except ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise FileNotFoundError(f"there is no mask {path!r}.") from error
        raise ValueError(f"the mask {path!r} can't be read: {error.message}") from error


def _marked(raster: Raster) -> tuple[np.ndarray, str | None]:
    if raster.pixels.dtype.kind == "f" and not np.isfinite(raster.pixels).all():
        raise ValueError("the mask holds NaN or infinity: background must be 0, every other number is defective.")
    is_coloured = (raster.pixels != 0).any(axis=-1)
    if raster.alpha is not None and raster.alpha.min() != raster.alpha.max():
        is_visible = raster.alpha != 0
        visible = is_coloured[is_visible]
        if visible.all() or not visible.any():
            return is_visible, None
        return is_visible & is_coloured, "has transparent, black and coloured pixels: only coloured ones count."
    if raster.labels is not None:
        return _marked_by_palette(raster.labels, is_coloured)
    if raster.is_lossy:
        level = raster.pixels.max(axis=-1) / (raster.white or 1)
        marked = level > _LOSSY_LEVEL
        return marked, "is stored with loss: pixels up to 1/8 of white count as background. Save masks as PNG."
    n_levels = len(np.unique(raster.pixels))
    if n_levels > _MAX_LEVELS:
        return is_coloured, f"has {n_levels} grey levels, as soft edges have: every pixel that is not 0 counts."
    return is_coloured, None


def _marked_by_palette(labels: np.ndarray, is_coloured: np.ndarray) -> tuple[np.ndarray, str | None]:
    is_first, is_black = labels == 0, ~is_coloured
    if not is_black.any() or (is_first == is_black).all():
        return ~is_first, None
    if not is_first.any():
        return is_coloured, None
    background = is_first if is_first.sum() >= is_black.sum() else is_black
    chosen = "index 0" if background is is_first else "black"
    return ~background, f"has a palette whose index 0 is not black, and uses both: {chosen} counts as background."


def _marked_in_array(mask: np.ndarray) -> np.ndarray:
    if mask.ndim == 3 and mask.shape[2] in (1, 2, 3, 4):
        has_alpha = mask.shape[2] in (2, 4)
        raster = Raster(mask[..., :-1] if has_alpha else mask, None, mask[..., -1] if has_alpha else None)
        return _marked(raster)[0]
    if mask.dtype.kind not in "biuf":
        raise ValueError(f"a mask is an array of dtype {mask.dtype}: expected numbers or bool.")
    if mask.dtype.kind == "f" and np.isnan(mask).any():
        raise ValueError("a mask holds NaN: background must be 0, every other number is defective.")
    marked: np.ndarray = mask != 0
    return marked
