"""
Thresholds: what goes wrong in-sample
=====================================

Where does the threshold come from? Not from the scores of the training images as they are: each finds its own patches
in the memory bank, and looks far more normal than a new image can.
"""

# %%
# A wall in 64 pieces. Forty are learnt from, each photographed twice under its own light; of the others we want to know
# how many are flagged although they are as good.

import matplotlib.pyplot as plt
import numpy as np
import skimage.data

from skpatchcore import PatchCoreDetector, TorchFeatureExtractor

rng = np.random.default_rng(0)
wall = skimage.data.brick() / 255.0
pieces = wall.reshape(8, 64, 8, 64).swapaxes(1, 2).reshape(64, 64, 64)[rng.permutation(64)]


def photographed(piece):
    """Return the piece under some light, with the noise of a sensor."""
    return (piece * rng.uniform(0.92, 1.08) + rng.normal(0, 0.012, piece.shape)).clip(0, 1)[..., None]


train = np.stack([photographed(piece) for piece in pieces[:40] for _ in range(2)])
piece_of = np.repeat(np.arange(40), 2)
fresh = np.stack([photographed(piece) for piece in pieces[40:]])

# %%
# Three kinds of scores of the same good training images: against a bank that holds their own patches; with the image's
# own rows left out; and with all rows left out that show the same piece.

extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None, crop_size=None)
detector = PatchCoreDetector(extractor, contamination=0.1, random_state=0).fit(train)
kinds = {
    "in-sample": detector.score_samples(train),
    "leave one image out": detector.calibration_scores_,
    "leave one piece out": detector.fit(train, groups=piece_of).calibration_scores_,
}
fresh_scores = detector.score_samples(fresh)

# %%
# Each gives another threshold: what one good image in ten should exceed. The fresh pieces tell what becomes of that.

figure, panels = plt.subplots(3, 1, figsize=(7.5, 6), sharex=True, layout="constrained")
edges = np.histogram_bin_edges(-np.concatenate([fresh_scores, *kinds.values()]), 40)
for panel, (kind, scores) in zip(panels, kinds.items(), strict=True):
    threshold = np.sort(-scores)[int(np.ceil((len(scores) + 1) * 0.9)) - 1]
    panel.hist(-scores, edges, color="#999999", label="training images")
    panel.hist(-fresh_scores, edges, color="#0072B2", alpha=0.7, label="fresh good images")
    panel.axvline(threshold, color="black", linestyle="--", label="threshold")
    flagged = (-fresh_scores > threshold).mean()
    panel.set_title(f"{kind}: asked to flag 10 % of good images, flags {flagged:.0%} of fresh ones", fontsize=10)
panels[0].legend(frameon=False, fontsize="small")
panels[-1].set_xlabel("anomaly score")
plt.show()

# %%
# The in-sample threshold flags nearly everything. Leaving out the image alone is not enough here: its twin, the other
# photograph of the same piece, stays in the bank. ``PatchCoreDetector`` never uses in-sample scores; tell it by
# ``groups`` which images show the same part. A threshold from fresh good images is another way:

detector.recalibrate(fresh[:12], contamination=0.1)
print(f"recalibrated on 12 fresh pieces, it flags {(detector.predict(fresh[12:]) == -1).sum()} of 12 others")
