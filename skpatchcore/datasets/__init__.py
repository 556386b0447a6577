"""Images to learn from and to judge: on disk, made, or fetched."""

from skpatchcore.datasets.fetching import fetch_btad, fetch_mvtec_ad, fetch_visa
from skpatchcore.datasets.folders import ImageFolder, list_images, load_categories, load_image_folder, read_mask
from skpatchcore.datasets.textures import TEXTURES, TextureTask, make_textures

__all__ = [
    "TEXTURES",
    "ImageFolder",
    "TextureTask",
    "fetch_btad",
    "fetch_mvtec_ad",
    "fetch_visa",
    "list_images",
    "load_categories",
    "load_image_folder",
    "make_textures",
    "read_mask",
]
