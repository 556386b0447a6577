"""Images on disk in the layout of MVTec AD, and a small inspection task that needs no data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}


def list_images(directory: str | os.PathLike) -> list[str]:
    """Return the paths of all images below a directory, sorted.

    Parameters
    ----------
    directory : path
        Where to look; folders below it are searched too, hidden ones left out.

    Returns
    -------
    list of str

    Raises
    ------
    NotADirectoryError
        If there is no such directory.
    FileNotFoundError
        If it holds no image.

    Examples
    --------
    >>> from skpatchcore import list_images
    >>> list_images("no/such/place")
    Traceback (most recent call last):
    NotADirectoryError: there is no directory 'no/such/place'.
    """
    top = Path(directory)
    if not top.is_dir():
        raise NotADirectoryError(f"there is no directory {os.fspath(directory)!r}.")
    paths = sorted(
        str(path)
        for path in top.rglob("*")
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(top).parts)
    )
    if not paths:
        raise FileNotFoundError(f"{os.fspath(directory)!r} holds no image ({', '.join(sorted(_SUFFIXES))}).")
    return paths


@dataclass(frozen=True)
class ImageFolder:
    """A data set in the layout of MVTec AD.

    Attributes
    ----------
    train_paths : array of str
        Images of good parts to learn from.
    test_paths : array of str
        Images to judge.
    test_labels : array of int
        +1 good, -1 defective, as `predict` has it.
    test_defects : array of str
        Kind of defect, ``"good"`` for none.
    test_masks : array of (str or None)
        Path of the mask of defective pixels; None for good images and where there are no masks.
    """

    train_paths: np.ndarray
    test_paths: np.ndarray
    test_labels: np.ndarray
    test_defects: np.ndarray
    test_masks: np.ndarray

    def to_frame(self) -> pd.DataFrame:
        """Return one row an image: path, split, label, defect, mask."""
        n_train, n_test = len(self.train_paths), len(self.test_paths)
        return pd.DataFrame(
            {
                "path": np.concatenate([self.train_paths, self.test_paths]),
                "split": ["train"] * n_train + ["test"] * n_test,
                "label": np.concatenate([np.ones(n_train, int), self.test_labels]),
                "defect": np.concatenate([np.full(n_train, "good", object), self.test_defects]),
                "mask": np.concatenate([np.full(n_train, None, object), self.test_masks]),
            }
        )


def load_image_folder(root: str | os.PathLike) -> ImageFolder:
    """Find the images of a data set in the layout of MVTec AD; reads none of them.

    Parameters
    ----------
    root : path
        A folder with ``train/good``, ``test/good``, ``test/<defect>`` and, where there are masks,
        ``ground_truth/<defect>/<stem>_mask.png`` (or ``<stem>.png``).

    Returns
    -------
    ImageFolder

    Raises
    ------
    FileNotFoundError
        If a part of the layout is missing; the error names it.

    Notes
    -----
    The layout is that of Bergmann et al., "MVTec AD", CVPR 2019, which other data sets follow.
    """
    top = Path(root)
    for part in ("train/good", "test"):
        if not (top / part).is_dir():
            raise FileNotFoundError(f"{os.fspath(root)!r} has no folder {part!r}: expected the layout of MVTec AD.")
    train = list_images(top / "train" / "good")
    paths: list[str] = []
    defects: list[str] = []
    masks: list[str | None] = []
    for folder in sorted(path for path in (top / "test").iterdir() if path.is_dir()):
        for path in list_images(folder):
            paths.append(path)
            defects.append(folder.name)
            masks.append(None if folder.name == "good" else _find_mask(top, folder.name, Path(path)))
    if not paths:
        raise FileNotFoundError(f"{os.fspath(top / 'test')!r} has no folders of images.")
    kinds = np.array(defects, object)
    return ImageFolder(
        np.array(train, object),
        np.array(paths, object),
        np.where(kinds == "good", 1, -1),
        kinds,
        np.array(masks, object),
    )


def read_mask(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """Return which pixels of an image are defective.

    Parameters
    ----------
    mask : array of shape (height, width), path or None
        True (or non-zero) where a pixel is defective; a file's pixels are where they are brighter than half. None: the
        image is good.
    size : (int, int)
        Height and width of the image.

    Returns
    -------
    array of shape (height, width), bool

    Raises
    ------
    ValueError
        If the mask is not of that size.
    FileNotFoundError
        If there is no such file.
    """
    if mask is None:
        return np.zeros(size, bool)
    if isinstance(mask, str | os.PathLike):
        with Image.open(mask) as file:
            pixels = np.asarray(file.convert("L"))
        # some data sets write 1 for True
        pixels = pixels > (127 if pixels.max(initial=0) > 1 else 0)
    else:
        pixels = np.asarray(mask) != 0
    if pixels.shape != tuple(size):
        name = f" {os.fspath(mask)!r}" if isinstance(mask, str | os.PathLike) else ""
        raise ValueError(f"the mask{name} has shape {pixels.shape}, the image {tuple(size)}.")
    return pixels


def _find_mask(top: Path, defect: str, image: Path) -> str | None:
    folder = top / "ground_truth" / defect
    if not (top / "ground_truth").is_dir():
        return None
    for name in (f"{image.stem}_mask.png", f"{image.stem}.png"):
        if (folder / name).is_file():
            return str(folder / name)
    raise FileNotFoundError(f"no mask for {str(image)!r}: {str(folder / image.stem)!r}_mask.png is missing.")


@dataclass(frozen=True)
class TextureTask:
    """A small inspection task, as made by :func:`make_textures`.

    Attributes
    ----------
    train_images : array of shape (n_train, 128, 128, 1), uint8
        Photographs of good surface.
    train_groups : array of shape (n_train,), int
        Which piece of surface each shows.
    test_images : array of shape (n_test, 128, 128, 1), uint8
        Good and defective surface, of other pieces.
    test_labels : array of shape (n_test,), int
        +1 good, -1 defective.
    test_defects : array of str
        ``"good"``, ``"scratch"``, ``"blob"``, ``"stain"`` or ``"foreign"``.
    test_masks : array of shape (n_test, 128, 128), bool
        True where defective.
    """

    train_images: np.ndarray
    train_groups: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    test_defects: np.ndarray
    test_masks: np.ndarray


TEXTURES = ("brick", "grass", "gravel")
_TILE = 128
_TEST_TILES = (1, 7, 8, 14)  # one in each row and in each column
_DEFECTS = ("scratch", "blob", "stain", "foreign")


def make_textures(texture: str = "brick", *, n_views: int = 8, random_state: int = 0) -> TextureTask:
    """Make an inspection task from a real texture of scikit-image, with synthetic defects; needs no download.

    The photograph is cut into 16 pieces that share no pixel: 12 to learn from and 4 to judge, spread over the surface.
    Each view of a piece is mirrored or turned in another way, with its own light and sensor noise. Every test piece
    appears good four times and with each kind of defect twice.

    Parameters
    ----------
    texture : {"brick", "grass", "gravel"}, default="brick"
        The surface.
    n_views : int, default=8
        Views of each piece for training.
    random_state : int, default=0
        Seed of views and defects.

    Returns
    -------
    TextureTask

    Raises
    ------
    ValueError
        If there is no such texture.

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
    # Courses of bricks stay level; grass and gravel have no upright.
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
    """Cut 512×512 pixels into 16 tiles, floats in [0, 1]."""
    return (photograph / 255.0).reshape(4, _TILE, 4, _TILE).swapaxes(1, 2).reshape(16, _TILE, _TILE)


