"""Data sets whose defects are the real defects of Magnetic Tile Defects, drawn on other surfaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates

from skpatchcore import load_image_folder

SIDE = 224


def metal_part(rng: np.random.Generator) -> np.ndarray:
    """Return a picture of a brushed metal part with teeth, engraved marks and a hole, turned at random; float32 RGB."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    centre = SIDE / 2 + rng.uniform(-6, 6, 2)
    radius, direction = np.hypot(y - centre[0], x - centre[1]), np.arctan2(y - centre[0], x - centre[1])
    angle = direction + rng.uniform(0, 2 * np.pi)
    edge = SIDE * 0.38 * (1 + 0.10 * np.tanh(4 * np.cos(4 * angle)) + 0.01 * np.cos(9 * angle))
    body = 1 / (1 + np.exp(radius - edge)) * (1 - 1 / (1 + np.exp(radius - SIDE * 0.11)))
    noise = gaussian_filter(rng.standard_normal((96, 720)), (0.6, 14), mode="wrap")
    place = [(radius / (SIDE * 0.5) * 95).clip(0, 95), angle % (2 * np.pi) / (2 * np.pi) * 719]
    brushed = map_coordinates(noise / noise.std(), place, order=1, mode="wrap")
    light = rng.uniform(0, 2 * np.pi)
    shade = 0.10 * np.cos(angle - light) * radius / (SIDE * 0.4) + 0.05 * np.cos(2 * (direction - light))
    ring = 0.15 * np.exp(-(((radius - SIDE * 0.2) / 2) ** 2))
    fine = gaussian_filter(rng.standard_normal((SIDE, SIDE)), 0.6) * 0.02
    image = 0.12 + body * (0.45 + 0.07 * brushed + shade - ring + fine) * rng.uniform(0.93, 1.07)
    for k in range(4):
        turned = np.abs((angle - k * np.pi / 2 + 1.25 * np.pi) % (2 * np.pi) - np.pi)
        image -= 0.18 * gaussian_filter(((turned * radius < 5) & (np.abs(radius - SIDE * 0.29) < 7)) * 1.0, 0.7)
    image = gaussian_filter(image, 0.5) + rng.standard_normal((SIDE, SIDE)) * 0.008
    return (image[..., None] * np.array([1.0, 0.98, 0.93])).clip(0, 1).astype(np.float32)


def smooth_surface(rng: np.random.Generator) -> np.ndarray:
    """Return a picture of a smooth grey surface with faint clouds, spots and streaks; float32 RGB."""

    def noise(sigma: float) -> np.ndarray:
        drawn = gaussian_filter(rng.standard_normal((SIDE, SIDE)), sigma, mode="wrap")
        return np.asarray(drawn / drawn.std())

    image = 0.6 + 0.02 * noise(40) + 0.015 * noise(12) + 0.012 * noise(3) + 0.012 * noise(0.8)
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(rng.integers(0, 6)):
        top, left, tall, wide = *rng.uniform(0, SIDE, 2), rng.uniform(1, 3), rng.uniform(1, 12)
        image += rng.uniform(-0.08, 0.06) * np.exp(-(((y - top) / tall) ** 2) - ((x - left) / wide) ** 2)
    return np.repeat(image[..., None], 3, axis=2).clip(0, 1).astype(np.float32)


def transplanted(
    good: list[np.ndarray],
    mtd: Path,
    kinds: tuple[str, ...],
    n: int,
    seed: int,
    scales: tuple[float, float],
    strengths: tuple[float, float],
    on_ring: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return images with a real defect of Magnetic Tile Defects each, and the masks.

    The difference of a defect from its surroundings, relative to their brightness, is resized by a random scale,
    multiplied by a random strength, and added to a good image.

    Parameters
    ----------
    good : list of arrays of shape (224, 224, 3)
        Good images; each may be used several times.
    mtd : path
        The data set.
    kinds : tuple of str
        Names of the defects that are used.
    n : int
        Number of images.
    seed : int
        Seed of the random choices.
    scales, strengths : (float, float)
        Ranges of the random scale and strength.
    on_ring : bool, default=False
        If True, the defects lie on a ring around the centre, instead of anywhere.
    """
    rng, folder = np.random.default_rng(seed), load_image_folder(mtd)
    usable = np.flatnonzero(np.isin(np.array(list(folder.test_defects), str), kinds))
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for i in rng.choice(usable, 20 * n):
        if len(images) == n:
            break
        pixels = np.asarray(Image.open(folder.test_paths[i]).convert("L"), np.float32) / 255
        mask = np.asarray(Image.open(folder.test_masks[i]).convert("L")) > 127
        if mask.sum() < 20:
            continue
        box = tuple(
            slice(max(0, int(places[0]) - 6), int(places[-1]) + 7)
            for places in (np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0)))
        )
        defect, inside = pixels[box], mask[box]
        around = float(np.median(defect[~inside])) if not inside.all() else float(defect.mean())
        scale = min(rng.uniform(*scales), 100 / max(defect.shape))
        size = max(3, int(defect.shape[1] * scale)), max(3, int(defect.shape[0] * scale))
        cover = gaussian_filter(binary_dilation(inside).astype(np.float32), 0.8)
        difference, cover = (np.asarray(Image.fromarray(a).resize(size, 2)) for a in (defect - around, cover))
        height, width = difference.shape
        if on_ring:
            angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.14, 0.34) * SIDE
            corner = [SIDE / 2 + distance * np.sin(angle) - height / 2, SIDE / 2 + distance * np.cos(angle) - width / 2]
            top, left = (int(np.clip(c, 0, SIDE - s)) for c, s in zip(corner, (height, width), strict=True))
        else:
            top, left = (int(rng.integers(0, SIDE - s + 1)) for s in (height, width))
        image, marked = good[int(rng.integers(len(good)))].copy(), np.zeros((SIDE, SIDE), bool)
        part = image[top : top + height, left : left + width]
        part += rng.uniform(*strengths) * (cover * difference)[..., None] * part.mean() / max(around, 0.1)
        marked[top : top + height, left : left + width] = cover > 0.5
        images.append(image.clip(0, 1))
        masks.append(marked)
    return images, masks
