"""
Thresholds: what goes wrong in-sample
=====================================

An in-sample score is the score of a training image with a memory bank that contains patches of the same image. A
threshold must not be computed from in-sample scores, because the nearest rows are often patches of the same image. The
training image then looks much more normal than a new image.
"""

# %%
# A photograph of a wall is cut into 64 pieces. Forty pieces are for training. Each training piece is photographed
# twice with different light. The remaining pieces are also good, and the example measures how many of them are flagged.

import matplotlib.pyplot as plt
import numpy as np
import skimage.data

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor

rng = np.random.default_rng(0)
wall = skimage.data.brick() / 255.0
pieces = wall.reshape(8, 64, 8, 64).swapaxes(1, 2).reshape(64, 64, 64)[rng.permutation(64)]


def photographed(piece):
    """Return the piece with random brightness and with sensor noise."""
    return (piece * rng.uniform(0.92, 1.08) + rng.normal(0, 0.012, piece.shape)).clip(0, 1)[..., None]


train = np.stack([photographed(piece) for piece in pieces[:40] for _ in range(2)])
piece_of = np.repeat(np.arange(40), 2)
fresh = np.stack([photographed(piece) for piece in pieces[40:]])

# %%
# The same good training images are scored in three ways: against the complete memory bank, which contains their own
# patches; against banks that were selected without the image; and against banks without all images of the same piece.

extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detector = PatchCoreDetector(extractor, contamination=0.1, random_state=0).fit(train)
kinds = {
    "in-sample": detector.score_samples(train),
    "without the image": detector.calibration_scores_,
    "without the piece": detector.fit(train, groups=piece_of).calibration_scores_,
}
fresh_scores = detector.score_samples(fresh)

# %%
# From each kind of scores, a threshold is computed that should flag one good image in ten. The images of new pieces
# show how many good images the threshold actually flags. The figure shows anomaly scores, i.e. the scores with the
# opposite sign: bigger = more anomalous.

figure, panels = plt.subplots(3, 1, figsize=(7.5, 6), sharex=True, layout="constrained")
edges = np.histogram_bin_edges(-np.concatenate([fresh_scores, *kinds.values()]), 40)
for panel, (kind, scores) in zip(panels, kinds.items(), strict=True):
    threshold = np.sort(-scores)[int(np.ceil((len(scores) + 1) * 0.9)) - 1]
    panel.hist(-scores, edges, color="#999999", label="training images")
    panel.hist(-fresh_scores, edges, color="#0072B2", alpha=0.7, label="new good images")
    panel.axvline(threshold, color="black", linestyle="--", label="threshold")
    flagged = (-fresh_scores > threshold).mean()
    panel.set_title(f"{kind}: 10 % of good images asked for, {flagged:.0%} of new ones flagged", fontsize=10)
panels[0].legend(frameon=False, fontsize="small")
panels[-1].set_xlabel("anomaly score")
plt.show()

# %%
# The in-sample threshold flags nearly all images. Leaving out only the image itself is not sufficient here, because
# the other photograph of the same piece stays in the memory bank. ``PatchCoreDetector`` never uses in-sample scores.
# Pass ``groups`` if several images show the same part. Alternatively, compute the threshold from new good images:

detector.recalibrate(fresh[:12], contamination=0.1)
print(f"recalibrated on 12 new pieces: {(detector.predict(fresh[12:]) == -1).sum()} of 12 others flagged")
