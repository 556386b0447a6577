"""Small data sets for examples and tests: :func:`make_textures` draws defects on photographs of textures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from skpatchcore.datasets._shapes import blended, soft_edge


@dataclass(frozen=True)
class TextureTask:
    """Small data set for examples and tests, created by :func:`make_textures`.

    Attributes
    ----------
    train_images : array of shape (n_train, 128, 128, 1), uint8
        Training images. All of them show a good surface.
    train_groups : array of shape (n_train,), int
        Group of each training image. Images with the same number show the same piece of the surface. Pass this array as
        `groups` to ``fit``: calibration then never compares an image with other images of the same piece.
    test_images : array of shape (n_test, 128, 128, 1), uint8
        Test images of good and defective surfaces. The test images show other pieces than the training images.
    test_labels : array of shape (n_test,), int
        +1 for good images, -1 for defective images.
    test_defects : array of shape (n_test,), str
        ``"good"`` for good images. For defective images, the kind of defect: ``"scratch"``, ``"blob"`` (small opaque
        spot), ``"stain"`` (large dark spot) or ``"foreign"`` (spot with another texture).
    test_masks : array of shape (n_test, 128, 128), bool
        Mask of each test image: True for defective pixels, False for all other pixels.
    """

    train_images: np.ndarray
    train_groups: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    test_defects: np.ndarray
    test_masks: np.ndarray


TEXTURES = ("brick", "grass", "gravel")
_TILE = 128
_TEST_TILES = (1, 7, 8, 14)  # one tile in each row and each column of the 4 x 4 grid
_DEFECTS = ("scratch", "blob", "stain", "foreign")


def make_textures(texture: str = "brick", *, n_views: int = 8, random_state: int = 0) -> TextureTask:
    """Make a small data set for examples and tests: photographs of a texture, some of them with drawn defects.

    The photograph is part of the package scikit-image, which must be installed. Nothing is downloaded.

    The photograph is cut into 16 pieces without overlap: 12 for training and 4 for testing. The test pieces are spread
    over the photograph. Several images are made from each piece. Each image shows the piece in one of several
    orientations (as it is, mirrored or turned), and has its own illumination and sensor noise. Each test piece has four
    good images, and two images with each of the four kinds of defect. The defects are drawn on the test images.

    Parameters
    ----------
    texture : {"brick", "grass", "gravel"}, default="brick"
        Name of the texture.
    n_views : int, default=8
        Number of training images that are made from each training piece.
    random_state : int, default=0
        Seed for the orientations, illuminations, noise and defects.

    Returns
    -------
    TextureTask
        The training images with their groups, and the test images with their labels, kinds of defects and masks.

    Raises
    ------
    ValueError
        If `texture` is not one of the three names.

    Examples
    --------
    >>> from skpatchcore.datasets import make_textures
    >>> task = make_textures("gravel")
    >>> task.train_images.shape, task.test_images.shape
    ((96, 128, 128, 1), (48, 128, 128, 1))
    """
    import skimage.data

    if texture not in TEXTURES:
        raise ValueError(f"texture={texture!r}: expected one of {list(TEXTURES)}.")
    rng = np.random.default_rng([random_state, TEXTURES.index(texture)])
    tiles = {name: _tiles(getattr(skimage.data, name)()) for name in TEXTURES}
    own = tiles[texture]
    others = np.concatenate([tiles[name] for name in TEXTURES if name != texture])
    train_tiles = np.setdiff1d(np.arange(16), _TEST_TILES)
    kinds = np.repeat(["good"] * 4 + [*_DEFECTS] * 2, len(_TEST_TILES))
    # Rows of bricks stay horizontal: only orientations 0 to 3. Grass and gravel have no preferred direction.
    n_turns = 4 if texture == "brick" else 8
    images, masks = [], []
    for tile, kind in zip(np.resize(_TEST_TILES, len(kinds)), kinds, strict=True):
        image, mask = own[tile], np.zeros((_TILE, _TILE), bool)
        if kind != "good":
            image, mask = _add_defect(image, kind, others[rng.integers(len(others))], rng)
        turn = int(rng.integers(n_turns))
        images.append(_photograph(_turn(image, turn), rng))
        masks.append(_turn(mask, turn))
    return TextureTask(
        np.stack([_photograph(_turn(own[tile], v % n_turns), rng) for tile in train_tiles for v in range(n_views)]),
        np.repeat(train_tiles, n_views),
        np.stack(images),
        np.where(kinds == "good", 1, -1),
        kinds.astype(object),
        np.stack(masks),
    )


def _tiles(photograph: np.ndarray) -> np.ndarray:
    """Cut an image of 512 x 512 pixels into 16 tiles of floats in [0, 1]; return shape (16, 128, 128)."""
    return (photograph / 255.0).reshape(4, _TILE, 4, _TILE).swapaxes(1, 2).reshape(16, _TILE, _TILE)


def _turn(image: np.ndarray, number: int) -> np.ndarray:
    """Return the image in one of its eight orientations; orientations 0 to 3 keep horizontal lines horizontal."""
    image = image[:: -1 if number & 1 else 1, :: -1 if number & 2 else 1]
    return image.T if number & 4 else image


def _photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image with random illumination and sensor noise, as uint8 of shape (128, 128, 1)."""
    y, x = np.mgrid[-1 : 1 : _TILE * 1j, -1 : 1 : _TILE * 1j]
    light = rng.uniform(0.92, 1.08) + rng.uniform(-0.04, 0.04) * x + rng.uniform(-0.04, 0.04) * y
    noisy = image * light + rng.normal(0, 0.012, image.shape)
    tile: np.ndarray = (noisy.clip(0, 1) * 255).round().astype(np.uint8)[:, :, None]
    return tile


