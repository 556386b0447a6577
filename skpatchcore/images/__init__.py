"""Reading of images in all supported forms, and :class:`View`, the region of an image that the network sees.

Names are imported on first use. Therefore files and masks can be decoded without importing torch.
"""

from typing import TYPE_CHECKING

from skpatchcore._utils.lazy import attach

if TYPE_CHECKING:
    from skpatchcore.images.errors import ImageError, ImageWarning
    from skpatchcore.images.reading import load_image
    from skpatchcore.images.views import View

__all__ = ["ImageError", "ImageWarning", "View", "load_image"]

__getattr__, __dir__ = attach(
    __name__,
    submod_attrs={"errors": ["ImageError", "ImageWarning"], "reading": ["load_image"], "views": ["View"]},
)
