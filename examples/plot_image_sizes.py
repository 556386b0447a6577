"""
Images of different sizes
=========================

Photographs of parts may have different sizes. A detector compares patches with patches, independently of their
positions. Therefore, the images may have different sizes, both in ``fit`` and in ``predict``. Each anomaly map has the
height and width of its image.
"""

# %%
# The images are cut out of a photograph of a wall. Their height and width are between 96 and 224 pixels. Three of the
# six test images get a dark spot.

import matplotlib.pyplot as plt
import numpy as np
import skimage.data

from skpatchcore import AnomalyMapDisplay, PatchCoreDetector, TorchFeatureExtractor

rng = np.random.default_rng(3)
wall = skimage.data.brick()


def cutting(top, bottom):
    """Return a part of the wall of random size between the rows `top` and `bottom`."""
    height, width = rng.integers(96, 225, 2)
    y, x = rng.integers(top, bottom - height + 1), rng.integers(0, 513 - width)
    noise = rng.normal(0, 3, (height, width))
    return (wall[y : y + height, x : x + width] + noise).clip(0, 255).astype(np.uint8)


good = [cutting(0, 288) for _ in range(40)]
new = [cutting(288, 512) for _ in range(6)]
for image in new[3:]:
    y, x = (int(rng.integers(20, side - 20)) for side in image.shape)
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    image[(rows - y) ** 2 + (columns - x) ** 2 < 60] = 30
print([image.shape for image in new])

# %%
# ``image_size=None`` does not resize the images, so that structures have the same size in all of them.
# ``image_size=256`` would resize the shorter side of each image to 256 pixels and enlarge the structures in small
# images.

extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None, crop_size=None)
detector = PatchCoreDetector(extractor, random_state=0).fit(good)
maps = detector.segment(new)
assert [m.shape for m in maps] == [image.shape for image in new]

AnomalyMapDisplay.from_estimator(detector, new, n_columns=3)
plt.show()

# %%
# Images of very high resolution have many patches. ``detector.estimate_memory(n_images, image)`` returns the memory
# that a fit needs, and ``max_memory=`` limits this memory.

print(detector.estimate_memory(1000, np.zeros((2000, 3000), np.uint8)))
