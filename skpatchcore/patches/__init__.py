"""Batches of patch features, in memory or as a stream, and the protocol of the models that score them."""

from skpatchcore.patches.model import PatchModel
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchStream

__all__ = ["PatchModel", "PatchStream", "Patches"]
