"""
Thresholds: what goes wrong in-sample
=====================================

Where does the threshold come from? Not from the scores of the training images as they are: each finds its own patches
in the memory bank, and looks far more normal than a new image can.
"""

# %%
# Bricks again. Eight photographs of each of twelve pieces to learn from; new photographs of four other pieces to judge.

import matplotlib.pyplot as plt
import numpy as np

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

task = make_textures("brick")
good = task.test_labels == 1
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None, crop_size=None)
detector = PatchCoreDetector(extractor, contamination=0.1, random_state=0)

# %%
# Three kinds of scores of the same good training images: against a bank that holds their own patches; with the image's
# own rows left out; and with all rows left out that show the same piece.

detector.fit(task.train_images)
kinds = {
    "in-sample": detector.score_samples(task.train_images),
    "leave one image out": detector.calibration_scores_,
    "leave one piece out": detector.fit(task.train_images, groups=task.train_groups).calibration_scores_,
}
fresh = -detector.score_samples(task.test_images[good])
defective = -detector.score_samples(task.test_images[~good])

# %%
# Each gives another threshold: the value that one good image in ten should exceed. The fresh good images, whose pieces
# nobody has seen before, tell what becomes of that promise.

figure, panels = plt.subplots(3, 1, figsize=(7.5, 6), sharex=True, layout="constrained")
edges = np.histogram_bin_edges(np.concatenate([fresh, defective, *(-s for s in kinds.values())]), 40)
for panel, (kind, scores) in zip(panels, kinds.items(), strict=True):
    threshold = np.sort(-scores)[int(np.ceil((len(scores) + 1) * 0.9)) - 1]
    panel.hist(-scores, edges, color="#999999", label="training images")
    panel.hist(fresh, edges, color="#0072B2", alpha=0.7, label="fresh good images")
    panel.hist(defective, edges, color="#D55E00", alpha=0.5, label="defective images")
    panel.axvline(threshold, color="black", linestyle="--")
    flagged, found = (fresh > threshold).mean(), (defective > threshold).mean()
    panel.set_title(f"{kind}: asked for 10 %, flags {flagged:.0%} of good, finds {found:.0%} of defects", fontsize=10)
panels[0].legend(frameon=False, fontsize="small")
panels[-1].set_xlabel("anomaly score")
plt.show()

# %%
# The in-sample threshold flags nearly everything, good or not. ``PatchCoreDetector`` never uses such scores; give it
# ``groups`` where several photographs show the same part, or ``recalibrate`` it on fresh good images.

detector.recalibrate(task.test_images[good][::2], contamination=0.1)
rest = detector.predict(task.test_images[good][1::2])
print(f"recalibrated on half of the fresh good images, it flags {(rest == -1).sum()} of the other {len(rest)}")