def _turn(image: np.ndarray, number: int) -> np.ndarray:
    """Return one of the eight ways to lay a square down: 0 to 3 keep horizontal lines horizontal."""
    image = image[:: -1 if number & 1 else 1, :: -1 if number & 2 else 1]
    return image.T if number & 4 else image


def _photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the surface under light of its own strength and direction, with sensor noise, as uint8 (128, 128, 1)."""
    y, x = np.mgrid[-1 : 1 : _TILE * 1j, -1 : 1 : _TILE * 1j]
    light = rng.uniform(0.92, 1.08) + rng.uniform(-0.04, 0.04) * x + rng.uniform(-0.04, 0.04) * y
    noisy = image * light + rng.normal(0, 0.012, image.shape)
    return (noisy.clip(0, 1) * 255).round().astype(np.uint8)[:, :, None]


def _add_defect(
    image: np.ndarray, kind: str, other: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image with one defect, and its mask."""
    if kind == "scratch":
        cover = _scratch(rng)
        ink = np.full_like(image, rng.choice([0.05, 0.95]))
        return image + cover * rng.uniform(0.6, 0.9) * (ink - image), cover > 0.3
    if kind == "blob":
        cover = _splash(rng, radius=rng.uniform(5, 11), softness=0.8)
        ink = gaussian_filter(rng.normal(0, 0.05, image.shape), 1.5) + rng.choice([0.08, 0.9])
        return image + cover * (ink - image), cover > 0.5
    if kind == "stain":
        cover = _splash(rng, radius=rng.uniform(14, 26), softness=4.0)
        return image * (1 - rng.uniform(0.35, 0.55) * cover), cover > 0.5
    cover = _splash(rng, radius=rng.uniform(12, 22), softness=1.5)
    # brought to the surface's brightness and contrast: only the texture is foreign
    foreign = (other - other.mean()) / other.std() * image.std() + image.mean()
    return image + cover * (foreign - image), cover > 0.5


def _center(rng: np.random.Generator, margin: float) -> np.ndarray:
    return rng.uniform(margin, _TILE - margin, 2)


def _splash(rng: np.random.Generator, radius: float, softness: float) -> np.ndarray:
    """Return the cover, 0 to 1, of a round shape with an irregular edge."""
    y, x = np.mgrid[:_TILE, :_TILE]
    center = _center(rng, radius + 4)
    bumps = gaussian_filter(rng.normal(0, 1, (_TILE, _TILE)), radius / 2.5)
    bumps *= 0.3 * radius / bumps.std()
    distance = np.hypot(y - center[0], x - center[1]) + bumps
    return 1 / (1 + np.exp(((distance - radius) / softness).clip(-30, 30)))


def _scratch(rng: np.random.Generator) -> np.ndarray:
    """Return the cover, 0 to 1, of a thin bent line."""
    angle, length = rng.uniform(0, np.pi), rng.uniform(35, 75)
    direction = np.array([np.sin(angle), np.cos(angle)])
    start = _center(rng, 45) - direction * length / 2
    bend = rng.uniform(-10, 10) * direction[::-1] * [1, -1]
    t = np.linspace(0, 1, 300)[:, None]
    points = start + t * length * direction + 4 * t * (1 - t) * bend
    y, x = np.mgrid[:_TILE, :_TILE]
    distance = np.min([np.hypot(y - py, x - px) for py, px in points], axis=0)
    return 1 / (1 + np.exp(((distance - rng.uniform(0.8, 1.6)) / 0.4).clip(-30, 30)))
