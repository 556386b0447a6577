"""
Images of different sizes
=========================

Photographs of parts may have different sizes. ``PatchCoreDetector`` compares each patch (a small square of the image)
with all stored patches, independently of the positions of the patches in their images. Therefore, images may have
different sizes, both in ``fit`` and in ``predict``. ``SPADEDetector`` accepts different sizes too. ``PaDiMDetector``
does not. The anomaly map of an image, which contains one value per pixel, has the height and width of this image.
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
# With ``image_size=None``, images are not resized. In this example, all images come from one photograph, so that bricks
# have the same size in pixels in all images. ``image_size=256`` would resize the shorter side of each image to 256
# pixels. Bricks in small images would then be larger than bricks in large images, and their patches would differ.

extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detector = PatchCoreDetector(extractor, random_state=0).fit(good)
maps = detector.segment(new)
assert [m.shape for m in maps] == [image.shape for image in new]

AnomalyMapDisplay.from_estimator(detector, new, n_columns=3)
plt.show()

# %%
# Images of very high resolution have many patches. ``detector.estimate_memory(n_images, image)`` estimates the memory
# (RAM) that ``fit`` needs for ``n_images`` images like ``image``. The parameter ``max_memory`` of the detector, e.g.
# ``PatchCoreDetector(max_memory="4GB")``, limits this memory. If not all patch features fit within the limit, ``fit``
# uses a slower way that needs less memory. If the limit is too small for every way, ``fit`` raises an error.

print(detector.estimate_memory(1000, np.zeros((2000, 3000), np.uint8)))
