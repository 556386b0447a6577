"""
Several backbones as one
========================

Networks see differently. ``PatchCoreEnsemble`` averages detectors, each on the scale of the calibration scores of its
own good images (Table 4 of the paper averages three backbones).
"""

# %%
# Gravel, the hard surface: no two spots are alike. Two backbones, alone and together.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone

from skpatchcore import PatchCoreDetector, PatchCoreEnsemble, TorchFeatureExtractor, evaluate
from skpatchcore.datasets import make_textures


def member(backbone):
    """Return a detector of its own backbone."""
    extractor = TorchFeatureExtractor(backbone, image_size=None, crop_size=None)
    return PatchCoreDetector(extractor, random_state=0)


task = make_textures("gravel", n_views=4)
members = [("lite0", member("efficientnet_lite0")), ("lite2", member("efficientnet_lite2"))]
ensemble = PatchCoreEnsemble(members)
tables = {name: evaluate(clone(model), task).iloc[0] for name, model in [*members, ("both", ensemble)]}
for name, row in tables.items():
    print(f"{name:<6} image AUROC {row['image_auroc']:.3f}, AUPRO {row['aupro']:.3f}")

# %%
# What each member says of the same images, in standard deviations of its own good images' scores. Where they agree, the
# average is sure; where they part, it is not.

ensemble.fit(task.train_images, groups=task.train_groups)
standard = []
for detector in ensemble.estimators_:
    known = detector.calibration_scores_
    standard.append(-(detector.score_samples(task.test_images) - known.mean()) / known.std())
figure, ax = plt.subplots(figsize=(5.4, 4.4), layout="constrained")
for label, name, color in ((1, "good", "#0072B2"), (-1, "defective", "#D55E00")):
    here = task.test_labels == label
    ax.scatter(standard[0][here], standard[1][here], color=color, s=18, label=name)
low, high = np.min(standard), np.max(standard)
line = np.array([low, high])
ax.plot(line, -2 * ensemble.offset_ - line, color="black", linestyle="--", label="the ensemble's threshold")
ax.set(
    xlabel="anomaly by efficientnet_lite0", ylabel="anomaly by efficientnet_lite2", xlim=(low - 0.5, high + 0.5),
    ylim=(low - 0.5, high + 0.5),
)  # fmt: skip
ax.legend(frameon=False)
plt.show()
