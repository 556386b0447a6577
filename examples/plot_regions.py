"""
Region of interest
==================

An image often shows more than the part, e.g. a holder or a label. The parameter ``roi`` limits the inspection to a
region: patches outside of it are neither stored nor scored.
"""

# %%
# The images show a surface of gravel in a frame with a text that differs from image to image. The frame is not
# interesting, and the text makes good images look anomalous.

import matplotlib.pyplot as plt
import numpy as np

from skpatchcore import AnomalyMapDisplay, InspectionDisplay, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

rng = np.random.default_rng(0)
task = make_textures("gravel", n_views=4)


def framed(images):
    """Return the images in a frame with random bars, which look like a label."""
    frames = np.full((len(images), 192, 192, 1), 200, np.uint8)
    frames[:, 48:176, 32:160] = images
    for frame in frames:
        for left in range(32, 160, 8):
            frame[12 : 12 + rng.integers(8, 28), left : left + 4] = 40
    return frames


good, new = framed(task.train_images), framed(task.test_images)
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)

# %%
# Without a region, the largest scores of good images come from the text.

whole = PatchCoreDetector(extractor, contamination=0.1, random_state=0).fit(good, groups=task.train_groups)
is_defective = task.test_labels == -1
print(f"defects found without a region: {(whole.predict(new[is_defective]) == -1).mean():.0%}")

# %%
# The region is a box: top, left, height and width in pixels. ``InspectionDisplay`` draws the region over an image. The
# pixels with stripes are not inspected.

detector = PatchCoreDetector(extractor, roi=(48, 32, 128, 128), contamination=0.1, random_state=0)
detector.fit(good, groups=task.train_groups)
print(f"defects found with the region: {(detector.predict(new[is_defective]) == -1).mean():.0%}")
InspectionDisplay.from_estimator(detector, new[0])
plt.show()

# %%
# Anomaly maps are NaN outside the region. The display draws stripes there.

shown = np.flatnonzero(is_defective)[::3][:4]
maps = detector.segment(new[shown])
assert np.isnan(maps[:, :40]).all()
AnomalyMapDisplay.from_estimator(detector, new[shown])
plt.show()

# %%
# For parts that move, pass one region per image. Here, each training image is shifted, and its mask with it. The shifts
# are multiples of 8 pixels, the cell of a patch. Otherwise, patches at the edge would also show a part of the frame.

shifts = 8 * rng.integers(-3, 4, (len(good), 2))
moved = np.stack([np.roll(image, shift, axis=(0, 1)) for image, shift in zip(good, shifts, strict=True)])
mask = np.zeros((192, 192), bool)
mask[48:176, 32:160] = True
masks = [np.roll(mask, shift, axis=(0, 1)) for shift in shifts]
by_image = PatchCoreDetector(extractor, contamination=0.1, random_state=0)
by_image.fit(moved, groups=task.train_groups, roi=masks)
labels = by_image.predict(new[is_defective], roi=[mask] * is_defective.sum())
print(f"defects found with one mask per image: {(labels == -1).mean():.0%}")
