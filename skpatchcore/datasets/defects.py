"""draw_defect: draw one synthetic defect of a given kind, size and contrast on an image of a good part."""

from __future__ import annotations

from typing import Any

import numpy as np

from skpatchcore.datasets._shapes import Shape, blended, curved_line, polygon, round_spot
from skpatchcore.datasets._surface_inks import surface_ink

# Meaning of the size of each kind of defect.
DEFECT_SIZES = {
    "scratch": "width",
    "blob": "diameter",
    "stain": "diameter",
    "foreign": "diameter",
    "missing": "diameter",
    "shift": "diameter",
    "crack": "width",
    "misplaced": "diameter",
    "warped": "diameter",
    "rough": "diameter",
    "worn": "diameter",
}
# Defects made from the surface of the part, whose strength scales with the variation of the surface.
SURFACE_KINDS = ("crack", "misplaced", "warped", "rough", "worn")
DEFECT_KINDS = tuple(kind for kind in DEFECT_SIZES if kind not in SURFACE_KINDS)
# Kinds that differ from the surface mainly in colour.
COLOUR_KINDS = ("shift",)
# Black and white of scratches and blobs, as fractions of white. Ink that differs less from the surface is replaced.
_DARK, _LIGHT, _LEAST_DIFFERENCE = 0.05, 0.95, 0.25
# A foreign texture varies at least this much around its mean, as a fraction of white.
_LEAST_DEVIATION = 0.06
# Width of the soft edge of round defects: a fraction of the diameter, and a number of pixels that is added.
_SOFTNESS = {
    "blob": (0.0, 0.6),
    "stain": (0.07, 0.5),
    "foreign": (0.04, 0.5),
    "shift": (0.04, 0.5),
    "misplaced": (0.0, 1.0),
    "warped": (0.2, 0.0),
    "rough": (0.1, 0.5),
    "worn": (0.1, 0.5),
}
# Positions that are tried to place a defect completely inside a region.
_N_TRIES = 32


