"""Any image a user has to pixels, and where the network's view lies in the image."""

from skpatchcore.images.errors import ImageError, ImageWarning
from skpatchcore.images.reading import load_image
from skpatchcore.images.views import View

__all__ = ["ImageError", "ImageWarning", "View", "load_image"]
