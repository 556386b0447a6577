"""
Maps, masks and regions
=======================

This example locates defects in three ways: an anomaly map, a mask of the pixels above the pixel threshold, and a table
of the connected regions of such pixels. At the end, metrics compare the anomaly maps with the known defects.
"""

# %%
# The detector is fitted on good bricks.

import matplotlib.pyplot as plt
import numpy as np

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures
from skpatchcore.display import outline_mask, overlay_anomaly_map
from skpatchcore.metrics import aupro_score, pixel_metrics, pro_curve

task = make_textures("brick", random_state=1)
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detector = PatchCoreDetector(extractor, contamination=0.1, random_state=0)
detector.fit(task.train_images, groups=task.train_groups)

# %%
# ``segment`` returns anomaly maps with each image's own size, **bigger = more anomalous**. ``predict_mask`` returns the
# pixels above the pixel threshold, ``pixel_offset_``. At most a fraction ``contamination`` of the good images should
# have one or more pixels above this threshold.

defective = np.flatnonzero(task.test_labels == -1)
X, truth = task.test_images[defective], task.test_masks[defective]
maps, masks = detector.segment(X), detector.predict_mask(X)
shown = [int(np.flatnonzero(task.test_defects[defective] == kind)[0]) for kind in ("scratch", "blob", "foreign")]
figure, rows = plt.subplots(3, 4, figsize=(9, 7), layout="constrained")
for row, i in zip(rows, shown, strict=True):
    image = X[i] / 255
    pictures = {
        "known": outline_mask(image, truth[i]),
        "map": maps[i],
        "overlay": overlay_anomaly_map(image, maps[i], detector.pixel_offset_),
        "mask": masks[i],
    }
    for ax, (title, picture) in zip(row, pictures.items(), strict=True):
        ax.imshow(picture, cmap="cividis")
        ax.set_title(title if i == shown[0] else "")
        ax.set_axis_off()
plt.show()

# %%
# ``regions`` returns a table with the box of each region, the highest value of the map in the region (the peak), and a
# p-value. The p-value estimates the fraction of good images with an anomaly map that has a maximum at least as high as
# this peak.

print(detector.regions(X[shown], min_area=20).round(3).to_string())

# %%
# The metrics are exact and computed over all pixels. In the per-region overlap (PRO), small and large defects have the
# same weight.

X, truth = task.test_images, list(task.test_masks)
maps = list(detector.segment(X))
metrics, _ = pixel_metrics(truth, maps)
print({name: round(value, 3) for name, value in metrics.items()})
fpr, pro, _ = pro_curve(truth, maps)
figure, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
ax.plot(fpr, pro, color="#0072B2")
ax.fill_between(fpr, pro, where=fpr <= 0.3, color="#0072B2", alpha=0.15)
ax.set(
    xlim=(0, 1), ylim=(0, 1.02), xlabel="fraction of good pixels flagged", ylabel="overlap of defects",
    title=f"AUPRO up to 0.3: {aupro_score(truth, maps):.3f}",
)  # fmt: skip
plt.show()
