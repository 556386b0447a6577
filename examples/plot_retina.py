"""
Outside the factory: a retina
=============================

The method knows nothing of industry. Here it learns what an eye's background looks like from one photograph, and looks
for spots in it that do not belong. Read the limits at the end before you think of patients.
"""

# %%
# Overlapping windows of one photograph, the left two thirds to learn from, the right third to judge. Synthetic lesions:
# small bright spots, as exudates are, and dark ones, as bleedings are.

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
    """Return windows within the eye: none that its black border crosses."""
    corners = [(y, x) for y in range(0, 706 - side, step) for x in range(left, right - side, step)]
    found = [photograph[y : y + side, x : x + side] for y, x in corners]
    return np.stack([w for w in found if w.sum(axis=2).min() > 0.25])


def with_lesions(window):
    """Return the window with one to three spots, and their mask."""
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
print(f"{len(train)} windows to learn from, {len(healthy)} healthy ones and as many with lesions to judge")

# %%
# The disc and the thick vessels lie in one part of the eye only: with windows that overlap, neighbours are alike, and
# leaving one out is not enough. The threshold comes from windows of strips that were held out.

strips = np.repeat(np.arange(len(train)), 1) * 8 // len(train)
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None, crop_size=None)
detector = PatchCoreDetector(extractor, contamination=0.15, random_state=0)
detector.set_params(sampler__ratio=0.05).fit(train, groups=strips)
X, y = np.concatenate([healthy, lesions]), np.array([1] * len(healthy) + [-1] * len(lesions))
scores, maps = detector.score_and_segment(X)
truth = np.concatenate([np.zeros_like(masks), masks])
print(f"image AUROC {roc_auc_score(y, scores):.3f}, AUPRO {aupro_score(list(truth), list(maps)):.3f}")
flagged = scores < detector.offset_
print(f"healthy flagged {flagged[y == 1].mean():.0%}, lesions found {flagged[y == -1].mean():.0%}")

# %%
# Windows with lesions, evenly spread over their scores from the surest to the most doubtful.

shown = len(healthy) + np.argsort(scores[y == -1])[np.linspace(0, len(lesions) - 1, 6).astype(int)]
AnomalyMapDisplay.from_estimator(detector, X[shown], masks=truth[shown], n_columns=2)
plt.show()

# %%
# **The honest limits.** One eye of one person, seen by one camera; lesions that somebody painted. Vessels that branch
# in a way not seen before are as unusual as a small lesion, and a lesion that looks like a vessel is not unusual at
# all. A network trained on everyday photographs looks at it. Nothing here says that it would find disease: for that,
# real images with findings that physicians agree on are needed, of many eyes, split by patient.
