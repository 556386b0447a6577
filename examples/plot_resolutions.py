"""
Small and large defects: several image sizes at once
====================================================

A patch of a large image shows few pixels of the part, and a patch of a small image shows many. Small defects need a
large ``image_size``. Large, faint defects can be easier to see in a small image, in which the noise of the camera is
averaged out. ``PatchCoreEnsemble.at_image_sizes`` combines copies of one detector at several sizes.
"""

# %%
# The images are pieces of a photograph of a wall, with the noise of a camera. The positions are random, so that new
# good images are like the training images. The defects are sharp spots of 2 to 8 pixels, and faint stains of 24 to 96
# pixels.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from skimage import data

from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, PatchCoreEnsemble, TorchFeatureExtractor
from skpatchcore.datasets import draw_defect

SIDE, N_IMAGES = 192, 20
DEFECTS = [
    *(("blob", size, 1.0) for size in (2, 4, 8)),
    *(("stain", size, 0.25) for size in (24, 48, 96)),
]  # kind, diameter in pixels, contrast
rng = np.random.default_rng(0)


def pieces(n_images):
    """Return pieces of the photograph at random positions."""
    photograph = data.brick()
    corners = rng.integers(0, len(photograph) - SIDE, (n_images, 2))
    return np.stack([photograph[top : top + SIDE, left : left + SIDE] for top, left in corners])


def photographed(images):
    """Return images with a random brightness and with noise."""
    brightness = rng.uniform(0.95, 1.05, (len(images), 1, 1))
    noisy = images * brightness + rng.normal(0, 12, images.shape)
    return noisy.clip(0, 255).astype(np.uint8)[..., None]


train, clean = photographed(pieces(60)), pieces(60)
good = photographed(clean)
defective = {
    (kind, size): photographed(
        np.stack(
            [
                draw_defect(image, kind, size, contrast=contrast, random_state=[size, i])[0]
                for i, image in enumerate(clean[:N_IMAGES])
            ]
        )
    )
    for kind, size, contrast in DEFECTS
}

# %%
# All members of the ensemble have the same parameters, apart from ``image_size``. With ``aggregate="max"``, an image is
# anomalous if it is clearly anomalous at any size. The cache (``memory=``) makes the comparison below faster.

cache = tempfile.TemporaryDirectory()
extractor = TorchFeatureExtractor("efficientnet_lite0", memory=cache.name)
detector = PatchCoreDetector(extractor, sampler=GreedyCoresetSampler(0.05), contamination=0.05, random_state=0)
ensemble = PatchCoreEnsemble.at_image_sizes(detector, [64, 256], aggregate="max").fit(train)
print([name for name, _ in ensemble.estimators])

# %%
# The table shows which fraction of each kind of image is flagged. All thresholds promise to flag at most 5 % of good
# images. With 60 calibration images and 60 good test images, the measured rate varies by some per cent.

models = {"64 pixels": ensemble.estimators_[0], "256 pixels": ensemble.estimators_[1], "both, maximum": ensemble}
kinds = {("good", 0): good, **defective}
flagged = pd.DataFrame(
    {name: [np.mean(model.predict(images) == -1) for images in kinds.values()] for name, model in models.items()},
    index=pd.MultiIndex.from_tuples(kinds, names=["image", "diameter"]),
)
print(flagged.round(2))
print("mean of the defects:", flagged.iloc[1:].mean().round(2).to_dict())

# %%
# Each size finds the defects that the other size misses. The ensemble finds nearly as many spots as the large size, and
# nearly as many stains as the small size.

figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained", sharey=True)
styles = {"64 pixels": ("#D55E00", "--"), "256 pixels": ("#0072B2", ":"), "both, maximum": ("black", "-")}
for ax, kind, title in zip(axes, ("blob", "stain"), ("sharp spots", "faint stains"), strict=True):
    for name, (color, line) in styles.items():
        found = flagged.loc[kind, name]
        ax.plot(found.index, found, color=color, linestyle=line, marker="o", label=name)
    ax.axhline(0.05, color="0.6", linewidth=0.8)
    ax.set(title=title, xlabel="diameter in pixels", xscale="log", xticks=found.index, ylim=(-0.03, 1.03))
    ax.set_xticks([], minor=True)
    ax.set_xticklabels(found.index)
axes[0].set_ylabel("found fraction")
axes[0].legend(frameon=False, loc="upper left")
plt.show()

# %%
# The maps of an image with a stain and of an image with a spot. The contour encloses the pixels above the pixel
# threshold.

examples = {"stain of 48 pixels": defective["stain", 48][3:4], "spot of 8 pixels": defective["blob", 8][3:4]}
figure, axes = plt.subplots(2, 4, figsize=(8.4, 4.4), layout="constrained")
for ax, name in zip(axes[0, 1:], models, strict=True):
    ax.set_title(name)
for row, (title, image) in zip(axes, examples.items(), strict=True):
    row[0].imshow(image[0, :, :, 0], cmap="gray", vmin=0, vmax=255)
    row[0].set_ylabel(title)
    for ax, model in zip(row[1:], models.values(), strict=True):
        anomaly_map = model.segment(image)[0]
        ax.imshow(anomaly_map, cmap="viridis", vmax=1.5 * abs(model.pixel_offset_))
        ax.contour(anomaly_map, levels=[model.pixel_offset_], colors="white", linewidths=1)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
plt.show()
cache.cleanup()

# %%
# Several sizes pay if there are both kinds of defects. If all defects are small, the large size alone finds more of
# them: the small size adds anomaly scores of good images, which raise the threshold, and finds nothing more. The
# ensemble also takes the time of all its members.
