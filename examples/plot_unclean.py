"""
Defective images in the training set
====================================

A detector learns from images of good parts. Defective images among them make similar defects look normal, and raise
the thresholds. This example mixes six defective images into a training set, finds them with ``training_report``, and
compares three detectors.
"""

# %%
# The photographs show bricks. Each photograph of one piece belongs to one group. The defective images come from other
# pieces, and get groups of their own.

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from skpatchcore import AnomalyMapDisplay, PatchCoreDetector, SuspectImageWarning, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

task = make_textures("brick")
is_bad = task.test_labels == -1
mixed = np.random.default_rng(1).permutation(np.flatnonzero(is_bad))[:6]
X = np.concatenate([task.train_images, task.test_images[mixed]])
groups = np.concatenate([task.train_groups, task.train_groups.max() + 1 + np.arange(6)])
rest = np.setdiff1d(np.arange(len(task.test_images)), mixed)

# %%
# The fit warns, because the calibration compares each image with other images only.

detector = PatchCoreDetector(TorchFeatureExtractor("efficientnet_lite0", image_size=None), random_state=0)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", SuspectImageWarning)
    detector.fit(X, groups=groups)
print(*(warning.message for warning in caught if warning.category is SuspectImageWarning), sep="\n")

# %%
# The report lists the training images, the most suspicious first. The images 96 to 101 are defective. They were not
# given as paths, so the report needs the images again.

report = detector.training_report(X, n_images=10)
print(report[["image", "score", "p_value", "top", "left", "height", "width"]].round(2).to_string())
AnomalyMapDisplay.from_training_image(detector, report["image"][0], X)
plt.show()

# %%
# A person looks at the first ten images and removes the defective ones. ``suspect_share`` works without a person.

seen = report["image"][report["image"] >= len(task.train_images)]
kept = np.setdiff1d(np.arange(len(X)), seen)
detectors = {"unclean": detector, "suspect_share=0.01": PatchCoreDetector(**detector.get_params(deep=False))}
detectors["after the report"] = PatchCoreDetector(**detector.get_params(deep=False)).fit(X[kept], groups=groups[kept])
with warnings.catch_warnings():
    warnings.simplefilter("ignore", SuspectImageWarning)
    detectors["suspect_share=0.01"].set_params(suspect_share=0.01).fit(X, groups=groups)
for name, fitted in detectors.items():
    scores, found = -fitted.score_samples(task.test_images[rest]), fitted.predict(task.test_images[rest]) == -1
    auroc = roc_auc_score(is_bad[rest], scores)
    print(f"{name:20} AUROC {auroc:.3f}, defects found {found[is_bad[rest]].mean():.0%}, "
          f"good images flagged {found[~is_bad[rest]].mean():.0%}")  # fmt: skip
