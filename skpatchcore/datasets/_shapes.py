"""Opacities of the shapes of drawn defects: soft edges, round spots, polygons and curved lines."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Number of directions in which the outline of a shape is stored.
_N_ANGLES = 1024


class Shape(NamedTuple):
    """A shape in its bounding box.

    Attributes
    ----------
    cover : array of shape (height, width)
        Opacity of each pixel, from 0 to 1.
    mask : array of shape (height, width), bool
        True inside the outline.
    """

    cover: np.ndarray
    mask: np.ndarray


def soft_edge(distance: np.ndarray, radius: float, softness: float) -> np.ndarray:
    """Return the opacity, from 0 to 1, of points at a distance from the centre (or the middle line) of a shape.

    Parameters
    ----------
    distance : array
        Distances in pixels.
    radius : float
        Distance in pixels at which the opacity is 0.5.
    softness : float
        Width of the edge in pixels: from `radius` - `softness` to `radius` + `softness`, the opacity falls from 0.73
        to 0.27.
    """
    cover: np.ndarray = 1 / (1 + np.exp(((distance - radius) / softness).clip(-30, 30)))
    return cover


def blended(image: np.ndarray, cover: np.ndarray, ink: np.ndarray | float) -> np.ndarray:
    """Return ``image + cover * (ink - image)``: the image where the opacity is 0, and the ink where it is 1."""
    result: np.ndarray = image + cover * (ink - image)
    return result


def round_spot(diameter: float, softness: float, rng: np.random.Generator) -> Shape:
    """Return a round shape with an irregular edge; its area is that of a circle with this diameter, in pixels."""
    angles = np.linspace(0, 2 * np.pi, _N_ANGLES, endpoint=False)
    waves = np.arange(2, 7)[:, None]
    heights = rng.uniform(-0.12, 0.12, (5, 1)) * (2 / waves) ** 0.5
    outline = 1 + (heights * np.cos(waves * angles + rng.uniform(0, 2 * np.pi, (5, 1)))).sum(axis=0)
    return _star(outline, diameter, softness, rng)


def polygon(diameter: float, softness: float, rng: np.random.Generator) -> Shape:
    """Return a polygon with five to seven corners; its area is that of a circle with this diameter, in pixels."""
    n = int(rng.integers(5, 8))
    corners = np.concatenate([[0.0], np.arange(1, n) + rng.uniform(-0.3, 0.3, n - 1)]) * 2 * np.pi / n
    radii = rng.uniform(0.75, 1.1, n)
    angles = np.linspace(0, 2 * np.pi, _N_ANGLES, endpoint=False)
    # The side from corner i to the next corner, as a radius that depends on the angle.
    i = (np.searchsorted(corners, angles, side="right") - 1) % n
    following = (i + 1) % n
    before, after = (angles - corners[i]) % (2 * np.pi), (corners[following] - angles) % (2 * np.pi)
    first, second = radii[i], radii[following]
    outline = first * second * np.sin(before + after) / (first * np.sin(before) + second * np.sin(after))
    return _star(np.roll(outline, int(rng.integers(_N_ANGLES))), diameter, softness, rng)


def _star(outline: np.ndarray, diameter: float, softness: float, rng: np.random.Generator) -> Shape:
    """Return the shape with an outline given as radii at equal steps of the angle, scaled to the area of a circle."""
    radius = diameter / 2
    radii = outline * radius / np.sqrt(np.mean(outline**2))
    half = int(np.ceil(radii.max() + 4 * softness)) + 1
    shift = rng.random(2) - 0.5  # the centre lies anywhere in its pixel
    steps = np.arange(-half, half + 1, dtype=np.float32)
    y, x = steps[:, None] + np.float32(shift[0]), steps + np.float32(shift[1])
    direction = (np.arctan2(y, x) * (_N_ANGLES / (2 * np.pi))).astype(np.intp) % _N_ANGLES
    distance = np.hypot(y, x) - radii.astype(np.float32)[direction]
    return _shape_of(distance, 0.0, softness)


def curved_line(width: float, length: float, softness: float, rng: np.random.Generator) -> Shape:
    """Return a slightly curved line with round ends; width and length in pixels."""
    angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.15, 0.15) * length
    along, across = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    corners = np.array([a * along + b * across for a in (-length / 2, length / 2) for b in (0.0, bend)])
    margin = width / 2 + 4 * softness + 1
    low, high = np.floor(corners.min(axis=0) - margin), np.ceil(corners.max(axis=0) + margin)
    y, x = (np.arange(first, last + 1, dtype=np.float32) for first, last in zip(low, high, strict=True))
    u, v = (np.float32(axis[0]) * y[:, None] + np.float32(axis[1]) * x for axis in (along, across))
    # The middle line is the parabola v = 4 bend t (1 - t). Its distance is that of its tangent, to first order.
    t = (u / length + 0.5).clip(0, 1)
    gap = (v - 4 * bend * t * (1 - t)) / np.hypot(1, 4 * bend * (1 - 2 * t) / length)
    distance = np.hypot(gap, u - (t - 0.5) * length)
    return _shape_of(distance, width / 2, softness)


def _shape_of(distance: np.ndarray, radius: float, softness: float) -> Shape:
    """Return the shape of the points nearer than `radius`. At least the nearest pixel is inside."""
    return Shape(soft_edge(distance, radius, softness), distance <= max(radius, float(distance.min())))
