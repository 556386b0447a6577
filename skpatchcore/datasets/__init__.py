"""Data sets: image folders on disk, synthetic texture tasks, and downloads of public data sets.

Names are imported on first use. Therefore image files can be listed without importing scipy or pandas.
"""

from typing import TYPE_CHECKING

from skpatchcore._utils.lazy import attach
from skpatchcore.images.masks import read_mask

if TYPE_CHECKING:
    from skpatchcore.datasets.defects import DEFECT_KINDS, SURFACE_KINDS, draw_defect
    from skpatchcore.datasets.fetching import fetch_btad, fetch_mvtec_ad, fetch_visa
    from skpatchcore.datasets.folders import ImageFolder, load_categories, load_image_folder
    from skpatchcore.datasets.layouts import LayoutError, list_test_images, list_training_images
    from skpatchcore.datasets.listing import list_images
    from skpatchcore.datasets.textures import TEXTURES, TextureTask, make_textures
    from skpatchcore.datasets.two_folders import load_two_folders
    from skpatchcore.datasets.video import JoinedVideos, VideoFile, VideoTask, load_video_task, video_frames

__all__ = [
    "DEFECT_KINDS",
    "SURFACE_KINDS",
    "TEXTURES",
    "ImageFolder",
    "JoinedVideos",
    "LayoutError",
    "TextureTask",
    "VideoFile",
    "VideoTask",
    "draw_defect",
    "fetch_btad",
    "fetch_mvtec_ad",
    "fetch_visa",
    "list_images",
    "list_test_images",
    "list_training_images",
    "load_categories",
    "load_image_folder",
    "load_two_folders",
    "load_video_task",
    "make_textures",
    "read_mask",
    "video_frames",
]

__getattr__, __dir__ = attach(
    __name__,
    submod_attrs={
        "defects": ["DEFECT_KINDS", "SURFACE_KINDS", "draw_defect"],
        "fetching": ["fetch_btad", "fetch_mvtec_ad", "fetch_visa"],
        "folders": ["ImageFolder", "load_categories", "load_image_folder"],
        "layouts": ["LayoutError", "list_test_images", "list_training_images"],
        "listing": ["list_images"],
        "textures": ["TEXTURES", "TextureTask", "make_textures"],
        "two_folders": ["load_two_folders"],
        "video": ["JoinedVideos", "VideoFile", "VideoTask", "load_video_task", "video_frames"],
    },
)
