"""
How many good images does it take?
==================================

Section 4.5 of the paper asks how few images of good parts will do. Ask it of your own data: a curve over the number of
training images, with fresh draws of them.
"""

# %%
# ``memory=`` keeps the network's outputs, so that it sees each image once, however often it is drawn.

import tempfile

import matplotlib.pyplot as plt

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures
from skpatchcore.evaluation.studies import low_shot_curve

memory = tempfile.TemporaryDirectory()
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None, crop_size=None, memory=memory.name)
detector = PatchCoreDetector(extractor, random_state=0)
surfaces = {name: make_textures(name, n_views=2) for name in ("brick", "gravel")}
table = low_shot_curve(detector, surfaces, [1, 2, 5, 10, 24], n_repeats=3)
memory.cleanup()
print(table.groupby(["category", "shots"])[["image_auroc", "aupro"]].mean().round(3).unstack("category").to_string())

# %%
# Bricks repeat themselves: a few images tell nearly all. No two spots of gravel are alike, and more images keep
# helping.

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
# Few images also leave the threshold little to go by: with ``n`` of them no share of false alarms below ``1 / (n + 1)``
# can be promised.
