"""
A medical image: lesions in a retina
====================================

The method is not limited to industrial images. In this example, the detector is fitted on parts of one photograph of a
retina, and finds synthetic lesions in another part. The example is not suitable for diagnosis: see the limits at the
end.
"""

# %%
# The images are overlapping windows of one photograph. The left two thirds are for training, and the right third is
# for testing. The synthetic lesions are small bright spots, similar to exudates, and small dark spots, similar to
# bleedings.

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
from scipy.ndimage import gaussian_filter
from skimage.transform import resize
from sklearn.metrics import roc_auc_score

from skpatchcore import AnomalyMapDisplay, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.metrics import aupro_score

photograph = resize(skimage.data.retina(), (706, 706), anti_aliasing=True)
side, rng = 128, np.random.default_rng(0)


def windows(left, right, step):
    """Return the windows that lie completely within the eye, without the black border."""
    corners = [(y, x) for y in range(0, 706 - side, step) for x in range(left, right - side, step)]
    found = [photograph[y : y + side, x : x + side] for y, x in corners]
    return np.stack([w for w in found if w.sum(axis=2).min() > 0.25])


def with_lesions(window):
    """Return the window with one to three spots, and the mask of the spots."""
    cover = np.zeros((side, side))
    for _ in range(rng.integers(1, 4)):
        y, x = rng.integers(16, side - 16, 2)
        radius = rng.uniform(3, 6)
        rows, columns = np.mgrid[:side, :side]
        bumps = gaussian_filter(rng.normal(0, 1, (side, side)), 3) * 12
        cover = np.maximum(cover, np.hypot(rows - y, columns - x) + bumps < radius)
    color = np.array([0.95, 0.85, 0.45]) if rng.random() < 0.5 else np.array([0.25, 0.03, 0.02])
    soft = gaussian_filter(cover, 0.8)[..., None] * 0.8
    return window * (1 - soft) + color * soft, cover > 0.5


train, healthy = windows(0, 470, 24), windows(470, 706, 24)
lesions, masks = (np.stack(part) for part in zip(*(with_lesions(w) for w in healthy), strict=True))
print(f"{len(train)} training windows, {len(healthy)} healthy test windows and as many with lesions")

# %%
# Neighbouring windows overlap and are therefore similar. Leave-one-out with single windows is not sufficient, because
# the memory bank would still contain the neighbours. The windows are divided into eight groups, which are horizontal
# strips. Each window is scored against the memory bank without the rows that come from its group.

strips = np.repeat(np.arange(len(train)), 1) * 8 // len(train)
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detector = PatchCoreDetector(extractor, contamination=0.15, random_state=0)
detector.set_params(sampler__ratio=0.05).fit(train, groups=strips)
X, y = np.concatenate([healthy, lesions]), np.array([1] * len(healthy) + [-1] * len(lesions))
scores, maps = detector.score_and_segment(X)
truth = np.concatenate([np.zeros_like(masks), masks])
print(f"image AUROC {roc_auc_score(y, scores):.3f}, AUPRO {aupro_score(list(truth), list(maps)):.3f}")
flagged = scores < detector.offset_
print(f"healthy flagged {flagged[y == 1].mean():.0%}, lesions found {flagged[y == -1].mean():.0%}")

# %%
# Six windows with lesions, from the most anomalous score to the least anomalous score at even steps.

shown = len(healthy) + np.argsort(scores[y == -1])[np.linspace(0, len(lesions) - 1, 6).astype(int)]
AnomalyMapDisplay.from_estimator(detector, X[shown], masks=truth[shown], n_columns=2)
plt.show()

# %%
# **Limits.** The data are one eye of one person and one camera, and the lesions are synthetic. Vessels that branch in
# an unfamiliar way are as unusual as a small lesion. A lesion that looks like a vessel is not unusual at all. The
# network is trained on everyday photographs. This example does not show that the method finds diseases. Such a study
# needs real images of many eyes with findings that physicians agree on, split by patient.
