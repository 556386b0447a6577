"""
Images of differing sizes
=========================

Parts come in sizes, and so do photographs of them. A patch is compared with patches, wherever they lie: images need not
have one size, to learn from or to judge. Maps come back at each image's own height and width.
"""

# %%
# Cuttings of a wall, between 96 and 224 pixels wide and high, none like another. Three of those to judge get a dark
# spot.

import matplotlib.pyplot as plt
import numpy as np
import skimage.data

from skpatchcore import AnomalyMapDisplay, PatchCoreDetector, TorchFeatureExtractor

rng = np.random.default_rng(3)
wall = skimage.data.brick()


def cutting(top, bottom):
    """Return a cutting of random size from between two heights of the wall."""
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
# ``image_size=None`` leaves each image at its own size: what is 8 pixels large in one is 8 pixels large in all. With
# ``image_size=256`` the shorter side of each would become 256 pixels, and details of small images would grow.

extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None, crop_size=None)
detector = PatchCoreDetector(extractor, random_state=0).fit(good)
maps = detector.segment(new)
assert [m.shape for m in maps] == [image.shape for image in new]

AnomalyMapDisplay.from_estimator(detector, new, n_columns=3)
plt.show()

# %%
# Images of very high resolution cost as many patches as they have: ``detector.estimate_memory(n_images, image)`` says
# beforehand what a fit takes, and ``max_memory=`` keeps it within bounds.

print(detector.estimate_memory(1000, np.zeros((2000, 3000), np.uint8)))
