"""Batches of patch features, held or streamed, and the protocol of the models that score them."""

from skpatchcore.patches.model import PatchModel
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchStream

__all__ = ["PatchModel", "PatchStream", "Patches"]