def _add_defect(
    image: np.ndarray, kind: str, other: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image with one defect, and the mask of the defect."""
    if kind == "scratch":
        cover = _scratch(rng)
        ink = np.full_like(image, rng.choice([0.05, 0.95]))
        return blended(image, cover * rng.uniform(0.6, 0.9), ink), cover > 0.3
    if kind == "blob":
        cover = _splash(rng, radius=rng.uniform(5, 11), softness=0.8)
        ink = gaussian_filter(rng.normal(0, 0.05, image.shape), 1.5) + rng.choice([0.08, 0.9])
        return blended(image, cover, ink), cover > 0.5
    if kind == "stain":
        cover = _splash(rng, radius=rng.uniform(14, 26), softness=4.0)
        return image * (1 - rng.uniform(0.35, 0.55) * cover), cover > 0.5
    cover = _splash(rng, radius=rng.uniform(12, 22), softness=1.5)
    # Adjust the other texture to the brightness and contrast of the image, so that only the texture differs.
    foreign = (other - other.mean()) / other.std() * image.std() + image.mean()
    return blended(image, cover, foreign), cover > 0.5


def _center(rng: np.random.Generator, margin: float) -> np.ndarray:
    """Return a random position (row, column) at least `margin` pixels from the border of the tile."""
    return rng.uniform(margin, _TILE - margin, 2)


def _splash(rng: np.random.Generator, radius: float, softness: float) -> np.ndarray:
    """Return the opacity, from 0 to 1, of a round shape with an irregular edge."""
    y, x = np.mgrid[:_TILE, :_TILE]
    center = _center(rng, radius + 4)
    bumps = gaussian_filter(rng.normal(0, 1, (_TILE, _TILE)), radius / 2.5)
    bumps *= 0.3 * radius / bumps.std()
    return soft_edge(np.hypot(y - center[0], x - center[1]) + bumps, radius, softness)


def _scratch(rng: np.random.Generator) -> np.ndarray:
    """Return the opacity, from 0 to 1, of a thin curved line."""
    angle, length = rng.uniform(0, np.pi), rng.uniform(35, 75)
    direction = np.array([np.sin(angle), np.cos(angle)])
    start = _center(rng, 45) - direction * length / 2
    bend = rng.uniform(-10, 10) * direction[::-1] * [1, -1]
    t = np.linspace(0, 1, 300)[:, None]
    points = start + t * length * direction + 4 * t * (1 - t) * bend
    y, x = np.mgrid[:_TILE, :_TILE]
    distance = np.min([np.hypot(y - py, x - px) for py, px in points], axis=0)
    return soft_edge(distance, rng.uniform(0.8, 1.6), 0.4)