def draw_defect(
    image: np.ndarray,
    kind: str,
    size: float,
    *,
    contrast: float = 0.6,
    region: np.ndarray | None = None,
    value_range: tuple[float, float] | None = None,
    random_state: Any = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a copy of an image with one synthetic defect, and the mask of the defect.

    The position, the orientation and the irregular shape are random. The same arguments give the same result. Only the
    pixels in the bounding box of the defect are computed, so the time depends on the size of the defect.

    Parameters
    ----------
    image : array of shape (height, width) or (height, width, n_channels)
        Grey (1 channel), RGB (3) or RGBA (4) image of dtype uint8, uint16 or float. Alpha is not changed.
    kind : {"scratch", "blob", "stain", "foreign", "missing", "shift", "crack", "misplaced", "warped", "rough", "worn"}
        Kind of the defect:

        - ``"scratch"``: a thin, slightly curved, dark or light line. It is 15 to 40 % of the image's shorter side long.
        - ``"blob"``: a spot of dark or light material with an irregular edge, e.g. a drop of paint or a crumb.
        - ``"stain"``: a dark spot with a soft edge, through which the surface is visible. On a dark surface, it
          is light.
        - ``"foreign"``: a spot with another texture, of the same mean as the surface. The texture is fibrous noise, so
          no other image is needed.
        - ``"missing"``: a flat polygon with sharp edges, e.g. a chipped piece. Its colour is that of the image's border
          (the background of the part), or nearly black if the border looks like the surface.
        - ``"shift"``: a spot in which the colour is shifted. In grey images, the texture is faded and the brightness is
          shifted.
        - ``"crack"``: a thin line as ``"scratch"``, darker or brighter than the surface. The difference scales with the
          variation of the surface around it.
        - ``"misplaced"``: a piece of the same image from another place, turned and possibly mirrored.
        - ``"warped"``: a spot in which the surface is displaced, e.g. a dent.
        - ``"rough"``: a spot with additional grain, which scales with the variation of the surface.
        - ``"worn"``: a spot in which the surface is blurred.

        ``DEFECT_KINDS`` contains the first six kinds. ``SURFACE_KINDS`` contains the other five, which are made from
        the surface of the part itself.
    size : float
        Size in pixels: the width of a scratch or a crack, measured at half opacity, and the diameter of all other
        kinds. The diameter of an irregular shape is that of the circle with the same area.
    contrast : float in (0, 1], default=0.6
        Strength of the defect. With 1, the surface is replaced by the defect; with 0.3, each pixel changes by 30 % of
        the difference between the surface and the defect.
    region : array of shape (height, width), bool, or None, default=None
        Region of interest: no pixel outside the region is changed. The position is chosen such that the defect lies
        completely inside the region, if one of 32 random positions allows this. None means the complete image.
    value_range : (float, float) or None, default=None
        Values of black and white. None means 0 and the largest value of an unsigned dtype, or (0, 1) for floats.
    random_state : int, sequence of int or numpy Generator, default=0
        Seed of ``numpy.random.default_rng``, or a generator.

    Returns
    -------
    image : array of the shape and dtype of `image`
        The image with the defect.
    mask : array of shape (height, width), bool
        True for the pixels of the defect inside the region.

    Raises
    ------
    ValueError
        If the image has another shape or dtype, if `kind` is unknown, if `size` or `contrast` is out of its range, or
        if `region` has another size than the image or is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.datasets import draw_defect
    >>> surface = np.full((64, 96), 128, np.uint8)
    >>> image, mask = draw_defect(surface, "blob", 12, random_state=0)
    >>> image.shape, image.dtype, bool((image != surface)[mask].all())
    ((64, 96), dtype('uint8'), True)
    >>> round(float(2 * np.sqrt(mask.sum() / np.pi)))
    12
    """
    pixels = _checked(image, kind, size, contrast, region)
    low, high = black_and_white(pixels.dtype, value_range)
    rng = np.random.default_rng(random_state)
    shape = _shape_of(kind, size, min(pixels.shape[:2]), rng)
    top, left = _placed(shape, pixels.shape[:2], region, rng)
    # The part of the shape that lies in the image.
    rows = slice(max(0, top), min(pixels.shape[0], top + shape.mask.shape[0]))
    columns = slice(max(0, left), min(pixels.shape[1], left + shape.mask.shape[1]))
    inner = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    cover, inside = shape.cover[inner], shape.mask[inner]
    if region is not None:
        allowed = np.asarray(region, bool)[rows, columns]
        cover, inside = cover * allowed, inside & allowed
    mask = np.zeros(pixels.shape[:2], bool)
    mask[rows, columns] = inside
    result = pixels.copy()
    target = result[rows, columns, :3] if pixels.shape[2] > 2 else result[rows, columns]

    def crop(some_rows: slice, some_columns: slice) -> np.ndarray:
        part = pixels[some_rows, some_columns]
        part = part[:, :, :3] if part.shape[2] > 2 else part
        scaled: np.ndarray = (part.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        return scaled

    surface = crop(rows, columns)
    if kind in SURFACE_KINDS:
        ink: Any = surface_ink(kind, crop, (pixels.shape[0], pixels.shape[1]), (rows, columns), size, rng)
    else:
        ink = _ink(kind, surface, cover, _border_of(pixels, low, high) if kind == "missing" else None, rng)
    # An opacity that changes no grey value is cut off, so that distant pixels stay exactly as they are.
    is_changed = cover >= 1e-3
    ink = np.broadcast_to(np.asarray(ink, np.float32), surface.shape)[is_changed]
    drawn = blended(surface[is_changed], np.float32(contrast) * cover[is_changed][:, None], ink)
    drawn = drawn.clip(0, 1) * np.float32(high - low) + np.float32(low)
    target[is_changed] = drawn if pixels.dtype.kind == "f" else np.rint(drawn)
    return result.reshape(np.shape(image)), mask


def _checked(image: Any, kind: str, size: float, contrast: float, region: Any) -> np.ndarray:
    """Return the image with a channel axis, after a check of all arguments."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(
            f"the image has shape {np.shape(image)}: expected (height, width) or (height, width, 1, 3 or 4)."
        )
    if pixels.dtype.kind not in "uf":
        raise ValueError(f"the image has dtype {pixels.dtype}: expected uint8, uint16 or float.")
    if kind not in DEFECT_SIZES:
        raise ValueError(f"kind={kind!r}: expected one of {list(DEFECT_SIZES)}.")
    if not 0 < size < np.inf:
        raise ValueError(f"size={size!r}: expected a positive number of pixels.")
    if not 0 < contrast <= 1:
        raise ValueError(f"contrast={contrast!r}: expected a number in (0, 1].")
    if region is not None:
        if np.shape(region) != pixels.shape[:2]:
            raise ValueError(f"region has shape {np.shape(region)}, but the image has shape {pixels.shape[:2]}.")
        if not np.any(region):
            raise ValueError("region is empty: it has no True pixel.")
    return pixels


def black_and_white(dtype: np.dtype, value_range: tuple[float, float] | None) -> tuple[float, float]:
    """Return the stored values of black and white; `value_range` if it is given."""
    if value_range is not None:
        return float(value_range[0]), float(value_range[1])
    return 0.0, 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


