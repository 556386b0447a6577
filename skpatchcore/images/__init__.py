"""Any image a user has to pixels, and where the network's view lies in the image.

The names are imported when they are used: files and masks are decoded without torch.
"""

from typing import TYPE_CHECKING

import lazy_loader  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from skpatchcore.images.errors import ImageError, ImageWarning
    from skpatchcore.images.reading import load_image
    from skpatchcore.images.views import View

__all__ = ["ImageError", "ImageWarning", "View", "load_image"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={"errors": ["ImageError", "ImageWarning"], "reading": ["load_image"], "views": ["View"]},
)
