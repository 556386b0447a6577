"""
Adding and forgetting images
============================

On the first day of a production line, there are only a few images of good parts. ``partial_fit`` adds the images of the
next days to a fitted detector, without reading the first ones again. ``forget`` removes images that turn out to be bad.
"""

# %%
# Gravel looks different at each place, so the detector has to learn many images. It is fitted on the first 12 images.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

surface = make_textures("gravel", n_views=4)
images = np.asarray(surface.train_images)[np.random.default_rng(0).permutation(len(surface.train_images))]
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detector = PatchCoreDetector(extractor, contamination=0.1, random_state=0).fit(images[:12])

# %%
# Each call of ``partial_fit`` scores the new images first, and then adds them. The thresholds are adapted to the larger
# detector.


def measures(detector):
    """Return the number of training images, the AUROC, and the fractions of flagged defective and good images."""
    scores, is_bad = detector.score_samples(surface.test_images), surface.test_labels == -1
    flagged = scores < detector.offset_
    n_images = len(detector.training_image_indices_)
    return n_images, roc_auc_score(is_bad, -scores), flagged[is_bad].mean(), flagged[~is_bad].mean()


steps = [measures(detector)]
for day in np.array_split(images[12:], 4):
    detector.partial_fit(day)
    steps.append(measures(detector))
n_images, auroc, found, false_alarms = np.transpose(steps)

figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
ax.plot(n_images, auroc, marker="o", label="AUROC")
ax.plot(n_images, found, marker="o", label="flagged defective images")
ax.plot(n_images, false_alarms, marker="o", label="flagged good images")
ax.axhline(detector.contamination, color="grey", linewidth=1, linestyle="--")
ax.set(xlabel="training images", ylim=(0, 1.05))
ax.legend(frameon=False)
plt.show()

# %%
# The covering radius of the memory bank is that of the first fit. With the default ``growth="radius"``, each new patch
# is as close to a row of the bank as the first ones are. Images that look like those before add few rows:

for update in detector.updates_:
    print(update["kind"], update["n_images"], "images, rows of the bank:", update["n_bank"])

# %%
# A defective image was taken for a good one. Its defect is then found no longer, until the image is forgotten:

bad = surface.test_images[int(np.flatnonzero(surface.test_labels == -1)[0])]
print("before:", detector.decision_function([bad]).round(2))
detector.partial_fit([bad])
print("learnt:", detector.decision_function([bad]).round(2))
detector.forget(detector.n_images_seen_ - 1)
print("forgotten:", detector.decision_function([bad]).round(2))
