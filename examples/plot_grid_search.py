"""
Search over patch size and ratio
================================

How large should the neighbourhood of a patch feature be, and what fraction of the patches should the memory bank
store? A grid search answers these questions for your own images. With ``memory=``, the network processes each image
only once in the whole search, and the selection of a larger coreset continues from a smaller one.
"""

# %%
# The images show good bricks, and bricks with scratches, blobs, stains and foreign texture. The detector is fitted on
# good images only. For this purpose, the training sets of ``OneClassSplit`` contain good images only. The test sets
# contain good and defective images.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from skpatchcore import GreedyCoresetSampler, OneClassSplit, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures
from skpatchcore.model_selection import image_average_precision_scorer, image_roc_auc_scorer

task = make_textures("brick", n_views=4, random_state=0)
X = np.concatenate([task.train_images, task.test_images])
y = np.concatenate([np.ones(len(task.train_images), int), task.test_labels])
print(f"{(y == 1).sum()} good images, {(y == -1).sum()} defective ones")

# %%
# A search ranks settings by scores and needs no thresholds, so ``calibration=None`` saves time. The parameters of the
# stages have names with two underscores, as usual in scikit-learn.

memory = tempfile.TemporaryDirectory()
detector = PatchCoreDetector(
    TorchFeatureExtractor("efficientnet_lite0", image_size=None, memory=memory.name),
    sampler=GreedyCoresetSampler(memory=memory.name),
    calibration=None,
    random_state=0,
)
grid = {"extractor__patch_size": [1, 3, 5, 7], "sampler__ratio": [0.001, 0.01, 0.1], "n_neighbors": [1, 9]}
search = GridSearchCV(
    detector,
    grid,
    scoring={"AUROC": image_roc_auc_scorer, "average precision": image_average_precision_scorer},
    refit="average precision",
    cv=OneClassSplit(StratifiedKFold(3, shuffle=True, random_state=0)),
)
search.fit(X, y)
print(search.best_params_)

# %%
# The figure shows one coloured table for each metric. Each field of a table shows the better of the results with the
# two values of ``n_neighbors``.

results = pd.DataFrame(search.cv_results_)
results = results.rename(columns={"param_extractor__patch_size": "patch size", "param_sampler__ratio": "ratio"})
figure, panels = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
for panel, score in zip(panels, ("AUROC", "average precision"), strict=True):
    table = results.pivot_table(f"mean_test_{score}", "patch size", "ratio", aggfunc="max").astype(float)
    image = panel.imshow(table, cmap="cividis", aspect="auto")
    panel.set_xticks(range(table.shape[1]), [f"{ratio:.1%}" for ratio in table.columns])
    panel.set_yticks(range(table.shape[0]), table.index)
    panel.set(xlabel="ratio: fraction of patches in the bank", ylabel="patch size", title=score)
    middle = (table.to_numpy().min() + table.to_numpy().max()) / 2
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        color = "white" if value < middle else "black"
        panel.text(column, row, f"{value:.3f}", ha="center", va="center", color=color)
    figure.colorbar(image, ax=panel)
plt.show()

# %%
# The best setting is fitted again on the good training images, this time with a threshold.

final = clone(search.best_estimator_).set_params(calibration="auto", contamination=0.1)
final.fit(task.train_images, groups=task.train_groups)
print(f"good images flagged:      {(final.predict(task.test_images[task.test_labels == 1]) == -1).mean():.0%}")
print(f"defective images flagged: {(final.predict(task.test_images[task.test_labels == -1]) == -1).mean():.0%}")
memory.cleanup()
