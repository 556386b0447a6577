"""
Several products in one detector
================================

A line makes three products. One detector has a memory bank and thresholds for each of them. It recognises the product
of each new image, and it names an image that shows none of the products.

The products of this example are the textures ``brick``, ``grass`` and ``gravel`` of scikit-image.
"""

import numpy as np
import pandas as pd
from skimage import data

from skpatchcore import AnomalyMapDisplay, MultiProductDetector, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import TEXTURES, make_textures

tasks = {name: make_textures(name) for name in TEXTURES}
good = np.concatenate([task.train_images[::2] for task in tasks.values()])
groups = np.concatenate([[f"{name} {piece}" for piece in task.train_groups[::2]] for name, task in tasks.items()])
products = np.repeat(TEXTURES, len(good) // len(TEXTURES))

# %%
# The images of one piece of a texture are a group: the calibration never scores them with a bank that knows the piece.

extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=128)
detector = MultiProductDetector(PatchCoreDetector(extractor, random_state=0), contamination=0.1)
detector.fit(good, products=products, groups=groups)
detector.thresholds().round(3)

# %%
# The product of each test image is recognised. The coins are none of the products, and they are anomalous.

coins = data.coins()[:128, :128, None] / 255.0
rows = []
for name, images in [*((name, task.test_images[:12]) for name, task in tasks.items()), ("coins", coins[None])]:
    found, labels = detector.identify(images), detector.predict(images)
    for product, label in zip(found, labels, strict=True):
        rows.append((name, product or "none of the products", "anomalous" if label == -1 else "normal"))
table = pd.DataFrame(rows, columns=["image of", "recognised as", "label"])
pd.crosstab(table["image of"], [table["recognised as"], table["label"]])

# %%
# Anomaly maps are multiples of the pixel threshold of the product. Therefore, one colour scale fits all products.

defective = [task.test_images[task.test_labels == -1][0] for task in tasks.values()]
AnomalyMapDisplay.from_estimator(detector, defective)
