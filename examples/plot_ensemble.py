"""
An ensemble of several backbones
================================

Different networks compute different features. ``PatchCoreEnsemble`` averages the scores of several detectors. The
scores of each detector are first standardised by its calibration scores. Table 4 of the paper averages three
backbones.
"""

# %%
# Gravel is a difficult surface, because its appearance differs from place to place. Two backbones are evaluated
# separately and as an ensemble.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone

from skpatchcore import PatchCoreDetector, PatchCoreEnsemble, TorchFeatureExtractor, evaluate
from skpatchcore.datasets import make_textures


def member(backbone):
    """Return a detector with the given backbone."""
    extractor = TorchFeatureExtractor(backbone, image_size=None)
    return PatchCoreDetector(extractor, random_state=0)


task = make_textures("gravel", n_views=4)
members = [("lite0", member("efficientnet_lite0")), ("lite2", member("efficientnet_lite2"))]
ensemble = PatchCoreEnsemble(members)
tables = {name: evaluate(clone(model), task).iloc[0] for name, model in [*members, ("both", ensemble)]}
for name, row in tables.items():
    print(f"{name:<6} image AUROC {row['image_auroc']:.3f}, AUPRO {row['aupro']:.3f}")

# %%
# The figure compares the scores of both detectors for the same images. The unit is the standard deviation of the
# detector's calibration scores. The average is reliable for images with similar scores from both detectors, and less
# reliable for the other images.

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
ax.plot(line, -2 * ensemble.offset_ - line, color="black", linestyle="--", label="threshold of the ensemble")
ax.set(
    xlabel="anomaly, efficientnet_lite0", ylabel="anomaly, efficientnet_lite2", xlim=(low - 0.5, high + 0.5),
    ylim=(low - 0.5, high + 0.5),
)  # fmt: skip
ax.legend(frameon=False)
plt.show()
