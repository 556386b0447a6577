"""
Adding and forgetting images
============================

On the first day of a production line, there are only a few images of good parts. ``partial_fit`` adds the images of the
next days to a fitted detector, without reading the first ones again. ``forget`` removes images that turn out to be bad.
"""

# %%
# There are four photographs of each of twelve pieces of brick. On the first day, six pieces are photographed, and two
# more on each of the next days. The photographs of one piece form a group: an image is never scored by rows of its own
# group, neither in the fit nor when it is added later.

import matplotlib.pyplot as plt
import numpy as np

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

surface = make_textures("brick", n_views=4)
by_piece = np.argsort(surface.train_groups, kind="stable")
images, pieces = surface.train_images[by_piece], surface.train_groups[by_piece]
days = np.split(np.arange(48), [24, 32, 40])
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detector = PatchCoreDetector(extractor, contamination=0.2, random_state=0)

# %%
# The first call of ``partial_fit`` is ``fit``. Each further call scores the new images first, and then adds them. The
# thresholds are adapted to the larger detector.

steps = []
for day in days:
    detector.partial_fit(images[day], groups=pieces[day])
    scores, is_bad = detector.score_samples(surface.test_images), surface.test_labels == -1
    flagged = scores < detector.offset_
    steps.append((flagged[is_bad].mean(), flagged[~is_bad].mean()))
found, false_alarms = np.transpose(steps)
n_images = [day[-1] + 1 for day in days]

figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
ax.plot(n_images, found, marker="o", label="flagged defective images")
ax.plot(n_images, false_alarms, marker="o", label="flagged good images")
ax.axhline(detector.contamination, color="grey", linewidth=1, linestyle="--", label="contamination")
ax.set(xlabel="training images", ylim=(0, 1.05))
ax.legend(frameon=False)
plt.show()

# %%
# Six pieces do not show all that good bricks look like, so too many good images of other pieces are flagged at first.
#
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
