"""
Greedy coreset or random subset?
================================

The memory bank cannot store every patch feature, so a subset must be selected. A random subset contains many patch
features from dense areas and few from sparse areas. The greedy coreset repeatedly adds the patch feature that is
farthest from all selected ones. As a result, no nominal patch is far from the memory bank. This example shows both
selections in two dimensions, as in Figure 3 of the paper.
"""

# %%
# Two thirds of the patches are similar to each other, like the patches of a background. The remaining patches are
# spread out, and some of them are rare.

import matplotlib.pyplot as plt
import numpy as np

from skpatchcore import CoresetDisplay, GreedyCoresetSampler, RandomSampler

rng = np.random.default_rng(0)
patches = np.concatenate(
    [
        rng.normal([-3, 0], 0.35, (4000, 2)),
        rng.normal([2, 1.5], [1.4, 0.5], (1500, 2)),
        rng.normal([2, -2], [0.5, 0.9], (500, 2)),
        rng.uniform([-1, -4], [5, 4], (40, 2)),
    ]
)

# %%
# Each sampler selects fifty rows. The colour shows the distance of each position from the nearest selected row. This
# distance is the score of a patch at that position.

samplers = {"random": RandomSampler(50, random_state=0), "greedy": GreedyCoresetSampler(50, random_state=0)}
figure, panels = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained", sharex=True, sharey=True)
x, y = np.meshgrid(np.linspace(-5, 8, 260), np.linspace(-5.2, 5.2, 210))
places = np.column_stack([x.ravel(), y.ravel()])
for panel, (name, sampler) in zip(panels, samplers.items(), strict=True):
    sampler.fit(patches)
    distances = np.linalg.norm(places[:, None] - sampler.components_, axis=2).min(axis=1).reshape(x.shape)
    shades = panel.pcolormesh(x, y, distances, cmap="cividis", vmin=0, vmax=3, shading="gouraud")
    CoresetDisplay.from_predictions(patches, sampler.components_, ax=panel)
    to_bank = np.linalg.norm(patches[:, None] - sampler.components_, axis=2).min(axis=1)
    panel.set(xlim=(-5, 8), ylim=(-5.2, 5.2))
    panel.set_xlabel(f"{name}: largest distance of a patch {to_bank.max():.2f}")
figure.colorbar(shades, ax=panels, label="distance from the memory bank")
plt.show()

# %%
# Rare nominal patches have high scores with the random subset, which leads to false alarms. ``selection_distances_``
# contains, after each selected row, the largest distance of a patch from the selected rows. A smaller coreset is the
# beginning of a larger coreset.

sampler = GreedyCoresetSampler(500, random_state=0).fit(patches)
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.loglog(np.arange(1, 500), sampler.selection_distances_[1:], color="#0072B2", label="greedy")
counts = [5, 10, 20, 50, 100, 200, 500]
radii = [
    np.linalg.norm(patches[:, None] - RandomSampler(n, random_state=0).fit(patches).components_, axis=2).min(1).max()
    for n in counts
]
ax.loglog(counts, radii, "o--", color="#D55E00", label="random")
ax.set(xlabel="rows in the bank", ylabel="distance of the farthest patch")
ax.legend(frameon=False)
plt.show()