def _shape_of(kind: str, size: float, shorter_side: int, rng: np.random.Generator) -> Shape:
    if kind in ("scratch", "crack"):
        # at least six times as long as wide, so that it is a line
        length = max(rng.uniform(0.15, 0.4) * shorter_side, 6 * size)
        return curved_line(size, length, 0.4, rng)
    if kind == "missing":
        return polygon(size, 0.4, rng)
    share, least = _SOFTNESS[kind]
    return round_spot(size, share * size + least, rng)


def _placed(
    shape: Shape, image_size: tuple[int, ...], region: np.ndarray | None, rng: np.random.Generator
) -> tuple[int, int]:
    """Return the top and left of the shape's bounding box; the box lies in the image if it fits."""
    box, space = np.array(shape.mask.shape), np.array(image_size[:2])
    room = space - box
    if region is None:
        place = np.where(room > 0, rng.integers(0, np.maximum(room, 0) + 1), room // 2)
        return int(place[0]), int(place[1])
    allowed = np.asarray(region, bool)
    centres = rng.choice(np.flatnonzero(allowed), _N_TRIES)
    best, most = (0, 0), -1.0
    for centre in centres:
        place = np.array(divmod(int(centre), int(space[1]))) - box // 2
        place = np.where(room > 0, place.clip(0, np.maximum(room, 0)), room // 2)
        start, stop = np.maximum(place, 0), np.minimum(place + box, space)
        part = shape.mask[start[0] - place[0] : stop[0] - place[0], start[1] - place[1] : stop[1] - place[1]]
        inside = float(allowed[start[0] : stop[0], start[1] : stop[1]][part].sum())
        if inside > most:
            best, most = (int(place[0]), int(place[1])), inside
        if most == shape.mask.sum():
            break
    return best


def _border_of(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the median colour of the outermost pixels of an image, in [0, 1]."""
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    colors = np.concatenate(edges)[:, : 3 if pixels.shape[2] > 2 else 1]
    median: np.ndarray = (np.median(colors, axis=0) - low) / (high - low)
    return median


def _ink(kind: str, surface: np.ndarray, cover: np.ndarray, border: np.ndarray | None, rng: np.random.Generator) -> Any:
    """Return the defect's material for each pixel of the bounding box, in [0, 1], with the channels of the surface."""
    from scipy.ndimage import gaussian_filter

    weight = cover[..., None] / max(float(cover.sum()), 1e-12)
    mean = (surface * weight).sum(axis=(0, 1))
    brightness = float(mean.mean())
    n_channels = surface.shape[2]
    if kind == "scratch":
        return _contrasting(brightness, rng)
    if kind == "blob":
        tint = rng.uniform(-0.04, 0.04, n_channels)
        grain = gaussian_filter(_noise(cover.shape, rng) * 0.12, 1.2, truncate=2.5)[..., None]
        return (_contrasting(brightness, rng) + tint + grain).clip(0, 1)
    if kind == "stain":
        return 0.0 if brightness > 0.2 else 1.0
    if kind == "foreign":
        deviation = max(float(surface.std(axis=(0, 1)).mean()), _LEAST_DEVIATION)
        fibres = gaussian_filter(_noise(cover.shape, rng), (0.8, 4) if rng.random() < 0.5 else (4, 0.8), truncate=3)
        mean = mean.clip(deviation, 1 - deviation)  # so that the texture is visible on black and white surfaces
        return (mean + (fibres / (fibres.std() or 1) * deviation)[..., None]).clip(0, 1)
    if kind == "missing":
        assert border is not None
        is_background = np.abs(border - mean).max() > _LEAST_DIFFERENCE
        dark_or_light = _DARK if brightness > _DARK + _LEAST_DIFFERENCE else _LIGHT
        return border if is_background else np.full(n_channels, dark_or_light)
    sign = float(rng.choice([-1.0, 1.0]))
    if n_channels == 1:
        return (mean + 0.25 * (sign if 0.25 < brightness < 0.75 else np.sign(0.5 - brightness))).clip(0, 1)
    # The gains of the channels have the mean 1: the colour changes more than the brightness.
    gains = sign * rng.permutation([-0.5, 0.0, 0.5])
    return (surface * (1 + gains)).clip(0, 1)


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return Gaussian noise with the standard deviation 1."""
    noise: np.ndarray = rng.standard_normal(shape, np.float32)
    return noise


def _contrasting(brightness: float, rng: np.random.Generator) -> float:
    """Return dark or light ink at random, but never ink that looks like the surface."""
    ink = float(rng.choice([_DARK, _LIGHT]))
    return ink if abs(ink - brightness) >= _LEAST_DIFFERENCE else _DARK + _LIGHT - ink
