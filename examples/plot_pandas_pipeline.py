"""
A table of images, and a pipeline
=================================

Images are often listed in a table with one row per image, e.g. with columns for the file, the part and the date. A
detector accepts the column of paths, and its scores can be added to the table as a new column.
"""

# %%
# This code writes image files, as a camera does, and builds a table of these files.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

folder = tempfile.TemporaryDirectory()
task = make_textures("brick", n_views=4)
rows = []
for part, images in (("train", task.train_images), ("test", task.test_images)):
    for i, image in enumerate(images):
        path = Path(folder.name) / f"{part}-{i:03}.png"
        Image.fromarray(image[..., 0]).save(path)
        piece = int(task.train_groups[i]) if part == "train" else None
        defect = "good" if part == "train" else task.test_defects[i]
        rows.append({"path": str(path), "part": part, "piece": piece, "defect": defect})
table = pd.DataFrame(rows)
print(table.groupby(["part", "defect"]).size().to_string())

# %%
# A pipeline reads the images, stretches the contrast of each image, and passes the images to the detector. ``groups``
# is passed to the detector's `fit` through the pipeline.


def equalised(paths):
    """Return the images with their grey values stretched to the whole range."""
    return [ImageOps.autocontrast(Image.open(path), cutoff=1) for path in paths]


extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detector = PatchCoreDetector(extractor, contamination=0.1, random_state=0)
model = make_pipeline(FunctionTransformer(equalised), detector)
train = table[table["part"] == "train"]
model.fit(train["path"], patchcoredetector__groups=train["piece"])

# %%
# Scores, decisions and p-values become columns of the table.

test = table[table["part"] == "test"].drop(columns=["part", "piece"])
test["score"] = model.score_samples(test["path"])
test["anomalous"] = model.predict(test["path"]) == -1
prepared = model[0].transform(test["path"])
test["p_value"] = model[-1].p_values(prepared)
print(test.groupby("defect")["anomalous"].agg(["sum", "size"]).to_string())

# %%
# The figure shows the scores by kind of defect.

figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for place, (_, group) in enumerate(test.groupby("defect")):
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(group))
    colors = np.where(group["anomalous"], "#D55E00", "#0072B2")
    ax.scatter(-group["score"], place + jitter, c=colors, s=18)
ax.axvline(-model[-1].offset_, color="black", linestyle="--")
ax.set_yticks(range(test["defect"].nunique()), sorted(test["defect"].unique()))
ax.set(xlabel="anomaly score; dashed: image threshold", title="Orange: flagged")
plt.show()
folder.cleanup()
