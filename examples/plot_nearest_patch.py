"""
Why is an image anomalous? The nearest nominal patch
====================================================

A fitted detector stores patches of good images in its memory bank. These patches are called nominal patches. The score
of a new image is based on the distance between two patches: the most anomalous patch of the image, and the nominal
patch that is most similar to this patch. This example shows both patches, so that a person can decide whether the
difference is a defect.
"""

# %%
# The detector is fitted on good bricks and scores the test images.

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

task = make_textures("brick")
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detector = PatchCoreDetector(extractor, random_state=0).fit(task.train_images, groups=task.train_groups)
X = task.test_images
scores = detector.score_samples(X)

# %%
# ``nearest_patches`` returns a table with one row per image. The row contains the position of the most anomalous
# patch, the index of the training image from which the nearest nominal patch comes, and the position of the nominal
# patch in this training image.

table = detector.nearest_patches(X)
print(table.head(3).round(1).T.to_string())

# %%
# Each row of the figure has four pictures: the test image, a close-up of its most anomalous patch, a close-up of the
# nearest nominal patch, and the training image from which the nominal patch comes. The box in each picture is the
# patch, i.e. the square of pixels that belongs to one position of the patch grid. The patch feature, the vector with
# which patches are compared, is also computed from pixels around this square.

kinds = ("good", "scratch", "blob", "foreign")
chosen = [min(np.flatnonzero(task.test_defects == kind), key=lambda i: scores[i]) for kind in kinds]
figure, rows = plt.subplots(len(chosen), 4, figsize=(8.5, 8.8), layout="constrained")
half = 20  # pixels around the cell's centre in the close-ups
for row, i in zip(rows, chosen, strict=True):
    why = table.loc[i]
    cell = why[["top", "left", "height", "width"]].to_numpy(float)
    nominal = why[["nominal_top", "nominal_left", "nominal_height", "nominal_width"]].to_numpy(float)
    pairs = [(X[i], cell, "image"), (task.train_images[int(why["nominal_image"])], nominal, "nearest training image")]
    for ax, close, (image, (top, left, height, width), title) in zip(row[[0, 3]], row[[1, 2]], pairs, strict=True):
        for panel in (ax, close):
            panel.imshow(image, cmap="gray", vmin=0, vmax=255)
            panel.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, color="#00E5FF"))
            panel.set_xticks([])
            panel.set_yticks([])
        close.set_xlim(left + width / 2 - half, left + width / 2 + half)
        close.set_ylim(top + height / 2 + half, top + height / 2 - half)
        ax.set_title(title if i == chosen[0] else "", fontsize=10)
    row[0].set_ylabel(f"{task.test_defects[i]}\ndistance {why['distance']:.3g}")
plt.show()

# %%
# In the good image (first row), even the most anomalous patch is similar to its nearest nominal patch. In the defective
# images, the most anomalous patch has a large distance from every nominal patch.
