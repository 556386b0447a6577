"""
Exact and approximate search
============================

The memory bank of a detector is a matrix. Each row is the feature of one patch of a good image. The index is the stage
of the detector that finds, for each patch of a new image, the nearest row of the memory bank. ``ExactIndex`` always
finds the nearest row. ``PyNNDescentIndex`` is approximate: for a few patches, it returns a row that is not the nearest
one. Any other estimator with the methods ``fit`` and ``kneighbors`` can be used as the index, e.g. ``NearestNeighbors``
of scikit-learn. ``ExactIndex`` is the default. Its search usually takes less time than the network.
"""

# %%
# The three indexes are compared on the same memory bank, with the same queries. A query is the feature of one patch of
# a test image.

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.neighbors import NearestNeighbors

from skpatchcore import ExactIndex, GreedyCoresetSampler, PyNNDescentIndex, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

task = make_textures("gravel")
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
features = extractor.fit_transform(task.train_images)
bank = GreedyCoresetSampler(0.25, random_state=0).fit(features.reshape(-1, features.shape[-1])).components_
queries = extractor.transform(task.test_images).reshape(-1, features.shape[-1])
print(f"{len(bank)} rows of {bank.shape[1]} channels, {len(queries)} queries")

# %%
# The times are for this small memory bank, on the machine that built this page. Before its first search in each
# process, the approximate index compiles code (half a minute) and builds a graph. The times below do not include this
# preparation. An approximate index therefore saves time only if a process scores so many images that the faster
# searches save more than the preparation costs.

indexes = {
    "ExactIndex": ExactIndex(),
    "PyNNDescentIndex": PyNNDescentIndex(random_state=0),
    "sklearn NearestNeighbors": NearestNeighbors(algorithm="brute"),
}
found, seconds = {}, {}
for name, index in indexes.items():
    index.fit(bank)
    index.kneighbors(queries[:256], 1)  # excludes the preparation in the first call from the time
    begin = time.perf_counter()
    found[name] = index.kneighbors(queries, 1)
    seconds[name] = time.perf_counter() - begin
    print(f"{name:<26}{1000 * seconds[name] / len(task.test_images):7.2f} ms per image")

# %%
# Each point is one patch of a test image. The exact distance is the distance of the patch from the nearest row. The
# approximate distance is the distance of the patch from the row that ``PyNNDescentIndex`` returns. If this is not the
# nearest row, the approximate distance is larger, and the patch looks more anomalous. A patch never looks less
# anomalous with the approximate index.

exact, approximate = found["ExactIndex"][0][:, 0], found["PyNNDescentIndex"][0][:, 0]
same = found["ExactIndex"][1][:, 0] == found["PyNNDescentIndex"][1][:, 0]
figure, ax = plt.subplots(figsize=(5, 4.4), layout="constrained")
ax.plot([0, exact.max()], [0, exact.max()], color="#999999", linewidth=1)
ax.scatter(exact[same], approximate[same], s=3, color="#0072B2", label=f"the same row: {same.mean():.1%}")
ax.scatter(exact[~same], approximate[~same], s=10, color="#D55E00", label=f"another row: {(~same).mean():.1%}")
ax.set(xlabel="exact distance", ylabel="approximate distance")
ax.legend(frameon=False, markerscale=3)
plt.show()

largest = [np.max(d[0].reshape(len(task.test_images), -1), axis=1) for d in found.values()]
print(f"image scores: at most {np.max(largest[1] / largest[0] - 1):.2%} larger with the approximate index")
