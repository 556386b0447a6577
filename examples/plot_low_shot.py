"""
How many good images are needed?
================================

Section 4.5 of the paper examines how few images of good parts are sufficient. You can do the same with your own data.
The function ``low_shot_curve`` evaluates a detector for several numbers of training images. For each number, it draws
training images at random several times.
"""

# %%
# ``memory=`` caches the outputs of the network. The network processes each image once, even if the image is drawn
# several times.

import tempfile

import matplotlib.pyplot as plt

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures
from skpatchcore.evaluation.studies import low_shot_curve

memory = tempfile.TemporaryDirectory()
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None, memory=memory.name)
detector = PatchCoreDetector(extractor, random_state=0)
surfaces = {name: make_textures(name, n_views=2) for name in ("brick", "gravel")}
table = low_shot_curve(detector, surfaces, [1, 2, 5, 10, 24], n_repeats=3)
memory.cleanup()
print(table.groupby(["category", "shots"])[["image_auroc", "aupro"]].mean().round(3).unstack("category").to_string())

# %%
# Bricks have a repeating pattern, so that a few images show nearly everything. The appearance of gravel differs from
# place to place, and more images continue to improve the results.

figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", sharex=True)
for panel, (metric, title) in zip(panels, [("image_auroc", "image AUROC"), ("aupro", "AUPRO")], strict=True):
    for (name, rows), color in zip(table.groupby("category"), ("#0072B2", "#D55E00"), strict=True):
        draws = rows.groupby("shots")[metric]
        mean, spread = draws.mean(), draws.std()
        panel.plot(mean, marker="o", color=color, label=name)
        panel.fill_between(mean.index, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
    panel.set(xscale="log", xlabel="training images", title=title)
    panel.set_xticks(mean.index, [str(n) for n in mean.index])
    panel.minorticks_off()
panels[0].legend(frameon=False)
plt.show()

# %%
# With few images, the threshold is also less accurate. With ``n`` images, the smallest false-positive rate that can be
# promised is ``1 / (n + 1)``.
